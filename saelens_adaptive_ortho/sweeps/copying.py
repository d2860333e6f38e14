"""The copy of a sweep at a URL, so that nothing is lost when the machines of a cloud go away.

A sweep works in a folder. With ``copy_to``, each finished unit is also written to a URL of fsspec
(``s3://``, ``gs://``, ``hf://``, ``file://``), and comes back from there to an empty folder::

    URL/sweep.json, sweep.yaml, report.html, summary.json
    URL/units/UNIT/...        the files of the unit, under their own names
    URL/units/UNIT/copy.json  their sizes and SHA-256 sums, and the settings; it is written last

A unit is copied if its ``copy.json`` says so, and every object is as it says. The store must write,
read and list objects, and nothing more: nothing is renamed, appended or locked there.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from saelens_adaptive_ortho.checksums import breaks_seal, sealed, sha256_of
from saelens_adaptive_ortho.errors import ConfigError, Explained, reject
from saelens_adaptive_ortho.files import atomic_directory
from saelens_adaptive_ortho.manifests import (
    MANIFEST,
    UNITS,
    Manifest,
    Unit,
    parse_manifest,
    unit_folder,
)
from saelens_adaptive_ortho.report.page.sweep import REPORT, SUMMARY
from saelens_adaptive_ortho.sweeps.attempts import Attempt, Attempts, Ending
from saelens_adaptive_ortho.sweeps.drivers.contract import OK
from saelens_adaptive_ortho.sweeps.folder import CONFIG, settings_digest

COPY_TO = "copy_to"  # the setting
RECORD = "copy.json"
VERSION = 1
OF_SWEEP = (MANIFEST, CONFIG, REPORT, SUMMARY)
NOT_COPIED = ("cache", "wandb")  # folders in a unit's folder
CHECKPOINTS = "checkpoints"  # a folder in those of the seeds
REMEDY = (
    "Check the address, the rights (write, read, list) and the credentials of this machine, or "
    "leave copy_to out."
)
_PASSWORD = re.compile(r"(://[^/@:]*:)[^/@]+(?=@)")
_RELATIVE = re.compile(r"(file|local)://(?![/~])")


class CopyError(Explained):
    """The URL did not take, or did not give, an object. The message names the URL and the cause."""


class DamagedError(Exception):
    """Something at the URL is missing, or is not as it was written."""


@dataclass(frozen=True)
class Copied:
    """What the URL has of a unit.

    Args:
        unit: name of the unit.
        settings: digest of its settings, as it was done.
        seconds: time that it took.
        files: ``sha256`` and ``size`` of each file, by its path in the unit's folder.
        complete: whether these are all files of the unit. If not, the copy was interrupted.
    """

    unit: str
    settings: str
    seconds: float
    files: Mapping[str, Mapping[str, Any]]
    complete: bool = True


def checked_url(value: object) -> str:
    """The setting ``copy_to``, checked by its form alone.

    Raises:
        ConfigError: it is no URL, is relative, or has a password in it.
    """
    if not isinstance(value, str) or not re.match(r"[A-Za-z].*://", value):
        rule = "must be a URL, such as s3://bucket/prefix, or file:///folder for a folder."
        raise reject(COPY_TO, value, rule)
    if _RELATIVE.match(value):
        raise reject(COPY_TO, value, "must be absolute: file:/// and the path of a folder.")
    if _PASSWORD.search(value):
        rule = (
            "has a password in it, which sweep.json and the report would tell. Leave it out, and "
            "give it in the environment of the machines."
        )
        raise reject(COPY_TO, _PASSWORD.sub(r"\1***", value), rule)
    return value


class Copy:
    """The copy of a sweep at a URL.

    Args:
        url: the URL.

    Raises:
        ConfigError: no package for this protocol is installed, or the URL cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        local = re.match(r"(file|local)://", url)
        try:
            self.fs, root = url_to_fs(url, **({"auto_mkdir": True} if local else {}))
        except Exception as error:  # each kind of store has its own
            rule = f"cannot be opened ({_in_words(error)}). Install what this protocol needs, or "
            raise reject(COPY_TO, url, f"{rule}name another URL.") from error
        self.root = root.rstrip("/")

    def check(self, sweep: Path) -> None:
        """Write an object, list it, read it and delete it.

        A store that deletes nothing will do, too.

        Args:
            sweep: the sweep's folder.

        Raises:
            ConfigError: that does not work, or the URL is in the sweep's own folder.
        """
        if isinstance(self.fs, LocalFileSystem):
            here, there = sweep.resolve(), Path(self.root).resolve()
            if there.is_relative_to(here) or here.is_relative_to(there):
                where = "in" if there.is_relative_to(here) else "around"
                rule = f"is {where} the folder of the sweep itself. Name a place beside it."
                raise reject(COPY_TO, self.url, rule)
        folder, text = f"probe-{uuid.uuid4().hex}", "A sweep sees whether it can write here.\n"
        try:
            self._write(text, f"{folder}/probe")
            if self._sizes(folder) != {"probe": len(text)}:
                raise self._failed("what is written there is not listed")
            if self._read(f"{folder}/probe") != text.encode():
                raise self._failed("what is written there is not what is read")
        except CopyError as error:
            raise ConfigError(f"{error} {REMEDY}") from error
        with suppress(Exception):
            self.fs.rm(self._path(folder), recursive=True)

    # ---------------------------------------------------------- the sweep

    def manifest(self) -> Manifest | None:
        """The manifest of the sweep; None if there is none.

        Raises:
            DamagedError: it cannot be used.
            CopyError: the URL does not answer.
        """
        raw = self._read(MANIFEST)
        if raw is None:
            return None
        try:
            return parse_manifest(raw, COPY_TO, f"{self.url}/{MANIFEST}")
        except ConfigError as error:
            raise DamagedError(str(error)) from error

    def put_sweep(self, sweep: Path) -> None:
        """Copy the manifest, the config and the report, as far as they are there and new.

        Raises:
            CopyError: the URL does not take them.
        """
        for name in OF_SWEEP:
            file = sweep / name
            if file.is_file() and self._read(name) != file.read_bytes():
                self._send(file, name)

    # ---------------------------------------------------------- the units

    def copied(self, unit: str) -> Copied | None:
        """What the URL has of a unit; None if there is nothing.

        Raises:
            DamagedError: its record is damaged.
            CopyError: the URL does not answer.
        """
        raw = self._read(_of(unit, RECORD))
        if raw is None:
            return None
        try:
            text = raw.decode()
            found = json.loads(text)
            if breaks_seal(text, found):
                raise ValueError("its SHA-256 is another one")
            return _checked(found, unit)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"{RECORD} is not as it was written ({error})") from error

    def put(self, sweep: Path, unit: Unit, seconds: float) -> int:
        """Copy a unit that is whole; returns the number of files that were sent.

        Files that are there already are not sent again. If it is interrupted, the record says what
        was sent, and that the copy is not complete.

        Args:
            sweep: the sweep's folder.
            unit: the unit.
            seconds: time that it took.

        Raises:
            CopyError: the URL does not take a file.
            OSError: a file cannot be read.
        """
        root = unit_folder(sweep, unit.name)
        files = {name: _entry(root / name) for name in files_of(root)}
        new = Copied(unit.name, settings_digest(unit), seconds, files)
        try:
            old = self.copied(unit.name)
        except DamagedError:
            old = None
        kept = self._kept(new, old)
        if old and replace(old, seconds=seconds) == new and kept == files:
            return 0
        if old:  # from here to the end, the copy is not complete
            self._write_record(replace(new, files=kept, complete=False))
        left = [name for name in files if name not in kept]
        try:
            for name in left:
                self._send(root / name, _of(unit.name, name))
                kept[name] = files[name]
        except BaseException:
            with suppress(CopyError):
                self._write_record(replace(new, files=kept, complete=False))
            raise
        self._write_record(new)
        return len(left)

    def get(self, sweep: Path, copied: Copied) -> None:
        """Bring the files of a unit back, all or none. Others in its folder stay.

        Raises:
            DamagedError: an object is missing, or is not as it was written.
            CopyError: the URL does not answer.
            StorageError: the folder could not be written.
        """
        target = unit_folder(sweep, copied.unit)
        with atomic_directory(target, "The copy is intact.", keep_others=True) as folder:
            for name, entry in copied.files.items():
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                self._fetch(_of(copied.unit, name), file)
                if _entry(file) != entry:
                    raise DamagedError(f"{name} is not as it was written")

    def distrust(self, copied: Copied) -> None:
        """Write that the objects of a unit are not what they should be: all are sent again.

        Raises:
            CopyError: the URL does not take the record.
        """
        self._write_record(replace(copied, files={}, complete=False))

    def _kept(self, new: Copied, old: Copied | None) -> dict[str, Mapping[str, Any]]:
        """The files of a unit that the URL has already, and has in full size."""
        if old is None:
            return {}
        sizes = self._sizes(f"{UNITS}/{new.unit}")
        same = {name: entry for name, entry in new.files.items() if old.files.get(name) == entry}
        return {name: entry for name, entry in same.items() if sizes.get(name) == entry["size"]}

    def _write_record(self, copied: Copied) -> None:
        self._write(sealed({"version": VERSION, **asdict(copied)}), _of(copied.unit, RECORD))

    # ---------------------------------------------------------- the store

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _send(self, file: Path, name: str) -> None:
        try:
            self.fs.put_file(str(file), self._path(name))
        except Exception as error:
            raise self._failed(f"{name} could not be written", error) from error

    def _write(self, text: str, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:  # not every store makes folders for bytes
            file = Path(folder) / "text"
            file.write_text(text, encoding="utf-8", newline="")
            self._send(file, name)

    def _fetch(self, name: str, file: Path) -> None:
        try:
            self.fs.get_file(self._path(name), str(file))
        except FileNotFoundError as error:
            raise DamagedError(f"{name} is missing") from error
        except Exception as error:
            raise self._failed(f"{name} could not be fetched", error) from error

    def _read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none."""
        try:
            return self.fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed(f"{name} could not be read", error) from error

    def _sizes(self, name: str) -> dict[str, int]:
        """The sizes of all objects below a name, as the store lists them."""
        root = self._path(name)
        try:
            self.fs.invalidate_cache()
            found = self.fs.find(root, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise self._failed(f"{name} could not be listed", error) from error
        return {path.removeprefix(f"{root}/"): one.get("size") for path, one in found.items()}

    def _failed(self, what: str, error: Exception | None = None) -> CopyError:
        why = f" ({_in_words(error)})" if error else ""
        return CopyError(f"{COPY_TO}={self.url!r}: {what}{why}.")


def copy_unit(url: str, sweep: Path, unit: Unit, seconds: float) -> int:
    """Copy a unit that is whole to a URL; returns the number of files that were sent.

    Raises:
        CopyError: it could not be copied. The message says that the folder is intact.
        OSError: a file cannot be read.
    """
    try:
        return Copy(url).put(sweep, unit, seconds)
    except Explained as error:
        intact = f"The SAEs are intact in {unit_folder(sweep, unit.name)}."
        raise CopyError(f"{error} {intact} The same command copies them.") from error


def bring_back(copy: Copy, sweep: Path, unit: Unit, say: Callable[[str], None]) -> Attempt | None:
    """Bring a unit that is not whole back from its copy; returns the try that did so.

    It ended as ``whole`` if the unit was done with these settings. If it was judged with other
    ones, its SAEs come back to a folder that has none, and the try ended as ``stopped``. A damaged
    copy is said, and not used.

    Returns:
        None if there is no copy to use, or another process works on the unit.

    Raises:
        CopyError: the URL does not answer.
        StorageError: the folder could not be written.
    """
    copied = _usable(copy, sweep, unit, say)
    if copied is None:
        return None
    attempts = Attempts(sweep)
    attempt = attempts.claim(unit.name, uuid.uuid4().hex, copied.settings)
    if attempt is None:
        return None
    ended: Ending = "stopped"
    reason, status = "interrupted while it came back from its copy", None
    try:
        with attempts.beating(attempt):
            copy.get(sweep, copied)
        if copied.settings == settings_digest(unit):
            ended, reason, status = "whole", "", OK
        else:
            reason = f"its SAEs are back from {copy.url}, and are judged with other settings now"
    except DamagedError as error:
        ended, reason = "failed", _is_damaged(copy, error)
        copy.distrust(copied)
    finally:
        attempt = attempts.end(attempt, ended, reason, status=status, seconds=copied.seconds)
    if reason:
        say(f"{unit.name} ({unit.label}): {reason}")
    return attempt


def files_of(folder: Path) -> Iterator[str]:
    """The files of a unit that are copied, as paths in its folder.

    The tokenised text, checkpoints, the files of W&B, and what processes write for themselves
    (names with a dot in front) are not copied.
    """
    for place, folders, files in os.walk(folder):
        within = Path(place).relative_to(folder)
        depth = len(within.parts)
        left_out = NOT_COPIED if depth == 0 else (CHECKPOINTS,) if depth == 1 else ()
        folders[:] = sorted(f for f in folders if f not in left_out and not f.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield (within / name).as_posix()


def _usable(copy: Copy, sweep: Path, unit: Unit, say: Callable[[str], None]) -> Copied | None:
    try:
        copied = copy.copied(unit.name)
        if copied is not None and not copied.complete:
            raise DamagedError("it was interrupted")
    except DamagedError as error:
        say(f"{unit.name} ({unit.label}): {_is_damaged(copy, error)}")
        return None
    if copied is None or copied.settings == settings_digest(unit):
        return copied
    return None if unit_folder(sweep, unit.name).exists() else copied


def _is_damaged(copy: Copy, error: DamagedError) -> str:
    return f"its copy at {copy.url} is not used: {error}"


def _of(unit: str, name: str) -> str:
    return f"{UNITS}/{unit}/{name}"


def _entry(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(file), "size": file.stat().st_size}


def _checked(found: Mapping[str, Any], unit: str) -> Copied:
    """The record of a unit.

    Raises:
        ValueError: it is that of another unit or version, or names files outside of the folder.
        KeyError, TypeError, AttributeError: it has another form.
    """
    if (found["version"], found["unit"]) != (VERSION, unit):
        raise ValueError("it is of another unit, or of another version")
    for name in found["files"]:
        parts = PurePosixPath(name).parts
        if not parts or name != "/".join(parts) or ".." in parts or "\\" in name:
            raise ValueError(f"{name!r} is no file of a unit")
    files = {n: {"sha256": e["sha256"], "size": e["size"]} for n, e in found["files"].items()}
    complete = found["complete"] is True
    return Copied(unit, str(found["settings"]), float(found["seconds"]), files, complete)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
