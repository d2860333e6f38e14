"""Draw a metric of a sweep along an axis: a panel per facet, a line per setting, paired bands."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelens_adaptive_ortho.report.figures.style import (
    MUTED,
    STYLE,
    Style,
    panel_grid,
    shared_legend,
    side_note,
    variant_styles,
)
from saelens_adaptive_ortho.report.metrics import describe
from saelens_adaptive_ortho.report.sweeps import Line, SweepResults, axis_name, lines

_DECADES = 20.0  # an axis of positive values whose largest is this many times the smallest is a log


def facet_figure(results: SweepResults, axis: str, key: str) -> Figure | None:
    """Draw a metric against a numeric axis; None if no facet has it at two values or more."""
    panels = {facet: lines(results, facet, axis, key) for facet in results.facets}
    panels = {f: found for f, found in panels.items() if any(len(line.x) > 1 for line in found)}
    if not panels:
        return None
    info = describe(key)
    labels = list(dict.fromkeys(line.label for found in panels.values() for line in found))
    styles = variant_styles(labels)
    x = [v for found in panels.values() for line in found for v in line.x]
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(panels), height=2.6)
        for axes, (facet, found) in zip(grid, panels.items(), strict=True):
            for line in found:
                _draw(axes, line, styles[line.label])
            if min(x) > 0 and max(x) >= _DECADES * min(x):
                axes.set_xscale("log")
            axes.set_title(textwrap.fill(facet, 40) or info.full_label, pad=14)
            axes.set_xlabel(axis_name(axis))
            axes.set_ylabel(textwrap.fill(_y_label(key), 34))
            direction = {"higher": "higher is better", "lower": "lower is better"}
            side_note(axes, direction.get(info.direction or "", ""))
        _share_range(grid, [line for found in panels.values() for line in found])
        if labels != [""]:
            _legend(figure, labels, styles)
    return figure


def _draw(axes: Axes, line: Line, style: Style) -> None:
    colour, marker = style
    if line.level is not None:
        axes.axhline(line.level, color=colour, linewidth=1.4, linestyle="--")
        return
    if line.half is not None:
        low = [m - h for m, h in zip(line.mean, line.half, strict=True)]
        high = [m + h for m, h in zip(line.mean, line.half, strict=True)]
        axes.fill_between(line.x, low, high, color=colour, alpha=0.15, linewidth=0)
    for x, by_seed in zip(line.x, line.seeds, strict=True):
        if len(by_seed) > 1:
            axes.plot([x] * len(by_seed), list(by_seed.values()), ".", color=colour, alpha=0.45)
    axes.plot(line.x, line.mean, color=colour, marker=marker, markersize=5, linewidth=1.8)


def _share_range(grid: Sequence[Axes], drawn: Sequence[Line]) -> None:
    """All panels show the same range: all values, and at most one span of a band on each side."""
    values = [v for line in drawn for by_seed in line.seeds for v in by_seed.values()]
    values += [line.level for line in drawn if line.level is not None]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) * 0.2 or 1.0
    bottom = max(min(axes.get_ylim()[0] for axes in grid), low - span)
    top = min(max(axes.get_ylim()[1] for axes in grid), high + span)
    for axes in grid:
        axes.set_ylim(bottom, top)


def _legend(figure: Figure, labels: Sequence[str], styles: Mapping[str, Style]) -> None:
    if len(labels) <= 6:
        shared_legend(figure, labels, styles)
        return
    text = f"{len(labels)} lines; the table of the evaluation names their settings"
    figure.text(0.01, 0.995, text, fontsize=7.8, color=MUTED, va="top")


def _y_label(key: str) -> str:
    info = describe(key)
    unit = f" ({info.unit})" if info.unit and info.unit not in info.name else ""
    return f"{info.label}{unit}"
