"""Write labels beside points and lines, where they cover as little as possible."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, Transform

#: Distances in points from a label to its point, nearest first.
_DISTANCES = (6.0, 16.0, 30.0, 46.0)
#: Directions in which a label may stand, the best one first.
_DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
#: Half the size of a point and of a large point, in pixels.
_RADIUS, _LARGE_RADIUS = 5, 9
_HORIZONTAL = {1: "left", 0: "center", -1: "right"}
_VERTICAL = {1: "bottom", 0: "center", -1: "top"}


class Label(NamedTuple):
    """A label.

    Attributes:
        text: the text.
        colour: colour of the text.
        places: where it may stand, the best place first.
        bold: whether it is bold.
    """

    text: str
    colour: str
    places: Sequence[Place]
    bold: bool = False


class Place(NamedTuple):
    """A place of a label: its anchor, the shift from there in points, and its alignment.

    With ``leader``, a thin line joins anchor and label. ``transform`` is that of the anchor; by
    default the data's.
    """

    x: float
    y: float
    dx: float
    dy: float
    ha: str
    va: str
    leader: bool = False
    transform: Transform | None = None


def around(x: float, y: float) -> list[Place]:
    """Return the places around a point, near ones first."""
    places: list[Place] = []
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            # On a diagonal, the same distance is shared by both axes.
            step = distance if 0 in (right, up) else 0.7 * distance
            ha, va = _HORIZONTAL[right], _VERTICAL[up]
            leader = distance > _DISTANCES[0]
            places.append(Place(x, y, right * step, up * step, ha, va, leader))
    return places


def along(axes: Axes, y: float) -> list[Place]:
    """Return the places above and below a horizontal line at ``y``."""
    transform = axes.get_yaxis_transform()
    return [
        Place(x, y, dx, dy, ha, va, transform=transform)
        for dy, va in ((1.5, "bottom"), (-1.5, "top"))
        for x, dx, ha in ((0.0, 3.0, "left"), (1.0, -3.0, "right"), (0.5, 0.0, "center"))
    ]


def beside(axes: Axes, x: float) -> list[Place]:
    """Return the places at the feet and at the heads of a vertical line at ``x``."""
    transform = axes.get_xaxis_transform()
    return [
        Place(x, y, dx, dy, ha, va, transform=transform)
        for y, dy, va in ((0.0, 3.0, "bottom"), (1.0, -3.0, "top"))
        for dx, ha in ((3.0, "left"), (-3.0, "right"))
    ]


def place_labels(
    axes: Axes,
    labels: Iterable[Label],
    points: Iterable[tuple[float, float]],
    levels: Iterable[float] = (),
    marks: Iterable[tuple[float, float]] = (),
) -> None:
    """Write each label at the first place where it covers nothing, or where it covers least.

    Limits and layout of the axes must be final.

    Args:
        axes: axes with the points.
        labels: labels in order of importance; a later one does not cover an earlier one.
        points: data points that no label should cover.
        levels: heights of horizontal lines that no label should cover.
        marks: large data points that no label should cover.
    """
    figure = cast("Figure", axes.figure)
    figure.draw_without_rendering()
    renderer = cast("FigureCanvasAgg", figure.canvas).get_renderer()
    taken: list[Bbox] = []
    for found, radius in ((points, _RADIUS), (marks, _LARGE_RADIUS)):
        for x, y in (axes.transData.transform(point) for point in found):
            taken.append(Bbox.from_extents(x - radius, y - radius, x + radius, y + radius))
    for _, y in (axes.transData.transform((0, level)) for level in levels):
        taken.append(Bbox.from_extents(axes.bbox.x0, y - 1, axes.bbox.x1, y + 1))
    written: list[Bbox] = []
    for label in labels:
        best: Annotation | None = None
        least = float("inf")
        for place in label.places:
            text = _write(axes, label, place)
            box = text.get_window_extent(renderer)
            covered = sum(_common(box, other) for other in taken)
            covered += 4 * sum(_common(box, other) for other in written)
            covered += 4 * (_area(box) - _common(box, axes.bbox))  # outside the axes
            if covered < least - 1e-6:
                if best is not None:
                    best.remove()
                best, least = text, covered
            else:
                text.remove()
            if least <= 0:
                break
        if best is not None:
            written.append(best.get_window_extent(renderer))


def _write(axes: Axes, label: Label, place: Place) -> Annotation:
    arrow: dict[str, Any] | None = None
    if place.leader:
        arrow = {"arrowstyle": "-", "color": label.colour, "lw": 0.7, "shrinkA": 1, "shrinkB": 4}
    return axes.annotate(
        label.text,
        (place.x, place.y),
        (place.dx, place.dy),
        xycoords=place.transform or axes.transData,
        textcoords="offset points",
        ha=place.ha,
        va=place.va,
        color=label.colour,
        fontweight="bold" if label.bold else "normal",
        arrowprops=arrow,
        # A white edge keeps the text readable where it crosses a line.
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=6,
    )


def _area(box: Bbox) -> float:
    return max(0.0, box.width) * max(0.0, box.height)


def _common(a: Bbox, b: Bbox) -> float:
    """Return the area that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0
