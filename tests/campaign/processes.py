"""Run work in a fork of this process, which has everything imported, and watch its file operations.

Linux only: paths of open files are read from /proc.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

CRASHED = 70  # status of a child that raised
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}


@dataclass(frozen=True)
class Ended:
    """What a child did: its exit status (negative: the number of a signal), output and seconds."""

    status: int
    output: str
    seconds: float


def in_child(work: Callable[[], int], log: Path, patience: int = 120) -> Ended:
    """Run ``work`` in a fork of this process. After ``patience`` seconds SIGALRM ends it."""
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        status = CRASHED
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(patience)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            # pytest has replaced these two.
            sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
            status = work()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(status, log.read_text(errors="replace"), time.perf_counter() - started)


def watch(root: Path, notice: Callable[[str, Path | None], None]) -> None:
    """Call ``notice(operation, None)`` before each change of a file or folder below ``root``.

    After the content of a file was written, but is not known to be on disk, ``notice(operation,
    file)`` is called: a machine that stops at this moment may have any part of the file.
    This cannot be undone, so a child does it.
    """
    busy = False
    torn: set[str] = set()

    def tell(operation: str, file: Path | None = None) -> None:
        nonlocal busy
        busy = True
        try:
            notice(operation, file)
        finally:
            busy = False

    def below(path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and root in Path(os.path.abspath(path)).parents

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if busy or (event not in CHANGES and event != "open"):
            return
        path = args[0]
        if event == "open":
            nameless = args[2] & os.O_TMPFILE == os.O_TMPFILE
            if nameless or not args[2] & WRITING or not below(path):
                return
        elif event == "os.mkdir":
            if not below(path) or os.path.isdir(path):
                return
        # rmtree names files within an open folder.
        elif not below(path) and not (args[-1] not in (-1, None) and below(_opened(args[-1]))):
            return
        tell(f"{event} {path}")

    def tear(operation: str, path: str) -> None:
        if not busy and below(path) and path not in torn and os.path.isfile(path):
            torn.add(path)
            tell(f"{operation} {path}", Path(path))

    def fsync(handle: int) -> None:
        tear("fsync", _opened(handle))
        real_fsync(handle)

    def serialize(tensors: Any, filename: Any, *args: Any, **named: Any) -> None:
        if below(filename):
            tell(f"write {filename}")
        real_serialize(tensors, filename, *args, **named)
        tear("written", str(filename))

    def save(value: Any, file: Any, *args: Any, **named: Any) -> None:
        if below(file):
            tell(f"write {file}")
        real_save(value, file, *args, **named)
        if isinstance(file, str | os.PathLike):
            tear("written", str(file))

    real_fsync, os.fsync = os.fsync, fsync
    real_serialize = safetensors.torch.serialize_file
    safetensors.torch.serialize_file = serialize  # type: ignore[assignment]
    real_save, torch.save = torch.save, save
    sys.addaudithook(audit)


def _opened(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")
