"""Draw a dot per SAE: a panel per metric, a row per variant, and lines that join equal seeds."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saelens_adaptive_ortho.evaluations import evaluation
from saelens_adaptive_ortho.report.figures.section import Section
from saelens_adaptive_ortho.report.figures.style import (
    BAD,
    GOOD,
    INK,
    MUTED,
    STYLE,
    Style,
    empty_figure,
    side_note,
    variant_styles,
)
from saelens_adaptive_ortho.report.metrics import MetricInfo
from saelens_adaptive_ortho.report.statistics import (
    BETTER,
    WORSE,
    MetricSummary,
    Spread,
    Summary,
)


def headline_figure(summary: Summary) -> Figure | None:
    """Draw one panel per ``glance`` metric: a dot per seed, mean and 95% interval per variant.

    Lines join the dots of the same seed and so show the paired differences.
    """
    return _dots_figure(summary, summary.glance)


def reconstruction_figure(section: Section) -> Figure | None:
    """Draw the panels of `headline_figure` for core on each corpus; None with one corpus."""
    summary = section.summary
    keys = [key for key in summary.headline if key.startswith("core/")]
    several = any(not key.startswith("core/pooled/") for key in keys)
    return _dots_figure(summary, keys) if several else None


def primary_figure(section: Section) -> Figure | None:
    """Draw the panels of `headline_figure` for the primary metrics of an evaluation."""
    summary, _, eval = section
    info = evaluation(eval)
    return _dots_figure(summary, info.keys(info.primary))


def judged_figure(section: Section) -> Figure | None:
    """Draw the panels of `headline_figure` for the metrics with a direction of an evaluation."""
    summary, _, eval = section
    keys = [key for key in summary.metrics if key.startswith(f"{eval}/")]
    return _dots_figure(summary, [key for key in keys if summary.metrics[key].info.direction])


def _dots_figure(summary: Summary, keys: Sequence[str]) -> Figure | None:
    measured = {k for k, m in summary.metrics.items() if any(s.n for s in m.variants.values())}
    keys = [key for key in keys if key in measured]
    if not keys:
        return None
    full = len({key.split("/")[0] for key in keys}) > 1
    titles = [_panel_title(summary.metrics[key].info, full) for key in keys]
    styles = variant_styles(summary.variants)
    with matplotlib.rc_context(STYLE):
        figure, grid = _dots_grid(summary.variants, titles)
        for index, (axes, key) in enumerate(zip(grid, keys, strict=True)):
            first = index % _columns(len(keys)) == 0
            _dot_panel(axes, summary, summary.metrics[key], styles, named=first)
        _dots_words(figure, summary)
    return figure


def _columns(panels: int) -> int:
    return min(4, panels) if panels not in (5, 6) else 3


def _dots_grid(variants: Sequence[str], titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure and an empty panel per title, with space for the names of the variants."""
    columns = _columns(len(titles))
    rows = math.ceil(len(titles) / columns)
    lines = max(title.count("\n") for title in titles)
    row_height = 1.0 + 0.36 * len(variants) + 0.16 * lines
    head, foot, title_height = 0.5, 0.42, 0.5 + 0.16 * lines
    height = rows * row_height + head + foot
    width = 3.05 * columns + 0.55
    # In inches. The gap between two rows holds the x axis of the upper and the title of the lower.
    gap = 0.32 + title_height
    panel = (height - head - title_height - foot - 0.3 - (rows - 1) * gap) / rows
    figure = empty_figure(width, height)
    figure.subplots_adjust(
        left=(0.3 + 0.085 * max(len(v) for v in variants)) / width,
        right=1 - 0.2 / width,
        top=1 - (head + title_height) / height,
        bottom=(foot + 0.3) / height,
        hspace=gap / panel,
        wspace=0.2,
    )
    grid: list[Axes] = []
    for index, title in enumerate(titles):
        grid.append(figure.add_subplot(rows, columns, index + 1))
        grid[-1].set_title(title, pad=16, fontsize=9.5)
    return figure, grid


def _dots_words(figure: Figure, summary: Summary) -> None:
    """Write the variants and seeds above the panels, and the legend below them."""
    width, height = figure.get_size_inches()
    n = len(summary.seeds)
    names = " · ".join(summary.variants)
    figure.text(
        0.15 / width,
        1 - 0.17 / height,
        f"{names}, over {n} seed{'' if n == 1 else 's'}",
        fontsize=12.5,
        fontweight="bold",
        color=INK,
        va="top",
    )
    figure.text(
        0.15 / width,
        0.15 / height,
        # About 17 characters of this size fit into an inch.
        textwrap.fill(_dots_legend(summary), int(17 * width)),
        fontsize=7.8,
        color=MUTED,
        va="bottom",
    )


def _panel_title(info: MetricInfo, full: bool) -> str:
    label = info.full_label if full else info.label
    unit = f" ({info.unit})" if info.unit and info.unit not in info.name else ""
    # The sign of a bound stays with its number: textwrap does not break at a no-break space.
    return textwrap.fill(
        re.sub("([≤≥]) ", "\\1\N{NO-BREAK SPACE}", label[0].upper() + label[1:] + unit), 34
    )


def _dots_legend(summary: Summary) -> str:
    parts = ["marker: value of the one seed"]
    if len(summary.seeds) > 1:
        parts = ["large marker: mean"]
        parts.append("bar: its 95% t-interval (arrow: goes on)")
        parts.append("small dots: seeds, joined where the seed is the same")
    if summary.focus is not None:
        against = summary.reference(summary.focus)
        parts.append(f"verdict: {summary.focus} against {against}, paired by seed")
    return "   ·   ".join(parts)


class _Range(NamedTuple):
    """Limits of the x axis of a panel."""

    left: float
    right: float


def _dot_panel(
    axes: Axes, summary: Summary, metric: MetricSummary, styles: Mapping[str, Style], named: bool
) -> None:
    variants = summary.variants
    # With a single seed the dot is equal to the mean and is left out.
    several = len(summary.seeds) > 1
    shift = 0.24 if several else 0.0
    shown = _shown_range(metric)
    axes.set_xlim(*shown)
    axes.set_ylim(len(variants) - 1 + 0.62, -0.5)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    _join_seeds(axes, summary, metric, shift)
    for row, variant in enumerate(variants):
        spread = metric.variants[variant]
        if spread.mean is None:
            axes.text(
                (shown.left + shown.right) / 2,
                row,
                "no value",
                color=MUTED,
                fontsize=8,
                va="center",
                ha="center",
                style="italic",
            )
            continue
        if several:
            _draw_seeds(axes, spread, row + shift, styles[variant][0])
        _draw_interval(axes, spread, row, shown, styles[variant][0])
        _draw_mean(axes, spread.mean, row, styles[variant])
    _label_axes(axes, variants, styles, shown, named)
    direction = {"higher": "better →", "lower": "← better"}
    side_note(axes, direction.get(metric.info.direction or "", "no better side"))
    _verdict_note(axes, summary, metric)


def _shown_range(metric: MetricSummary) -> _Range:
    """Return a range that holds all values and at most one span of the intervals on each side.

    With few seeds an interval can be much wider than the spread of the values.
    """
    values = [x for spread in metric.variants.values() for x in spread.by_seed.values()]
    bounds = [b for s in metric.variants.values() if s.ci95 is not None for b in s.ci95]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) * 0.2 or 1.0
    return _Range(
        max(min([low, *bounds]), low - span) - 0.08 * span,
        min(max([high, *bounds]), high + span) + 0.08 * span,
    )


def _join_seeds(axes: Axes, summary: Summary, metric: MetricSummary, shift: float) -> None:
    for seed in summary.seeds:
        points = [
            (metric.variants[v].by_seed[seed], row + shift)
            for row, v in enumerate(summary.variants)
            if seed in metric.variants[v].by_seed
        ]
        if len(points) > 1:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color="#C3CCD6", linewidth=0.8, zorder=1)


def _draw_seeds(axes: Axes, spread: Spread, height: float, colour: str) -> None:
    seeds = list(spread.by_seed.values())
    axes.scatter(
        seeds, [height] * len(seeds), s=13, color=colour, alpha=0.65, linewidths=0, zorder=2
    )


def _draw_interval(axes: Axes, spread: Spread, row: int, shown: _Range, colour: str) -> None:
    """Draw a bar over the 95% interval, and an arrow where the panel cuts it off."""
    if spread.ci95 is None:
        return
    low, high = spread.ci95
    axes.plot(
        [max(low, shown.left), min(high, shown.right)],
        [row, row],
        color=colour,
        linewidth=2.6,
        alpha=0.45,
        solid_capstyle="butt",
        zorder=3,
    )
    cuts = ((low < shown.left, shown.left, "<"), (high > shown.right, shown.right, ">"))
    for edge, arrow in [(edge, arrow) for cut, edge, arrow in cuts if cut]:
        axes.plot(
            [edge],
            [row],
            marker=arrow,
            color=colour,
            markersize=5,
            alpha=0.8,
            markeredgewidth=0,
            clip_on=False,
            zorder=3,
        )


def _draw_mean(axes: Axes, mean: float, row: int, style: Style) -> None:
    colour, marker = style
    axes.plot(
        [mean],
        [row],
        marker=marker,
        color=colour,
        markersize=7.5,
        markeredgecolor="white",
        markeredgewidth=1.0,
        zorder=4,
    )


def _label_axes(
    axes: Axes,
    variants: Sequence[str],
    styles: Mapping[str, Style],
    shown: _Range,
    named: bool,
) -> None:
    axes.set_yticks(range(len(variants)), variants if named else [""] * len(variants))
    axes.tick_params(axis="y", length=0, pad=4)
    for label, variant in zip(axes.get_yticklabels(), variants, strict=True):
        label.set_color(styles[variant][0])
        label.set_fontweight("bold")
        label.set_fontsize(8.5)
    axes.xaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    largest = max(abs(shown.left), abs(shown.right))
    if largest >= 1e5 or largest < 1e-3:
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))


def _verdict_note(axes: Axes, summary: Summary, metric: MetricSummary) -> None:
    """Write the verdict on the focus against the first variant above the panel, at the right."""
    focus = summary.focus
    difference = metric.difference(focus, summary.reference(focus)) if focus else None
    if difference is None or difference.verdict is None:
        return
    axes.text(
        1,
        1.0,
        f"{focus}: {difference.verdict}",
        transform=axes.transAxes,
        fontsize=7.8,
        color={BETTER: GOOD, WORSE: BAD}.get(difference.verdict, MUTED),
        va="bottom",
        ha="right",
        fontweight="bold" if difference.verdict in (BETTER, WORSE) else "normal",
    )
