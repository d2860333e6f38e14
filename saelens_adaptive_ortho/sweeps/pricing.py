"""What the units of a sweep will cost: timed steps of each kind of unit, and what others took."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.files import read_cached, write_sealed
from saelens_adaptive_ortho.manifests import Manifest, Unit
from saelens_adaptive_ortho.sweeps.attempts import Attempts
from saelens_adaptive_ortho.sweeps.folder import PRICES, is_whole
from saelens_adaptive_ortho.sweeps.working import Kept, experiment_of
from saelens_adaptive_ortho.training.costs import Costs, measure_costs
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner


@dataclass(frozen=True)
class Price:
    """What a unit will cost.

    Args:
        seconds: time of its training.
        memory: bytes at the peak.
        disk: bytes of its SAEs and, while it trains, of its checkpoints.
    """

    seconds: float
    memory: int
    disk: int


def measure(
    sweep: Path, manifest: Manifest, steps: int, say: Callable[[str], None]
) -> dict[str, Price]:
    """Time some steps of each kind of unit, and return the price of every unit by name.

    Units that differ only in their seed are of one kind. Nothing that is trained is kept.

    Args:
        sweep: the sweep's folder, which need not exist.
        manifest: the sweep.
        steps: timed steps of each SAE.
        say: function that shows a line of progress.

    Raises:
        ConfigError: a setting cannot work.
    """
    kinds: dict[str, Price] = {}
    kept = Kept()
    for unit in manifest.units:
        kind = kind_of(unit)
        if kind in kinds:
            continue
        experiment = experiment_of(sweep, unit)
        cfg = experiment.runner
        runner = AdaptiveOrthoRunner(cfg, experiment.variants, kept.prepare(cfg))
        say(f"{unit.label}: timing {steps} steps of each ...")
        kinds[kind] = _price(measure_costs(runner, steps))
    return {unit.name: kinds[kind_of(unit)] for unit in manifest.units}


def write_prices(sweep: Path, manifest: Manifest, prices: Mapping[str, Price]) -> None:
    """Keep the times in the sweep's folder, for the order of the units."""
    kinds = {kind_of(unit): prices[unit.name].seconds for unit in manifest.units}
    write_sealed(sweep / PRICES, {"seconds": kinds})


def known_seconds(sweep: Path, manifest: Manifest) -> dict[str, float]:
    """The time that each unit will take, by name, as far as it is known.

    It is the time that a finished unit of its kind took, or else what ``plan`` measured, which is
    the training alone.
    """
    found = read_cached(sweep / PRICES)
    planned: Mapping[str, Any] = found.get("seconds", {}) if isinstance(found, dict) else {}
    took: dict[str, float] = {}
    newest = Attempts(sweep).newest()
    for unit in manifest.units:
        attempt = newest.get(unit.name)
        if attempt is not None and attempt.ended == "whole":
            kind = kind_of(unit)
            # A unit that was continued took longer in all than its last try.
            took[kind] = max(attempt.seconds, took.get(kind, 0.0))
    known = {**planned, **took}
    names = {unit.name: kind_of(unit) for unit in manifest.units}
    return {name: float(known[kind]) for name, kind in names.items() if kind in known}


def kind_of(unit: Unit) -> str:
    """Digest of a unit's settings without its seed: units of one kind take the same time."""
    settings = {name: value for name, value in unit.settings.items() if name != "seeds"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def unfinished(sweep: Path, manifest: Manifest) -> list[Unit]:
    """The units that are not whole yet."""
    newest = Attempts(sweep).newest()
    return [u for u in manifest.units if not is_whole(sweep, u, newest.get(u.name))]


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Time until all units are done, if each worker that is free takes the longest one left."""
    ends = [0.0] * workers
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def _price(costs: Costs) -> Price:
    return Price(costs.seconds(), costs.memory + costs.buffer, costs.export + costs.checkpoints)
