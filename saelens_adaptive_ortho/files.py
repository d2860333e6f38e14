"""Writing that never leaves half a file behind, and errors that say what survived."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from saelens_adaptive_ortho.errors import Explained, reject


class StorageError(Explained, RuntimeError):
    """Something could not be written; names the path, the cause and what survived."""


def check_writable(field: str, path: str | Path) -> None:
    """Refuse an output folder that cannot be written, before any work.

    Raises:
        ConfigError: naming ``field``, the path and the cause.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".writable-"):
            pass
    except OSError as error:
        raise reject(
            field, str(path), f"cannot be written ({error.strerror}). Choose another folder."
        ) from error


@contextmanager
def write_failures_named(target: Path, survives: str) -> Iterator[None]:
    """Turn a failed write inside the block into a :class:`StorageError`; other errors pass.

    Args:
        survives: what is still intact, for the error.

    Raises:
        StorageError: as said.
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
def atomic_directory(target: Path, survives: str) -> Iterator[Path]:
    """A temporary sibling of ``target`` that takes its name only when the block succeeds.

    Args:
        survives: what is still intact if writing fails, for the error.

    Raises:
        StorageError: the folder could not be written whole (no space left, for instance); the
            temporary folder is removed and an existing ``target`` is untouched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with write_failures_named(target, survives):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            if target.exists():
                old = target.with_name(f".{target.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
                temporary.rename(target)
                shutil.rmtree(old)
            else:
                temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text_atomic(path: str | Path, text: str) -> Path:
    """Write ``text`` (UTF-8) so that ``path`` holds either its old content or all of the new.

    The text goes to a temporary file in the same folder, is flushed to disk, and then takes the
    place of ``path``. On an error the temporary file is removed and ``path`` is untouched.
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
    """Write JSON atomically. NaN and infinity are refused (they are not JSON)."""
    text = json.dumps(value, indent=1, allow_nan=False)
    try:
        write_text_atomic(path, text + "\n")
    except OSError as error:
        raise StorageError(f"{path} could not be written ({error.strerror}).") from error


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _is_write_failure(error: Exception) -> bool:
    """safetensors and torch.save wrap a failed write in errors of their own."""
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
            # torch.save on a full disk: its stream fails, then its zip writer is out of step.
            "iostream error",
            "unexpected pos",
        )
    )
