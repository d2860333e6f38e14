"""Make the tables of the synthetic sweep from its result files, without torch.

A result is the JSON of one run (see ``synthetic.sweep``): its metrics, its ``settings``, and
``method`` and ``axis``, its place in the sweep. Differences are paired by seed and world seed;
intervals are 95% t-intervals over those pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from saelens_adaptive_ortho.report.formatting import (
    DASH,
    estimate,
    markdown,
    number,
    plus_minus,
    signed,
    spread_decimals,
)
from saelens_adaptive_ortho.report.statistics import Spread

Run = Mapping[str, Any]

METHODS = ("baseline", "fixed", "fixed_one", "directions", "groups", "adaptive", "gram")
NAMES = {"fixed": "fixed, own λ", "fixed_one": "fixed, one λ"}
"""Names of methods in the tables of the final stage; other methods keep their name."""
ONE_WORLD = "hierarchy"  # fixed_one uses the coefficient that fixed has in this world
WORLDS = ("hierarchy", "cluster", "domains", "synthsaebench16k")
METRICS = {
    "f1": "F1",
    "mcc": "MCC",
    "explained_variance": "explained variance",
    "uniqueness": "uniqueness",
    "selectivity_area": "selectivity",
    "dead_share": "dead latents",
}
SEPARATION_METRICS = {
    "coverage": "coverage",
    "merged_latents": "merged latents",
    "split_pairs": "split pairs",
    "missed_forget": "missed forget",
    "missed_retain": "missed retain",
    "selectivity_given_coverage": "selectivity given coverage",
    "cost_at_half": "cost of forgetting half",
}
"""Metrics of ``synthetic.separation``, with their names in the table."""
_EVERYWHERE = ("f1", "mcc", "explained_variance")


def metrics_of(world: str) -> tuple[str, ...]:
    """Return the metrics shown for a world."""
    return (*_EVERYWHERE, "selectivity_area") if world == "domains" else _EVERYWHERE


def pair(run: Run) -> tuple[int, int]:
    """Return world seed and seed, which paired runs share."""
    return run["settings"]["world"]["seed"], run["settings"]["seed"]


def pick(
    runs: Iterable[Run],
    world: str | None = None,
    base: str | None = None,
    method: str | None = None,
    where: Callable[[Run], bool] = lambda _run: True,
) -> list[Run]:
    """Return the runs of a world, base and method for which ``where`` holds."""
    return [
        run
        for run in runs
        if world in (None, run["settings"]["world"]["name"])
        and base in (None, run["settings"]["base"])
        and method in (None, run["method"])
        and where(run)
    ]


def value(run: Run, metric: str) -> float | None:
    """Return a metric of a run, or None; ``dead_share`` is dead latents over d_sae."""
    if metric == "dead_share":
        return run["dead_latents"] / run["settings"]["sae"]["d_sae"]
    return run.get(metric)


def spread(runs: Iterable[Run], metric: str) -> Spread:
    """Return mean, standard deviation and interval of a metric over runs."""
    values = [v for v in (value(run, metric) for run in runs) if v is not None]
    return Spread.of(dict(enumerate(values)))


def difference(runs: Sequence[Run], reference: Sequence[Run], metric: str) -> Spread:
    """Return the spread of ``runs`` minus ``reference``, paired by :func:`pair`."""
    left, right = (
        {pair(run): v for run in group if (v := value(run, metric)) is not None}
        for group in (runs, reference)
    )
    common = sorted(set(left) & set(right))
    return Spread.of({i: left[key] - right[key] for i, key in enumerate(common)})


def bases_of(runs: Iterable[Run]) -> list[str]:
    return sorted({run["settings"]["base"] for run in runs})


def of_method(runs: Iterable[Run], world: str, base: str, method: str) -> list[Run]:
    """Return the runs of a method; in :data:`ONE_WORLD`, ``fixed_one`` is ``fixed``."""
    same = method == "fixed_one" and world == ONE_WORLD
    return pick(runs, world, base, "fixed" if same else method)


def methods_of(runs: Iterable[Run]) -> list[str]:
    present = {run["method"] for run in runs}
    return [method for method in METHODS if method in present]


# ---------------------------------------------------------------------- table


def final_table(runs: Sequence[Run]) -> str:
    """Return markdown with a row per world, base and metric.

    A row holds mean and standard deviation of each method, and the differences of adaptive from
    the other methods with their intervals.
    """
    methods = [m for m in methods_of(runs) if m != "gram"]
    pairs = [("adaptive", m) for m in methods if m != "adaptive"]
    names = [NAMES.get(m, m) for m in methods]
    less = [f"{a} − {NAMES.get(b, b)}" for a, b in pairs]
    head = ["world", "SAE", "metric", *names, *less, "n"]
    rows = []
    for world in WORLDS:
        for base in bases_of(pick(runs, world)):
            for metric in (*metrics_of(world), "dead_share"):
                groups = {m: of_method(runs, world, base, m) for m in methods}
                spreads = {m: spread(groups[m], metric) for m in methods}
                decimals = spread_decimals(
                    [s.mean for s in spreads.values() if s.mean is not None],
                    [s.std for s in spreads.values() if s.std is not None],
                )
                cells = [plus_minus(spreads[m].mean, spreads[m].std, decimals) for m in methods]
                cells += [_difference(difference(groups[a], groups[b], metric)) for a, b in pairs]
                n = str(max(s.n for s in spreads.values()))
                rows.append([world, base, METRICS[metric], *cells, n])
    return markdown(head, rows, text_columns=3)


class Bar(NamedTuple):
    """A requirement on ``adaptive`` in the final stage: the mean difference reaches a bound."""

    world: str  # "" means every world
    metric: str
    reference: str
    bound: float | None  # None means more than two standard errors above 0


# Where directions are orthogonal, adaptive is no worse than fixed and clearly better than baseline.
# Where they are shared, it is no worse than baseline and clearly better than fixed. It costs
# neither explained variance nor live latents.
BARS = (
    Bar("hierarchy", "f1", "fixed", -0.005),
    Bar("hierarchy", "mcc", "fixed", -0.005),
    Bar("hierarchy", "f1", "baseline", 0.02),
    Bar("cluster", "f1", "baseline", -0.005),
    Bar("cluster", "mcc", "baseline", -0.005),
    Bar("cluster", "f1", "fixed", 0.02),
    Bar("cluster", "mcc", "fixed", 0.02),
    Bar("cluster", "f1", "fixed_one", 0.02),
    Bar("cluster", "mcc", "fixed_one", 0.02),
    Bar("domains", "selectivity_area", "baseline", None),
    Bar("domains", "selectivity_area", "fixed", None),
    Bar("", "explained_variance", "baseline", -0.005),
    Bar("", "dead_share", "baseline", -0.02),
)
LESS_IS_BETTER = {"dead_share"}


def bars_table(runs: Sequence[Run]) -> str:
    """Return markdown with each :data:`BARS` entry, measured and judged, by world and base."""
    rows = []
    for bar in BARS:
        for world in WORLDS if not bar.world else (bar.world,):
            for base in bases_of(pick(runs, world)):
                both = ("adaptive", bar.reference)
                ours, theirs = (of_method(runs, world, base, m) for m in both)
                found = difference(ours, theirs, bar.metric)
                if found.mean is None:
                    continue
                gain = -found.mean if bar.metric in LESS_IS_BETTER else found.mean
                if bar.bound is not None:
                    met = gain >= bar.bound
                    less = bar.metric in LESS_IS_BETTER
                    asked = f"at {'most' if less else 'least'} "
                    asked += signed(-bar.bound if less else bar.bound, 3)
                else:
                    error = (found.std or 0.0) / math.sqrt(found.n)
                    met = gain > 2 * error > 0
                    asked = "above 0 by two standard errors"
                name = (
                    f"{METRICS[bar.metric]}, adaptive − {NAMES.get(bar.reference, bar.reference)}"
                )
                rows.append([world, base, name, asked, _difference(found), "yes" if met else "no"])
    return markdown(["world", "SAE", "", "asked", "found", "met"], rows, text_columns=4)


def ablation_table(runs: Sequence[Run]) -> str:
    """Return markdown with one changed setting per row, as differences from baseline.

    The runs are those of the coarse stage, with the base on which every setting was tried.
    """
    tried = pick(runs, method="adaptive", where=lambda r: "=" in r["axis"])
    bases = [b for b in bases_of(tried) if pick(tried, base=b, where=_is_choice)]
    if not bases:
        return "No results yet."
    base = bases[0]
    worlds = [w for w in WORLDS if pick(tried, w, base)]
    lines = [("adaptive", "")]
    lines += [("adaptive", r["axis"]) for r in pick(tried, worlds[0], base)]
    lines += [("fixed", r["axis"]) for r in pick(runs, worlds[0], base, "fixed")]
    lines += [("gram", r["axis"]) for r in pick(runs, worlds[0], base, "gram")]
    columns = [(w, m) for w in worlds for m in metrics_of(w)]
    head = ["", *(f"{w}: {METRICS[m]}" for w, m in columns)]
    start = ["baseline"]
    for world, metric in columns:
        start.append(number(spread(pick(runs, world, base, "baseline"), metric).mean, 3))
    rows = [start]
    for method, axis in lines:
        row = [f"{method}, {axis.replace('=', ' ')}" if axis else f"{method} (default)"]
        for world, metric in columns:
            chosen = [r for r in pick(runs, world, base, method) if r["axis"] == axis]
            found = difference(chosen, pick(runs, world, base, "baseline"), metric)
            row.append(signed(found.mean, 3))
        rows.append(row)
    return markdown(head, rows, text_columns=1)


def transfer_table(runs: Sequence[Run]) -> str:
    """Return markdown with the methods in worlds with other parameters.

    It counts in how many of these worlds the methods have the order that the bars of the final
    stage ask for. Differences within .005 count as ties.
    """
    methods = ("baseline", "fixed", "adaptive")
    rows, held = [], []
    for world in WORLDS:
        for base in bases_of(pick(runs, world)):
            for change in dict.fromkeys(r["axis"] for r in pick(runs, world, base)):
                group = [r for r in pick(runs, world, base) if r["axis"] == change]
                means = {
                    metric: {m: spread(pick(group, method=m), metric).mean for m in methods}
                    for metric in metrics_of(world)
                }
                if any(v is None for by_method in means.values() for v in by_method.values()):
                    continue
                held.append(_order_holds(world, means))
                cells = [
                    " / ".join(number(means[metric][m], 3) for m in methods)
                    if metric in means
                    else DASH
                    for metric in (*_EVERYWHERE, "selectivity_area")
                ]
                rows.append([world, base, change, *cells, "yes" if held[-1] else "no"])
    metrics = [METRICS[m] for m in (*_EVERYWHERE, "selectivity_area")]
    table = markdown(["world", "SAE", "changed", *metrics, "order holds"], rows, text_columns=3)
    return f"{table}\n\nThe order holds in {sum(held)} of {len(held)} cases." if held else table


def separation_table(runs: Sequence[Run]) -> str:
    """Return markdown with the means of each variant, by world of the stage ``separation``.

    The last rows of a world are its reference dictionaries, which are not trained. They are those
    of one run, because they depend only on the world and its samples.
    """
    names = (*SEPARATION_METRICS, "explained_variance")
    decimals = {name: 1 if name.startswith(("merged", "split", "missed")) else 3 for name in names}
    titles = [*SEPARATION_METRICS.values(), METRICS["explained_variance"]]
    rows = []
    for base in bases_of(runs):
        for axis in dict.fromkeys(r["axis"] for r in pick(runs, base=base)):
            group = pick(runs, base=base, where=lambda r, axis=axis: r["axis"] == axis)
            world = axis.replace("=", " ").replace(",", ", ")
            for method in methods_of(group):
                found = pick(group, method=method)
                cells = [number(spread(found, name).mean, decimals[name]) for name in names]
                rows.append([world, base, method, *cells, str(len(found))])
            for name, values in group[0]["domains"]["references"].items():
                cells = [number(values.get(metric), decimals[metric]) for metric in names]
                rows.append([world, DASH, name, *cells, DASH])
    return markdown(["world", "SAE", "", *titles, "n"], rows, text_columns=3)


def _order_holds(world: str, means: Mapping[str, Mapping[str, Any]]) -> bool:
    def no_worse(metric: str, reference: str) -> bool:
        return means[metric]["adaptive"] >= means[metric][reference] - 0.005

    def better(metric: str, reference: str) -> bool:
        return means[metric]["adaptive"] > means[metric][reference]

    if world == "hierarchy":
        return no_worse("f1", "fixed") and no_worse("mcc", "fixed") and better("f1", "baseline")
    if world == "cluster":
        return no_worse("f1", "baseline") and no_worse("mcc", "baseline") and better("mcc", "fixed")
    return better("selectivity_area", "baseline") and better("selectivity_area", "fixed")


def _is_choice(run: Run) -> bool:
    return not run["axis"].startswith("lambda=")


def _difference(found: Spread) -> str:
    return DASH if found.mean is None else " ".join(estimate(found.mean, found.ci95))
