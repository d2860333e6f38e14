"""Statistics of a sweep: every setting over its seeds, lines along the axes, and the best settings.

A *setting* is what the SAEs of all seeds share: the values on every axis but ``seed``. A *facet* is
a model, a hook and an architecture; settings are compared within a facet only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.evaluations import evaluation, headline_keys, in_order, primary_keys
from saelens_adaptive_ortho.manifests import Manifest, Point, Unit, unit_folder
from saelens_adaptive_ortho.report.figures.tradeoff import COST
from saelens_adaptive_ortho.report.metrics import describe
from saelens_adaptive_ortho.report.opening import GAINS
from saelens_adaptive_ortho.report.statistics import Spread, t_quantile
from saelens_adaptive_ortho.results import Result, ResultError, load_result, result_path

SEED = "seed"
FACETS = ("model_name", "hook_name", "sae.architecture")
#: A setting may be the best one if its explained variance is at most this far below the best.
WITHIN = 0.02
TRAINING = "training"


@dataclass(frozen=True)
class Setting:
    """A setting of a sweep, over its seeds.

    Args:
        facet: its model, hook and architecture, as far as they are axes, in words.
        base: the variant of the config that it comes from; empty if there are none.
        values: its value on each other axis.
        seeds: the seeds of its SAEs, finished or not.
        metrics: its metrics by key (``{eval}/{name}``), over the seeds that have them.
    """

    facet: str
    base: str
    values: Mapping[str, Any]
    seeds: Sequence[int]
    metrics: Mapping[str, Spread]

    @property
    def label(self) -> str:
        """The setting in words: ``adaptive, k 16, alpha 0.5``."""
        parts = [self.base] if self.base else []
        return ", ".join([*parts, *labels(self.values)]) or "the one setting"

    def mean(self, key: str) -> float | None:
        """The mean of a metric over the seeds."""
        return self.metrics[key].mean if key in self.metrics else None


@dataclass(frozen=True)
class Missing:
    """SAEs of a unit that have no result of an evaluation.

    Args:
        unit: the unit.
        evals: the evaluations.
        saes: number of SAEs that lack one.
        reason: what is known about it.
    """

    unit: Unit
    evals: Sequence[str]
    saes: int
    reason: str


@dataclass(frozen=True)
class SweepResults:
    """All results of a sweep.

    Args:
        manifest: the sweep.
        settings: its settings, in the order of the facets.
        missing: what is not there.
        finished: number of SAEs with every result.
    """

    manifest: Manifest
    settings: Sequence[Setting]
    missing: Sequence[Missing]
    finished: int

    @property
    def facets(self) -> list[str]:
        """The facets."""
        return list(dict.fromkeys(setting.facet for setting in self.settings))

    @property
    def keys(self) -> list[str]:
        """All metrics that were measured."""
        return list(dict.fromkeys(key for setting in self.settings for key in setting.metrics))

    def of_facet(self, facet: str) -> list[Setting]:
        """The settings of a facet."""
        return [setting for setting in self.settings if setting.facet == facet]

    def numeric_axes(self) -> list[str]:
        """The axes with two numbers or more, without ``seed``."""
        return [
            axis
            for axis, values in self.manifest.axes.items()
            if axis != SEED and len(values) > 1 and all(map(_is_number, values))
        ]


@dataclass(frozen=True)
class Line:
    """A metric along an axis, with everything else fixed.

    Args:
        label: what is fixed, in words.
        x: values on the axis, rising.
        mean: mean of the metric over the seeds at each value.
        half: half of the width of the band at each value; None if it cannot be computed.
        seeds: values by seed at each value, for the dots.
        level: a mean that does not depend on the axis (a variant that the axis does not change);
            ``x`` is then empty.
    """

    label: str
    x: Sequence[float] = ()
    mean: Sequence[float] = ()
    half: Sequence[float] | None = None
    seeds: Sequence[Mapping[int, float]] = ()
    level: float | None = None


@dataclass(frozen=True)
class Best:
    """The best setting of a facet by the stated rule.

    Args:
        facet: the facet.
        setting: the setting.
        among: number of settings whose cost is close enough to the best one's.
        of: number of settings that have both metrics.
        front: the settings that no other one beats in both metrics, in the order of the cost.
    """

    facet: str
    setting: Setting
    among: int
    of: int
    front: Sequence[Setting] = field(default=())


# ------------------------------------------------------------------- reading


def collect(sweep: Path, manifest: Manifest, states: Mapping[str, str]) -> SweepResults:
    """Read all results of a sweep that are there.

    Args:
        sweep: the sweep's folder.
        manifest: the sweep.
        states: what is known about units that are not whole, by name.
    """
    facets = [axis for axis in FACETS if len(manifest.axes.get(axis, ())) > 1]
    found: dict[str, list[tuple[Point, dict[str, float]]]] = {}
    missing: list[Missing] = []
    finished = 0
    for unit in manifest.units:
        evals = [*unit.settings["evals"], TRAINING]
        lacking: dict[str, int] = {}
        incomplete = 0
        for point in unit.points:
            results = {name: _result(sweep, unit, point, name) for name in evals}
            absent = [n for n, r in results.items() if (r is None or not r.ok) and n != TRAINING]
            incomplete += bool(absent)
            lacking |= {name: lacking.get(name, 0) + 1 for name in absent}
            metrics = _metrics([r for r in results.values() if r is not None and r.ok])
            rest = {axis: v for axis, v in point.values.items() if axis != SEED}
            key = json.dumps([point.base, rest], sort_keys=True)
            found.setdefault(key, []).append((point, metrics))
        finished += len(unit.points) - incomplete
        if incomplete:
            reason = states.get(unit.name, "")
            missing.append(Missing(unit, in_order(lacking), incomplete, reason))
    settings = [_setting(points, facets) for points in found.values()]
    return SweepResults(manifest, sorted(settings, key=lambda s: s.facet), missing, finished)


def _setting(points: Sequence[tuple[Point, dict[str, float]]], facets: Sequence[str]) -> Setting:
    first = points[0][0]
    values = {a: v for a, v in first.values.items() if a != SEED and a not in facets}
    keys = dict.fromkeys(key for _, metrics in points for key in metrics)
    return Setting(
        facet=", ".join(str(first.values[a]) for a in facets if a in first.values),
        base=first.base,
        values=values,
        seeds=[point.seed for point, _ in points],
        metrics={
            key: Spread.of({point.seed: m[key] for point, m in points if key in m}) for key in keys
        },
    )


def _result(sweep: Path, unit: Unit, point: Point, name: str) -> Result | None:
    """A result; None if it is missing or damaged."""
    root = unit_folder(sweep, unit.name)
    try:
        return load_result(result_path(root, point.variant, point.seed, name))
    except ResultError:
        return None


def _metrics(results: Sequence[Result]) -> dict[str, float]:
    return {
        f"{result.eval}/{name}": value
        for result in results
        for name, value in result.metrics.items()
        if value is not None
    }


# --------------------------------------------------------------------- lines


def lines(results: SweepResults, facet: str, axis: str, key: str) -> list[Line]:
    """A metric along an axis, a line for each choice of everything else.

    The band is paired by seed. Each seed's values lose that seed's mean over the line, so that what
    a seed adds to all of them cancels (Cousineau 2005), and the 95% t-interval of what is left is
    widened by ``sqrt(J / (J - 1))`` for J values on the axis (Morey 2008). It uses the seeds that
    have all values of the line, two or more.
    """
    groups: dict[str, list[Setting]] = {}
    levels: list[Line] = []
    for setting in results.of_facet(facet):
        if setting.mean(key) is None:
            continue
        if axis not in setting.values:
            levels.append(Line(setting.label, level=setting.mean(key)))
            continue
        rest = {a: v for a, v in setting.values.items() if a != axis}
        label = ", ".join([*([setting.base] if setting.base else []), *labels(rest)])
        groups.setdefault(label, []).append(setting)
    drawn = [_line(label, settings, axis, key) for label, settings in groups.items()]
    return [*drawn, *levels]


def _line(label: str, settings: Sequence[Setting], axis: str, key: str) -> Line:
    ordered = sorted(settings, key=lambda setting: float(setting.values[axis]))
    spreads = [setting.metrics[key] for setting in ordered]
    return Line(
        label=label,
        x=[float(setting.values[axis]) for setting in ordered],
        mean=[spread.mean or 0.0 for spread in spreads],
        half=paired_half_widths([spread.by_seed for spread in spreads]),
        seeds=[spread.by_seed for spread in spreads],
    )


def paired_half_widths(values: Sequence[Mapping[int, float]]) -> list[float] | None:
    """Half of the width of the seed-paired 95% band at each value of an axis (see :func:`lines`).

    ``t(.975; n - 1) s_j sqrt(J / (J - 1)) / sqrt(n)``, where ``s_j`` is the sample standard
    deviation over the n seeds of ``y_sj - mean_j y_s.``.

    Args:
        values: for each of J values of the axis, the metric by seed.

    Returns:
        None with fewer than two values, or fewer than two seeds that have all of them.
    """
    n_values = len(values)
    seeds = [s for s in (values[0] if values else ()) if all(s in one for one in values)]
    n = len(seeds)
    if n_values < 2 or n < 2:
        return None
    means = {s: math.fsum(one[s] for one in values) / n_values for s in seeds}
    factor = t_quantile(n - 1, 0.975) * math.sqrt(n_values / (n_values - 1) / n)
    halves: list[float] = []
    for one in values:
        left = [one[s] - means[s] for s in seeds]
        centre = math.fsum(left) / n
        halves.append(factor * math.sqrt(math.fsum((v - centre) ** 2 for v in left) / (n - 1)))
    return halves


# ---------------------------------------------------------------------- best


def gain_key(results: SweepResults) -> str | None:
    """The metric that the best setting has the best value of; None if none was measured.

    The first of the metrics of forgetting that was measured, or else the first primary metric with
    a better direction of an evaluation other than core.
    """
    measured = results.keys
    for key in GAINS:
        if key in measured:
            return key
    primary = [key for key in primary_keys(measured) if not key.startswith("core/")]
    return next((key for key in primary if describe(key).direction is not None), None)


def best_settings(results: SweepResults, gain: str, within: float = WITHIN) -> list[Best]:
    """The best setting of each facet, by the rule of :func:`rule_text`."""
    lower = describe(gain).direction == "lower"
    found: list[Best] = []
    for facet in results.facets:
        pairs = [
            (cost, -value if lower else value, setting)
            for setting in results.of_facet(facet)
            if (cost := setting.mean(COST)) is not None
            and (value := setting.mean(gain)) is not None
        ]
        if not pairs:
            continue
        highest = max(cost for cost, _, _ in pairs)
        close = [pair for pair in pairs if pair[0] >= highest - within]
        best = max(close, key=lambda pair: pair[1])[2]
        front = [
            (cost, setting)
            for cost, value, setting in pairs
            if not any(c >= cost and v >= value and (c, v) != (cost, value) for c, v, _ in pairs)
        ]
        ordered = [setting for _, setting in sorted(front, key=lambda pair: -pair[0])]
        found.append(Best(facet, best, len(close), len(pairs), ordered))
    return found


def rule_text(gain: str, within: float = WITHIN) -> str:
    """The rule of the best setting, in words."""
    info = describe(gain)
    side = "lowest" if info.direction == "lower" else "highest"
    return (
        f"Best: the {side} {info.full_label} among the settings whose explained variance is within "
        f"{within:g} of the best one's, by means over the seeds. The best of many settings looks a "
        "little better than it is, because its luck is chosen with it: confirm it with new seeds."
    )


def shown_keys(results: SweepResults, eval: str) -> list[str]:
    """The metrics of an evaluation that its table shows: primary, headline and glance."""
    info = evaluation(eval)
    measured = [key for key in results.keys if key.startswith(f"{eval}/")]
    wanted = {*primary_keys(measured), *headline_keys(measured), *info.keys(info.glance)}
    return [key for key in measured if key in wanted]


def glance_keys(results: SweepResults) -> list[str]:
    """The metrics with a figure: those at a glance of every evaluation, in the report's order."""
    evals = in_order(key.split("/")[0] for key in results.keys)
    infos = [evaluation(name) for name in evals]
    return [key for info in infos for key in info.keys(info.glance) if key in results.keys]


def labels(values: Mapping[str, Any]) -> list[str]:
    """Values of axes in words: ``k 16``, ``alpha 0.5``."""
    return [f"{axis_name(axis)} {_text(value)}" for axis, value in values.items()]


def axis_name(axis: str) -> str:
    """The name of an axis in words: ``alpha`` for ``sae.ortho_alpha``."""
    name = axis.rpartition("sae.")[2].removeprefix("ortho_")
    return name.replace("_", " ")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
