"""A place that does one unit after the other in a process of its own, which stays.

The place is for a worker process of a cluster's own system, such as an actor of Ray. It starts a
process that keeps the language model loaded while units pass through (:func:`serve`), gives it one
unit at a time, and sends it signals. So a unit gets the signals that a process of its own would
get, and a signal, or an error of the device, ends no more than this process: the next unit starts
another one.

A cluster copies :class:`Place` to its nodes. So it uses the standard library only, and takes plain
words: the worker process itself never imports torch.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

MODULE = "saelens_adaptive_ortho.sweeps.drivers.keeping"
PACKAGE = "saelens-adaptive-ortho"
SEEN = 20.0  # seconds until a file that another machine wrote is certainly seen


class Place:
    """Does units, one at a time. One thread calls ``do``, another one ``stop``.

    Args:
        environment: what is added to the environment of the process.
        marker: a file in the sweep's folder that must be there; empty for none.
    """

    def __init__(self, environment: dict[str, str], marker: str) -> None:
        self.environment = environment
        self.marker = marker
        self.child: subprocess.Popen[bytes] | None = None

    def where(self) -> str:
        """The name of the machine."""
        return socket.gethostname()

    def do(self, unit: str, folder: str, ticket: str, log: str, cwd: str) -> int:
        """Do a unit, and return the exit status of the task; negative for a signal.

        Raises:
            OSError: the sweep's folder is not the same one here, or no process can be started.
        """
        if self.marker and not is_seen(self.marker):
            message = f"the node {self.where()} does not see the sweep's folder {folder}"
            raise FileNotFoundError(message)
        if self.child is None or self.child.poll() is not None:
            self.child = self._start(log, cwd)
        child = self.child
        assert child.stdin is not None
        assert child.stdout is not None
        words = {"unit": unit, "folder": folder, "ticket": ticket, "log": log, "cwd": cwd}
        try:
            child.stdin.write(json.dumps(words).encode() + b"\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = b""
        return int(answer) if answer.endswith(b"\n") else child.wait()

    def stop(self, number: int) -> None:
        """Send a signal to the process."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)

    def _start(self, log: str, cwd: str) -> subprocess.Popen[bytes]:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", MODULE],
                cwd=cwd,
                env={**os.environ, **self.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )


def look(marker: str) -> tuple[str, bool, str]:
    """What a machine has: its name, whether it sees a file, and the version of the package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version(PACKAGE)
    except PackageNotFoundError:
        found = ""
    return socket.gethostname(), not marker or is_seen(marker), found


def is_seen(path: str) -> bool:
    """Whether a file is there, or appears soon (what one machine writes, others see later)."""
    until = time.monotonic() + SEEN
    while not os.path.exists(path):
        if time.monotonic() >= until:
            return False
        time.sleep(0.5)
    return True


def serve() -> int:
    """Do the units that come as lines on standard input, and answer with their exit statuses.

    If the input ends, the place is gone, and this process is killed. It ends by itself after a
    signal, and after an error that may have left the device in an unknown state.
    """
    from saelens_adaptive_ortho.signals import Interrupted, stop_raises
    from saelens_adaptive_ortho.sweeps.drivers.contract import CRASHED, Task
    from saelens_adaptive_ortho.sweeps.working import Kept, do_task

    answers = os.fdopen(os.dup(1), "w")
    kept = Kept()
    for line in _lines():
        words = json.loads(line)
        task = Task(
            unit=words["unit"],
            folder=Path(words["folder"]),
            ticket=words["ticket"],
            log=Path(words["log"]),
            cwd=Path(words["cwd"]),
        )
        _write_to(task.log)
        try:
            with stop_raises():
                status = do_task(task, kept)
        except Interrupted as error:
            return error.status
        if status == CRASHED:
            return status
        print(status, file=answers, flush=True)
    return 0


def _lines() -> Iterator[str]:
    """The lines of standard input, read by a thread, which kills the process at their end."""
    from queue import SimpleQueue

    lines: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def _write_to(log: Path) -> None:
    """Let everything that this process writes go to a log, also what libraries in C write."""
    with log.open("ab") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    sys.exit(serve())
