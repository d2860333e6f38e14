"""Locks between processes. The system frees the lock of a process that ends, also of a killed one.

A lock is a file that is locked while a process holds it. The file is removed afterwards. A killed
process leaves the file behind, but not the lock.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from saelens_adaptive_ortho.errors import reject

LOCK = ".lock"
FOR_EVER = -1.0  # in filelock
RUN_PATIENCE = 1.0  # seconds; the process before may be about to end
NOT_SUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def run_lock(field: str, path: Path, command: str) -> Iterator[None]:
    """Let one process at a time write to ``path`` inside the block.

    Args:
        field: name of the setting that holds ``path``, for the error.
        path: an existing folder, or a file in one.
        command: what this process runs, for the error that a second process gets.

    Raises:
        ConfigError: another process holds the lock. The message names its command, process, host
            and start.
    """
    file = path / LOCK if path.is_dir() else lock_file(path)
    holder = file.with_name(f"{file.name}.json")
    try:
        lock = _acquire(file, RUN_PATIENCE)
    except Timeout:
        rule = f"is in use: {_who(holder)}. Wait until it ends, or choose another place."
        raise reject(field, str(path), rule) from None
    except OSError as error:
        raise reject(field, str(path), f"cannot be locked ({error.strerror}).") from error
    try:
        with suppress(OSError):  # it only serves the error of another process
            _introduce(holder, command)
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            holder.unlink(missing_ok=True)
        _release(lock)


@contextmanager
def write_lock(path: Path, seconds: float = FOR_EVER) -> Iterator[None]:
    """Let one process at a time write ``path`` inside the block. The others wait.

    Raises:
        TimeoutError: another process has held the lock for ``seconds``.
        OSError: the folder of ``path`` cannot be written.
    """
    lock = _acquire(lock_file(path), seconds)
    try:
        yield
    finally:
        _release(lock)


def lock_file(path: Path) -> Path:
    """The file that :func:`write_lock` locks."""
    return path.with_name(f".{path.name}{LOCK}")


def _acquire(file: Path, seconds: float) -> FileLock | None:
    """The lock, or None with a warning if the file system has no locks.

    Raises:
        OSError: the folder cannot be written.
    """
    # In a folder such as /proc, filelock would wait as if another process held the lock.
    with tempfile.TemporaryFile(dir=file.parent):
        pass
    lock = FileLock(file)
    try:
        lock.acquire(timeout=seconds)
    except (NotImplementedError, OSError) as error:
        missing = isinstance(error, NotImplementedError) or error.errno in NOT_SUPPORTED
        if not missing:
            raise
        warnings.warn(
            f"{file} cannot be locked ({error}). See to it that no second process writes there.",
            stacklevel=3,
        )
        return None
    return lock


def _release(lock: FileLock | None) -> None:
    if lock is None:
        return
    # The file is removed while the lock is held: a process that has opened the file already
    # gets a lock on a removed file, notices that, and tries again.
    with suppress(OSError):
        os.unlink(lock.lock_file)
    lock.release()


def _introduce(holder: Path, command: str) -> None:
    """Write down who holds the lock. Some versions of filelock empty the lock file itself."""
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    who = {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": now}
    holder.write_text(json.dumps(who) + "\n", encoding="utf-8")


def _who(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text(encoding="utf-8"))
        return (
            f"`{who['command']}` runs there as process {who['pid']} on {who['host']} "
            f"since {who['since']}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process runs there"
