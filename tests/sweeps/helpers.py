"""What tests of sweeps share: tasks, waiting, and the comparison with a serial run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.checksums import SEAL, SUMS, sha256_of
from saelens_adaptive_ortho.experiments.comparison import CHECKPOINTS, TRAINING
from saelens_adaptive_ortho.manifests import Manifest, unit_folder, write_manifest
from saelens_adaptive_ortho.sweeps.drivers.contract import OK, Driver, State, Task
from saelens_adaptive_ortho.sweeps.folder import log_of
from saelens_adaptive_ortho.sweeps.working import Kept, do_unit

LAYERS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
LONG = 600.0  # seconds until what is waited for has certainly failed
OF_THE_FOLDER = ("output_path", "checkpoint_path", SEAL)
LITTER = {CHECKPOINTS, ".lock"}


def task_of(sweep: Path, unit: str, ticket: str = "ticket") -> Task:
    return Task(unit, sweep, ticket, log_of(sweep, unit), Path.cwd())


def waits(
    driver: Driver, handle: Any, until: Callable[[State], bool] = lambda state: state.ended
) -> State:
    """Return the state of a task when it is as it shall be; by default, when it has ended."""
    late = time.monotonic() + LONG
    while not until(state := driver.poll(handle)):
        assert time.monotonic() < late, state
        time.sleep(0.05)
    return state


def has_checkpoint(sweep: Path, unit: str) -> bool:
    return any(unit_folder(sweep, unit).glob(f"seed*/{CHECKPOINTS}/step_*"))


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


def assert_as_serial(sweep: Path, manifest: Manifest, serial: Path) -> None:
    """Do all units one after the other in the folder ``serial``, and compare with the sweep.

    Every SAE of the sweep is that of the serial run, to the bit, nothing is missing, and no
    checkpoint or lock is left.
    """
    write_manifest(serial, manifest)
    kept = Kept()
    for unit in manifest.units:
        assert do_unit(serial, unit.name, "serial", kept) == OK
    expected = contents(serial, manifest)
    assert sum(name.endswith(".safetensors") for name in expected) >= len(manifest.points)
    assert contents(sweep, manifest) == expected
    assert not [path for path in (sweep / "units").rglob("*") if path.name in LITTER]


def note_written(sweep: Path, manifest: Manifest, noted: dict[Path, tuple[int, int]]) -> None:
    """Note what each file of an SAE or a result is like when it is first there.

    All of them are renamed into place, so they are whole from the beginning, and a file that is
    written again is another one. The result of a training is not noted: it comes before its SAE,
    and is written again with it.
    """
    for unit in manifest.units:
        root = unit_folder(sweep, unit.name)
        files = list((root / "results").glob("*__seed*__*.json"))
        for point in unit.points:
            files += (root / f"seed{point.seed}" / point.variant).glob("*")
        for file in files:
            if file not in noted and not file.name.endswith(f"__{TRAINING}.json"):
                noted[file] = written(file)


def written(file: Path) -> tuple[int, int]:
    """Return the inode of a file, and the time of its last change in nanoseconds."""
    found = file.stat()
    return found.st_ino, found.st_mtime_ns
