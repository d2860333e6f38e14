"""Atomic writes of files and folders, and errors that say what survived a failed write."""

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
    """A write failed. The message names the path, the cause and what survived."""


def check_writable(field: str, path: str | Path) -> None:
    """Refuse an output folder that cannot be written, before any long work starts.

    Raises:
        ConfigError: the folder cannot be written. The message names ``field``, the path and the
            cause.
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
def atomic_directory(target: Path, survives: str) -> Iterator[Path]:
    """A temporary folder beside ``target`` that replaces ``target`` only if the block succeeds.

    Args:
        target: the folder to write.
        survives: a sentence that says what is still intact if writing fails, for the error.

    Raises:
        StorageError: the folder could not be written completely (for example, no space is left).
            The temporary folder is removed, and an existing ``target`` does not change.
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
    text = json.dumps(value, indent=1, allow_nan=False)
    try:
        write_text_atomic(path, text + "\n")
    except OSError as error:
        raise StorageError(f"{path} could not be written ({error.strerror}).") from error


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


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
