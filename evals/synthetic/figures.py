"""Draw the figures of the synthetic sweep, one for each question, from the committed results.

python -m evals.synthetic.figures [--results DIR] [--out DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import NullFormatter

from evals.synthetic.sweep import load_results
from evals.synthetic.tables import (
    METHODS,
    METRICS,
    NAMES,
    WORLDS,
    Run,
    bases_of,
    methods_of,
    metrics_of,
    of_method,
    pair,
    pick,
    spread,
)
from saelens_adaptive_ortho.report.figures.files import save_figure
from saelens_adaptive_ortho.report.figures.style import (
    INK,
    MUTED,
    STYLE,
    panel_grid,
    shared_legend,
    variant_styles,
)
from saelens_adaptive_ortho.report.statistics import Spread

HERE = Path(__file__).parent
TRADEOFF = ("f1", "mcc")
DASHES = ("-", (0, (4, 2)), ":", "-.")  # one line style per base


def figures(coarse: Sequence[Run], final: Sequence[Run], width: Sequence[Run]) -> dict[str, Figure]:
    """Draw every figure for which there are results; the keys are file name stems."""
    made = {
        "alpha": alpha_figure(coarse),
        "lambda": lambda_figure(coarse),
        "cost": cost_figure(coarse),
        "tradeoff": tradeoff_figure(final),
        "selectivity": selectivity_figure(final),
        "d_sae": width_figure(width),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def alpha_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw the metrics of adaptive against alpha, beside the baseline, by world and metric."""
    return _setting_figure(
        runs, "alpha", "ortho_alpha", ("adaptive",), "alpha, the sharing allowed", log=False
    )


def lambda_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw the metrics of fixed, gram and adaptive against the coefficient, by world and metric."""
    return _setting_figure(
        runs,
        "lambda",
        "ortho_coefficient",
        ("fixed", "gram", "adaptive"),
        "lambda, the coefficient",
        log=True,
    )


def cost_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw metrics of the features against explained variance.

    There is a line per method and base over its coefficients. The upper right corner is best.
    """
    swept = [r for r in runs if r["axis"].startswith("lambda=") or r["axis"] == ""]
    worlds = [w for w in WORLDS if pick(swept, w)]
    if not any(r["axis"] for r in swept):
        return None
    bases, methods = bases_of(swept), methods_of(swept)
    styles = variant_styles(methods)
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(2 * len(worlds), height=2.8, columns=2)
        panels = [(world, metric) for world in worlds for metric in _worth(world)]
        for axes, (world, metric) in zip(grid, panels, strict=True):
            for base, dashes in zip(bases, DASHES, strict=False):
                for method in methods:
                    ordered = sorted(
                        pick(swept, world, base, method),
                        key=lambda r: r["settings"]["sae"]["ortho_coefficient"],
                    )
                    colour, marker = styles[method]
                    x = [r["explained_variance"] for r in ordered]
                    y = [r[metric] for r in ordered]
                    axes.plot(x, y, color=colour, marker=marker, markersize=4, ls=dashes, lw=1.3)
            axes.set_title(f"{world}: {METRICS[metric]}")
            axes.set_xlabel("explained variance")
        shared_legend(figure, methods, styles)
    return figure


def _worth(world: str) -> tuple[str, str]:
    return ("f1", "selectivity_area") if world == "domains" else TRADEOFF


def _setting_figure(
    runs: Sequence[Run], axis: str, field: str, methods: Sequence[str], label: str, log: bool
) -> Figure | None:
    def swept(run: Run) -> bool:  # the default of a method is a point of every sweep
        at_default = run["axis"] == "" and run["method"] in methods
        return at_default or run["axis"].startswith(f"{axis}=")

    worlds = [w for w in WORLDS if any(r["axis"].startswith(f"{axis}=") for r in pick(runs, w))]
    if not worlds:
        return None
    # A base that has only the default is left out.
    bases = bases_of([r for r in runs if r["axis"].startswith(f"{axis}=")])
    shown = [m for m in METHODS if m in {*methods, "baseline"}]
    styles = variant_styles(shown)
    with matplotlib.rc_context(STYLE):
        figure, shown_panels = _world_panels(worlds)
        for axes, world, metric in shown_panels:
            for base, dashes in zip(bases, DASHES, strict=False):
                level = spread(pick(runs, world, base, "baseline"), metric).mean
                if level is not None:
                    axes.axhline(level, color=styles["baseline"][0], ls=dashes, lw=1.2)
                for method in methods:
                    points = [
                        (run["settings"]["sae"][field], run[metric])
                        for run in pick(runs, world, base, method, swept)
                        if run.get(metric) is not None
                    ]
                    _line(axes, points, styles[method], dashes)
            if log:
                axes.set_xscale("log")
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_title(f"{world}: {METRICS[metric]}")
            axes.set_xlabel(label)
        shared_legend(figure, shown, styles)
        if len(bases) > 1:
            names = f"solid: {bases[0]}   dashed: {bases[1]}"
            figure.text(0.99, 0.99, names, ha="right", va="top", fontsize=8, color=MUTED)
    return figure


def tradeoff_figure(
    runs: Sequence[Run], worlds: tuple[str, str] = ("cluster", "hierarchy")
) -> Figure | None:
    """Draw a metric in one world against the same metric in another, with a cloud per method.

    The two worlds ask for opposite things. A dot is a seed and world seed. The cross is the mean
    with its intervals; the half axes of the ellipse are two standard deviations. The upper right
    corner is best.
    """
    bases = [b for b in bases_of(runs) if all(pick(runs, w, b) for w in worlds)]
    if not bases:
        return None
    methods = methods_of(runs)
    styles = variant_styles(methods)
    panels = [(base, metric) for base in bases for metric in TRADEOFF]
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(panels), height=3.3, columns=2)
        for axes, (base, metric) in zip(grid, panels, strict=True):
            for method in methods:
                groups = [of_method(runs, world, base, method) for world in worlds]
                values = [{pair(r): r[metric] for r in group} for group in groups]
                common = sorted(set(values[0]) & set(values[1]))
                if common:
                    x, y = (np.array([v[key] for key in common]) for v in values)
                    _cloud(axes, x, y, styles[method])
            axes.set_title(f"{base}: {METRICS[metric]}")
            axes.set_xlabel(f"{worlds[0]} world")
            axes.set_ylabel(f"{worlds[1]} world")
        names = {m: NAMES.get(m, m) for m in methods}
        shared_legend(figure, list(names.values()), {names[m]: styles[m] for m in methods})
    return figure


def selectivity_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw the selectivity frontier of the domains world, with mean and interval over runs.

    It shows the loss on forget features against the loss on the other features.
    """
    runs = [run for run in runs if "domains" in run]
    bases = bases_of(runs)
    if not bases:
        return None
    methods = methods_of(runs)
    styles = variant_styles(methods)
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(bases), height=3.2, columns=2)
        for axes, base in zip(grid, bases, strict=True):
            for method in methods:
                curves = [r["domains"]["frontier"] for r in pick(runs, None, base, method)]
                if not curves:
                    continue
                budgets = curves[0]["budgets"]
                gains = np.array([c["gain"] for c in curves])
                colour = styles[method][0]
                axes.plot(budgets, gains.mean(0), color=colour, lw=2)
                if len(curves) > 1:
                    at = [Spread.of(dict(enumerate(column))) for column in gains.T.tolist()]
                    low, high = np.array([s.ci95 for s in at]).T
                    axes.fill_between(budgets, low, high, color=colour, alpha=0.18, lw=0)
            axes.set_ylim(0, 1)
            axes.set_title(base)
            axes.set_xlabel("probe skill lost on retain and shared features, at most")
            axes.set_ylabel("probe skill lost on forget features")
        shared_legend(figure, methods, styles, markers=False)
    return figure


def _world_panels(worlds: Sequence[str]) -> tuple[Figure, list[tuple[Axes, str, str]]]:
    """Return a figure and its panels: a row for each world, with a panel per metric."""
    columns = max(len(metrics_of(world)) for world in worlds)
    figure, grid = panel_grid(columns * len(worlds), height=2.3, columns=columns)
    cells = iter(grid)
    shown = []
    for world in worlds:
        row = [next(cells) for _ in range(columns)]
        metrics = metrics_of(world)
        shown += [(axes, world, metric) for axes, metric in zip(row, metrics, strict=False)]
        for axes in row[len(metrics) :]:
            axes.remove()
    return figure, shown


def width_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw metrics against the number of latents, by world: mean and interval of each method."""
    worlds = [w for w in WORLDS if pick(runs, w)]
    bases = bases_of(runs)
    if not worlds or not bases:
        return None
    methods = methods_of(runs)
    styles = variant_styles(methods)
    with matplotlib.rc_context(STYLE):
        figure, shown_panels = _world_panels(worlds)
        for axes, world, metric in shown_panels:
            for base, dashes in zip(bases, DASHES, strict=False):
                for method in methods:
                    points = [
                        (run["settings"]["sae"]["d_sae"], run[metric])
                        for run in pick(runs, world, base, method)
                        if run.get(metric) is not None
                    ]
                    _line(axes, points, styles[method], dashes)
            widths = sorted({r["settings"]["sae"]["d_sae"] for r in pick(runs, world)})
            axes.set_xscale("log")
            axes.set_xticks(widths, [str(width) for width in widths])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_title(f"{world}: {METRICS[metric]}")
            axes.set_xlabel("d_sae")
        shared_legend(figure, methods, styles)
    return figure


def _line(
    axes: Axes, points: Sequence[tuple[float, float]], style: tuple[str, str], dashes: Any
) -> None:
    """Draw the mean over runs at each x, with its interval if there are several runs."""
    if not points:
        return
    at = sorted({x for x, _ in points})
    means = [Spread.of(dict(enumerate(y for x, y in points if x == where))) for where in at]
    colour, marker = style
    y = np.array([s.mean for s in means], dtype=float)
    axes.plot(at, y, color=colour, marker=marker, markersize=4, ls=dashes, lw=1.5)
    for x, s in zip(at, means, strict=True):
        if s.ci95 is not None:
            axes.plot([x, x], s.ci95, color=colour, lw=2.2, alpha=0.35)


def _cloud(axes: Axes, x: np.ndarray, y: np.ndarray, style: tuple[str, str]) -> None:
    colour, marker = style
    axes.scatter(x, y, s=14, color=colour, alpha=0.55, linewidths=0)
    sx, sy = (Spread.of(dict(enumerate(v.tolist()))) for v in (x, y))
    assert sx.mean is not None
    assert sy.mean is not None
    if sx.ci95 is not None and sy.ci95 is not None:
        axes.plot(sx.ci95, [sy.mean, sy.mean], color=colour, lw=1.8)
        axes.plot([sx.mean, sx.mean], sy.ci95, color=colour, lw=1.8)
        width, height = 4 * (sx.std or 0.0), 4 * (sy.std or 0.0)
        axes.add_patch(
            Ellipse((sx.mean, sy.mean), width, height, facecolor=colour, alpha=0.08, lw=0)
        )
    axes.plot(
        [sx.mean], [sy.mean], marker=marker, color=colour, markersize=8, markeredgecolor=INK, lw=0
    )


def main() -> None:
    """Draw every figure for which there are results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of STAGE.jsonl"
    )
    parser.add_argument("--out", type=Path, default=HERE / "plots")
    args = parser.parse_args()
    stages = [
        load_results(args.results / f"{stage}.jsonl") for stage in ("coarse", "final", "width")
    ]
    for name, figure in figures(*stages).items():
        for path in save_figure(figure, args.out / name):
            if path.suffix == ".svg":  # the README shows the PNG only
                path.unlink()
        print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
