"""Shared parts of all figures: colours and markers of variants, a grid of panels, one legend.

Figures have a white background and need no display.
"""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Array = npt.NDArray[np.float64]
Curve = tuple[Array, Array]  # x in rising order, and y
Style = tuple[str, str]  # colour, marker

#: Safe for colour-blind readers: Okabe and Ito, with a grey for the reference. Each variant also
#: has a marker of its own.
PALETTE = ("#5F6B7A", "#E07B00", "#0072B2", "#009E73", "#CC79A7", "#A0522D", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_FIXED_STYLE = {"baseline": 0, "fixed": 1, "adaptive": 2, "groups": 3, "directions": 4}

INK, MUTED, RULE = "#1F2933", "#66727F", "#E3E8EE"
GOOD, BAD = "#00704F", "#B3261E"

#: The colours of figures in a page, by the CSS variable that changes them in dark colours.
CSS_COLOURS = {
    "--f-ground": "#ffffff",
    "--f-ink": INK,
    "--f-muted": MUTED,
    "--f-rule": RULE,
    "--f-edge": "#B8C2CC",
    "--f-good": GOOD,
    "--f-bad": BAD,
    **{f"--f-{number}": colour for number, colour in enumerate(PALETTE)},
}

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#B8C2CC",
    "axes.linewidth": 0.8,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": "#B8C2CC",
    "ytick.color": "#B8C2CC",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    # Text drawn as outlines looks the same everywhere. The fixed salt gives equal figures equal
    # files.
    "svg.fonttype": "path",
    "svg.hashsalt": "saelens-adaptive-ortho",
}


class Mark(NamedTuple):
    """A point of a figure, and what a page says about it when the pointer is on it."""

    axes: Axes
    x: float
    y: float
    words: str


class Picture(Figure):
    """A figure with points that a page explains.

    Args:
        width: width in inches.
        height: height in inches.

    Attributes:
        marks: the points.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height))
        self.marks: list[Mark] = []

    def mark(self, axes: Axes, x: float, y: float, words: str) -> None:
        """Explain the point at (x, y), in data coordinates."""
        self.marks.append(Mark(axes, x, y, words))


def variant_styles(variants: Sequence[str]) -> dict[str, Style]:
    """Return colour and marker per variant; those of the usual variants never change."""
    taken = {_FIXED_STYLE[name] for name in variants if name in _FIXED_STYLE}
    free = [index for index in range(len(PALETTE)) if index not in taken]
    styles: dict[str, Style] = {}
    for name in variants:
        if name in _FIXED_STYLE:
            index = _FIXED_STYLE[name]
        else:
            index = free.pop(0)
            # With more variants than colours, colours are used again.
            free.append(index)
        styles[name] = (PALETTE[index], MARKERS[index])
    return styles


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves over the range that all cover, by linear interpolation."""
    start = max(x[0] for x, _ in curves)
    stop = min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= start) & (grid <= stop)]
    return grid, np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)


def line_widths(lines: int) -> list[float]:
    """Return falling line widths, so that equal curves drawn over each other all stay visible."""
    return [1.5] if lines == 1 else [float(w) for w in np.linspace(3.4, 1.5, lines)]


def css_colour(colour: str) -> str:
    """Return the colour for a page, where its CSS variable may change it."""
    names = [name for name, known in CSS_COLOURS.items() if known.lower() == colour.lower()]
    return f"var({names[0]},{colour})" if names else colour


def empty_figure(width: float, height: float) -> Picture:
    """Return a figure of this size in inches, without panels."""
    figure = Picture(width, height)
    # The Agg canvas draws without a display and without pyplot's global state.
    FigureCanvasAgg(figure)
    return figure


def panel_grid(
    panels: int, height: float, width: float | None = None, columns: int = 3
) -> tuple[Picture, list[Axes]]:
    """Return a figure and its empty panels, row by row.

    Sizes are in inches; ``height`` is that of one row.
    """
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = empty_figure(width or max(7.2, 3.7 * columns), rows * height + 0.5)
    figure.set_layout_engine("constrained", h_pad=0.09, w_pad=0.09, hspace=0.04, wspace=0.04)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]


def shared_legend(
    figure: Figure,
    variants: Sequence[str],
    styles: Mapping[str, Style],
    markers: bool = True,
) -> None:
    """Draw one legend above all panels, with colour and marker of each variant."""
    handles = [
        Line2D([], [], color=styles[v][0], lw=2.4, marker=styles[v][1] if markers else "", label=v)
        for v in variants
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


def side_note(axes: Axes, text: str, height: float = 1.0) -> None:
    """Write a small remark below the title of a panel, at the left."""
    axes.text(0, height, text, transform=axes.transAxes, fontsize=7.8, color=MUTED, va="bottom")
