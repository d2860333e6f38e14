"""Atomic writes of files and folders, and errors that say what survived a failed write."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from saelens_adaptive_ortho.checksums import (
    SEAL,
    breaks_seal,
    files_named,
    sealed,
    write_sums,
)
from saelens_adaptive_ortho.errors import ConfigError, Explained, reject
from saelens_adaptive_ortho.locks import LOCK, lock_file, write_lock

T = TypeVar("T")
WRITE_PATIENCE = 600.0  # seconds that a folder waits for another process that writes it
SCRATCH = "adaptive-ortho-"  # the names of scratch folders begin with it
# The names of the temporary files of write_text_atomic. Nobody else gives a file such a name.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


class StorageError(Explained, RuntimeError):
    """A write failed. The message names the path, the cause and what survived."""


def user_path(text: str) -> Path:
    """The path that a user names: ``~`` is the home folder, as in a shell.

    A file whose own name begins with ``~`` is found if nothing lies in such a home folder.
    """
    expanded = os.path.expanduser(text)  # of Path, "./~" would be the home folder, too
    return Path(text if os.path.exists(text) and not os.path.exists(expanded) else expanded)


def read_text(field: str, path: Path, longest: int = 1 << 28) -> str:
    """The text of a file that a user names, with UTF-8 as its encoding.

    Args:
        field: name of the setting that names the file, for the error.
        path: the file.
        longest: its largest size in bytes.

    Raises:
        ConfigError: the file is missing, no regular file (such as a folder or a device), too long,
            or not UTF-8 text. The message names the file.
    """
    try:
        if path.exists() and not path.is_file():
            raise reject(field, str(path), "is no regular file. Name a file of text.")
        if path.stat().st_size > longest:
            raise reject(field, str(path), f"is longer than {longest:,} bytes. Shorten it.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise reject(field, str(path), "is not UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise reject(field, str(path), f"cannot be read ({error.strerror}).") from error
    except ConfigError:
        raise
    except ValueError as error:  # a name with a NUL character
        raise reject(field, str(path), f"cannot be read ({error}).") from error


def without_home(value: Any) -> Any:
    """A JSON value with ``~`` for the home folder in every text.

    Files that are published then do not tell the name of the user. :func:`user_path` reads such a
    path again.
    """
    if isinstance(value, str):
        return _without_home(value)
    if isinstance(value, Mapping):
        return {key: without_home(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_home(item) for item in value]
    return value


def _without_home(text: str) -> str:
    try:
        home = str(Path.home())
    except RuntimeError:  # there is no home folder
        return text
    if home not in text or home == os.sep:
        return text
    # Not a part of a longer name, such as /mnt/home/me or /home/me2.
    # Neither is the bucket in s3://home/me; file:///home/me is.
    return re.sub(rf"(?<![\w.~-])(?<!:/){re.escape(home)}(?![\w-]|\.\w)", "~", text)


def refuse_url(field: str, value: str | Path) -> None:
    """Refuse a URL where a file or a folder is meant; otherwise a folder ``s3:`` would be made.

    A URL that was read as a path has lost one of its slashes.

    Raises:
        ConfigError: it is a URL.
    """
    found = re.fullmatch(r"([A-Za-z][\w+.-]+:)(|/+(.*))", str(value), re.DOTALL)
    if found:
        rule = "is a URL, and must be a folder. `copy_to` of a sweep copies its results to a URL."
        raise reject(field, f"{found[1]}//{found[3] or ''}", rule)


def check_writable(field: str, path: str | Path, value: str | Path | None = None) -> None:
    """Refuse an output folder that cannot be written, before any long work starts.

    Args:
        field: the setting that names the folder.
        path: the folder.
        value: the value of the setting, if it is not the folder itself.

    Raises:
        ConfigError: the folder cannot be written, or it is a URL. The message names ``field``, the
            path and the cause.
    """
    refuse_url(field, path if value is None else value)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # it has no name, so a kill leaves none behind
            pass
    except OSError as error:
        raise reject(
            field,
            str(path if value is None else value),
            f"cannot be written ({error.strerror}). Choose another folder.",
        ) from error


def check_new_folder(field: str, target: Path) -> None:
    """Refuse a folder that has files in it, or that cannot be written.

    Raises:
        ConfigError: ``target`` is a file, the working directory, not empty, or cannot be written.
    """
    if target.resolve() == Path.cwd():  # it would be replaced by another folder
        raise reject(field, str(target), "is the working directory. Name a new folder.")
    if target.exists() and not target.is_dir():
        raise reject(field, str(target), "is a file. Name a new folder.")
    if target.is_dir() and any(target.iterdir()):
        raise reject(field, str(target), "is not empty. Name a new folder; nothing is overwritten.")
    check_writable(field, target.parent, target)


def check_new_file(field: str, target: Path) -> None:
    """Refuse a file that exists, or that cannot be written.

    Raises:
        ConfigError: there is a file or a folder at ``target``, or its folder cannot be written.
    """
    if target.is_dir():
        raise reject(field, str(target), "is a folder. Name a file in it.")
    if target.exists() or target.is_symlink():
        raise reject(field, str(target), "exists. Name a new file; nothing is overwritten.")
    check_writable(field, target.parent, target)


def check_space(field: str, target: Path, needed: int) -> None:
    """Refuse a disk with less than ``needed`` bytes of free space.

    Raises:
        ConfigError: there is too little space where ``target`` will be.
    """
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise reject(
            field,
            str(target),
            f"needs {megabytes(needed)} of free disk space, and there are {megabytes(free)}. "
            "Free some space, or name a folder on another disk.",
        )


def megabytes(n_bytes: int) -> str:
    """A number of bytes as a text in MB, rounded up: to tenths below 100 MB."""
    if n_bytes < 1e8:
        return f"{math.ceil(n_bytes / 1e5) / 10:g} MB"
    return f"{math.ceil(n_bytes / 1e6):,} MB"


@contextmanager
def write_failures_named(target: Path, survives: str) -> Iterator[None]:
    """Turn a failed write inside the block into a :class:`StorageError`; other errors pass.

    Args:
        target: the path that the error names.
        survives: a sentence that says what is still intact, for the error.

    Raises:
        StorageError: a write inside the block failed.
    """
    try:
        yield
    except StorageError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_write_failure(error):
            raise
        raise StorageError(
            f"{target} could not be written ({error}). {survives} Free some space and run the "
            "same command again."
        ) from error


@contextmanager
def atomic_directory(
    target: Path, survives: str, sums: bool = False, keep_others: bool = False
) -> Iterator[Path]:
    """A temporary folder beside ``target`` that replaces ``target`` only if the block succeeds.

    If another process is writing the same ``target``, this one waits until it has finished.

    Args:
        target: the folder to write.
        survives: a sentence that says what is still intact if writing fails, for the error.
        sums: also write the SHA-256 sums of all files (:mod:`saelens_adaptive_ortho.checksums`).
        keep_others: files of an existing ``target`` that its own sums do not name, and that the
            block does not write, stay: they are of somebody else.

    Raises:
        StorageError: the folder could not be written completely (for example, no space is left).
            The temporary folder is removed, and an existing ``target`` does not change.
    """
    with _sole_writer(target, survives):
        _recover(target)
        with _written_beside(target, survives) as temporary:
            yield temporary
            if sums:
                write_sums(temporary)
            if keep_others:
                _copy_others(target, temporary)


@contextmanager
def _sole_writer(target: Path, survives: str) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            with write_failures_named(target, survives):
                target.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(write_lock(target, WRITE_PATIENCE))
        except TimeoutError as error:
            raise StorageError(
                f"{target} could not be written: another process has been writing it for "
                f"{WRITE_PATIENCE:g} seconds. {survives}"
            ) from error
        except OSError as error:
            raise StorageError(
                f"{target} could not be written ({error.strerror}). {survives} Choose another "
                "folder."
            ) from error
        yield


@contextmanager
def _written_beside(target: Path, survives: str) -> Iterator[Path]:
    temporary, old = _beside(target)
    try:
        with write_failures_named(target, survives):
            temporary.mkdir()
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                _sync(path)
            if target.exists():
                target.rename(old)
            try:
                temporary.rename(target)
            except BaseException:
                if old.exists():
                    old.rename(target)
                raise
            _sync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _copy_others(target: Path, temporary: Path) -> None:
    made = files_named(target)
    for file in sorted(target.rglob("*")):
        name = file.relative_to(target)
        new = temporary / name
        is_file = file.is_symlink() or file.is_file()
        if is_file and name.as_posix() not in made and not os.path.lexists(new):
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, new, follow_symlinks=False)


def recover_directory(target: Path) -> None:
    """Clean up after an :func:`atomic_directory` that was killed.

    If it was killed between the two renames, the earlier folder gets its name back. What is left of
    an unfinished folder is deleted, and so is the lock file. If another process is writing
    ``target``, nothing is done. ``target`` may also be a file that is written in the same way, to
    ``.NAME.tmp`` and under a :func:`write_lock`.
    """
    if not any(os.path.lexists(path) for path in (*_beside(target), lock_file(target))):
        return
    with suppress(TimeoutError), write_lock(target, seconds=0):
        _recover(target)


@contextmanager
def made_once(path: Path, read: Callable[[], T | None]) -> Iterator[T | None]:
    """What ``read`` finds at ``path``; None if this process shall make it in the block.

    Of several processes that find nothing, one makes it. The others wait until its block ends, and
    then read again. If the process is killed, the next one makes it.

    Args:
        path: what is made; ``.NAME.making.lock`` beside it is the lock.
        read: function that returns what is there, or None if it is missing or damaged.

    Raises:
        OSError: the folder of ``path`` cannot be written.
    """
    found = read()
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_lock(path.with_name(f"{path.name}.making")):
            found = read()
            if found is None:
                yield None
                return
    yield found


def remove_litter(folders: Iterable[Path], older: float = 0.0) -> None:
    """Delete the temporary files that a killed process left in some folders.

    No other process may be writing there, unless ``older`` is a time that no write takes. Only
    names that :func:`write_text_atomic` gives are deleted, and folders inside the folders are not
    searched.

    Args:
        folders: the folders.
        older: seconds since the last change of a file, from which on it is deleted.
    """
    for folder in folders:
        _remove_temporary(folder, TEMPORARY, older)


def remove_litter_of(file: Path) -> None:
    """Delete the temporary files that a killed process left when it wrote ``file``.

    No other process may be writing ``file``.
    """
    _remove_temporary(file.parent, re.compile(rf"\.{re.escape(file.name)}\.[0-9a-f]{{32}}\.tmp"))


def delete_files(folder: Path, names: Iterable[str]) -> None:
    """Delete some files of a folder, in this order, and the folders that are empty then.

    The folder itself goes, too, if nothing is left in it. Files behind a link to another folder
    stay.

    Args:
        folder: the folder.
        names: paths of the files in it. One that does not exist is left out.
    """
    for name in names:
        file = folder / name
        if file.is_file() and file.parent.resolve().is_relative_to(folder.resolve()):
            file.unlink()
            remove_empty(file.parent, folder.parent)


def remove_empty(folder: Path, last: Path) -> None:
    """Remove a folder and those above it that are empty then, below ``last``."""
    while folder != last and folder.is_relative_to(last):
        if folder.is_dir():
            if any(folder.iterdir()):
                return
            folder.rmdir()
        folder = folder.parent


@contextmanager
def new_folders_removed(folders: Iterable[Path]) -> Iterator[None]:
    """Remove the folders that the block has made at or above some paths, if they are empty."""
    missing = {path for folder in folders for path in (folder, *folder.parents)}
    missing = {path for path in missing if not path.exists()}
    try:
        yield
    finally:
        for path in sorted(missing, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it is not empty, or was not made
                path.rmdir()


def _remove_temporary(folder: Path, name: re.Pattern[str], older: float = 0.0) -> None:
    for path in folder.iterdir() if folder.is_dir() else []:
        if name.fullmatch(path.name) and path.is_file():
            with suppress(FileNotFoundError):  # its process has just finished it
                if not older or time.time() - path.stat().st_mtime >= older:
                    path.unlink()


@contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A new folder in ``place`` for temporary files; it is deleted after the block.

    It holds a lock, so that :func:`remove_scratch` knows the folders of living processes. Those of
    killed processes are deleted first.
    """
    place.mkdir(parents=True, exist_ok=True)
    remove_scratch(place)
    folder = place / f"{SCRATCH}{uuid.uuid4().hex}"
    with write_lock(folder):  # before there is a folder: nobody finds one without its lock
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_scratch(place: Path) -> None:
    """Delete the scratch folders that killed processes left in ``place``, and their locks.

    Those of living processes stay. A process may be killed before it has made its folder, so the
    locks are looked for, too.
    """
    for path in [*place.glob(f"{SCRATCH}*"), *place.glob(f".{SCRATCH}*")]:
        name = path.name.removeprefix(".").removesuffix(LOCK)
        if re.fullmatch(rf"{SCRATCH}[0-9a-f]{{32}}", name):
            with suppress(TimeoutError), write_lock(place / name, seconds=0):
                shutil.rmtree(place / name, ignore_errors=True)


def _recover(target: Path) -> None:
    temporary, old = _beside(target)
    if old.exists() and not target.exists():
        old.rename(target)
    for left in (temporary, old):
        _delete(left)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _beside(target: Path) -> tuple[Path, Path]:
    """The temporary folder, and the name of the earlier folder during the swap."""
    return target.with_name(f".{target.name}.tmp"), target.with_name(f".{target.name}.old")


def write_text_atomic(path: str | Path, text: str) -> Path:
    """Write ``text`` (UTF-8) atomically: ``path`` has either its old or its complete new content.

    The text is written to a temporary file in the same folder and flushed to disk. Then this file
    replaces ``path``. On an error, the temporary file is removed and ``path`` does not change.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        # newline="" keeps "\n" as it is on every platform.
        with open(temporary, "x", encoding="utf-8", newline="") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused, because they are not JSON."""
    _write_json_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_sealed(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with its SHA-256 as its last field.

    :func:`read_cached` then notices each change. NaN and infinity are refused.
    """
    _write_json_text(path, sealed(document))


def _write_json_text(path: Path, text: str) -> None:
    try:
        write_text_atomic(path, text)
    except OSError as error:
        raise StorageError(f"{path} could not be written ({error.strerror}).") from error


def read_cached(path: Path) -> Any:
    """JSON that can be made again, without its seal: None if the file is missing or damaged.

    A warning names a damaged file. JSON without a seal, as of earlier versions, is whole if it can
    be read.
    """
    try:
        text = path.read_bytes().decode()
        found = json.loads(text)
        if breaks_seal(text, found):
            raise ValueError("its SHA-256 is another one")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        warnings.warn(f"{path} is damaged ({error}). It is not used.", stacklevel=2)
        return None
    if isinstance(found, dict):
        found.pop(SEAL, None)
    return found


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        # Some file systems cannot flush a folder.
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(handle)
    finally:
        os.close(handle)


def _is_write_failure(error: Exception) -> bool:
    """Whether an error means a failed write; safetensors and torch.save raise their own types."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
    text = str(error).lower()
    return any(
        mark in text
        for mark in (
            "no space",
            "file too large",
            "i/o error",
            "ioerror",
            "failed writing",
            "quota",
            # On a full disk, torch.save's stream fails, and its zip writer then reports a position.
            "iostream error",
            "unexpected pos",
        )
    )
