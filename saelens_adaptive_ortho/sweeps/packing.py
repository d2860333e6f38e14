"""Points become units: SAEs that one process trains together, as far as the memory allows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from saelens_adaptive_ortho.files import without_home
from saelens_adaptive_ortho.manifests import Manifest, Point, Unit
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.sweeps.axes import Setting, Sweep
from saelens_adaptive_ortho.training.memory import least_memory, memory_of
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig, with_sae

# Share of the memory that the SAEs of a unit may need at the very least. The rest is for the
# language model, its activations, and the penalties.
PACKED = 0.5


def pack(sweep: Sweep, before: Manifest | None = None) -> Manifest:
    """The manifest of a sweep.

    SAEs of one setting (model, hook, text, seed, training) are one unit, unless they need more than
    half of the memory of their device, or are more than ``saes_per_unit``. Then they are several
    units of about the same size. They stay paired, because initial weights and batches depend only
    on the seed.

    Args:
        sweep: the sweep.
        before: its manifest of before. Units whose SAEs are all still in the sweep stay as they
            are, so a sweep that grows keeps what is finished. The others get new units.
    """
    kept = _kept_units(sweep, before)
    units = []
    for setting in sweep.settings:
        of_setting = {point.id for point in setting.points}
        groups = [points for points in kept if {point.id for point in points} <= of_setting]
        done = {point.id for points in groups for point in points}
        left = [point for point in setting.points if point.id not in done]
        groups += _parts(setting, left, sweep.most)
        units += [_unit(setting, points) for points in groups]
    config = dump_yaml(without_home(sweep.config))
    places = (without_home(os.getcwd()), config, without_home(sweep.copy_to))
    return Manifest(sweep.name, sweep.axes, units, *places)


def _kept_units(sweep: Sweep, before: Manifest | None) -> list[Sequence[Point]]:
    """The SAEs of the units of before that stay. They keep the names that their folders have."""
    now = {point.id: point for setting in sweep.settings for point in setting.points}
    return [
        [replace(now[point.id], variant=point.variant) for point in unit.points]
        for unit in (before.units if before else [])
        if all(point.id in now for point in unit.points)
    ]


def _parts(setting: Setting, points: Sequence[Point], most: int | None) -> list[Sequence[Point]]:
    """The SAEs in as few parts of about the same size as fit."""
    if not points:
        return []
    for n in range(1, len(points) + 1):
        parts = list(_split(points, n))
        if all(_fits(setting, part, most) for part in parts):
            return parts
    return [[point] for point in points]  # one alone may not fit; `check_memory` says so


def _split(points: Sequence[Point], n: int) -> Iterator[Sequence[Point]]:
    for i in range(n):
        yield points[i * len(points) // n : (i + 1) * len(points) // n]


def _fits(setting: Setting, points: Sequence[Point], most: int | None) -> bool:
    if most is not None and len(points) > most:
        return False
    there = memory_of(setting.experiment.runner.device)
    return there is None or least_memory(_configs(setting, points)) <= PACKED * there


def _configs(setting: Setting, points: Sequence[Point]) -> list[AdaptiveOrthoRunnerConfig]:
    changes = _changes(setting)
    return [with_sae(setting.experiment.runner, changes[point.id]) for point in points]


def _changes(setting: Setting) -> dict[str, dict[str, Any]]:
    """The changes of ``sae`` fields that make each SAE, by its id."""
    return {point.id: setting.tree["variants"][point.variant] for point in setting.points}


def _unit(setting: Setting, points: Sequence[Point]) -> Unit:
    changes = _changes(setting)
    cfg, configs = setting.experiment.runner, _configs(setting, points)
    digest = hashlib.sha256("\n".join(sorted(point.id for point in points)).encode())
    number = f"{len(points)} SAE" + "s" * (len(points) > 1)
    return Unit(
        name=digest.hexdigest()[:12],
        label=f"{cfg.hook_name}, seed {points[0].seed}, {number}",
        points=points,
        settings={**setting.tree, "variants": {p.variant: changes[p.id] for p in points}},
        memory=least_memory(configs),
        size=float(sum(c.sae.d_in * c.sae.d_sae * c.training_tokens for c in configs)),
    )
