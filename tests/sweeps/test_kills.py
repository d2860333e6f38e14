"""Real processes: a worker that is killed five times, and a sweep that is stopped and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.checksums import SEAL, SUMS, sha256_of
from saelens_adaptive_ortho.manifests import Manifest, unit_folder, write_manifest
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.sweeps.attempts import Attempts
from saelens_adaptive_ortho.sweeps.axes import build_sweep
from saelens_adaptive_ortho.sweeps.drivers.contract import OK, Task
from saelens_adaptive_ortho.sweeps.drivers.local import LocalDriver
from saelens_adaptive_ortho.sweeps.packing import pack
from saelens_adaptive_ortho.sweeps.scheduling import Scheduler
from saelens_adaptive_ortho.sweeps.working import Kept, do_unit

LAYERS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
LONG = 600.0  # seconds until a process that is waited for has certainly failed
# A unit's process, without its report: drawing takes longer than all else here.
UNIT = """
import sys
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.report.page import run
run.write_report = lambda root: root / "report.html"
sys.exit(main(sys.argv[1:]))
"""
# A unit is killed when it has got this far: nothing but its claim, a checkpoint, an SAE, a result.
STAGES = ("attempts/{unit}.*.json", "checkpoints/*/*/*", "*/SHA256SUMS", "*__subspace.json")

OF_THE_FOLDER = ("output_path", "checkpoint_path", SEAL)

pytestmark = pytest.mark.slow


def start(task: Task) -> list[str]:
    return [sys.executable, "-c", UNIT, *task.command()[3:]]


def has_got_to(sweep: Path, unit: str, stage: str) -> bool:
    if "{unit}" in stage:
        return any(sweep.glob(stage.format(unit=unit)))
    root = unit_folder(sweep, unit)
    return any(root.rglob(stage))


def contents(sweep: Path, manifest: Manifest) -> dict[str, Any]:
    """Return all that was learned and measured: no times, and no paths of the sweep."""
    found: dict[str, Any] = {}
    for unit in manifest.units:
        root = unit_folder(sweep, unit.name)
        for point in unit.points:
            for file in (root / f"seed{point.seed}" / point.variant).iterdir():
                name = str(file.relative_to(sweep))
                if file.suffix == ".json":
                    settings = json.loads(file.read_text())
                    found[name] = {k: v for k, v in settings.items() if k not in OF_THE_FOLDER}
                elif file.name != SUMS:  # those of the files above
                    found[name] = sha256_of(file)
        for file in (root / "results").glob("*__seed*__*.json"):
            metrics = json.loads(file.read_text())["metrics"]
            metrics = {k: v for k, v in metrics.items() if not k.endswith("seconds")}
            found[str(file.relative_to(sweep))] = metrics
    return found


@pytest.fixture
def make_sweep(settings: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def make(folder: Path, **axes: Any) -> dict[str, Any]:
        return settings(
            n_checkpoints=3,
            sweep={"hook_name": LAYERS, "sae.ortho_alpha": [0, 1], **axes},
            evals={"subspace": {"n_contexts": 8}},
            output_path=str(folder),
        )

    return make


def test_sweep_with_five_kills_is_the_serial_one(
    make_sweep: Callable[..., dict[str, Any]], tmp_path: Path, no_report: None
) -> None:
    sweep, serial = tmp_path / "sweep", tmp_path / "serial"
    manifest = pack(build_sweep(make_sweep(sweep, seed=[0, 1])))
    assert len(manifest.units) == 4
    write_manifest(sweep, manifest)
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
    # Every SAE is that of a serial run, to the bit.
    write_manifest(serial, manifest)
    kept = Kept()
    for unit in manifest.units:
        assert do_unit(serial, unit.name, "serial", kept) == OK
    assert contents(sweep, manifest) == contents(serial, manifest)
    left = {"checkpoints", ".lock"}
    assert not [path for path in (sweep / "units").rglob("*") if path.name in left]


def test_interrupted_sweep_leaves_nothing_running_and_continues(
    make_sweep: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    sweep, config = tmp_path / "sweep", tmp_path / "sweep.yaml"
    tree = make_sweep(sweep, seed=[0])
    tree["training_tokens"] *= 400  # long enough to be interrupted
    config.write_text(dump_yaml(tree))
    command = [sys.executable, "-m", "saelens_adaptive_ortho", "sweep", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [*command, "--on", "local:2"], stderr=subprocess.PIPE, text=True, env=environment
    )
    attempts, until = Attempts(sweep), time.monotonic() + LONG
    units = sweep / "units"
    while True:
        logs = [log.read_text() for log in sweep.glob("logs/*.log")]
        if sum("Training alpha=0" in log for log in logs) == 2:
            break
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
    assert {attempt.ended for attempt in attempts.newest().values()} == {"stopped"}
    assert len(list(units.glob("*/seed0/checkpoints/step_*"))) >= 2
