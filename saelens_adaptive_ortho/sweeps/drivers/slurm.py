"""``slurm:OPTION=VALUE,...``: each unit is a job of Slurm, submitted by submitit.

The options are those of ``sbatch``, by their long names: ``slurm:time=4:00:00,partition=gpu``.
The folder of the sweep must be on a file system that all nodes share.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.signals import Interrupted, stop_raises
from saelens_adaptive_ortho.sweeps.drivers.contract import Driver, Kind, Needs, Phase, State, Task

LOOK = 15.0  # seconds between two questions to Slurm, about all jobs at once
READ = 2.0  # seconds between two looks for a job's result
LATE = 60.0  # seconds until a result that another machine wrote is certainly seen
WAIT = 60.0  # seconds until a command of Slurm must have answered
MOST = 1000  # jobs at a time, without the option `jobs`
GRACE = 120  # seconds before the time limit at which Slurm asks a unit to stop
FOLDER = "slurm"  # where submitit keeps its files, beside the log of the task
COMMANDS = ("sbatch", "srun", "squeue", "scancel")
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_OPTION = re.compile(r"[a-z][a-z-]*")


def do_in_job(task: Task) -> int:
    """Do a task in the process of a job, and return its exit status.

    submitit's own handlers of signals would put the job into the queue again; the scheduler does
    that instead.
    """
    from saelens_adaptive_ortho.sweeps.working import do_task

    try:
        with stop_raises():
            return do_task(task)
    except Interrupted as error:
        return error.status


@dataclass
class Submitted:
    """A job."""

    job: Any
    state: State
    looked: float = float("-inf")
    gone_since: float | None = None


@dataclass
class SlurmDriver:
    """Submits tasks as jobs.

    Args:
        options: options of ``sbatch``, by their long names.
        jobs: how many jobs may be in the queue or run at a time.
    """

    options: dict[str, str]
    jobs: int = MOST
    states: dict[str, tuple[str, str]] = field(default_factory=dict)
    asked: float = float("-inf")

    def capacity(self) -> int:
        return self.jobs

    def submit(self, task: Task) -> Submitted:
        from submitit import SlurmExecutor  # pyright: ignore[reportMissingImports]  # an extra

        try:
            executor = SlurmExecutor(task.log.parent / FOLDER)
            executor.update_parameters(
                job_name=task.unit, stderr_to_stdout=True, additional_parameters=self.options
            )
            job = executor.submit(do_in_job, task)
        except Exception as error:  # submitit has errors of its own, with the words of sbatch
            raise OSError(f"sbatch refused it: {_last_line(str(error))}") from error
        self.asked = time.monotonic()  # Slurm has not heard of it yet, perhaps
        return Submitted(job, State(Phase.WAITING, where=f"job {job.job_id}"))

    def poll(self, handle: Submitted) -> State:
        now = time.monotonic()
        if handle.state.ended or now - handle.looked < READ:
            return handle.state
        handle.looked = now
        self._ask(now)
        handle.state = self._state(handle, now)
        return handle.state

    def cancel(self, handle: Submitted, now: bool = False) -> None:
        if not handle.state.ended:
            number = signal.SIGKILL.name if now else signal.SIGTERM.name
            job = handle.job.job_id
            _run(["scancel", "--state=PENDING", job])
            _run(["scancel", f"--signal={number}", job])
            self.asked = float("-inf")

    def close(self) -> None:
        pass

    def _ask(self, now: float) -> None:
        """Ask Slurm for the states of all jobs. If it does not answer, the old ones stay."""
        if now - self.asked < LOOK:
            return
        self.asked = now
        done = _run(["squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%N"])
        if done is not None and done.returncode == 0:
            lines = [line.strip().split("|") for line in done.stdout.splitlines()]
            self.states = {line[0]: (line[1], line[2]) for line in lines if len(line) == 3}
            self.states[""] = ("", "")  # it has answered

    def _state(self, handle: Submitted, now: float) -> State:
        number = str(handle.job.job_id)
        named, node = self.states.get(number, ("", ""))
        where = f"job {number}" + (f", node {node}" if node else "")
        if handle.job.paths.result_pickle.exists():
            return self._result(handle, where)
        if not self.states or named in _WAITING:
            return State(Phase.WAITING, where=where)
        if named in _RUNNING:
            handle.gone_since = None
            return State(Phase.RUNNING, where=where)
        # It has ended, or Slurm has forgotten it, or has not heard of it yet.
        handle.gone_since = now if handle.gone_since is None else handle.gone_since
        if named in ("", "COMPLETED") and now - handle.gone_since < LATE:
            return State(handle.state.phase, where=where)
        output = handle.job.paths.stdout
        reason = f"Slurm ended the job: {named or 'it is not in the queue'} (its output: {output})"
        return State(Phase.FAILED, reason=reason, where=where)

    def _result(self, handle: Submitted, where: str) -> State:
        try:
            status = handle.job.result()
        except Exception as error:  # what the job raised, in words
            return State(Phase.FAILED, reason=_last_line(str(error)), where=where)
        return State(Phase.DONE if status == 0 else Phase.FAILED, status, where=where)


def open_slurm(argument: str, needs: Needs) -> Driver:
    """A driver that submits with these options.

    Raises:
        ConfigError: submitit or Slurm is not on this machine, an option is missing or malformed, or
            Slurm refuses the options, because no node has what they ask for, for example.
    """
    options = _parse(argument)
    most = options.pop("jobs", str(MOST))
    if not most.isascii() or not most.isdecimal() or not 1 <= int(most[:9]) <= 10**6:
        raise _reject(argument, "jobs is the number of jobs at a time, at least 1.")
    if needs.device == "cuda" and not any(name.startswith(("gpu", "gres")) for name in options):
        options["gpus-per-node"] = "1"
    if "signal" not in options:
        options["signal"] = f"USR2@{GRACE}"
    try:
        import submitit  # noqa: F401  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        rule = 'needs submitit: pip install "saelens-adaptive-ortho[slurm]"'
        raise _reject(argument, rule) from error
    lacking = [name for name in COMMANDS if shutil.which(name) is None]
    if lacking:
        rule = "Give the command on a login node of the cluster, or use local:N."
        raise _reject(argument, f"this machine has no {', '.join(lacking)}. {rule}")
    words = [f"--{name}={value}" for name, value in options.items()]
    test = _run(["sbatch", "--test-only", *words, "--wrap=true"])
    if test is None or test.returncode != 0:
        said = f"sbatch did not answer within {WAIT:g} s"
        said = said if test is None else f"sbatch refuses this ({_last_line(test.stderr)})"
        raise _reject(argument, f"{said}. The options are those of sbatch.")
    return SlurmDriver(options, int(most))


def _reject(argument: str, rule: str) -> ConfigError:
    return reject("--on", f"slurm:{argument}" if argument else "slurm", rule)


def _parse(argument: str) -> dict[str, str]:
    """The options. A comma that no ``name=`` follows belongs to the value."""
    options: dict[str, str] = {}
    for part in re.split(r",(?=[a-z-]+=)", argument) if argument else []:
        name, equals, value = part.partition("=")
        if not equals or not value or not _OPTION.fullmatch(name) or name in options:
            rule = "options are NAME=VALUE, each once, joined by commas: slurm:time=4:00:00,mem=32G"
            raise _reject(argument, rule)
        if "\n" in value or name in ("output", "error", "array", "wrap", "ntasks", "nodes"):
            raise _reject(argument, f"the sweep sets {name} itself.")
        options[name] = value
    if "time" not in options:
        rule = "needs a time limit: slurm:time=4:00:00. A unit that does not finish in it saves a"
        raise _reject(argument, f"{rule} checkpoint, and is submitted again.")
    return options


def _run(words: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a command of Slurm; None if it does not answer, or cannot be started."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=WAIT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


SLURM = Kind("slurm", "slurm:OPTIONS", "jobs of Slurm (extra `slurm`)", open_slurm)
