"""Draw the main metrics against the measured L0: a line per method, and published results."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saelens_adaptive_ortho.report.figures.style import (
    MARKERS,
    STYLE,
    Style,
    panel_grid,
    side_note,
    variant_styles,
)
from saelens_adaptive_ortho.report.formatting import capital
from saelens_adaptive_ortho.report.published import PublishedMethod, comparable, keys_of
from saelens_adaptive_ortho.report.sparsity import (
    Method,
    main_keys,
    mean_points,
    methods,
    points_by_seed,
)
from saelens_adaptive_ortho.report.statistics import Summary

GREYS = ("#7B8794", "#A9B4BF")
_BETTER = {"higher": "up is better", "lower": "down is better"}


def sparsity_figure(summary: Summary, published: Sequence[PublishedMethod] = ()) -> Figure | None:
    """Draw a panel for each main metric: value against L0, which has a logarithmic axis.

    A line joins the means of the variants of a method, and a small dot is one SAE. A method with
    one sparsity is a marker. Published methods that are comparable are grey and dashed.

    Returns:
        The figure, or None if no method has several sparsities and there is nothing published to
        compare with.
    """
    found, others = methods(summary), comparable(published)
    if not found or not (others or any(method.has_curve for method in found)):
        return None
    keys = main_keys(summary, keys_of(others))
    if not keys:
        return None
    styles = variant_styles([method.name for method in found])
    greys = _grey_styles(others)
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(keys), height=3.0, width=None if len(keys) > 1 else 7.2)
        for axes, key in zip(grid, keys, strict=True):
            for method in others:
                _draw_published(axes, method, key, greys[method.label])
            for method in found:
                _draw_method(axes, summary, key, method, styles[method.name])
            _label_axes(axes, summary, key)
        handles = [_handle(method.name, styles[method.name]) for method in found]
        handles += [
            _handle(f"published, other settings: {m.label}", greys[m.label], dashed=True)
            for m in others
        ]
        columns = 2 if others else min(len(handles), 6)
        legend = figure.legend(handles=handles, loc="outside upper left", ncols=columns)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a name may hold a dollar sign
    return figure


def _grey_styles(others: Sequence[PublishedMethod]) -> dict[str, Style]:
    """Return a grey and a marker per method."""
    return {
        method.label: (
            GREYS[(number // len(MARKERS)) % len(GREYS)],
            MARKERS[number % len(MARKERS)],
        )
        for number, method in enumerate(others)
    }


def _draw_published(axes: Axes, method: PublishedMethod, key: str, style: Style) -> None:
    points = method.points(key)
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, zorder=2, **_line(style, dashed=True))


def _draw_method(axes: Axes, summary: Summary, key: str, method: Method, style: Style) -> None:
    means = mean_points(summary, key, method)
    if not means:
        return
    x, y = zip(*means, strict=True)
    line = _line(style)
    if not method.has_curve:
        line["linestyle"] = ""
    axes.plot(x, y, zorder=4, **line)
    if len(summary.seeds) > 1:
        saes = [p for points in points_by_seed(summary, key, method).values() for p in points]
        xs, ys = zip(*saes, strict=True)
        axes.scatter(xs, ys, s=12, color=style[0], alpha=0.5, lw=0, zorder=3)


def _line(style: Style, dashed: bool = False) -> dict[str, Any]:
    colour, marker = style
    return {
        "color": colour,
        "marker": marker,
        "markersize": 4 if dashed else 5.5,
        "linewidth": 1.1 if dashed else 1.7,
        "linestyle": (0, (4, 2.5)) if dashed else "-",
        "markerfacecolor": "white" if dashed else colour,
    }


def _handle(label: str, style: Style, dashed: bool = False) -> Line2D:
    return Line2D([], [], label=label, **_line(style, dashed))


def _label_axes(axes: Axes, summary: Summary, key: str) -> None:
    info = summary.metrics[key].info
    unit = f" ({info.unit})" if info.unit and info.unit not in info.name else ""
    axes.set_title(textwrap.fill(capital(info.full_label) + unit, 36), pad=16)
    side_note(axes, _BETTER.get(info.direction or "", ""), 1.01)
    axes.set_xscale("log")
    axes.set_xlabel("L0, measured")
    axes.minorticks_off()
    ticks = _ticks(*axes.get_xlim())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2, 5, 10, ...) between two bounds; three others if there are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    inside = [tick for tick in found if low <= tick <= high]
    if len(inside) > 1:
        return inside
    return [float(f"{low * (high / low) ** share:.2g}") for share in (0.15, 0.5, 0.85)]
