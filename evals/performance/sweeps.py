"""Measure a sweep with one worker and with two, and what the scheduler adds to the work itself.

The same sweep of the embedded model runs three times, each time in a folder of its own: every unit
in this order in processes of its own without a scheduler, then by ``sweep --on local:1`` and
``--on local:2``. Each process has half of the cores, so that two workers have what one has twice.

The aims are at most 5% of the work for what ``local:1`` adds, and at least 1.7 for two workers
against one, on units of 30 seconds or more (``--tokens`` sets their length). What is added is the
time outside the units with the scheduler, minus that without one: so it does not depend on how
evenly the machine did the units themselves.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.manifests import Manifest, write_manifest
from saelens_adaptive_ortho.sweeps.attempts import Attempts
from saelens_adaptive_ortho.sweeps.starting import open_sweep

PROGRAM = [sys.executable, "-m", "saelens_adaptive_ortho"]
TOKENS, UNITS = 409_600, 6
ALONE = "no scheduler"
AIM_ADDED, AIM_SPEEDUP = 0.05, 1.7


def overrides(folder: Path, tokens: int, units: int) -> list[str]:
    """The settings of the sweep: one unit of three SAEs per seed."""
    return [
        "sweep.sae.ortho_alpha=[0, 0.5, 1]",
        "variants=",
        f"seeds={list(range(units))}",
        f"training_tokens={tokens}",
        "evals={subspace: {}}",
        f"output_path={folder}",
    ]


def measure(folder: Path, tokens: int, units: int, environment: dict[str, str]) -> dict[str, Any]:
    """Run the sweep in the three ways, and return their times."""
    seconds: dict[str, float] = {}
    alone = open_sweep("demo", overrides(folder / "alone", tokens, units))
    write_manifest(alone.folder, alone.manifest)
    started = time.perf_counter()
    for unit in alone.manifest.units:
        words = ["sweep-unit", str(alone.folder), unit.name]
        subprocess.run([*PROGRAM, *words], env=environment, check=True, capture_output=True)
    seconds[ALONE] = time.perf_counter() - started
    units_took = {ALONE: unit_seconds(alone.folder, alone.manifest)}
    for workers in (1, 2):
        name = f"local:{workers}"
        sets = overrides(folder / f"local{workers}", tokens, units)
        words = [word for text in sets for word in ("--set", text)]
        started = time.perf_counter()
        subprocess.run(
            [*PROGRAM, "sweep", "demo", *words, "--on", name],
            env=environment,
            check=True,
            capture_output=True,
        )
        seconds[name] = time.perf_counter() - started
        units_took[name] = unit_seconds(folder / f"local{workers}", alone.manifest)
    outside = {name: seconds[name] - sum(units_took[name]) for name in (ALONE, "local:1")}
    return {
        "seconds": seconds,
        "unit_seconds": units_took,
        "added": (outside["local:1"] - outside[ALONE]) / seconds[ALONE],
        "speedup": seconds["local:1"] / seconds["local:2"],
    }


def unit_seconds(sweep: Path, manifest: Manifest) -> list[float]:
    """The time that each unit took, without the start of its process."""
    newest = Attempts(sweep).newest()
    return [newest[unit.name].seconds for unit in manifest.units]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=TOKENS, help="training tokens of a unit")
    parser.add_argument("--units", type=int, default=UNITS, help="number of units")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args(argv)
    threads = max(1, (os.cpu_count() or 1) // 2)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.tokens, args.units, environment)
    for name, seconds in found["seconds"].items():
        print(f"{name:<14}{seconds:8.1f} s")
    for name, took in found["unit_seconds"].items():
        print(f"{name:<14}units took {', '.join(f'{s:.0f}' for s in took)} s")
    print(f"the scheduler adds {found['added']:.1%} (aim: at most {AIM_ADDED:.0%})")
    print(f"two workers {found['speedup']:.2f} times as fast as one (aim: {AIM_SPEEDUP})")
    if args.json:
        settings = {"tokens": args.tokens, "units": args.units, "threads": threads}
        write_json(args.json, {**settings, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
