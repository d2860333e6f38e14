"""The scheduler of a sweep: it hands units to a driver, the longest first, until all are done.

Any number of schedulers may work on one folder. What is known about a unit is in the folder, so
each sees what the others do, and takes over what a lost one leaves.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from saelens_adaptive_ortho.files import user_path
from saelens_adaptive_ortho.manifests import Manifest, Unit
from saelens_adaptive_ortho.report.formatting import counted, duration
from saelens_adaptive_ortho.sweeps.attempts import Attempt, Attempts, Watch
from saelens_adaptive_ortho.sweeps.drivers.contract import HELD, OK, Driver, Phase, State, Task
from saelens_adaptive_ortho.sweeps.folder import (
    Trace,
    is_whole,
    last_lines,
    log_of,
    settings_digest,
    trace_of,
)

TRIES = 6
POLL = 0.2  # seconds between two looks at the driver
LOOK = 2.0  # seconds between two looks at the folder, for what other workers do
GRACE = 600.0  # seconds in which a stopped unit may save its checkpoint

Now = Literal["whole", "running", "waiting", "elsewhere", "open", "incomplete", "failed"]


@dataclass(frozen=True)
class Status:
    """Where a unit is.

    Args:
        now: ``whole``; ``running`` or ``waiting`` in our driver; ``elsewhere``: another worker has
            it; ``open``: nobody yet; ``incomplete``: an evaluation failed; ``failed``.
        where: machine or place, if it runs.
        reason: why it failed, or is open again.
        seconds: how long it took, or has been running here.
    """

    now: Now
    where: str = ""
    reason: str = ""
    seconds: float | None = None


@dataclass
class Submitted:
    """A task that the driver has."""

    task: Task
    handle: Any
    since: float
    state: State = State(Phase.WAITING)
    trace: Trace | None = None  # what its unit had written at the time `traced`
    traced: float = 0.0
    killed: str = ""  # why the scheduler killed it


@dataclass
class Scheduler:
    """Does the units of a sweep with a driver.

    Args:
        sweep: the sweep's folder, absolute.
        manifest: the sweep.
        driver: where the units run.
        seconds: time that each unit will take, by name, as far as it is known. Units of unknown
            time come first, the largest ones first.
        tries: how many times a unit may lose its process (killed, or its machine is gone) before
            it counts as failed.
        stuck_after: seconds after which a running task that has written nothing is killed, and
            counts as lost. It is looked at once in this time, so it may take twice as long. None
            for never.
        restore: function that brings a unit that is not whole back from a copy, at the start, or
            when the process that had it is lost; it returns the try that did so, or None.
        show: function that is called with the status of all units whenever one may have changed.
        say: function that shows a line about a unit that ended.
        watch: tells which processes are lost.
        clock: the time, as ``time.monotonic``.
        sleep: waits some seconds.
    """

    sweep: Path
    manifest: Manifest
    driver: Driver
    seconds: Mapping[str, float] = field(default_factory=dict)
    tries: int = TRIES
    stuck_after: float | None = None
    restore: Callable[[Unit], Attempt | None] = lambda _: None
    show: Callable[[Mapping[str, Status]], None] = lambda _: None
    say: Callable[[str], None] = print
    watch: Watch = field(default_factory=Watch)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self.attempts = Attempts(self.sweep)
        self.units = {unit.name: unit for unit in self.manifest.units}
        self.status: dict[str, Status] = {}
        self.found: list[Unit] = []  # the units that were whole before
        self.submitted: dict[str, Submitted] = {}
        self.crashes: Counter[str] = Counter()  # tasks that ended without a word in the folder
        self.before: dict[str, int] = {}  # the last try of each unit that ended before

    def run(self) -> dict[str, Status]:
        """Do all units; returns how each of them ended.

        A unit that fails does not stop the others. A unit that failed in an earlier run is tried
        again, and so is one that is not whole: every SAE and result of the units that were done
        before is read first.

        Raises:
            KeyboardInterrupt: a signal asked the process to stop. The running units were stopped
                first, and saved a checkpoint; a second signal kills them.
        """
        self._begin()
        looked = self.clock()
        try:
            while True:
                ended = self._poll()
                if ended or self.clock() - looked >= LOOK:
                    self._look()
                    looked = self.clock()
                self._submit()
                self.show(self.status)
                if not self.submitted and not any(map(_is_left, self.status.values())):
                    return self.status
                self.sleep(POLL)
        except BaseException:
            self._stop()
            raise

    # ------------------------------------------------------------ the folder

    def _begin(self) -> None:
        """The status of all units before the first task."""
        newest = self.attempts.newest()
        self.before = {n: a.number - (a.ended is None) for n, a in newest.items()}
        for name, unit in self.units.items():
            attempt = newest.get(name)
            if is_whole(self.sweep, unit, attempt):
                assert attempt is not None
                self.status[name] = Status("whole", seconds=attempt.seconds)
                self.found.append(unit)
            elif (back := self.restore(unit)) is not None:
                self._note_restored(unit, back)
            elif attempt is not None and attempt.ended == "whole":
                self.status[name] = Status("open", reason="it is not whole any more")
            else:
                self.status[name] = Status("open")
        self._look()

    def _look(self) -> None:
        """Read what has become of all units that are not in our driver."""
        newest = self.attempts.newest()
        for name, unit in self.units.items():
            if name in self.submitted or self.status[name].now == "whole":
                continue
            attempt = newest.get(name)
            if attempt is not None:
                self._judge(unit, attempt)

    def _judge(self, unit: Unit, attempt: Attempt) -> None:
        """Set the status of a unit that is not in our driver from its newest try."""
        name = unit.name
        if attempt.ended is None:
            if not self.watch.is_lost(attempt):
                self.status[name] = Status("elsewhere", attempt.where)
                return
            attempt = self.attempts.end(attempt, "lost", f"{attempt.where} does not answer")
            # The file of the try may have been damaged, and the unit whole.
            if (back := self.restore(unit)) is not None:
                self._note_restored(unit, back)
                return
        if attempt.number <= self.before.get(name, 0):
            return  # it ended before this scheduler began: it gets another chance
        if attempt.ended == "whole":
            same = attempt.settings == settings_digest(unit)
            self.status[name] = Status("whole" if same else "open", seconds=attempt.seconds)
        elif attempt.ended in ("incomplete", "failed"):
            self._finish(unit, Status(attempt.ended, attempt.where, attempt.reason))
        elif self._losses(name) >= self.tries:
            times = f"its process was lost {self.tries} times"
            self._finish(unit, Status("failed", attempt.where, f"{times}: {attempt.reason}"))
        else:  # lost or stopped
            self.status[name] = Status("open", reason=attempt.reason)

    def _note_restored(self, unit: Unit, back: Attempt) -> None:
        self.before[unit.name] = back.number
        now: Now = "whole" if back.ended == "whole" else "open"
        self.status[unit.name] = Status(now, seconds=back.seconds)

    def _losses(self, name: str) -> int:
        return self.attempts.count(name, "lost", self.before.get(name, 0)) + self.crashes[name]

    def _finish(self, unit: Unit, status: Status) -> None:
        """Note that a unit has failed, and say why, with the end of its log."""
        if self.status[unit.name] != status:
            self.status[unit.name] = status
            log = log_of(self.sweep, unit.name)
            self.say(f"{unit.name} ({unit.label}) {status.now}: {status.reason}")
            for line in last_lines(log) if status.now == "failed" else ():
                self.say(f"    {line}")
            self.say(f"    (from {log})")

    # ------------------------------------------------------------ the driver

    def _poll(self) -> bool:
        """Ask the driver about all tasks; returns whether any has ended."""
        ended = False
        for name, one in list(self.submitted.items()):
            one.state = self.driver.poll(one.handle)
            if one.state.ended:
                del self.submitted[name]
                ended = True
                self._settle(self.units[name], one)
            else:
                now: Now = "waiting" if one.state.phase is Phase.WAITING else "running"
                seconds = self.clock() - one.since
                self.status[name] = Status(now, one.state.where, seconds=seconds)
                if self.stuck_after is not None and now == "running":
                    self._kill_if_stuck(one, self.stuck_after)
        return ended

    def _kill_if_stuck(self, one: Submitted, seconds: float) -> None:
        """Kill a task that has written nothing since the last look, ``seconds`` ago.

        A heartbeat does not tell: its thread lives while the process hangs.
        """
        now = self.clock()
        if one.trace is not None and now - one.traced < seconds:
            return
        before, one.trace, one.traced = one.trace, trace_of(self.sweep, one.task.unit), now
        if one.trace == before:
            one.killed = f"it wrote nothing for {duration(seconds)} and was killed (--stuck-after)"
            self.driver.cancel(one.handle, now=True)

    def _settle(self, unit: Unit, one: Submitted) -> None:
        """Set the status of a unit whose task has ended, by what its process wrote down."""
        name, state = unit.name, one.state
        why = one.killed or state.reason or _in_words(state.status)
        self.status[name] = Status("open")
        attempt = self.attempts.newest_of(name)
        if attempt is not None and attempt.ticket == one.task.ticket:
            if attempt.ended is None:  # it had no time, or no space, to write how it ended
                attempt = self.attempts.end(attempt, "lost", why, status=state.status)
            self._judge(unit, attempt)
            if self.status[name].now == "open":
                self.say(f"{name} ({unit.label}): {attempt.reason}; it goes on")
        elif state.status == OK and attempt is not None and is_whole(self.sweep, unit, attempt):
            self.status[name] = Status("whole", seconds=attempt.seconds)
        elif state.status != HELD:  # it ended before it could write anything
            self.crashes[name] += 1
            refused = state.status is not None and state.status > 0
            if refused or self._losses(name) >= self.tries:
                self._finish(unit, Status("failed", state.where, why))

    def _submit(self) -> None:
        """Give the driver as many open units as it takes, the longest first."""
        for unit in self._open_units():
            if len(self.submitted) >= self.driver.capacity():
                return
            task = Task(
                unit=unit.name,
                folder=self.sweep,
                ticket=uuid.uuid4().hex,
                log=log_of(self.sweep, unit.name),
                cwd=user_path(self.manifest.cwd),
                label=unit.label,
                seconds=self.seconds.get(unit.name),
            )
            try:
                handle = self.driver.submit(task)
            except OSError as error:
                self._finish(unit, Status("failed", reason=f"it could not be started ({error})"))
                continue
            self.submitted[unit.name] = Submitted(task, handle, self.clock())
            self.status[unit.name] = Status("waiting")

    def _open_units(self) -> Sequence[Unit]:
        units = [u for u in self.units.values() if self.status[u.name].now == "open"]
        unknown = float("inf")
        return sorted(units, key=lambda u: (-self.seconds.get(u.name, unknown), -u.size, u.name))

    def _stop(self) -> None:
        """Stop all tasks, and wait until they have ended; a second signal kills them."""
        if self.submitted:
            n = counted(len(self.submitted), "unit")
            self.say(f"Stopping {n}; each saves a checkpoint first ...")
        now, until = False, self.clock() + GRACE
        for one in self.submitted.values():
            self.driver.cancel(one.handle)
        while self.submitted:
            try:
                self._poll()
                self.sleep(POLL)
                late = self.clock() >= until
            except KeyboardInterrupt:
                late = True
            if late and not now:
                now = True
                for one in self.submitted.values():
                    self.driver.cancel(one.handle, now=True)


def _is_left(status: Status) -> bool:
    """Whether a unit still needs to be done, by us or by another worker."""
    return status.now in ("open", "running", "waiting", "elsewhere")


def _in_words(status: int | None) -> str:
    if status is None:
        return "its process ended without a word"
    if status < 0:
        return f"signal {-status} ended its process"
    return f"its process ended with status {status}"
