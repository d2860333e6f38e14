"""Draw ``docs/idea.png``: what the two halves of the penalty do.

python -m tools.draw_idea
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Rectangle

TARGET = Path(__file__).parents[1] / "docs" / "idea.png"
FORGET, RETAIN, SHARED, INK, CHARGED = "#c2410c", "#1d4ed8", "#6d28d9", "#334155", "#fca5a5"
NOTE: dict[str, Any] = {"ha": "center", "fontsize": 9, "color": INK}
ROWS = (("forget", FORGET), ("forget", FORGET), ("shared", SHARED), ("retain", RETAIN))


def arrow(ax: Axes, degrees: float, colour: str, label: str = "", faint: bool = False) -> None:
    """An arrow of length 1 from the origin."""
    x, y = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    style = {"arrowstyle": "-|>", "color": colour, "lw": 2.2, "alpha": 0.25 if faint else 1}
    ax.annotate("", (x, y), (0, 0), arrowprops=style)
    if label:
        ax.text(1.12 * x, 1.12 * y, label, color=colour, ha="center", va="center", fontsize=10)


def arc(ax: Axes, start: float, stop: float, text: str) -> None:
    """A marked angle."""
    ax.add_patch(Arc((0, 0), 0.7, 0.7, theta1=start, theta2=stop, color=INK, lw=1))
    middle = np.radians((start + stop) / 2)
    ax.text(0.52 * np.cos(middle), 0.52 * np.sin(middle), text, fontsize=9, color=INK, ha="center")


def directions(ax: Axes) -> None:
    """Decoder directions: two that compete are pushed apart, two that share stay."""
    arrow(ax, 62, FORGET, faint=True)
    ax.annotate(
        "", (np.cos(1.5) * 0.8, 0.8), (0.47, 0.72), arrowprops={"arrowstyle": "->", "color": INK}
    )
    arrow(ax, 100, FORGET, "a")
    arrow(ax, 10, RETAIN, "b")
    arc(ax, 10, 100, "90°")
    arrow(ax, 205, RETAIN, "c")
    arrow(ax, 228, RETAIN, "d")
    ax.text(0.62, -0.35, "a and b compete:\npushed apart", fontsize=9, color=INK, ha="center")
    ax.text(-0.25, -1.2, "c and d fire together:\nmay share", fontsize=9, color=INK, ha="center")
    ax.set(xlim=(-1.3, 1.4), ylim=(-1.35, 1.25), aspect="equal", title="Directions")
    ax.axis("off")


def activations(ax: Axes) -> None:
    """Activations on forget and retain text; those of forget latents on retain text are charged."""
    fires = np.array([[1, 1, 0, 1, 1, 0, 0, 1], [1, 0, 1, 1, 0, 1, 0, 0]])
    fires = np.vstack([fires, [1, 0, 1, 1, 1, 1, 0, 1], [0, 0, 1, 0, 1, 1, 1, 0]])
    for row, (_, colour) in enumerate(ROWS):
        for column in range(8):
            charged = row < 2 and column >= 4 and fires[row, column]
            if charged:
                ax.add_patch(Rectangle((column - 0.5, 2.5 - row), 1, 1, color=CHARGED))
            size = 130 if fires[row, column] else 6
            ax.scatter(column, 3 - row, s=size, color=colour, zorder=2)
    ax.plot([3.5, 3.5], [-0.5, 4.1], color=INK, lw=1, ls="--")
    for x, text in ((1.5, "forget text"), (5.5, "retain text")):
        ax.text(x, 3.85, text, ha="center", fontsize=9, color=INK)
    ax.text(3.5, -1.05, "red: charged, so forget latents fall silent on retain text;", **NOTE)
    ax.text(3.5, -1.45, "a latent with reason to serve both is free", **NOTE)
    ax.set_yticks([3, 2, 1, 0], [name for name, _ in ROWS], fontsize=9)
    for tick, (_, colour) in zip(ax.get_yticklabels(), ROWS, strict=True):
        tick.set_color(colour)
    ax.set(xlim=(-0.7, 7.7), ylim=(-1.7, 4.2), xticks=[], title="Activations")
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def draw() -> Figure:
    """The figure."""
    figure = Figure(figsize=(8.6, 3.5), dpi=160, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    directions(left)
    activations(right)
    return figure


if __name__ == "__main__":
    draw().savefig(TARGET)
    print(TARGET)
