"""Draw unlearning frontiers: damage on the forget corpus against damage on the retain corpus."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelens_adaptive_ortho.report.figures.section import Section, mean_over_saes
from saelens_adaptive_ortho.report.figures.style import (
    MUTED,
    STYLE,
    Curve,
    Picture,
    line_widths,
    mean_curve,
    panel_grid,
    shared_legend,
    side_note,
    variant_styles,
)
from saelens_adaptive_ortho.report.figures.words import damages, interventions, sae_words
from saelens_adaptive_ortho.report.formatting import capital
from saelens_adaptive_ortho.report.statistics import Summary
from saelens_adaptive_ortho.results import Result

#: Part -> (title, which way is better, x axis, y axis).
_FRONTIERS = {
    "loss": (
        "Next-token loss",
        "higher: more is forgotten at the same price",
        "retain damage: increase of the loss on retain (nats)",
        "forget damage: increase of the loss on forget (nats)",
    ),
    "token": (
        "Next-token loss, without gate",
        "higher: more is forgotten at the same price",
        "retain damage: increase of the loss on retain (nats)",
        "forget damage: increase of the loss on forget (nats)",
    ),
    "bounded": (
        "Next-token loss, bounded",
        "higher: more is forgotten at the same price",
        "retain damage: increase of the loss on retain (nats)",
        "forget damage: increase of the loss on forget (nats)",
    ),
    "mcq": (
        "Multiple-choice questions",
        "lower: more is forgotten at the same price",
        "retain accuracy that is kept, at least",
        "lowest forget accuracy",
    ),
}
_LEAST_ACCURACY = 0.8  # on retain; with less, the knowledge is hardly retained
_LEVELS = {
    "original_forget_accuracy": ("model untouched", (0, (5, 3))),
    "chance": ("chance", (0, (1, 2))),
}
_LINE: dict[str, Any] = {"color": MUTED, "lw": 1.0, "zorder": 1}
#: Dashes of the references, one after the other.
_DASHES = (
    (0, (6, 2)),
    (0, (3, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (6, 2, 1, 1.5, 1, 2)),
)


def frontier_figure(section: Section) -> Figure | None:
    """Draw the unlearning frontiers: damage on forget against damage on retain.

    Thick lines are means over the seeds of a variant, thin lines are single SAEs. The band is the
    95% bootstrap band of one SAE, averaged over seeds. Each dot is one intervention. Dashed lines
    are references: what other directions reach, and what random latents do.
    """
    summary = section.summary
    found = {part: _by_variant(section, part) for part in _FRONTIERS}
    found = {part: by_variant for part, by_variant in found.items() if any(by_variant.values())}
    if not found:
        return None
    styles = variant_styles(summary.variants)
    drawn = [v for v in summary.variants if any(by_variant[v] for by_variant in found.values())]
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(
            len(found), 3.9, width=5.6 * min(len(found), 2) if len(found) > 1 else 7.2, columns=2
        )
        for axes, (part, by_variant) in zip(grid, found.items(), strict=True):
            title, better, xlabel, ylabel = _FRONTIERS[part]
            curves: list[Curve] = []
            for variant, width in zip(drawn, line_widths(len(drawn)), strict=True):
                colour = styles[variant][0]
                curves += _draw_frontiers(axes, by_variant[variant], part, colour, width)
            curves += _draw_references(axes, section, part)
            _reference_lines(axes, summary, part, curves)
            axes.set_title(title, pad=16)
            side_note(axes, better, 1.01)
            axes.set_xlabel(xlabel)
            axes.set_ylabel(ylabel)
        shared_legend(figure, drawn, styles, markers=False)
    return figure


def _by_variant(section: Section, part: str) -> dict[str, list[Result]]:
    """Return the results with a frontier, by variant; a variant without any has an empty list."""
    found = [r for r in section.results if _frontier(r, part, "y")]
    return {v: [r for r in found if r.variant == v] for v in section.summary.variants}


def _frontier(result: Result, part: str, name: str) -> Curve | None:
    """Return x, and ``name`` ("y", "low" or "high") of a frontier, in rising order of x.

    Values that are not finite are left out; None if no value remains.
    """
    if not result.ok or result.eval != "unlearning":
        return None
    frontier = result.details.get("frontiers", {}).get(part, {})
    x, y = (np.asarray(frontier.get(key, []), dtype=float) for key in ("x", name))
    if len(x) != len(y):
        return None
    finite = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[finite], kind="stable")
    return (x[finite][order], y[finite][order]) if finite.any() else None


def _draw_frontiers(
    axes: Axes, results: Sequence[Result], part: str, colour: str, width: float
) -> list[Curve]:
    """Draw the frontiers of one variant and return all curves, including the edges of the band."""
    curves = {
        name: [curve for r in results if (curve := _frontier(r, part, name)) is not None]
        for name in ("y", "low", "high")
    }
    if not results:
        return []
    if len(results) > 1:
        for x, y in curves["y"]:
            axes.plot(x, y, color=colour, lw=0.8, alpha=0.5, zorder=3)
    axes.plot(*mean_curve(curves["y"]), color=colour, lw=width, zorder=4)
    if len(curves["low"]) == len(curves["high"]) == len(results):
        (x, low), (x_high, high) = mean_curve(curves["low"]), mean_curve(curves["high"])
        if np.array_equal(x, x_high):
            axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0, zorder=2)
    points = [p for r in results for p in r.details.get("points", {}).get(part, [])]
    for result in results:
        _explain(axes, result, part)
    if points:
        x, y = np.asarray(points, dtype=float).T
        axes.scatter(
            x, y, s=6, color=colour, alpha=0.3, lw=0, zorder=2, rasterized=len(points) > 500
        )
    return [curve for found in curves.values() for curve in found]


def _explain(axes: Axes, result: Result, part: str) -> None:
    """Say of each intervention what it is and what it does, for the page."""
    figure = cast("Picture", axes.figure)
    points = result.details.get("points", {}).get(part, [])
    for (x, y), words in zip(points, interventions(result, part), strict=True):
        lines = [sae_words(result.variant, result.seed), words, capital(damages(part, x, y))]
        figure.mark(axes, x, y, "\n".join(filter(None, lines)))


def _draw_references(axes: Axes, section: Section, part: str) -> list[Curve]:
    """Draw the mean frontier of each reference over all SAEs, and return these curves."""
    found: dict[str, list[Curve]] = {}
    for result in section.results:
        if not result.ok or result.eval != section.eval:
            continue
        by_name = result.details.get("reference_frontiers", {}).get(part, {})
        for name, frontier in by_name.items():
            x, y = (np.asarray(frontier[key], dtype=float) for key in ("x", "y"))
            order = np.argsort(x, kind="stable")
            found.setdefault(name, []).append((x[order], y[order]))
    means = {name: mean_curve(curves) for name, curves in found.items()}
    for number, (name, (x, y)) in enumerate(means.items()):
        axes.plot(x, y, ls=_DASHES[number % len(_DASHES)], label=name, **_LINE)
    return list(means.values())


def _reference_lines(axes: Axes, summary: Summary, part: str, curves: Sequence[Curve]) -> None:
    """Add the reference lines, and fit the axes to the frontiers, not to single interventions."""
    xs = np.concatenate([x for x, _ in curves])
    ys = np.concatenate([y for _, y in curves])
    if part == "mcq" and (xs >= _LEAST_ACCURACY).any():
        xs, ys = xs[xs >= _LEAST_ACCURACY], ys[xs >= _LEAST_ACCURACY]
    left, right = float(xs.min()), float(xs.max())
    heights = [float(ys.min()), float(ys.max())]
    if part != "mcq":
        axes.plot([left, right], [left, right], ls="-", label="equal damage", **_LINE)
    else:
        heights += _draw_levels(axes, summary, left)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7.8, labelcolor=MUTED, loc="best")
    bottom, top = min(heights), max(heights)
    margin = 0.05 * ((top - bottom) or 1.0)
    axes.set_ylim(bottom - margin, top + margin)
    axes.set_xlim(left, right if right > left else left + 1e-3)


def _draw_levels(axes: Axes, summary: Summary, left: float) -> list[float]:
    """Draw the accuracies without an SAE (untouched model, chance) and return them."""
    levels: list[float] = []
    for name, (label, dashes) in _LEVELS.items():
        level = mean_over_saes(summary, f"unlearning/mcq/{name}")
        if level is None:
            continue
        levels.append(level)
        axes.axhline(level, ls=dashes, **_LINE)
        axes.annotate(
            label, (left, level), (4, 2), textcoords="offset points", fontsize=7.8, color=MUTED
        )
    return levels
