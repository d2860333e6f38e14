"""Methods at several sparsities: one curve per method over L0, and a comparison at equal L0.

A variant ``NAME=NUMBER`` belongs to the method ``NAME``: ``adaptive=20`` and ``adaptive=40`` are
one method. Any other variant is a method by itself. A method has a *curve* if the mean L0s of its
variants differ by a factor of :data:`SPREAD` or more; a series with one sparsity, such as the
strengths of a penalty at the same k, has none.

The value of a method at an L0 is interpolated, for each seed by itself:

    y = y_1 + (y_2 - y_1) (log L0 - log L0_1) / (log L0_2 - log L0_1)

The SAEs 1 and 2 are the neighbours of the L0. L0 is always the measured one. Outside the measured
range there is no value: nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from saelens_adaptive_ortho.evaluations import every
from saelens_adaptive_ortho.report.statistics import Spread, Summary
from saelens_adaptive_ortho.results import split_series

L0 = "core/pooled/l0"
#: From this ratio of L0s on, two sparsities count as different.
SPREAD = 1.25
#: A comparison has this many L0s at most.
MOST_LEVELS = 5

Points = Sequence[tuple[float, float]]  # L0 and value, by rising L0


@dataclass(frozen=True)
class Method:
    """SAEs of one method.

    Args:
        name: name of the method.
        variants: its variants with a measured L0, by rising mean L0.
        has_curve: whether the variants have different sparsities.
    """

    name: str
    variants: Sequence[str]
    has_curve: bool


@dataclass(frozen=True)
class AtL0:
    """A metric of all methods at one L0.

    Args:
        key: key of the metric.
        l0: the L0.
        values: interpolated values by method. A seed whose SAEs do not reach the L0 has none. A
            method that was not measured at all is left out.
        differences: differences from the first method, paired by seed, by method.
    """

    key: str
    l0: float
    values: Mapping[str, Spread]
    differences: Mapping[str, Spread]


def interpolate(points: Points, l0: float) -> float | None:
    """The value at ``l0``: linear in log L0 between neighbours, None outside of the points.

    Args:
        points: L0 (above 0) and value of each SAE, by rising L0. SAEs of equal L0 count by their
            mean.
        l0: where the value is wanted.
    """
    here = [value for x, value in points if x == l0]
    if here:
        return math.fsum(here) / len(here)
    lower, upper = [p for p in points if p[0] < l0], [p for p in points if p[0] > l0]
    if not lower or not upper:
        return None
    (x1, x2) = lower[-1][0], upper[0][0]
    y1, y2 = interpolate(lower, x1), interpolate(upper, x2)
    assert y1 is not None
    assert y2 is not None
    return y1 + (y2 - y1) * math.log(l0 / x1) / math.log(x2 / x1)


def methods(summary: Summary) -> list[Method]:
    """The methods of a run whose L0 was measured, in the order of its variants."""
    if L0 not in summary.metrics:
        return []
    means = {
        variant: spread.mean
        for variant, spread in summary.metrics[L0].variants.items()
        if spread.mean is not None and spread.mean > 0
    }
    members: dict[str, list[str]] = {}
    for variant in summary.variants:
        if variant in means:
            members.setdefault(split_series(variant)[0], []).append(variant)
    return [
        Method(
            name,
            sorted(variants, key=lambda v: means[v]),
            max(means[v] for v in variants) >= SPREAD * min(means[v] for v in variants),
        )
        for name, variants in members.items()
    ]


def points_by_seed(
    summary: Summary, key: str, method: Method
) -> dict[int, list[tuple[float, float]]]:
    """L0 and value of the SAEs of a method, for each seed by rising L0."""
    found: dict[int, list[tuple[float, float]]] = {}
    if key not in summary.metrics:
        return found
    for variant in method.variants:
        l0s = summary.metrics[L0].variants[variant].by_seed
        for seed, value in summary.metrics[key].variants[variant].by_seed.items():
            if l0s.get(seed, 0) > 0:
                found.setdefault(seed, []).append((l0s[seed], value))
    return {seed: sorted(points) for seed, points in found.items()}


def mean_points(summary: Summary, key: str, method: Method) -> list[tuple[float, float]]:
    """Mean L0 and mean value of each variant of a method, over the seeds that have both."""
    found: list[tuple[float, float]] = []
    for variant in method.variants:
        alone = Method(method.name, [variant], False)
        pairs = [p for points in points_by_seed(summary, key, alone).values() for p in points]
        if pairs:
            n = len(pairs)
            found.append((math.fsum(x for x, _ in pairs) / n, math.fsum(y for _, y in pairs) / n))
    return sorted(found)


def main_keys(summary: Summary, published: Iterable[str] = ()) -> list[str]:
    """The metrics that are compared over L0: those of the headline figure, except for L0.

    Args:
        summary: statistics of the run.
        published: metrics of published results. Those that an evaluation shows beside the others
            (``Published.beside``) are added if the run has them, too.
    """
    theirs = set(published)
    wanted: list[str] = []
    for info in every().values():
        wanted += info.keys(info.glance)
        if info.published is not None:
            wanted += [key for key in info.keys(info.published.beside) if key in theirs]
    return [
        key
        for key in dict.fromkeys(wanted)
        if key != L0
        and key in summary.metrics
        and any(spread.n for spread in summary.metrics[key].variants.values())
    ]


def common_l0s(curves: Sequence[Mapping[int, Points]]) -> list[float]:
    """L0s at which curves are compared, in even steps of log L0.

    They span the range that every curve of every seed covers. If there is no such range, it is that
    of the first curve. They have three significant figures, rounded into the range; there are as
    many as the longest curve has points, five at most.

    Args:
        curves: the points of each method, by seed. A seed with a single point is left out.
    """
    for chosen in (curves, curves[:1]):
        lines = [p for by_seed in chosen for p in by_seed.values() if len(p) > 1]
        low = max((p[0][0] for p in lines), default=math.inf)
        high = min((p[-1][0] for p in lines), default=0.0)
        if low <= high:
            count = min(MOST_LEVELS, max(len(p) for p in lines))
            return _steps(low, high, count)
    return []


def _steps(low: float, high: float, count: int) -> list[float]:
    first, last = _rounded(low, math.ceil), _rounded(high, math.floor)
    if first > last:
        return [math.sqrt(low * high)]
    between = [
        _rounded(first * (last / first) ** (step / (count - 1)), round)
        for step in range(1, count - 1)
    ]
    return list(dict.fromkeys([first, *between, last]))


def _rounded(value: float, how: Callable[[float], int]) -> float:
    """The value with three significant figures."""
    places = 2 - math.floor(math.log10(value))
    return round(how(value * 10.0**places) / 10.0**places, max(places, 0))


def at_equal_l0(summary: Summary, published: Iterable[str] = ()) -> list[AtL0]:
    """Every main metric of the methods with a curve, at their common L0s.

    Differences are from the first method with a curve. They are paired by seed, and have the
    t-interval of each number alone; there is no verdict.

    Args:
        summary: statistics of the run.
        published: see :func:`main_keys`.

    Returns:
        Nothing if no method has a curve.
    """
    curved = [method for method in methods(summary) if method.has_curve]
    levels = common_l0s([points_by_seed(summary, L0, method) for method in curved])
    return [
        _compared(key, l0, {m.name: points_by_seed(summary, key, m) for m in curved})
        for key in main_keys(summary, published)
        for l0 in levels
    ]


def _compared(key: str, l0: float, curves: Mapping[str, Mapping[int, Points]]) -> AtL0:
    found: dict[str, dict[int, float]] = {}
    for name, by_seed in curves.items():
        if by_seed:
            values = {seed: interpolate(points, l0) for seed, points in by_seed.items()}
            found[name] = {seed: value for seed, value in values.items() if value is not None}
    first = next(iter(curves))
    reference = found.get(first, {})
    differences = {
        name: Spread.of({s: v - reference[s] for s, v in values.items() if s in reference})
        for name, values in found.items()
        if name != first
    }
    return AtL0(key, l0, {n: Spread.of(v) for n, v in found.items()}, differences)
