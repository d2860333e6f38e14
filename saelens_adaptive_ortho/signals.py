"""Signals that ask the process to stop: INT, TERM, HUP, USR1 and USR2.

Batch systems send them before they take the machine away, and a lost terminal sends HUP.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

#: Those that this system has.
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to stop.

    Args:
        message: what was stopped, and what was saved.
        number: number of the signal.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = int(number)

    @property
    def status(self) -> int:
        """The exit status of a process that a signal stopped: 128 plus the number."""
        return 128 + self.number


@dataclass
class Stop:
    """The first signal that arrived, or None."""

    number: int | None = None


@contextmanager
def stop_raises() -> Iterator[None]:
    """Each of the signals raises :class:`Interrupted` inside the block."""

    def stop(number: int) -> None:
        raise Interrupted(f"interrupted by {signal_name(number)}", number)

    with _handled(stop):
        yield


@contextmanager
def stop_noted() -> Iterator[Stop]:
    """The signals are noted inside the block, which reads ``number`` and stops where it can.

    If a signal arrived and the block ends without an exception, the signal is raised again for the
    handler of before.
    """
    found = Stop()

    def note(number: int) -> None:
        found.number = number if found.number is None else found.number

    with _handled(note):
        yield found
    if found.number is not None:
        signal.raise_signal(found.number)


def signal_name(number: int) -> str:
    """The name of a signal, such as ``SIGTERM``."""
    return signal.Signals(number).name


@contextmanager
def _handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Handle the signals inside the block. The previous handlers are restored on any exit.

    Only the main thread gets signals. A hang-up that is ignored (``nohup``) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hang_up = getattr(signal, "SIGHUP", None)
    wanted = [n for n in STOP_SIGNALS if n != hang_up or signal.getsignal(n) != signal.SIG_IGN]
    previous = {n: signal.signal(n, lambda number, _: handle(number)) for n in wanted}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
