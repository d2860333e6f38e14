"""Leases: one process at a time has a unit, and that of a lost one is taken over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from saelens_adaptive_ortho.sweeps.attempts import Attempt, Attempts, Process, Watch

ELSEWHERE = Process("node7", "another machine", 12, "34")


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def start_elsewhere(attempts: Attempts, ticket: str = "theirs") -> Attempt:
    """Return a try of the unit ``u`` by a process of another machine."""
    mine = attempts.claim("u", ticket)
    assert mine is not None
    theirs = replace(mine, process=ELSEWHERE)
    attempts._write(theirs)
    return theirs


def test_unit_belongs_to_one_process_until_it_ends(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    assert attempts.newest() == {}
    first = attempts.claim("u", "a")
    assert first is not None
    assert first.number == 1
    assert attempts.claim("u", "b") is None
    other = attempts.claim("v", "b")
    assert other is not None
    attempts.end(first, "failed", "no reason", status=1, seconds=2.0)
    second = attempts.claim("u", "b")
    assert second is not None
    assert second.number == 2
    found = attempts.newest()
    assert found == {"u": second, "v": other}
    assert attempts.count("u", "failed") == 1
    assert attempts.count("u", "failed", after=1) == 0


def test_same_ticket_takes_its_own_place(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    start_elsewhere(attempts)
    assert attempts.claim("u", "mine") is None
    again = attempts.claim("u", "theirs")
    assert again is not None
    assert again.number == 2
    assert attempts.count("u", "lost") == 1


def test_dead_process_of_this_machine_is_known_at_once(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    code = (
        "import sys, pathlib, time\n"
        "from saelens_adaptive_ortho.sweeps.attempts import Attempts\n"
        "assert Attempts(pathlib.Path(sys.argv[1])).claim('u', 'a')\n"
        "print('claimed', flush=True)\n"
        "time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "claimed\n"
        theirs = attempts.newest_of("u")
        assert theirs is not None
        assert not Watch().is_lost(theirs)
        child.send_signal(signal.SIGKILL)
        # It is dead before anybody has collected it.
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        assert Watch().is_lost(theirs)
        child.wait()
    assert Watch().is_lost(theirs)
    mine = attempts.claim("u", "b")
    assert mine is not None
    assert mine.number == 2


def test_another_process_with_the_same_number_is_another_one() -> None:
    mine = Process.current()
    assert mine.lives() is True
    assert replace(mine, started="1").lives() is False
    assert ELSEWHERE.lives() is None


def test_process_elsewhere_is_lost_when_its_heartbeat_stops(tmp_path: Path) -> None:
    clock = Clock()
    watch = Watch(patience=120, clock=clock)
    attempts = Attempts(tmp_path)
    theirs = start_elsewhere(attempts)
    assert not watch.is_lost(theirs)
    clock.now += 119
    assert not watch.is_lost(theirs)
    beaten = attempts.beat(theirs)
    assert beaten is not None
    clock.now += 1
    assert not watch.is_lost(beaten)
    clock.now += 119
    assert not watch.is_lost(beaten)
    clock.now += 1
    assert watch.is_lost(beaten)
    # The clock of the other machine plays no part: nothing in the file depends on it.
    assert attempts.newest_of("u") == beaten


def test_process_that_lost_its_unit_is_told(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    theirs = start_elsewhere(attempts)
    attempts.end(theirs, "lost", "no heartbeat")
    assert attempts.claim("u", "mine") is not None
    assert attempts.beat(theirs) is None


def test_process_that_lost_its_unit_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, time\n"
        "from saelens_adaptive_ortho.sweeps.attempts import Attempts\n"
        "attempts = Attempts(pathlib.Path(sys.argv[1]))\n"
        "mine = attempts.claim('u', 'a')\n"
        "with attempts.beating(mine, 0.01):\n"
        "    print('claimed', flush=True)\n"
        "    time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "claimed\n"
        attempts = Attempts(tmp_path)
        theirs = attempts.newest_of("u")
        assert theirs is not None
        assert attempts._create(replace(theirs, number=2, process=ELSEWHERE))
        assert child.wait() == -signal.SIGKILL


def race(folder: Path, start: object, won: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    mine = Attempts(folder).claim("u", str(os.getpid()))
    won.put(mine is not None)  # type: ignore[attr-defined]
    start.wait()  # type: ignore[attr-defined]  # nobody ends before all have tried


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_gets_the_unit_of_a_lost_one(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", _refuse)
    attempts = Attempts(tmp_path)
    attempts.end(start_elsewhere(attempts), "lost", "no heartbeat")
    context = multiprocessing.get_context("fork")
    start, won = context.Barrier(6), context.Queue()
    racers = [context.Process(target=race, args=(tmp_path, start, won)) for _ in range(6)]
    for racer in racers:
        racer.start()
    assert sum(won.get() for _ in racers) == 1
    for racer in racers:
        racer.join()
    newest = attempts.newest_of("u")
    assert newest is not None
    assert newest.number == 2


def _refuse(*_: object) -> None:
    raise OSError(95, "no links here")


def test_damaged_file_is_a_process_that_never_answers(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    mine = attempts.claim("u", "a")
    assert mine is not None
    attempts._path("u", 1).write_text("{")
    found = attempts.newest_of("u")
    assert found is not None
    clock = Clock()
    watch = Watch(clock=clock)
    assert not watch.is_lost(found)
    clock.now += 1000
    assert watch.is_lost(found)
    attempts.end(found, "lost")
    assert attempts.claim("u", "b") is not None


def test_end_on_a_full_disk_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Attempts(tmp_path)
    mine = attempts.claim("u", "a")
    assert mine is not None

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attempts, "_write", full)
    assert attempts.end(mine, "failed").ended == "failed"
    assert attempts.beat(mine) is not None
