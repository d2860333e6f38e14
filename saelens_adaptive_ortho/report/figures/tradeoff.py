"""Draw what is gained against what it costs: two metrics, a point per SAE."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saelens_adaptive_ortho.report.figures.labels import (
    Label,
    along,
    around,
    beside,
    place_labels,
)
from saelens_adaptive_ortho.report.figures.style import (
    INK,
    MUTED,
    STYLE,
    Picture,
    Style,
    panel_grid,
    side_note,
    variant_styles,
)
from saelens_adaptive_ortho.report.figures.words import best_within, sae_words, value
from saelens_adaptive_ortho.report.formatting import MINUS, capital
from saelens_adaptive_ortho.report.metrics import MetricInfo
from saelens_adaptive_ortho.report.statistics import Spread, Summary
from saelens_adaptive_ortho.results import Result, split_series

COST = "core/pooled/explained_variance"
GAIN = "unlearning/loss/forget_damage_at_0.10"
#: With a gate for whole passages, ``GAIN`` is often as large as it can be. This one is without.
TOKEN_GAIN = "unlearning/token/forget_damage_at_0.10"
UNLEARNING = "unlearning"

# A page on a phone shrinks the figure, so it is narrow and its text is large.
_STYLE: dict[Any, Any] = {
    **STYLE,
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}
_WIDTH, _HEIGHT = 4.7, 4.0


class Panel(NamedTuple):
    """A panel of a trade-off figure.

    Attributes:
        summary: statistics of the run.
        gain: key of the metric on the y axis.
        title: what stands above; by default the name of the metric.
        results: results of the run, from which a page explains the dots; none by default.
    """

    summary: Summary
    gain: str
    title: str = ""
    results: Sequence[Result] = ()


class _Point(NamedTuple):
    """A variant: the means of both metrics, their 95% intervals, values and seeds of its SAEs."""

    variant: str
    x: Spread
    y: Spread
    saes: Sequence[tuple[float, float]]
    seeds: Sequence[int]

    @property
    def mean(self) -> tuple[float, float]:
        """The means of both metrics over the SAEs that have both."""
        x, y = np.mean(self.saes, axis=0)
        return float(x), float(y)


def tradeoff_figure(
    summary: Summary,
    cost: str = COST,
    gain: str | None = None,
    results: Sequence[Result] = (),
) -> Figure | None:
    """Draw one metric against another: a small dot per SAE, mean and 95% intervals per variant.

    A line joins the variants of a *series*: those whose names share a prefix before ``=`` and a
    number, such as ``groups=0.3`` and ``groups=1``, in the order of the numbers. A dashed line is a
    reference (`Summary.without_sae`). A dotted line is the mean cost of the first variant plus the
    margin of the metric.

    Args:
        summary: statistics of the run.
        cost: key of the metric on the x axis (``{eval}/{name}``).
        gain: key of the metric on the y axis; None for ``TOKEN_GAIN``, or ``GAIN`` without it.
        results: results of the run, from which a page explains the dots.

    Returns:
        The figure, or None if no SAE has both metrics.
    """
    gain = gain or (TOKEN_GAIN if TOKEN_GAIN in summary.metrics else GAIN)
    return panels_side_by_side([Panel(summary, gain, results=results)], cost)


def tradeoff_panels(summary: Summary, gains: Sequence[str], cost: str = COST) -> Figure | None:
    """Draw a panel as in :func:`tradeoff_figure` for each metric of ``gains`` that was measured.

    Returns:
        The figure, or None if no SAE has the cost and a gain.
    """
    return panels_side_by_side([Panel(summary, gain) for gain in gains], cost)


def panels_side_by_side(
    panels: Sequence[Panel], cost: str = COST, most_columns: int = 2
) -> Figure | None:
    """Draw panels of one run or of several runs, without those that no SAE has both metrics for.

    Returns:
        The figure, or None if no panel is left.
    """
    drawn = [
        (panel, points) for panel in panels if (points := _points(panel.summary, cost, panel.gain))
    ]
    if not drawn:
        return None
    columns = min(most_columns, len(drawn))
    with matplotlib.rc_context(_STYLE):
        figure, grid = panel_grid(len(drawn), _HEIGHT, columns * _WIDTH, columns)
        for axes, (panel, points) in zip(grid, drawn, strict=True):
            _draw_panel(axes, panel, cost, points)
    return figure


def _draw_panel(axes: Axes, panel: Panel, cost: str, points: Sequence[_Point]) -> None:
    summary, gain = panel.summary, panel.gain
    references = {
        name: metrics[gain] for name, metrics in summary.without_sae.items() if gain in metrics
    }
    styles = _styles([point.variant for point in points])
    _set_limits(axes, points, list(references.values()))
    for point in points:
        _draw_point(axes, point, styles[point.variant])
        _explain(axes, panel, cost, point)
    covered = [xy for point in points for xy in point.saes]
    for series in _series(points):
        x, y = zip(*(point.mean for point in series), strict=True)
        axes.plot(x, y, color=styles[series[0].variant][0], lw=1.4, alpha=0.8, zorder=2)
        covered += _between(list(zip(x, y, strict=True)))
    for level in references.values():
        axes.axhline(level, color=MUTED, lw=1.1, ls=(0, (5, 3)), zorder=1)
    _write_words(axes, panel, cost, dashed=bool(references))
    labels = [
        Label(text, styles[point.variant][0], around(*point.mean), bold=True)
        for point, text in zip(points, _names(points), strict=True)
    ]
    labels += [Label(name, MUTED, along(axes, level)) for name, level in references.items()]
    if len(points) > 1:
        labels += _draw_margin(axes, summary, summary.metrics[cost].info)
    place_labels(axes, labels, covered, references.values(), [point.mean for point in points])


def _points(summary: Summary, cost: str, gain: str) -> list[_Point]:
    if not {cost, gain} <= set(summary.metrics):
        return []
    points: list[_Point] = []
    for variant in summary.variants:
        x, y = (summary.metrics[key].variants[variant] for key in (cost, gain))
        seeds = [seed for seed in x.by_seed if seed in y.by_seed]
        if seeds:
            saes = [(x.by_seed[seed], y.by_seed[seed]) for seed in seeds]
            points.append(_Point(variant, x, y, saes, seeds))
    return points


def _series(points: Sequence[_Point]) -> list[list[_Point]]:
    """Return the series with two variants or more, each in the order of its numbers."""
    found: dict[str, list[tuple[float, _Point]]] = {}
    for point in points:
        name, number = split_series(point.variant)
        if number is not None:
            found.setdefault(name, []).append((number, point))
    return [
        [point for _, point in sorted(members, key=lambda member: member[0])]
        for members in found.values()
        if len(members) > 1
    ]


def _names(points: Sequence[_Point]) -> list[str]:
    """Return the labels of the variants; within a series only the last one has its full name."""
    short = {p.variant: p.variant.split("=")[-1] for s in _series(points) for p in s[:-1]}
    return [short.get(point.variant, point.variant) for point in points]


def _styles(variants: Sequence[str]) -> dict[str, Style]:
    """Return colour and marker per variant; a series has one."""
    by_name = variant_styles(list(dict.fromkeys(split_series(variant)[0] for variant in variants)))
    return {variant: by_name[split_series(variant)[0]] for variant in variants}


def _set_limits(axes: Axes, points: Sequence[_Point], levels: Sequence[float]) -> None:
    """Show all values and references, and at most one span of the intervals beside them.

    With few seeds an interval can be much wider than the spread of the values.
    """
    for axis, spreads in enumerate(([p.x for p in points], [p.y for p in points])):
        values = [sae[axis] for point in points for sae in point.saes]
        bounds = [bound for spread in spreads if spread.ci95 for bound in spread.ci95]
        low, high = min(values), max(values)
        span = (high - low) or abs(high) * 0.1 or 1.0
        low = max(min([low, *bounds]), low - 0.5 * span)
        high = min(max([high, *bounds]), high + 0.5 * span)
        if axis:
            low, high = min([low, *levels]), max([high, *levels])
        margin = 0.09 * ((high - low) or span)
        (axes.set_ylim if axis else axes.set_xlim)(low - margin, high + margin)


def _draw_point(axes: Axes, point: _Point, style: Style) -> None:
    colour, marker = style
    x, y = point.mean
    bar: dict[str, Any] = {"color": colour, "lw": 2.2, "alpha": 0.4, "solid_capstyle": "butt"}
    if point.x.ci95 is not None:
        axes.plot(point.x.ci95, [y, y], zorder=3, **bar)
    if point.y.ci95 is not None:
        axes.plot([x, x], point.y.ci95, zorder=3, **bar)
    if len(point.saes) > 1:
        xs, ys = zip(*point.saes, strict=True)
        axes.scatter(xs, ys, s=11, color=colour, alpha=0.6, lw=0, zorder=3)
    axes.plot(
        [x], [y], marker=marker, color=colour, markersize=8.5, markeredgecolor="white", zorder=5
    )


def _explain(axes: Axes, panel: Panel, cost: str, point: _Point) -> None:
    """Say what the mean and each SAE of a variant are, for the page."""
    figure = cast("Picture", axes.figure)
    infos = [panel.summary.metrics[key].info for key in (panel.gain, cost)]

    def words(x: float, y: float) -> list[str]:
        found = zip(infos, (y, x), strict=True)
        return [f"{capital(info.label)}: {value(number, info.unit)}" for info, number in found]

    n = len(point.seeds)
    if n > 1:
        title = f"{point.variant}, mean of {n} seeds"
        figure.mark(axes, *point.mean, "\n".join([title, *words(*point.mean)]))
    name = panel.gain.partition("/")[2]
    of = {r.seed: r for r in panel.results if (r.variant, r.eval) == (point.variant, UNLEARNING)}
    for (x, y), seed in zip(point.saes, point.seeds, strict=True):
        lines = [sae_words(point.variant, seed), *words(x, y)]
        lines += [best_within(of[seed], name)] if seed in of else []
        figure.mark(axes, x, y, "\n".join(filter(None, lines)))


def _between(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points on the lines between neighbouring corners."""
    return [
        (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]))
        for a, b in zip(corners, corners[1:], strict=False)
        for t in (0.2, 0.4, 0.6, 0.8)
    ]


def _draw_margin(axes: Axes, summary: Summary, info: MetricInfo) -> list[Label]:
    """Draw a line where the cost is that of the first variant plus the margin; return its label."""
    first = summary.variants[0]
    mean = summary.metrics[info.key].variants[first].mean
    if mean is None or info.margin is None or info.direction is None:
        return []
    sign = -1 if info.direction == "higher" else 1
    x = mean + sign * info.margin
    left, right = axes.get_xlim()
    if not left < x < right:
        return []
    axes.axvline(x, color=MUTED, lw=1.1, ls=(0, (1, 2)), zorder=1)
    return [
        Label(f"{first} {MINUS if sign < 0 else '+'} {info.margin_text}", MUTED, beside(axes, x))
    ]


def _write_words(axes: Axes, panel: Panel, cost: str, dashed: bool) -> None:
    summary, gain, title = panel.summary, panel.gain, panel.title
    x, y = summary.metrics[cost].info, summary.metrics[gain].info
    n = len(summary.seeds)
    notes = [{"higher": "up is better", "lower": "down is better"}.get(y.direction or "", "")]
    notes += [f"dots: the {n} seeds", "bars: 95% intervals"] if n > 1 else []
    notes += ["dashed: references"] if dashed else []
    axes.set_title(textwrap.fill(title or capital(_axis(y)), 44), pad=18)
    side_note(axes, " · ".join(note for note in notes if note), 1.01)
    better = {"higher": " (right is better)", "lower": " (left is better)"}
    axes.set_xlabel(_axis(x) + better.get(x.direction or "", ""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(useOffset=False)
    axes.tick_params(labelcolor=INK)


def _axis(info: MetricInfo) -> str:
    unit = f" ({info.unit})" if info.unit and info.unit not in info.name else ""
    return f"{info.label}{unit}"
