"""What a sweep's folder holds, and whether a unit in it is whole.

::

    SWEEP/sweep.json      the manifest: axes, SAEs, units
    SWEEP/sweep.yaml      the config, as it was read
    SWEEP/units/UNIT/     the comparison of a unit: SAEs, results, its own report
    SWEEP/attempts/       who works on a unit, and how each try ended
    SWEEP/logs/UNIT.log   the output of its tries
    SWEEP/cache/          the tokenised text, and what evaluations make once for all units
    SWEEP/prices.json     the times that `plan` measured
    SWEEP/report.html     the report of the sweep
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from saelens_adaptive_ortho.checksums import find_damage
from saelens_adaptive_ortho.manifests import Unit, unit_folder
from saelens_adaptive_ortho.results import ResultError, load_result, result_path
from saelens_adaptive_ortho.sweeps.attempts import Attempt

CONFIG = "sweep.yaml"
PRICES = "prices.json"
LOGS = "logs"
CACHE = "cache"
WEIGHTS = "sae_weights.safetensors"

Trace = dict[Path, tuple[int, int]]  # of each file, its size and the time of its last change


def log_of(sweep: Path, unit: str) -> Path:
    """The file with the output of a unit's tries."""
    return sweep / LOGS / f"{unit}.log"


def trace_of(sweep: Path, unit: str) -> Trace:
    """Size and time of each file that a unit's process writes: equal while it writes nothing.

    Files of W&B are left out, because another process writes them.
    """
    files, found = [log_of(sweep, unit)], Trace()
    for folder, folders, names in os.walk(unit_folder(sweep, unit)):
        folders[:] = [name for name in folders if name != "wandb"]
        files += [Path(folder, name) for name in names]
    for file in files:
        with suppress(OSError):  # it is gone by now
            state = file.stat()
            found[file] = (state.st_size, state.st_mtime_ns)
    return found


def settings_digest(unit: Unit) -> str:
    """Digest of a unit's settings: what is trained, and how it is judged."""
    return hashlib.sha256(json.dumps(unit.settings, sort_keys=True).encode()).hexdigest()


def is_whole(sweep: Path, unit: Unit, newest: Attempt | None) -> bool:
    """Whether a unit is done with these settings, and every SAE and result is as it was written.

    Args:
        sweep: the sweep's folder.
        unit: the unit.
        newest: its newest try.
    """
    if newest is None or newest.ended != "whole" or newest.settings != settings_digest(unit):
        return False
    return find_fault(sweep, unit) is None


def find_fault(sweep: Path, unit: Unit) -> str | None:
    """The first SAE or result of a unit that is missing or damaged, in words; None if all is well.

    It reads every file.
    """
    root = unit_folder(sweep, unit.name)
    for point in unit.points:
        sae = root / f"seed{point.seed}" / point.variant
        if not (sae / WEIGHTS).is_file():
            return f"{sae} is missing"
        if (damaged := find_damage(sae)) is not None:
            return f"{damaged} is damaged"
        for name in unit.settings["evals"]:
            try:
                result = load_result(result_path(root, point.variant, point.seed, name))
            except ResultError as error:
                return str(error)
            if not result.ok:
                return f"{name} of {point.variant} failed: {result.reason}"
    return None


def last_lines(file: Path, n: int = 12) -> list[str]:
    """The last lines of a text file that are not empty; none if it cannot be read."""
    try:
        with file.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - 200 * n))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return []
    # A progress bar overwrites its line.
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-n:]
