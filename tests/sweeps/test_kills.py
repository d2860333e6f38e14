"""Real processes: a worker that is killed five times, and a sweep that is stopped and continued."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.manifests import Manifest, unit_folder
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.sweeps.attempts import Attempts
from saelens_adaptive_ortho.sweeps.drivers.contract import REFUSED, Task
from saelens_adaptive_ortho.sweeps.drivers.local import LocalDriver
from saelens_adaptive_ortho.sweeps.folder import log_of
from saelens_adaptive_ortho.sweeps.scheduling import Scheduler
from tests.sweeps.helpers import LAYERS, LONG, assert_as_serial, has_checkpoint

# A unit's process, without its report: drawing takes longer than all else here.
UNIT = """
import sys
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.report.page import run
run.write_report = lambda root: root / "report.html"
sys.exit(main(sys.argv[1:]))
"""
# No file of it can grow beyond this number of bytes, as on a full disk. Its checkpoints are larger.
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
# A unit is killed when it has got this far: nothing but its claim, a checkpoint, an SAE, a result.
STAGES = ("attempts/{unit}.*.json", "checkpoints/*/*/*", "*/SHA256SUMS", "*__subspace.json")

pytestmark = pytest.mark.slow


def start(task: Task, before: str = "") -> list[str]:
    return [sys.executable, "-c", before + UNIT, *task.command()[3:]]


def has_got_to(sweep: Path, unit: str, stage: str) -> bool:
    if "{unit}" in stage:
        return any(sweep.glob(stage.format(unit=unit)))
    root = unit_folder(sweep, unit)
    return any(root.rglob(stage))


def test_sweep_with_five_kills_is_the_serial_one(
    make_sweep: Callable[..., Manifest], tmp_path: Path, no_report: None
) -> None:
    sweep = tmp_path / "sweep"
    manifest = make_sweep(sweep, **{"seed": [0, 1], "sae.ortho_alpha": [0, 1]})
    assert len(manifest.units) == 4
    stages = [*STAGES, STAGES[1]]  # five kills
    attempts, killed = Attempts(sweep), list[tuple[str, int]]()

    def kill(_: float) -> None:
        """Kill the process of a unit that has got to the next stage."""
        for unit, attempt in attempts.newest().items():
            dead = (unit, attempt.process.pid) in killed
            if stages and not dead and attempt.ended is None and attempt.process.lives():
                if not has_got_to(sweep, unit, stages[0]):
                    continue
                os.kill(attempt.process.pid, signal.SIGKILL)
                killed.append((unit, attempt.process.pid))
                stages.pop(0)
        time.sleep(0.02)

    driver = LocalDriver([{"OMP_NUM_THREADS": "1"}] * 2, ["one", "two"], start)
    said: list[str] = []

    def scheduler() -> Scheduler:
        return Scheduler(sweep, manifest, driver, say=said.append, sleep=kill, tries=9)

    status = scheduler().run()
    assert {one.now for one in status.values()} == {"whole"}, said
    assert len(killed) == 5
    newest = attempts.newest()
    assert sum(attempts.count(unit, "lost") for unit in newest) == 5
    # Nothing was done again after it was whole: each unit was whole once, at its last try.
    assert all(attempts.count(unit, "whole") == 1 for unit in newest)
    assert all(attempt.ended == "whole" for attempt in newest.values())
    assert scheduler().run() == status
    assert attempts.newest() == newest
    assert_as_serial(sweep, manifest, tmp_path / "serial")


def test_full_disk_of_one_worker_is_said_at_once_and_harms_no_other(
    make_sweep: Callable[..., Manifest], tmp_path: Path, no_report: None
) -> None:
    sweep = tmp_path / "sweep"
    manifest = make_sweep(sweep, hook_name=LAYERS[:1], seed=[0, 1, 2])
    full, *others = sorted(unit.name for unit in manifest.units)  # in the order of their turns
    attempts, said = Attempts(sweep), list[str]()

    def say(line: str) -> None:
        if not said:  # while the others run
            assert sum(attempts.count(unit, "whole") for unit in others) < len(others)
        said.append(line)

    def run(command: Callable[[Task], list[str]]) -> dict[str, str]:
        driver = LocalDriver([{"OMP_NUM_THREADS": "1"}] * 2, ["one", "two"], command)
        status = Scheduler(sweep, manifest, driver, say=say).run()
        return {unit: one.now for unit, one in status.items()}

    status = run(lambda task: start(task, FULL if task.unit == full else ""))
    assert status == {full: "failed", **dict.fromkeys(others, "whole")}
    failed = attempts.newest_of(full)
    assert failed is not None
    assert (failed.ended, failed.status) == ("failed", REFUSED)
    assert re.search(rf"{re.escape(str(sweep))}.* could not be written .*too large", failed.reason)
    assert failed.reason in said[0]
    assert f"error: {failed.reason}" in log_of(sweep, full).read_text()
    # The next sweep, with space, does this unit alone.
    assert set(run(start).values()) == {"whole"}
    assert [attempts.count(unit, "whole") for unit in (full, *others)] == [1, 1, 1]
    assert_as_serial(sweep, manifest, tmp_path / "serial")


def test_interrupted_sweep_leaves_nothing_running_and_continues(
    sweep_settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    sweep, config = tmp_path / "sweep", tmp_path / "sweep.yaml"
    config.write_text(dump_yaml(sweep_settings(sweep, times=400)))  # long enough
    command = [sys.executable, "-m", "saelens_adaptive_ortho", "sweep", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [*command, "--on", "local:2"], stderr=subprocess.PIPE, text=True, env=environment
    )
    attempts, until = Attempts(sweep), time.monotonic() + LONG
    while sum(has_checkpoint(sweep, unit) for unit in attempts.newest()) < 2:
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    processes = [attempt.process for attempt in attempts.newest().values()]
    assert len(processes) == 2
    running.send_signal(signal.SIGINT)
    _, words = running.communicate(timeout=LONG)
    assert running.returncode == 130
    assert "The same command continues." in words
    assert not any(process.lives() for process in processes)
    newest = attempts.newest()
    assert {attempt.ended for attempt in newest.values()} == {"stopped"}
    assert all("; saved " in attempt.reason for attempt in newest.values())
