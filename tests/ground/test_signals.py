"""Signals that stop the process, and the status that says which one did."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from saelens_adaptive_ortho.commands import cli, suite
from saelens_adaptive_ortho.signals import STOP_SIGNALS, Interrupted, stop_noted, stop_raises

EVAL = ["eval", "sae", "--out", "out"]


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_five_signals() -> None:
    names = [number.name for number in STOP_SIGNALS]
    assert names == ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"]


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 128 + signal.SIGUSR1),
        (signal.SIGUSR2, 128 + signal.SIGUSR2),
    ],
)
def test_command_says_which_signal_stopped_it(
    number: signal.Signals,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(suite, "run_suite", lambda *_, **__: send(number))
    assert cli.main(EVAL) == status
    message = f"adaptive-ortho: interrupted by {number.name}. The same command continues.\n"
    assert capsys.readouterr().err == message


def test_lost_terminal_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGHUP, writing to the terminal fails; the status still tells of the signal."""

    def run(*_: object, **__: object) -> None:
        os.close(writing)  # whatever is written from now on fails
        send(signal.SIGHUP)

    reading, writing = os.pipe()
    os.close(reading)
    with open(os.dup(writing), "w") as out, open(os.dup(writing), "w") as err:
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        monkeypatch.setattr(suite, "run_suite", run)
        print("waits in the buffer")
        assert cli.main(EVAL) == 129


def test_noted_signal_is_raised_at_the_end() -> None:
    seen: list[int | None] = []

    def work() -> None:
        with stop_raises(), stop_noted() as stop:
            send(signal.SIGUSR2)
            send(signal.SIGTERM)
            seen.append(stop.number)

    with pytest.raises(Interrupted, match="interrupted by SIGUSR2"):
        work()
    assert seen == [signal.SIGUSR2]  # the first one counts


def test_error_is_not_replaced_by_a_noted_signal() -> None:
    def work() -> None:
        with stop_raises(), stop_noted():
            send(signal.SIGTERM)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()


def test_ignored_hang_up_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_raises():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_have_no_handlers() -> None:
    found: list[Any] = []

    def run() -> None:
        with stop_raises(), stop_noted() as stop:
            found.append(stop.number)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [None]


def test_interruption_comes_back_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(Interrupted("stopped", signal.SIGTERM)))
    assert (str(error), error.status) == ("stopped", 143)
    assert Interrupted().status == 130
