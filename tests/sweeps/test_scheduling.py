"""The scheduler with a driver that pretends: order, failures, lost processes, other workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.manifests import Manifest, Point, Unit
from saelens_adaptive_ortho.sweeps import scheduling
from saelens_adaptive_ortho.sweeps.attempts import Attempt, Attempts, Process, Watch
from saelens_adaptive_ortho.sweeps.drivers.contract import (
    CRASHED,
    HELD,
    INCOMPLETE,
    REFUSED,
    Phase,
    State,
    Task,
)
from saelens_adaptive_ortho.sweeps.folder import log_of, settings_digest, trace_of
from saelens_adaptive_ortho.sweeps.scheduling import Scheduler

ELSEWHERE = Process("node7", "another machine", 12, "34")
SIZES = {"small": 1.0, "middle": 2.0, "large": 3.0}


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def manifest() -> Manifest:
    units = [
        Unit(name, f"unit {name}", [Point(name, "sae", "", 0, {"seed": 0})], {"evals": {}}, 0, size)
        for name, size in SIZES.items()
    ]
    return Manifest("sweep", {"seed": [0]}, units, ".")


# What a pretended process does at each look of the driver: it yields while it works, and returns
# its exit status at the end.
Work = Callable[["Fake", Task], Iterator[None]]


class Dies(Exception):
    """The pretended process ends with this status, and writes nothing more."""

    def __init__(self, status: int | None) -> None:
        self.status = status


def good(fake: Fake, task: Task) -> Iterator[None]:
    yield from ends("whole", 0)(fake, task)


def ends(how: Any, status: int, reason: str = "") -> Work:
    """A process that claims its unit, works for two looks, and writes how it ended."""

    def work(fake: Fake, task: Task) -> Iterator[None]:
        attempt = fake.claim(task)
        yield
        yield
        fake.attempts.end(attempt, how, reason, status=status, seconds=7.0)
        raise Dies(status)

    return work


def killed(fake: Fake, task: Task) -> Iterator[None]:
    """A process that is killed while it works."""
    fake.claim(task)
    yield
    raise Dies(-9)


def crashes(status: int | None) -> Work:
    """A process that ends before it can write anything."""

    def work(fake: Fake, task: Task) -> Iterator[None]:
        yield
        raise Dies(status)

    return work


@dataclass
class Fake:
    """A driver whose tasks are generators. ``works`` has what the tries of a unit do, in order."""

    sweep: Path
    places: int = 1
    works: dict[str, list[Work]] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    cancelled: list[tuple[str, bool]] = field(default_factory=list)
    together: int = 0
    running: int = 0
    ignores_terms: bool = False

    def __post_init__(self) -> None:
        self.attempts = Attempts(self.sweep)

    def claim(self, task: Task) -> Attempt:
        unit = next(u for u in manifest().units if u.name == task.unit)
        attempt = self.attempts.claim(task.unit, task.ticket, settings_digest(unit))
        assert attempt is not None
        return attempt

    def capacity(self) -> int:
        return self.places

    def submit(self, task: Task) -> dict[str, Any]:
        self.submitted.append(task.unit)
        works = self.works.get(task.unit, [])
        work = works.pop(0) if works else good
        self.running += 1
        self.together = max(self.together, self.running)
        return {"task": task, "work": work(self, task), "state": State(Phase.WAITING)}

    def poll(self, handle: dict[str, Any]) -> State:
        if not handle["state"].ended:
            try:
                next(handle["work"])
                handle["state"] = State(Phase.RUNNING, where="place 1")
            except Dies as end:
                self._end(handle, end.status)
        return handle["state"]

    def cancel(self, handle: dict[str, Any], now: bool = False) -> None:
        task = handle["task"]
        self.cancelled.append((task.unit, now))
        if now or not self.ignores_terms:
            newest = self.attempts.newest_of(task.unit)
            if newest is not None and not now:
                self.attempts.end(newest, "stopped", "interrupted by SIGTERM", status=143)
            self._end(handle, -9 if now else 143)

    def close(self) -> None:
        pass

    def _end(self, handle: dict[str, Any], status: int | None) -> None:
        self.running -= 1
        phase = Phase.DONE if status == 0 else Phase.FAILED
        handle["state"] = State(phase, status, "the node is gone" if status is None else "")


@dataclass
class Bench:
    """A scheduler, what it has said, and the statuses that it has shown."""

    sweep: Path
    fake: Fake
    clock: Clock = field(default_factory=Clock)
    said: list[str] = field(default_factory=list)
    shown: list[dict[str, str]] = field(default_factory=list)

    def scheduler(self, **changes: Any) -> Scheduler:
        return Scheduler(
            self.sweep,
            manifest(),
            self.fake,
            show=lambda s: self.shown.append({name: one.now for name, one in s.items()}),
            say=self.said.append,
            watch=Watch(clock=self.clock),
            clock=self.clock,
            sleep=self.clock.sleep,
            **changes,
        )

    def run(self, **changes: Any) -> dict[str, str]:
        return {name: one.now for name, one in self.scheduler(**changes).run().items()}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    # There are no SAEs here: what a try wrote is true.
    monkeypatch.setattr(
        scheduling, "is_whole", lambda sweep, unit, a: a is not None and a.ended == "whole"
    )
    return Bench(tmp_path, Fake(tmp_path))


ALL = dict.fromkeys(SIZES, "whole")


def test_longest_units_come_first(bench: Bench) -> None:
    assert bench.run() == ALL
    assert bench.fake.submitted == ["large", "middle", "small"]
    assert bench.fake.together == 1


def test_known_times_decide_the_order(bench: Bench) -> None:
    bench.run(seconds={"small": 30.0, "middle": 10.0, "large": 20.0})
    assert bench.fake.submitted == ["small", "large", "middle"]


def test_as_many_run_together_as_the_driver_takes(bench: Bench) -> None:
    bench.fake.places = 2
    assert bench.run() == ALL
    assert bench.fake.together == 2


def test_second_run_does_nothing(bench: Bench) -> None:
    bench.run()
    assert bench.run() == ALL
    assert len(bench.fake.submitted) == 3


def test_unit_that_is_damaged_is_done_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    monkeypatch.setattr(
        scheduling, "is_whole", lambda sweep, unit, a: unit.name != "middle" or a.number > 1
    )
    assert bench.run() == ALL
    assert bench.fake.submitted[3:] == ["middle"]


@pytest.mark.parametrize(("how", "status"), [("failed", REFUSED), ("incomplete", INCOMPLETE)])
def test_failed_unit_is_reported_and_the_others_go_on(bench: Bench, how: Any, status: int) -> None:
    log = log_of(bench.sweep, "large")
    log.parent.mkdir()
    log.write_text("Training:  1%\rTraining: 99%\nOSError: [Errno 28] No space left\n\n")
    bench.fake.works["large"] = [ends(how, status, "the disk is full")]
    assert bench.run() == {**ALL, "large": how}
    assert bench.fake.submitted == ["large", "middle", "small"]  # it is not tried again
    words = "\n".join(bench.said)
    assert f"large (unit large) {how}: the disk is full" in words
    tail = "    Training: 99%\n    OSError: [Errno 28] No space left\n"
    assert (tail in words) == (how == "failed")
    assert str(log) in words
    # The next run tries again.
    assert bench.run() == ALL
    assert bench.fake.submitted[3:] == ["large"]


def test_killed_process_is_replaced(bench: Bench) -> None:
    bench.fake.works["middle"] = [killed] * 5
    assert bench.run() == ALL
    assert bench.fake.submitted.count("middle") == 6
    assert sum("middle" in line and line.endswith("; it goes on") for line in bench.said) == 5
    assert Attempts(bench.sweep).count("middle", "lost") == 5


@pytest.mark.parametrize("work", [killed, crashes(-9), crashes(None)])
def test_process_that_is_always_lost_is_given_up(bench: Bench, work: Work) -> None:
    bench.fake.works["middle"] = [work] * 9
    assert bench.run(tries=3) == {**ALL, "middle": "failed"}
    assert bench.fake.submitted.count("middle") == 3
    assert any("middle" in line for line in bench.said)


def test_process_that_cannot_start_is_a_failure(bench: Bench) -> None:
    bench.fake.works["middle"] = [crashes(CRASHED)]
    assert bench.run() == {**ALL, "middle": "failed"}
    assert "its process ended with status 1" in "\n".join(bench.said)


def test_unit_that_the_driver_refuses_is_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = bench.fake.submit

    def refuse(task: Task) -> Any:
        if task.unit == "large":
            raise OSError("no such machine")
        return submit(task)

    monkeypatch.setattr(bench.fake, "submit", refuse)
    assert bench.run() == {**ALL, "large": "failed"}
    assert "no such machine" in bench.said[0]


def test_stopped_process_goes_on(bench: Bench) -> None:
    bench.fake.works["middle"] = [ends("stopped", 143, "interrupted by SIGTERM")] * 20
    assert bench.run(tries=1) == ALL  # a batch system may stop a unit as often as it likes


# ------------------------------------------------------------ stuck processes


def hangs(fake: Fake, task: Task) -> Iterator[None]:
    """A process that does nothing, while its heartbeat goes on."""
    attempt: Attempt | None = fake.claim(task)
    while attempt is not None:
        yield
        attempt = fake.attempts.beat(attempt)


def writes(fake: Fake, task: Task) -> Iterator[None]:
    """A process that writes a line every 10 seconds, for 100 seconds."""
    attempt = fake.claim(task)
    task.log.parent.mkdir(exist_ok=True)
    for look in range(500):
        if look % 50 == 0:
            task.log.write_text(f"{look} of 500")
        yield
    fake.attempts.end(attempt, "whole")
    raise Dies(0)


def test_unit_that_writes_nothing_is_killed_and_tried_again(bench: Bench) -> None:
    bench.fake.places = 2
    bench.fake.works = {"large": [writes], "middle": [hangs]}
    assert bench.run(stuck_after=30.0) == ALL
    assert bench.fake.cancelled == [("middle", True)]
    assert bench.fake.submitted == ["large", "middle", "middle", "small"]
    first = Attempts(bench.sweep)._read("middle", 1)
    assert (first.ended, first.status) == ("lost", -9)
    assert first.reason == "it wrote nothing for 30 s and was killed (--stuck-after)"


@pytest.mark.parametrize("folder", ["units/u/results", "units/u/wandb"])
def test_trace_of_a_unit_is_what_its_process_writes(tmp_path: Path, folder: str) -> None:
    before = trace_of(tmp_path, "u")
    file = tmp_path / folder / "file"
    file.parent.mkdir(parents=True)
    for text in ("one", "longer"):
        file.write_text(text)
        assert (trace_of(tmp_path, "u") == before) == ("wandb" in folder)
        before = trace_of(tmp_path, "u")


# ------------------------------------------------------------- other workers


def elsewhere(bench: Bench, unit: str) -> Attempt:
    """Return a try of a unit by a process on another machine."""
    task = Task(unit, bench.sweep, "theirs", bench.sweep / "log", bench.sweep)
    theirs = replace(bench.fake.claim(task), process=ELSEWHERE)
    bench.fake.attempts._write(theirs)
    return theirs


def test_unit_of_another_worker_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = [elsewhere(bench, "large")]
    sleep = bench.clock.sleep

    def later(seconds: float) -> None:
        sleep(20 * seconds)
        newer = bench.fake.attempts.beat(theirs[-1])
        assert newer is not None
        theirs.append(newer)
        if bench.clock.now > 500:
            bench.fake.attempts.end(newer, "whole", seconds=500.0)

    monkeypatch.setattr(bench.clock, "sleep", later)
    assert bench.run() == ALL
    assert bench.fake.submitted == ["middle", "small"]
    assert bench.shown[0]["large"] == "elsewhere"


def test_unit_of_a_lost_worker_is_taken_over(bench: Bench) -> None:
    elsewhere(bench, "large")
    assert bench.run() == ALL
    assert bench.fake.submitted == ["middle", "small", "large"]
    assert 120 <= bench.clock.now < 130


def test_unit_of_a_lost_worker_comes_back_from_its_copy(bench: Bench) -> None:
    theirs = elsewhere(bench, "large")
    bench.fake.attempts._path("large", theirs.number).write_text("{")  # a damaged file

    def restore(unit: Unit) -> Attempt | None:
        attempt = bench.fake.attempts.claim(unit.name, "copy") if unit.name == "large" else None
        return attempt and bench.fake.attempts.end(attempt, "whole", seconds=3.0)

    assert bench.run(restore=restore) == ALL
    assert bench.fake.submitted == ["middle", "small"]
    first = bench.fake.attempts._read("large", theirs.number)
    assert first.ended == "lost"
    assert "is damaged) does not answer" in first.reason


def test_failure_of_another_worker_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = elsewhere(bench, "large")
    sleep = bench.clock.sleep

    def later(seconds: float) -> None:
        sleep(seconds)
        bench.fake.attempts.end(theirs, "failed", "no such hook")

    monkeypatch.setattr(bench.clock, "sleep", later)
    assert bench.run() == {**ALL, "large": "failed"}
    assert "no such hook" in bench.said[0]


def test_unit_that_another_worker_was_faster_with_is_left_to_it(bench: Bench) -> None:
    def late(fake: Fake, task: Task) -> Iterator[None]:
        theirs = elsewhere(bench, "large")
        yield
        fake.attempts.end(theirs, "whole", seconds=3.0)
        raise Dies(HELD)

    bench.fake.works["large"] = [late]
    assert bench.run() == ALL
    assert bench.fake.submitted == ["large", "middle", "small"]


# ---------------------------------------------------------------- interrupts


def interrupt(bench: Bench, monkeypatch: pytest.MonkeyPatch, times: list[float]) -> None:
    """Interrupt the scheduler at these times."""
    sleep = bench.clock.sleep

    def later(seconds: float) -> None:
        sleep(seconds)
        if times and bench.clock.now >= times[0]:
            times.pop(0)
            raise KeyboardInterrupt

    monkeypatch.setattr(bench.clock, "sleep", later)


def never(fake: Fake, task: Task) -> Iterator[None]:
    fake.claim(task)
    while True:
        yield


def test_interrupt_stops_the_running_units(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.fake.places = 2
    bench.fake.works = {"large": [never], "middle": [never]}
    interrupt(bench, monkeypatch, [1.0])
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert bench.fake.cancelled == [("large", False), ("middle", False)]
    assert bench.fake.running == 0
    assert {a.ended for a in bench.fake.attempts.newest().values()} == {"stopped"}
    assert bench.run() == ALL


@pytest.mark.parametrize("times", [[1.0, 2.0], [1.0]])
def test_second_interrupt_or_a_long_time_kills_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, times: list[float]
) -> None:
    bench.fake.ignores_terms = True
    bench.fake.works = {"large": [never]}
    interrupt(bench, monkeypatch, times.copy())
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert bench.fake.cancelled == [("large", False), ("large", True)]
    assert (bench.clock.now < 10) == (len(times) == 2)
