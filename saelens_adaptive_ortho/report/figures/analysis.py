"""Figures of ``adaptive-ortho analyse``: geometry by group, and pairs of similar latents."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelens_adaptive_ortho.report.figures.geometry import (
    angles_figure,
    cosine_figure,
    firing_figure,
)
from saelens_adaptive_ortho.report.figures.section import Section
from saelens_adaptive_ortho.report.figures.style import (
    STYLE,
    panel_grid,
    shared_legend,
    variant_styles,
)
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.results import Result, order_variants


def analysis_figures(results: Sequence[Result]) -> dict[str, Figure]:
    """Return the figures by name; a figure with nothing to show is left out."""
    section = Section(summarise(results), results, "subspace")
    figures = {
        "condition_numbers": _groups_figure(
            results, "condition_number/", "Condition numbers", "sigma max / sigma min", log=True
        ),
        "group_sizes": _groups_figure(results, "n_", "Group sizes", "latents"),
        "cosines": cosine_figure(section),
        "principal_angles": angles_figure(section),
        "firing": firing_figure(section),
        "pairs": _pairs_figure(results),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _groups_figure(
    results: Sequence[Result], prefix: str, title: str, label: str, log: bool = False
) -> Figure | None:
    """Draw a dot per SAE for each group that has the metric."""
    groups = _groups(results, prefix)
    if not groups:
        return None
    variants = order_variants(r.variant for r in results)
    styles = variant_styles(variants)
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = panel_grid(1, height=0.45 * len(groups) + 1.2, width=7.2)
        for result in results:
            colour, marker = styles[result.variant]
            offset = 0.5 * (variants.index(result.variant) + 0.5) / len(variants) - 0.25
            found = [(result.metrics.get(prefix + g), row) for row, g in enumerate(groups)]
            points = [(value, row + offset) for value, row in found if value is not None]
            x, y = [p[0] for p in points], [p[1] for p in points]
            axes.plot(x, y, color=colour, marker=marker, ls="")
        if log:
            axes.set_xscale("log")
        names = [g.replace("_", " ").replace("+", " + ") for g in groups]
        axes.set_yticks(range(len(groups)), names)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_title(title)
        axes.set_xlabel(label)
        shared_legend(figure, variants, styles)
    return figure


def _groups(results: Sequence[Result], prefix: str) -> list[str]:
    """Return the groups that follow ``prefix`` in the names of measured metrics."""
    names = [
        key.removeprefix(prefix)
        for result in results
        for key, value in result.metrics.items()
        if key.startswith(prefix) and value is not None and "coactivation_groups" not in key
    ]
    return list(dict.fromkeys(names))


def _pairs_figure(results: Sequence[Result]) -> Figure | None:
    chosen: dict[str, list[list[float]]] = {}
    for result in results:  # keeps the first seed of each variant
        pairs = result.details.get("similar_pairs")
        if pairs:
            chosen.setdefault(result.variant, pairs)
    if not chosen:
        return None
    styles = variant_styles(order_variants(r.variant for r in results))
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(chosen), height=3.0)
        for axes, (variant, pairs) in zip(grid, chosen.items(), strict=True):
            _draw_pairs(axes, pairs, styles[variant][0])
            axes.set_title(variant)
            axes.set_xlabel("cosine")
            axes.set_ylabel("lift")
    return figure


def _draw_pairs(axes: Axes, pairs: list[list[float]], colour: str) -> None:
    # Lift 0 has no logarithm; a symlog scale can show it.
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=-0.02)
    axes.axhline(1, color="#C3CCD6", lw=1)
    cosines, lifts = [p[2] for p in pairs], [p[3] for p in pairs]
    axes.scatter(cosines, lifts, s=9, alpha=0.5, color=colour, linewidths=0)
