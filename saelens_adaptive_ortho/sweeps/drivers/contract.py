"""What a driver of a sweep is: it starts units somewhere and says what became of them.

A sweep has a folder, which every process of it can read and write (a local disk, or a file system
that all machines share). A *unit* is a comparison with a name and a folder of its own in there. To
do a unit, a process on any machine either runs a command (:meth:`Task.command`) or calls a function
(:func:`saelens_adaptive_ortho.sweeps.working.do_task`). Both return the same exit status.

All knowledge about a unit is in the sweep's folder: who works on it, what is finished, why it
failed. A driver keeps none of it, and needs none of it. These are its promises:

- ``submit`` starts the task at most once at a time. A system that starts a task again by itself
  (a batch system that requeues it) is fine: the task carries a ticket, and the new process takes
  the place of the old one.
- ``poll`` says ``DONE`` or ``FAILED`` only when no process of the task is left, or the machine that
  had it is gone.
- A driver never decides whether a failed task is tried again. The scheduler does.

These are the promises of a task to its driver:

- It may be stopped at any time. After SIGTERM it saves a checkpoint and ends with
  128 + the number of the signal; after SIGKILL nothing that was whole is lost. A new task for the
  same unit continues.
- Two tasks for the same unit do not disturb each other: the second one ends at once with
  :data:`HELD`.
- It writes its output to standard output and standard error. The driver sends both to the end of
  the file ``task.log`` (``do_task`` does that itself), so that the reason of a failure is found
  there.
- It runs in the working directory ``task.cwd``, because paths in a config may be relative to it.

A third party makes a driver with a class that has the methods of :class:`Driver`, and a
:class:`Kind` that opens it, offered as an entry point with the name of the kind::

    [project.entry-points."saelens_adaptive_ortho.drivers"]
    fleet = "my_package.fleet:FLEET"

Then ``adaptive-ortho sweep SWEEP --on fleet:WORDS`` calls ``FLEET.open("WORDS", needs)``.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Exit statuses of a task, beside 128 + the number of a signal.
OK = 0  #: the unit is whole; also if it was whole before
CRASHED = 1  #: an error that is a fault of the package or of a library; the log has its traceback
REFUSED = 2  #: a setting cannot work, or a file could not be written; the log says which
INCOMPLETE = 3  #: everything is done, but an evaluation failed
LOST = 74  #: another process has taken the unit over, because this one did not answer
HELD = 75  #: another process works on the unit


@dataclass(frozen=True)
class Task:
    """One unit that is to be done, as a driver gets it.

    Args:
        unit: name of the unit: short, and of letters, digits and ``-`` only.
        folder: absolute path of the sweep's folder.
        ticket: a text that no other task has. The unit's process writes it down, so that the
            scheduler knows which process was this task's.
        log: absolute path of a file in the sweep's folder for the output of the task. It may exist
            already; output is added.
        cwd: absolute path of the working directory.
        label: the unit in words, for lists of jobs.
        seconds: time that the unit will take, by the plan; None if it is not known. It is an
            estimate, and no limit.
    """

    unit: str
    folder: Path
    ticket: str
    log: Path
    cwd: Path
    label: str = ""
    seconds: float | None = None

    def command(self, python: str = sys.executable) -> list[str]:
        """The command that does the unit.

        Args:
            python: the interpreter; on another machine perhaps another one.
        """
        package = __name__.partition(".")[0]
        words = ["sweep-unit", str(self.folder), self.unit, "--ticket", self.ticket]
        return [python, "-m", package, *words]


@dataclass(frozen=True)
class Needs:
    """What every unit of a sweep needs of the machine that does it.

    Args:
        device: the device of the configs, without a number: ``cpu``, ``cuda`` or ``mps``. With
            ``cuda``, the driver sets ``CUDA_VISIBLE_DEVICES`` of each task to the card (or the part
            of a card) that it gets: the task uses the first visible one.
        memory: bytes on the device that the largest unit needs at the very least, without the
            language model.
        units: number of units that are not whole yet.
        folder: absolute path of the sweep's folder, which exists; None if it is not known yet.
    """

    device: str
    memory: int
    units: int
    folder: Path | None = None


class Phase(enum.Enum):
    """Where a submitted task is."""

    WAITING = "waiting"  #: accepted, and not started yet, such as in the queue of a batch system
    RUNNING = "running"
    DONE = "done"  #: its process ended with status 0
    FAILED = "failed"  #: it ended in another way, or it is lost with its machine


@dataclass(frozen=True)
class State:
    """What a driver knows about a task.

    Args:
        phase: where it is.
        status: exit status of its process; negative for the number of a signal, as in
            ``subprocess``; None while it has not ended, or if nobody knows.
        reason: for ``FAILED``, why, in words for the user: ``the node n3 went down``. Empty if the
            exit status says it all.
        where: the place for the status table, if it is known: ``cuda:1``, ``node n3``, ``job 17``.
    """

    phase: Phase
    status: int | None = None
    reason: str = ""
    where: str = ""

    @property
    def ended(self) -> bool:
        """Whether no process of the task is left."""
        return self.phase in (Phase.DONE, Phase.FAILED)


class Driver(Protocol):
    """Runs tasks. All methods are called from one thread, and return at once."""

    def capacity(self) -> int:
        """How many tasks may be submitted and not ended at the same time, now.

        It may change, for example when a node joins a cluster. With 0, the scheduler waits. A batch
        system with a queue of its own gives a large number.
        """
        ...

    def submit(self, task: Task) -> Any:
        """Start a task, or put it into a queue, and return a handle for the other methods.

        The scheduler submits the longest units first.

        Raises:
            OSError: the task cannot be started (no process, no connection). The unit counts as
                failed; the others go on.
        """
        ...

    def poll(self, handle: Any) -> State:
        """What has become of a task. After it has ended, the answer stays the same."""
        ...

    def cancel(self, handle: Any, now: bool = False) -> None:
        """Ask a task to stop; ``poll`` says when it has. A task that has ended is left alone.

        Args:
            handle: what ``submit`` returned.
            now: kill it (SIGKILL). Otherwise it gets SIGTERM, and saves a checkpoint first.
        """
        ...

    def close(self) -> None:
        """Free what the driver holds (connections, idle workers). All tasks have ended before."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of driver, as ``--on NAME:ARGUMENT`` chooses it.

    Args:
        name: name before the colon.
        form: how it is written, for the help: ``local:N``.
        help: where the units run, as a phrase for the help.
        open: function that checks the text after the colon (empty without a colon) and opens the
            driver. It raises a ``ConfigError`` (``errors.reject("--on", ...)``) if the text, the
            machine or the address cannot work, before any unit starts. It imports the library that
            it needs, and says in the error how to install it.
    """

    name: str
    form: str
    help: str
    open: Callable[[str, Needs], Driver]
