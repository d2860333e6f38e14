"""Draw the geometry: principal angles, cosines, and firing rates by corpus."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saelens_adaptive_ortho.report.figures.section import Section, details_by_variant
from saelens_adaptive_ortho.report.figures.style import (
    STYLE,
    Array,
    Curve,
    panel_grid,
    shared_legend,
    variant_styles,
)
from saelens_adaptive_ortho.results import order_variants


def angles_figure(section: Section) -> Figure | None:
    """Draw the principal angles between forget and retain decoder subspaces, in rising order.

    Angles are in degrees. The mean over seeds ends at the last rank that all seeds have.
    """
    spectra: dict[str, list[Array]] = {}
    for variant, lists in details_by_variant(section, "principal_angles_deg").items():
        for angles in lists:
            spectra.setdefault(variant, []).append(np.sort(np.asarray(angles, dtype=float)))
    if not spectra:
        return None
    styles = variant_styles(order_variants(r.variant for r in section.results))
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = panel_grid(1, height=3.3, width=7.2)
        for variant, lists in spectra.items():
            _draw_spectra(axes, lists, *styles[variant])
        axes.set_ylim(0, 92)
        axes.set_yticks(range(0, 91, 15))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_title("Principal angles between forget and retain decoder directions")
        axes.set_xlabel("rank of the angle")
        axes.set_ylabel("principal angle (degrees)")
        shared_legend(figure, list(spectra), styles, markers=False)
    return figure


def _draw_spectra(axes: Axes, spectra: list[Array], colour: str, marker: str) -> None:
    if len(spectra) > 1:
        for angles in spectra:
            axes.plot(range(1, len(angles) + 1), angles, color=colour, lw=0.7, alpha=0.4)
    shortest = min(len(angles) for angles in spectra)
    axes.plot(
        range(1, shortest + 1),
        np.mean([angles[:shortest] for angles in spectra], axis=0),
        color=colour,
        lw=2,
        marker=marker if shortest <= 12 else None,
        markersize=5,
    )


def cosine_figure(section: Section) -> Figure | None:
    """Draw the distribution of cosines between decoder directions, as a density on a log scale.

    The density of a bin is count / (total · bin width). It is averaged over the seeds of a variant
    if they share the bin edges; otherwise each seed is drawn.
    """
    densities: dict[str, list[Curve]] = {}
    for variant, histograms in details_by_variant(section, "cosine_histogram").items():
        for histogram in histograms:
            edges = np.asarray(histogram["edges"], dtype=float)
            counts = np.asarray(histogram["counts"], dtype=float)
            if counts.sum() > 0:
                density = counts / (counts.sum() * np.diff(edges))
                densities.setdefault(variant, []).append((edges, density))
    if not densities:
        return None
    styles = variant_styles(order_variants(r.variant for r in section.results))
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = panel_grid(1, height=3.3, width=7.2)
        for variant, curves in densities.items():
            _draw_densities(axes, curves, styles[variant][0])
        axes.set_yscale("log")
        axes.set_title("Cosines between decoder directions")
        axes.set_xlabel("cosine")
        axes.set_ylabel("density (log scale)")
        shared_legend(figure, list(densities), styles, markers=False)
    return figure


def _draw_densities(axes: Axes, curves: list[Curve], colour: str) -> None:
    first = curves[0][0]
    same = all(np.array_equal(first, edges) for edges, _ in curves)
    if same:
        curves = [(first, np.mean([density for _, density in curves], axis=0))]
    for edges, density in curves:
        # An empty bin has no logarithm; the line breaks there.
        visible = np.where(density > 0, density, np.nan)
        axes.stairs(visible, edges, color=colour, lw=1.8 if same else 0.8, baseline=None)


class _Rates(NamedTuple):
    """Firing rate of every latent of one SAE, on tokens of each corpus."""

    seed: int
    forget: Array
    retain: Array


def firing_figure(section: Section) -> Figure | None:
    """Draw the firing rates of every latent on forget and retain tokens, for the first seed.

    Both axes are logarithmic. A latent that never fires on one corpus is drawn in the margin,
    below the smallest rate.
    """
    chosen = _first_rates(section)
    every = [rates for found in chosen.values() for rates in (found.forget, found.retain)]
    positive = np.concatenate(every) if every else np.array([])
    positive = positive[positive > 0]
    if not len(positive):
        return None
    styles = variant_styles(order_variants(r.variant for r in section.results))
    smallest, largest = float(positive.min()), float(positive.max())
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(chosen), height=3.15)
        for axes, (variant, rates) in zip(grid, chosen.items(), strict=True):
            _draw_rates(axes, rates, smallest, largest, styles[variant][0])
            axes.set_title(f"{variant}, seed {rates.seed}", color=styles[variant][0])
            axes.set_xlabel("firing rate on retain tokens")
            axes.set_ylabel("firing rate on forget tokens")
    return figure


def _first_rates(section: Section) -> dict[str, _Rates]:
    """Return, for each variant, the firing rates of the first seed that has them."""
    chosen: dict[str, _Rates] = {}
    for result in section.results:
        rates = result.details.get("firing_rates") if result.ok else None
        if result.eval != section.eval or not rates or result.variant in chosen:
            continue
        forget = np.asarray(rates["forget"], dtype=float)
        retain = np.asarray(rates["retain"], dtype=float)
        if len(forget) and len(forget) == len(retain):
            chosen[result.variant] = _Rates(result.seed, forget, retain)
    return chosen


def _draw_rates(axes: Axes, rates: _Rates, smallest: float, largest: float, colour: str) -> None:
    margin = smallest / 2.5
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axvspan(margin / 1.6, margin * 1.6, color="#F2F5F8", zorder=0)
    axes.axhspan(margin / 1.6, margin * 1.6, color="#F2F5F8", zorder=0)
    axes.plot([smallest, largest], [smallest, largest], color="#C3CCD6", lw=1, zorder=1)
    axes.scatter(
        np.where(rates.retain > 0, rates.retain, margin),
        np.where(rates.forget > 0, rates.forget, margin),
        s=7,
        color=colour,
        alpha=0.45,
        linewidths=0,
        zorder=2,
        rasterized=len(rates.forget) > 2000,
    )
    axes.set_xlim(margin / 1.6, largest * 1.6)
    axes.set_ylim(margin / 1.6, largest * 1.6)
    axes.set_aspect("equal")
    axes.minorticks_off()
