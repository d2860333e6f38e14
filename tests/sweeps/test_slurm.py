"""Jobs of Slurm, with a stand-in for its commands that runs them on this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.manifests import Manifest
from saelens_adaptive_ortho.sweeps.attempts import Attempts
from saelens_adaptive_ortho.sweeps.drivers import slurm
from saelens_adaptive_ortho.sweeps.drivers.contract import Needs, Phase, State
from saelens_adaptive_ortho.sweeps.drivers.slurm import open_slurm
from saelens_adaptive_ortho.sweeps.scheduling import Scheduler
from tests.sweeps.helpers import LONG, has_checkpoint, task_of, waits

CPU, CUDA = Needs("cpu", 1, 1), Needs("cuda", 1, 1)

# Keeps a file for each job: its state, and its process. A job runs when its script is submitted,
# unless the file `full` is there; then it is pending.
STAND_IN = """
import json, os, re, signal, subprocess, sys, time
from pathlib import Path
root, name, words = Path({root!r}), Path(sys.argv[0]).name, sys.argv[1:]
with (root / "calls").open("a") as calls:
    print(json.dumps([name, *words]), file=calls)

def state(job):
    kept = json.loads(job.read_text())
    status = job.with_suffix(".status")
    if kept["state"] == "RUNNING" and status.exists():
        kept["state"] = "COMPLETED" if status.read_text().strip() == "0" else "FAILED"
    return kept

if name == "sbatch" and words[0] == "--test-only":
    if any("nonsense" in word for word in words):
        sys.exit("sbatch: error: invalid partition specified: nonsense")
elif name == "sbatch":
    number = str(len(list(root.glob("*.job"))) + 17)
    job, full = root / (number + ".job"), (root / "full").exists()
    kept = dict(state="PENDING" if full else "RUNNING", pid=0)
    if not full:
        env = {{**os.environ, "SLURM_JOB_ID": number, "SLURM_JOBID": number}}
        run = "bash {{}} > {{}} 2>&1; echo $? > {{}}".format(
            words[0], root / (number + ".out"), job.with_suffix(".status"))
        kept["pid"] = subprocess.Popen(["bash", "-c", run], env=env, start_new_session=True,
            stdin=-3, stdout=-3, stderr=-3).pid
    job.write_text(json.dumps(kept))
    print("Submitted batch job", number)
elif name == "srun":
    while words and words[0].startswith("--"):
        words = words[2:] if words[0] in ("--output", "--error") else words[1:]
    (root / (os.environ["SLURM_JOB_ID"] + ".step")).write_text(str(os.getpid()))
    os.execvp(words[0], words)
elif name == "squeue":
    for job in sorted(root.glob("*.job")):
        print(job.stem + "|" + state(job)["state"] + "|" + "node7")
elif name == "scancel":
    job = root / (words[-1] + ".job")
    kept = state(job)
    if words[0] == "--state=PENDING":
        if kept["state"] == "PENDING":
            job.write_text(json.dumps(dict(kept, state="CANCELLED")))
    elif kept["state"] == "RUNNING":
        step = int(job.with_suffix(".step").read_text())
        os.kill(step, getattr(signal, words[0].removeprefix("--signal=")))
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a stand-in for Slurm, whose commands are on the path."""
    pytest.importorskip("submitit")
    root = tmp_path / "slurm"
    root.mkdir()
    for name in slurm.COMMANDS:
        command = root / name
        command.write_text(f"#!{sys.executable}\n" + STAND_IN.format(root=str(root)))
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "LOOK", 0.5)
    monkeypatch.setattr(slurm, "READ", 0.1)
    monkeypatch.setattr(slurm, "LATE", 1.0)
    yield root
    for step in root.glob("*.step"):
        if not step.with_suffix(".status").exists():
            os.kill(int(step.read_text()), signal.SIGKILL)


def calls(cluster: Path, name: str) -> list[list[str]]:
    lines = map(json.loads, (cluster / "calls").read_text().splitlines())
    return [words for command, *words in lines if command == name]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("", "needs a time limit"),
        ("partition=gpu", "needs a time limit"),
        ("time", "NAME=VALUE"),
        ("time=1,time=2", "each once"),
        ("Time=1", "NAME=VALUE"),
        ("time=1,array=1-9", "sets array itself"),
        ("time=1,jobs=0", "at least 1"),
    ],
)
def test_bad_options_are_refused(argument: str, words: str) -> None:
    with pytest.raises(ConfigError, match="--on='slurm") as error:
        open_slurm(argument, CPU)
    assert words in str(error.value)


def test_machine_without_slurm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"has no sbatch, .*login node.*local:N"):
        open_slurm("time=60", CPU)


def test_options_that_slurm_refuses_are_refused_at_once(cluster: Path) -> None:
    with pytest.raises(ConfigError, match="invalid partition specified: nonsense"):
        open_slurm("time=60,partition=nonsense", CPU)


@pytest.mark.parametrize(
    ("argument", "needs", "options"),
    [
        ("time=60,nodelist=n1,n2,mem=8G", CPU, ["--time=60", "--nodelist=n1,n2", "--mem=8G"]),
        ("time=60", CUDA, ["--time=60", "--gpus-per-node=1"]),
        ("time=60,gres=gpu:a100:1", CUDA, ["--time=60", "--gres=gpu:a100:1"]),
        ("time=60,gpus=1", CUDA, ["--time=60", "--gpus=1"]),
    ],
)
def test_options_are_those_of_sbatch(
    cluster: Path, argument: str, needs: Needs, options: list[str]
) -> None:
    driver = open_slurm(f"{argument},jobs=3", needs)
    assert driver.capacity() == 3
    test = ["--test-only", *options, "--signal=USR2@120", "--wrap=true"]
    assert calls(cluster, "sbatch") == [test]


def test_queued_job_is_cancelled(cluster: Path, tmp_path: Path) -> None:
    (cluster / "full").touch()
    driver = open_slurm("time=60,mem=2G", CPU)
    handle = driver.submit(task_of(tmp_path, "unit"))
    script = Path(calls(cluster, "sbatch")[1][0]).read_text()
    assert "#SBATCH --time=60\n" in script
    assert "#SBATCH --mem=2G\n" in script
    assert "#SBATCH --job-name=unit\n" in script
    assert "#SBATCH --signal=USR2@120\n" in script
    time.sleep(0.6)
    assert driver.poll(handle) == State(Phase.WAITING, where="job 17, node node7")
    driver.cancel(handle)
    state = waits(driver, handle)
    assert state.phase is Phase.FAILED
    assert "Slurm ended the job: CANCELLED" in state.reason
    assert driver.poll(handle) == state


def test_job_that_slurm_lost_has_failed(cluster: Path, tmp_path: Path) -> None:
    (cluster / "full").touch()
    driver = open_slurm("time=60", CPU)
    handle = driver.submit(task_of(tmp_path, "unit"))
    (cluster / "17.job").unlink()
    state = waits(driver, handle)
    assert state.phase is Phase.FAILED
    assert "it is not in the queue" in state.reason


def test_submission_that_fails_is_an_os_error(cluster: Path, tmp_path: Path) -> None:
    driver = open_slurm("time=60", CPU)
    (cluster / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: queue is full' >&2; exit 1\n")
    with pytest.raises(OSError, match="queue is full"):
        driver.submit(task_of(tmp_path, "unit"))


@pytest.mark.slow
def test_sweep_is_done_by_jobs(
    cluster: Path, make_sweep: Callable[..., Manifest], tmp_path: Path
) -> None:
    sweep, said = tmp_path / "sweep", list[str]()
    driver = open_slurm("time=60", CPU)
    status = Scheduler(sweep, make_sweep(sweep), driver, say=said.append).run()
    assert {one.now for one in status.values()} == {"whole"}, said
    newest = Attempts(sweep).newest().values()
    assert [(attempt.number, attempt.ended) for attempt in newest] == [(1, "whole")] * 2
    assert len(calls(cluster, "sbatch")) == 3  # one of them tested the options


@pytest.mark.slow
def test_running_jobs_are_stopped(
    cluster: Path, make_sweep: Callable[..., Manifest], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    sweep = make_sweep(folder, times=400)
    driver = open_slurm("time=60", CPU)
    attempts = Attempts(folder)
    first, second = (unit.name for unit in sweep.units)
    handles = [driver.submit(task_of(folder, unit)) for unit in (first, second)]
    for handle, unit in zip(handles, (first, second), strict=True):
        waits(driver, handle, lambda _, unit=unit: has_checkpoint(folder, unit))
    assert driver.poll(handles[0]) == State(Phase.RUNNING, where="job 17, node node7")
    driver.cancel(handles[0])
    driver.cancel(handles[1], now=True)
    stopped = waits(driver, handles[0])
    assert stopped.status == 128 + signal.SIGTERM
    killed = waits(driver, handles[1])
    assert killed.status is None
    assert "Slurm ended the job: FAILED" in killed.reason
    assert attempts.newest()[first].ended == "stopped"
    until = time.monotonic() + LONG  # the first one has ended, but for its last words
    while any(attempt.process.lives() for attempt in attempts.newest().values()):
        assert time.monotonic() < until
        time.sleep(0.05)
