"""Who works on a unit: a lease with a heartbeat, on a file system that all workers share.

Each try to do a unit is a file of its own, ``attempts/UNIT.NUMBER.json``. Only the newest one
counts. It says what the process is, how far its heartbeat has counted, and how it ended. A new try
takes the next number, and creates its file with a hard link, which succeeds for one process alone.
So of all processes that want a unit, one gets it, also when they take it over from a dead one.

No two clocks are compared, because those of two machines may differ. A heartbeat is a number that
rises. Who waits for a unit looks at its own clock only: if the number has not changed for
:data:`PATIENCE` seconds, the process is lost. On the same machine, the system is asked at once
whether the process lives.

A process that was only asleep (a suspended machine) finds the newer file at its next heartbeat, and
kills itself. All its writes are atomic, so this is safe at any time.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from saelens_adaptive_ortho.files import write_text_atomic

BEAT = 10.0  # seconds between two heartbeats
PATIENCE = 120.0  # seconds without a heartbeat after which a process counts as lost
FOLDER = "attempts"
_NAME = re.compile(r"(?P<unit>[A-Za-z0-9-]+)\.(?P<number>\d+)\.json")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

Ending = Literal["whole", "incomplete", "failed", "stopped", "lost"]


@dataclass(frozen=True)
class Process:
    """A process, so that others on the same machine can tell whether it lives.

    Args:
        host: name of the machine, for people.
        machine: a text that is the same for two processes only if they can see each other.
        pid: number of the process.
        started: when it started, by the machine's count; empty if that is not known. Another
            process may get the same number later, and then starts at another time.
    """

    host: str
    machine: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Process:
        """This process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _started(pid))

    def lives(self) -> bool | None:
        """Whether it lives; None if it is on another machine, or in another container."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # a process of another user
            pass
        return self.started == _started(self.pid)


@dataclass(frozen=True)
class Attempt:
    """A try to do a unit.

    Args:
        unit: name of the unit.
        number: of the tries of this unit, from 1.
        ticket: the task's (see ``drivers.contract``).
        process: who tries.
        beat: number of heartbeats so far.
        ended: how it ended; None while it goes on. ``whole``: everything is done; ``incomplete``:
            an evaluation failed; ``failed``: an error; ``stopped``: a signal; ``lost``: the process
            is gone without a word.
        reason: why, if it did not end well.
        status: exit status.
        seconds: how long it took.
        settings: digest of the unit's settings, as they were done.
    """

    unit: str
    number: int
    ticket: str
    process: Process
    beat: int = 0
    ended: Ending | None = None
    reason: str = ""
    status: int | None = None
    seconds: float = 0.0
    settings: str = ""

    @property
    def where(self) -> str:
        """Machine and process, for people."""
        if not self.process.pid:
            return self.process.host
        return f"{self.process.host}, process {self.process.pid}"


class Attempts:
    """The tries of all units of a sweep.

    Args:
        sweep: the sweep's folder.
    """

    def __init__(self, sweep: Path) -> None:
        self.folder = sweep / FOLDER

    def newest(self) -> dict[str, Attempt]:
        """The newest try of each unit that was ever tried."""
        return {unit: self._read(unit, number) for unit, number in self._numbers().items()}

    def newest_of(self, unit: str) -> Attempt | None:
        """The newest try of a unit."""
        number = self._numbers().get(unit)
        return None if number is None else self._read(unit, number)

    def count(self, unit: str, ended: Ending, after: int = 0) -> int:
        """How many tries of a unit with a number above ``after`` ended in one way."""
        newest = self.newest_of(unit)
        numbers = range(after + 1, newest.number + 1) if newest else range(0)
        return sum(self._read(unit, number).ended == ended for number in numbers)

    def claim(self, unit: str, ticket: str, settings: str = "") -> Attempt | None:
        """A new try of a unit by this process; None if another process works on it.

        The unit is free if its newest try has ended, if its process is known to be dead, or if it
        had the same ticket: then it was this task before a batch system started it again.

        Raises:
            OSError: the file could not be written.
        """
        before = self.newest_of(unit)
        if before is not None and before.ended is None:
            if before.ticket != ticket and before.process.lives() is not False:
                return None
            self.end(before, "lost", "its process ended without a word")
        number = 1 if before is None else before.number + 1
        mine = Attempt(unit, number, ticket, Process.current(), settings=settings)
        return mine if self._create(mine) else None

    def end(self, attempt: Attempt, ended: Ending, reason: str = "", **how: Any) -> Attempt:
        """Write down how a try ended. If that cannot be written, the process counts as lost."""
        done = replace(attempt, ended=ended, reason=reason, **how)
        with suppress(OSError):  # a full disk; who waits for the unit finds the process gone
            self._write(done)
        return done

    def beat(self, attempt: Attempt) -> Attempt | None:
        """Count one heartbeat; None if the try was given to another process."""
        if self._path(attempt.unit, attempt.number + 1).exists():
            return None
        newer = replace(attempt, beat=attempt.beat + 1)
        with suppress(OSError):  # the next one may succeed
            self._write(newer)
        return newer

    @contextmanager
    def beating(self, attempt: Attempt, seconds: float = BEAT) -> Iterator[None]:
        """Beat in a thread while the block runs.

        If the try was given to another process, this one is killed.
        """
        over = threading.Event()

        def beat(current: Attempt) -> None:
            while not over.wait(seconds):
                newer = self.beat(current)
                if newer is None:
                    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
                    return
                current = newer

        thread = threading.Thread(target=beat, args=(attempt,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _numbers(self) -> dict[str, int]:
        """The number of the newest try of each unit."""
        numbers: dict[str, int] = {}
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return {}
        for name in names:
            if found := _NAME.fullmatch(name):
                unit, number = found["unit"], int(found["number"])
                numbers[unit] = max(number, numbers.get(unit, 0))
        return numbers

    def _path(self, unit: str, number: int) -> Path:
        return self.folder / f"{unit}.{number}.json"

    def _write(self, attempt: Attempt) -> None:
        write_text_atomic(self._path(attempt.unit, attempt.number), _text(attempt))

    def _create(self, attempt: Attempt) -> bool:
        """Create the file of a new try; False if there is one already."""
        path = self._path(attempt.unit, attempt.number)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        write_text_atomic(temporary, _text(attempt))
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_without_links(path, _text(attempt))
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _read(self, unit: str, number: int) -> Attempt:
        try:
            document = json.loads(self._path(unit, number).read_bytes())
            process = Process(**document.pop("process"))
            return Attempt(process=process, **document)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            # Damaged, or of a file system without links just being written: nobody answers there.
            who = f"an unknown process ({self._path(unit, number)} is damaged)"
            return Attempt(unit, number, "", Process(who, "", 0, ""))


@dataclass
class Watch:
    """Tells which processes are lost.

    Args:
        patience: seconds without a heartbeat.
        clock: the time, as ``time.monotonic``.
    """

    patience: float = PATIENCE
    clock: Callable[[], float] = time.monotonic
    seen: dict[tuple[str, int], tuple[int, float]] = field(default_factory=dict)

    def is_lost(self, attempt: Attempt) -> bool:
        """Whether the process of a try that has not ended is lost.

        On another machine, the heartbeat is compared with those of earlier calls.
        """
        lives = attempt.process.lives()
        if lives is not None:
            return not lives
        key, now = (attempt.unit, attempt.number), self.clock()
        beat, since = self.seen.get(key, (-1, now))
        if beat != attempt.beat:
            self.seen[key] = (attempt.beat, now)
            return False
        return now - since >= self.patience


def _text(attempt: Attempt) -> str:
    return json.dumps(asdict(attempt), indent=1) + "\n"


def _create_without_links(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        return False
    return True


def _machine() -> str:
    """A text that two processes share only if each finds the other by its number."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux only: a container may have the host's name, but not its numbers
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process started; empty if that is not known, or if it is dead and not collected."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]
