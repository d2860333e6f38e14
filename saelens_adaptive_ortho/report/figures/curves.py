"""Draw training curves: losses and groups over the number of training tokens."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from saelens_adaptive_ortho.report.figures.section import Section
from saelens_adaptive_ortho.report.figures.style import (
    STYLE,
    Array,
    Curve,
    line_widths,
    mean_curve,
    panel_grid,
    shared_legend,
    variant_styles,
)
from saelens_adaptive_ortho.results import Result, order_variants

#: Key of a row -> (title, y axis).
_HISTORY: dict[str, tuple[str, str]] = {
    "mse_loss": ("Reconstruction loss", "MSE"),
    "explained_variance": ("Explained variance", "explained variance"),
    "l0": ("L0", "active latents per token"),
    "ortho_loss": ("Orthogonality loss", "loss"),
    "coefficient": ("Orthogonality coefficient", "coefficient"),
}
_GROUPS: dict[str, tuple[str, str]] = {
    "n_groups": ("Groups", "number of groups"),
    "largest": ("Largest group", "latents"),
    "churn": ("Churn", "share of latents that moved"),
    "forget": ("Forget latents", "latents"),
    "retain": ("Retain latents", "latents"),
    "shared": ("Shared latents", "latents"),
}

Row = Mapping[str, Any]
Runs = Sequence[tuple[str, Sequence[Row]]]  # variant, rows of one SAE


def training_figure(section: Section) -> Figure | None:
    """Draw training curves per variant: the mean over seeds (thick) and each seed (faint)."""
    return _curve_figure(section.results, "history", _HISTORY)


def groups_figure(section: Section) -> Figure | None:
    """Draw number, size and churn of the orthogonality groups over training, per variant."""
    return _curve_figure(section.results, "groups", _GROUPS)


def _curve_figure(
    results: Sequence[Result], source: str, panels: Mapping[str, tuple[str, str]]
) -> Figure | None:
    trained = [r for r in results if r.ok and r.eval == "training"]
    runs: Runs = [(r.variant, r.details.get(source) or []) for r in trained]
    sampled = all("n_training_samples" in row for _, rows in runs for row in rows)
    series = {
        key: _curves(runs, "n_training_samples" if sampled else "step", key) for key in panels
    }
    series = {key: by_variant for key, by_variant in series.items() if by_variant}
    if not series:
        return None
    variants = order_variants(r.variant for r in results)
    styles = variant_styles(variants)
    drawn = [v for v in variants if any(v in by_variant for by_variant in series.values())]
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(series), height=2.45)
        for axes, (key, by_variant) in zip(grid, series.items(), strict=True):
            for variant, width in zip(drawn, line_widths(len(drawn)), strict=True):
                _draw_curves(axes, by_variant.get(variant, []), styles[variant][0], width)
            every = [curve for curves in by_variant.values() for curve in curves]
            if key.endswith("loss"):
                _maybe_log(axes, np.concatenate([y for _, y in every]))
            if key == "explained_variance":
                _leave_out_start(axes, every)
            title, label = panels[key]
            axes.set_title(title)
            axes.set_ylabel(label)
            axes.set_xlabel("training samples (tokens)" if sampled else "training step")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
        shared_legend(figure, drawn, styles, markers=False)
    return figure


def _curves(runs: Runs, axis: str, key: str) -> dict[str, list[Curve]]:
    """Return the curves of ``key`` over ``axis`` by variant, one per SAE that recorded it."""
    curves: dict[str, list[Curve]] = {}
    for variant, rows in runs:
        points = sorted(
            (row[axis], row[key])
            for row in rows
            if row.get(key) is not None and row.get(axis) is not None
        )
        if points:
            x, y = np.array(points, dtype=float).T
            curves.setdefault(variant, []).append((x, y))
    return curves


def _draw_curves(axes: Axes, curves: Sequence[Curve], colour: str, width: float) -> None:
    if len(curves) > 1:
        for x, y in curves:
            axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.4)
    if curves:
        axes.plot(*mean_curve(curves), color=colour, linewidth=width)


def _leave_out_start(axes: Axes, curves: Sequence[Curve]) -> None:
    """Limit the y axis to the values after the first tenth of training.

    The steep start would make the rest unreadable.
    """
    late = [y[x >= x[0] + 0.1 * (x[-1] - x[0])] for x, y in curves]
    low = min(float(y.min()) for y in late)
    high = max(float(y.max()) for _, y in curves)
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _maybe_log(axes: Axes, values: Array) -> None:
    if values.min() > 0 and values.max() / values.min() > 10:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _short(value: float, _: object = None) -> str:
    """Return ``2M`` for 2,000,000."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
