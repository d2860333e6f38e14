"""``local:N``: N units at a time, each in a process of its own on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.sweeps.drivers.contract import Driver, Kind, Needs, Phase, State, Task

MOST = 1024  # workers on one machine; more is a slip of the finger
VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class Running:
    """A process, and the place that it takes."""

    process: subprocess.Popen[bytes]
    place: int


@dataclass
class LocalDriver:
    """Runs tasks as processes of this machine, one per place.

    A process is the head of a session of its own. So Ctrl-C in the terminal reaches the scheduler
    alone, which then stops the processes in order; and if the scheduler is killed, they finish
    their units.

    Args:
        places: what each place adds to the environment of its process.
        names: what the status table calls each place.
        command: the command of a task.
    """

    places: list[dict[str, str]]
    names: list[str]
    command: Callable[[Task], list[str]] = Task.command
    taken: set[int] = field(default_factory=set)

    def capacity(self) -> int:
        return len(self.places)

    def submit(self, task: Task) -> Running:
        place = next(i for i in range(len(self.places)) if i not in self.taken)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(task),
                cwd=task.cwd,
                env={**os.environ, **self.places[place]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.taken.add(place)
        return Running(process, place)

    def poll(self, handle: Running) -> State:
        status, where = handle.process.poll(), self.names[handle.place]
        if status is None:
            return State(Phase.RUNNING, where=where)
        self.taken.discard(handle.place)
        phase = Phase.DONE if status == 0 else Phase.FAILED
        return State(phase, status, where=where)

    def cancel(self, handle: Running, now: bool = False) -> None:
        if handle.process.poll() is None:
            with suppress(ProcessLookupError):
                handle.process.send_signal(signal.SIGKILL if now else signal.SIGTERM)

    def close(self) -> None:
        pass


def open_local(argument: str, needs: Needs) -> Driver:
    """A driver with the number of places that the argument says.

    On ``cuda``, each place has one of the visible cards; with more places than cards, several
    places share a card. On ``cpu``, the places share the cores, unless the environment sets the
    number of threads.

    Raises:
        ConfigError: the argument is no whole number of at least 1, or there is no such device.
    """
    if not argument.isascii() or not argument.isdecimal() or not 1 <= int(argument[:9]) <= MOST:
        rule = f"local:N needs the number of units at a time, 1 to {MOST}, such as local:2."
        raise reject("--on", f"local:{argument}" if argument else "local", rule)
    n = int(argument)
    if needs.device == "cuda":
        cards = visible_cards(os.environ)
        if not cards:
            rule = "the config says device: cuda, and torch can use no card here."
            raise reject("--on", f"local:{argument}", rule)
        chosen = [cards[i % len(cards)] for i in range(n)]
        return LocalDriver([{VISIBLE: card} for card in chosen], [f"card {c}" for c in chosen])
    threads = {} if any(name in os.environ for name in THREADS) else _threads(n)
    return LocalDriver([dict(threads) for _ in range(n)], [f"process {i + 1}" for i in range(n)])


def visible_cards(environment: Mapping[str, str]) -> list[str]:
    """The names of the cards that this process may use, as ``CUDA_VISIBLE_DEVICES`` has them."""
    import torch

    count = torch.cuda.device_count()  # it makes no context on the cards
    named = [card.strip() for card in environment.get(VISIBLE, "").split(",") if card.strip()]
    return named[:count] if named else [str(card) for card in range(count)]


def _threads(n: int) -> dict[str, str]:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return {THREADS[0]: str(max(1, cores // n))}


LOCAL = Kind("local", "local:N", "N processes on this machine", open_local)
