"""Figures of a run, drawn with matplotlib on a white ground (no display is needed).

Every function returns a `matplotlib.figure.Figure`, or None where the results hold nothing to
draw. `figure_svg` turns one into text that can stand inside a page beside others, `save_figure`
writes it as PNG and SVG.
"""

from __future__ import annotations

import importlib
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from saelens_adaptive_ortho.evaluations import evaluation, every
from saelens_adaptive_ortho.report.metrics import MetricInfo
from saelens_adaptive_ortho.report.summary import BETTER, WORSE, MetricSummary, Summary, summarise
from saelens_adaptive_ortho.results import Result, load_results, order_variants

#: Colour-blind-safe (Okabe and Ito, with a grey for the reference), told apart by marker too.
PALETTE = ("#5F6B7A", "#E07B00", "#0072B2", "#009E73", "#CC79A7", "#A0522D", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_FIXED_STYLE = {"baseline": 0, "fixed": 1, "adaptive": 2}

INK, MUTED, RULE = "#1F2933", "#66727F", "#E3E8EE"
_GOOD, _BAD = "#00704F", "#B3261E"

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
    # Text as outlines looks the same everywhere; the salt makes equal figures equal files.
    "svg.fonttype": "path",
    "svg.hashsalt": "saelens-adaptive-ortho",
}

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


class Section(NamedTuple):
    """What a figure of an evaluation is drawn from.

    Attributes:
        summary: statistics of the run.
        results: of the run, all evaluations.
        eval: name of the evaluation whose section it is.
    """

    summary: Summary
    results: Sequence[Result]
    eval: str


def variant_styles(variants: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return (colour, marker) per variant; baseline, fixed and adaptive always keep theirs."""
    taken = {_FIXED_STYLE[name] for name in variants if name in _FIXED_STYLE}
    free = [index for index in range(len(PALETTE)) if index not in taken]
    styles = {}
    for name in variants:
        if name in _FIXED_STYLE:
            index = _FIXED_STYLE[name]
        else:
            index = free.pop(0)
            # With more variants than colours the colours come round again.
            free.append(index)
        styles[name] = (PALETTE[index], MARKERS[index])
    return styles


def headline_figure(summary: Summary) -> Figure | None:
    """One panel per metric at a glance: a dot per seed, mean and 95% interval per variant.

    Dots of the same seed are joined, which shows the paired differences.
    """
    return _dots_figure(
        summary, [key for info in every().values() for key in info.keys(info.glance)]
    )


def reconstruction_figure(section: Section) -> Figure | None:
    """The panels of `headline_figure` for core on each corpus; None with one corpus."""
    summary = section.summary
    keys = [key for key in summary.headline if key.startswith("core/")]
    several = any(not key.startswith("core/pooled/") for key in keys)
    return _dots_figure(summary, keys) if several else None


def primary_figure(section: Section) -> Figure | None:
    """The panels of `headline_figure` for the primary metrics of an evaluation."""
    summary, _, eval = section
    info = evaluation(eval)
    return _dots_figure(summary, info.keys(info.primary))


def judged_figure(section: Section) -> Figure | None:
    """The panels of `headline_figure` for the metrics of an evaluation that have a direction."""
    summary, _, eval = section
    keys = [key for key in summary.metrics if key.startswith(f"{eval}/")]
    return _dots_figure(summary, [key for key in keys if summary.metrics[key].info.direction])


def _dots_figure(summary: Summary, keys: Sequence[str]) -> Figure | None:
    measured = {k for k, m in summary.metrics.items() if any(s.n for s in m.variants.values())}
    keys = [key for key in keys if key in measured]
    if not keys:
        return None
    full = len({key.split("/")[0] for key in keys}) > 1
    titles = {key: _panel_title(summary.metrics[key].info, full) for key in keys}
    styles = variant_styles(summary.variants)
    columns = min(4, len(keys)) if len(keys) not in (5, 6) else 3
    rows = math.ceil(len(keys) / columns)
    lines = max(title.count("\n") for title in titles.values())
    row_height = 1.0 + 0.36 * len(summary.variants) + 0.16 * lines
    head, foot, title = 0.5, 0.42, 0.5 + 0.16 * lines
    height = rows * row_height + head + foot
    width = 3.05 * columns + 0.55
    # All in inches: the gap between rows holds the axis below and the title above it.
    gap = 0.32 + title
    panel = (height - head - title - foot - 0.3 - (rows - 1) * gap) / rows
    legend = _dots_legend(summary)
    with matplotlib.rc_context(STYLE):
        figure = _figure(width, height)
        figure.subplots_adjust(
            left=(0.3 + 0.085 * max(len(v) for v in summary.variants)) / width,
            right=1 - 0.2 / width,
            top=1 - (head + title) / height,
            bottom=(foot + 0.3) / height,
            hspace=gap / panel,
            wspace=0.2,
        )
        for index, key in enumerate(keys):
            axes = figure.add_subplot(rows, columns, index + 1)
            first = index % columns == 0
            _dot_panel(axes, summary, summary.metrics[key], titles[key], styles, first)
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
            textwrap.fill(legend, int(17 * width)),
            fontsize=7.8,
            color=MUTED,
            va="bottom",
        )
    return figure


def _panel_title(info: MetricInfo, full: bool) -> str:
    label = info.full_label if full else info.label
    unit = f" ({info.unit})" if info.unit and info.unit not in info.name else ""
    # A bound stays with its sign: textwrap does not break at a no-break space.
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
        parts.append(f"verdict: {summary.focus} against {summary.variants[0]}, paired by seed")
    return "   ·   ".join(parts)


def _dot_panel(
    axes: Axes,
    summary: Summary,
    metric: MetricSummary,
    title: str,
    styles: Mapping[str, tuple[str, str]],
    named: bool,
) -> None:
    variants = summary.variants
    # With a single seed its dot is the mean itself and is left out.
    several = len(summary.seeds) > 1
    dot_shift = 0.24 if several else 0.0
    values = [x for spread in metric.variants.values() for x in spread.by_seed.values()]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) * 0.2 or 1.0
    # With few seeds an interval can dwarf the data; the panel shows what fits in this range.
    bounds = [b for s in metric.variants.values() if s.ci95 is not None for b in s.ci95]
    left = max(min([low, *bounds]), low - span) - 0.08 * span
    right = min(max([high, *bounds]), high + span) + 0.08 * span
    axes.set_xlim(left, right)
    axes.set_ylim(len(variants) - 1 + 0.62, -0.5)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)

    for seed in summary.seeds:
        points = [
            (metric.variants[v].by_seed[seed], row + dot_shift)
            for row, v in enumerate(variants)
            if seed in metric.variants[v].by_seed
        ]
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), color="#C3CCD6", linewidth=0.8, zorder=1)
    for row, variant in enumerate(variants):
        spread = metric.variants[variant]
        colour, marker = styles[variant]
        if spread.mean is None:
            axes.text(
                (left + right) / 2,
                row,
                "no value",
                color=MUTED,
                fontsize=8,
                va="center",
                ha="center",
                style="italic",
            )
            continue
        seeds = list(spread.by_seed.values())
        if several:
            axes.scatter(
                seeds,
                [row + dot_shift] * len(seeds),
                s=13,
                color=colour,
                alpha=0.65,
                linewidths=0,
                zorder=2,
            )
        if spread.ci95 is not None:
            start, stop = max(spread.ci95[0], left), min(spread.ci95[1], right)
            axes.plot(
                [start, stop],
                [row, row],
                color=colour,
                linewidth=2.6,
                alpha=0.45,
                solid_capstyle="butt",
                zorder=3,
            )
            for cut, edge, arrow in (
                (spread.ci95[0] < left, left, "<"),
                (spread.ci95[1] > right, right, ">"),
            ):
                if cut:
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
        axes.plot(
            [spread.mean],
            [row],
            marker=marker,
            color=colour,
            markersize=7.5,
            markeredgecolor="white",
            markeredgewidth=1.0,
            zorder=4,
        )

    axes.set_yticks(range(len(variants)), variants if named else [""] * len(variants))
    axes.tick_params(axis="y", length=0, pad=4)
    for label, variant in zip(axes.get_yticklabels(), variants, strict=True):
        label.set_color(styles[variant][0])
        label.set_fontweight("bold")
        label.set_fontsize(8.5)
    axes.xaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    if max(abs(left), abs(right)) >= 1e5 or max(abs(left), abs(right)) < 1e-3:
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))

    info = metric.info
    direction = {"higher": "better →", "lower": "← better"}
    axes.set_title(title, pad=16, fontsize=9.5)
    axes.text(
        0,
        1.0,
        direction.get(info.direction or "", "no better side"),
        transform=axes.transAxes,
        fontsize=7.8,
        color=MUTED,
        va="bottom",
    )
    focus = summary.focus
    difference = metric.difference(focus, summary.variants[0]) if focus else None
    if difference is not None and difference.verdict is not None:
        word = difference.verdict.removesuffix(" at 95%")
        colour = {BETTER: _GOOD, WORSE: _BAD}.get(word, MUTED)
        axes.text(
            1,
            1.0,
            f"{focus}: {word}",
            transform=axes.transAxes,
            fontsize=7.8,
            color=colour,
            va="bottom",
            ha="right",
            fontweight="bold" if word in (BETTER, WORSE) else "normal",
        )


def training_figure(section: Section) -> Figure | None:
    """Training curves: mean over seeds (thick) and each seed (faint), per variant."""
    results = section.results
    return _curve_figure(results, "history", _HISTORY)


def groups_figure(section: Section) -> Figure | None:
    """Number, size and churn of the orthogonality groups over training, per variant."""
    results = section.results
    return _curve_figure(results, "groups", _GROUPS)


def _curve_figure(
    results: Sequence[Result], source: str, panels: Mapping[str, tuple[str, str]]
) -> Figure | None:
    runs = [(r, r.details.get(source)) for r in results if r.ok and r.eval == "training"]
    series: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {}
    sampled = all("n_training_samples" in row for _, rows in runs for row in rows or [])
    axis = "n_training_samples" if sampled else "step"
    for result, rows in runs:
        for key in panels:
            points = [
                (row[axis], row[key])
                for row in rows or []
                if row.get(key) is not None and row.get(axis) is not None
            ]
            if points:
                x, y = np.array(sorted(points), dtype=float).T
                series.setdefault(key, {}).setdefault(result.variant, []).append((x, y))
    keys = [key for key in panels if key in series]
    if not keys:
        return None
    variants = order_variants(r.variant for r in results)
    styles = variant_styles(variants)
    drawn = [v for v in variants if any(v in by_variant for by_variant in series.values())]
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(keys), height=2.45)
        for axes, key in zip(grid, keys, strict=True):
            for variant, width in zip(drawn, _widths(len(drawn)), strict=True):
                curves = series[key].get(variant, [])
                colour = styles[variant][0]
                if len(curves) > 1:
                    for x, y in curves:
                        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.4)
                if curves:
                    axes.plot(*_mean_curve(curves), color=colour, linewidth=width)
            title, label = panels[key]
            every = [curve for curves in series[key].values() for curve in curves]
            if key.endswith("loss"):
                _maybe_log(axes, np.concatenate([y for _, y in every]))
            if key == "explained_variance":
                _leave_out_start(axes, every)
            axes.set_title(title)
            axes.set_ylabel(label)
            axes.set_xlabel("training samples (tokens)" if sampled else "training step")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        shared_legend(figure, drawn, styles, markers=False)
    return figure


def _mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of curves over the range that all of them cover; points between are linear."""
    start = max(x[0] for x, _ in curves)
    stop = min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= start) & (grid <= stop)]
    return grid, np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)


def _widths(lines: int) -> list[float]:
    """Line widths that let every one of several equal curves show behind the next."""
    return [1.5] if lines == 1 else [float(w) for w in np.linspace(3.4, 1.5, lines)]


def _leave_out_start(axes: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Cut the steep start (a tenth of training) off the axis, where it would hide the rest."""
    late = [y[x >= x[0] + 0.1 * (x[-1] - x[0])] for x, y in curves]
    low = min(float(y.min()) for y in late)
    high = max(float(y.max()) for _, y in curves)
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _maybe_log(axes: Axes, values: np.ndarray) -> None:
    if values.min() > 0 and values.max() / values.min() > 10:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def angles_figure(section: Section) -> Figure | None:
    """Principal angles between forget and retain decoder subspaces, in rising order (degrees).

    The mean over seeds ends at the rank that every seed reaches.
    """
    results = section.results
    found = _details(results, "subspace", "principal_angles_deg")
    spectra = {
        variant: [np.sort(np.asarray(angles, dtype=float)) for angles in lists if len(angles)]
        for variant, lists in found.items()
    }
    spectra = {variant: lists for variant, lists in spectra.items() if lists}
    if not spectra:
        return None
    styles = variant_styles(order_variants(r.variant for r in results))
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = panel_grid(1, height=3.3, width=7.2)
        for variant, lists in spectra.items():
            colour, marker = styles[variant]
            if len(lists) > 1:
                for angles in lists:
                    axes.plot(range(1, len(angles) + 1), angles, color=colour, lw=0.7, alpha=0.4)
            shortest = min(len(angles) for angles in lists)
            mean = np.mean([angles[:shortest] for angles in lists], axis=0)
            axes.plot(
                range(1, shortest + 1),
                mean,
                color=colour,
                lw=2,
                marker=marker if shortest <= 12 else None,
                markersize=5,
            )
        axes.set_ylim(0, 92)
        axes.set_yticks(range(0, 91, 15))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_title("Principal angles between forget and retain decoder directions")
        axes.set_xlabel("rank of the angle")
        axes.set_ylabel("principal angle (degrees)")
        shared_legend(figure, list(spectra), styles, markers=False)
    return figure


def cosine_figure(section: Section) -> Figure | None:
    """Distribution of cosines of decoder directions, as a density with a log scale.

    A histogram becomes count / (total · bin width); it is averaged over the seeds of a variant
    where they share the bin edges, and else drawn seed by seed.
    """
    results = section.results
    found = _details(results, "subspace", "cosine_histogram")
    densities: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for variant, histograms in found.items():
        for histogram in histograms:
            edges = np.asarray(histogram["edges"], dtype=float)
            counts = np.asarray(histogram["counts"], dtype=float)
            if counts.sum() > 0:
                density = counts / (counts.sum() * np.diff(edges))
                densities.setdefault(variant, []).append((edges, density))
    if not densities:
        return None
    styles = variant_styles(order_variants(r.variant for r in results))
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = panel_grid(1, height=3.3, width=7.2)
        for variant, curves in densities.items():
            first = curves[0][0]
            same = all(np.array_equal(first, edges) for edges, _ in curves)
            if same:
                curves = [(first, np.mean([density for _, density in curves], axis=0))]
            for edges, density in curves:
                # An empty bin has no logarithm; the line breaks there.
                density = np.where(density > 0, density, np.nan)
                axes.stairs(
                    density,
                    edges,
                    color=styles[variant][0],
                    lw=1.8 if same else 0.8,
                    baseline=None,
                )
        axes.set_yscale("log")
        axes.set_title("Cosines between decoder directions")
        axes.set_xlabel("cosine")
        axes.set_ylabel("density (log scale)")
        shared_legend(figure, list(densities), styles, markers=False)
    return figure


def firing_figure(section: Section) -> Figure | None:
    """Firing rate of every latent on forget and on retain tokens, of the first seed (log-log).

    A latent that never fires on one corpus is drawn on the margin below the smallest rate.
    """
    results = section.results
    chosen: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}
    for result in results:
        rates = result.details.get("firing_rates") if result.ok else None
        if result.eval != "subspace" or not rates or result.variant in chosen:
            continue
        forget = np.asarray(rates["forget"], dtype=float)
        retain = np.asarray(rates["retain"], dtype=float)
        if len(forget) and len(forget) == len(retain):
            chosen[result.variant] = (result.seed, forget, retain)
    every = [rates for _, *pair in chosen.values() for rates in pair]
    positive = np.concatenate(every) if every else np.array([])
    positive = positive[positive > 0]
    if not len(positive):
        return None
    styles = variant_styles(order_variants(r.variant for r in results))
    smallest, largest = float(positive.min()), float(positive.max())
    margin = smallest / 2.5
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(chosen), height=3.15)
        for axes, (variant, (seed, forget, retain)) in zip(grid, chosen.items(), strict=True):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.axvspan(margin / 1.6, margin * 1.6, color="#F2F5F8", zorder=0)
            axes.axhspan(margin / 1.6, margin * 1.6, color="#F2F5F8", zorder=0)
            axes.plot([smallest, largest], [smallest, largest], color="#C3CCD6", lw=1, zorder=1)
            axes.scatter(
                np.where(retain > 0, retain, margin),
                np.where(forget > 0, forget, margin),
                s=7,
                color=styles[variant][0],
                alpha=0.45,
                linewidths=0,
                zorder=2,
                rasterized=len(forget) > 2000,
            )
            limits = (margin / 1.6, largest * 1.6)
            axes.set_xlim(*limits)
            axes.set_ylim(*limits)
            axes.set_aspect("equal")
            axes.minorticks_off()
            axes.set_title(f"{variant}, seed {seed}", color=styles[variant][0])
            axes.set_xlabel("firing rate on retain tokens")
            axes.set_ylabel("firing rate on forget tokens")
    return figure


#: Part -> (title, which way is better, x axis, y axis).
_FRONTIERS = {
    "loss": (
        "Next-token loss",
        "higher: more is forgotten at the same price",
        "retain damage: increase of the loss on retain (nats)",
        "forget damage: increase of the loss on forget (nats)",
    ),
    "mcq": (
        "Multiple-choice questions",
        "lower: more is forgotten at the same price",
        "retain accuracy that is kept, at least",
        "lowest forget accuracy",
    ),
}
_LEAST_ACCURACY = 0.8  # on retain; below, nobody would call it retained
_LEVELS = {
    "original_forget_accuracy": ("model untouched", (0, (5, 3))),
    "chance": ("chance", (0, (1, 2))),
}

_Curve = tuple[np.ndarray, np.ndarray]


def frontier_figure(section: Section) -> Figure | None:
    """Unlearning frontiers: what is lost on forget against what is lost on retain.

    Thick lines are means over the seeds of a variant, thin lines single SAEs; the band is the 95%
    bootstrap band of one SAE, averaged over seeds. Dots are the single interventions.
    """
    summary, results, _ = section
    found = {
        part: {
            variant: [r for r in results if r.variant == variant and _frontier(r, part, "y")]
            for variant in summary.variants
        }
        for part in _FRONTIERS
    }
    found = {part: by_variant for part, by_variant in found.items() if any(by_variant.values())}
    if not found:
        return None
    styles = variant_styles(summary.variants)
    drawn = [v for v in summary.variants if any(by_variant[v] for by_variant in found.values())]
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(
            len(found), 3.9, width=5.6 * len(found) if len(found) > 1 else 7.2
        )
        for axes, (part, by_variant) in zip(grid, found.items(), strict=True):
            title, better, xlabel, ylabel = _FRONTIERS[part]
            curves: list[_Curve] = []
            for variant, width in zip(drawn, _widths(len(drawn)), strict=True):
                colour = styles[variant][0]
                curves += _draw_frontiers(axes, by_variant[variant], part, colour, width)
            _reference_lines(axes, summary, part, curves)
            axes.set_title(title, pad=16)
            axes.text(
                0, 1.01, better, transform=axes.transAxes, fontsize=7.8, color=MUTED, va="bottom"
            )
            axes.set_xlabel(xlabel)
            axes.set_ylabel(ylabel)
        shared_legend(figure, drawn, styles, markers=False)
    return figure


def _frontier(result: Result, part: str, name: str) -> _Curve | None:
    """Return x with y, low or high of a frontier: finite values in rising x, None without any."""
    if not result.ok or result.eval != "unlearning":
        return None
    frontier = result.details.get("frontiers", {}).get(part, {})
    x, y = (np.asarray(frontier.get(key, []), dtype=float) for key in ("x", name))
    if len(x) != len(y):
        return None
    finite = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[finite], kind="stable")
    return (x[finite][order], y[finite][order]) if finite.any() else None


def _draw_frontiers(
    axes: Axes, results: Sequence[Result], part: str, colour: str, width: float
) -> list[_Curve]:
    """Draw the frontiers of one variant and return every curve, band edges included."""
    curves = {
        name: [curve for r in results if (curve := _frontier(r, part, name)) is not None]
        for name in ("y", "low", "high")
    }
    if not results:
        return []
    if len(results) > 1:
        for x, y in curves["y"]:
            axes.plot(x, y, color=colour, lw=0.8, alpha=0.5, zorder=3)
    axes.plot(*_mean_curve(curves["y"]), color=colour, lw=width, zorder=4)
    if len(curves["low"]) == len(curves["high"]) == len(results):
        (x, low), (other, high) = _mean_curve(curves["low"]), _mean_curve(curves["high"])
        if np.array_equal(x, other):
            axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0, zorder=2)
    points = [p for r in results for p in r.details.get("points", {}).get(part, [])]
    if points:
        x, y = np.asarray(points, dtype=float).T
        axes.scatter(
            x, y, s=6, color=colour, alpha=0.3, lw=0, zorder=2, rasterized=len(points) > 500
        )
    return [curve for found in curves.values() for curve in found]


def _reference_lines(axes: Axes, summary: Summary, part: str, curves: Sequence[_Curve]) -> None:
    """Add what a frontier is read against; the axes show frontiers, not stray interventions."""
    xs, ys = (np.concatenate(values) for values in zip(*curves, strict=True))
    if part == "mcq" and (xs >= _LEAST_ACCURACY).any():
        xs, ys = xs[xs >= _LEAST_ACCURACY], ys[xs >= _LEAST_ACCURACY]
    left, right, bottom, top = xs.min(), xs.max(), ys.min(), ys.max()
    style = {"color": MUTED, "lw": 1.0, "zorder": 1}
    if part == "loss":
        axes.plot([left, right], [left, right], ls=(0, (5, 3)), label="equal damage", **style)
        axes.legend(fontsize=7.8, labelcolor=MUTED, loc="best")
    else:
        for name, (label, dashes) in _LEVELS.items():
            level = _mean(summary, f"unlearning/mcq/{name}")
            if level is not None:
                axes.axhline(level, ls=dashes, **style)
                axes.annotate(
                    label,
                    (left, level),
                    (4, 2),
                    textcoords="offset points",
                    fontsize=7.8,
                    color=MUTED,
                )
                bottom, top = min(bottom, level), max(top, level)
    margin = 0.05 * ((top - bottom) or 1.0)
    axes.set_ylim(bottom - margin, top + margin)
    axes.set_xlim(left, right if right > left else left + 1e-3)


def _mean(summary: Summary, key: str) -> float | None:
    """Return the mean over all SAEs of a metric that is the same for all."""
    spreads = summary.metrics[key].variants.values() if key in summary.metrics else ()
    values = [value for spread in spreads for value in spread.by_seed.values()]
    return float(np.mean(values)) if values else None


#: Evaluation -> (axis, {metric with a number in its name: title}).
_COUNTS = {
    "sparse_probing": ("latents in the probe (k)", {"sae_top_{n}_accuracy": "Probe accuracy"}),
    "sae_probes": (
        "latents in the probe (k)",
        {"sae_top_{n}_auc": "Area under the ROC curve", "sae_top_{n}_accuracy": "Probe accuracy"},
    ),
    "tpp": (
        "latents ablated",
        {
            "threshold_{n}": "TPP",
            "threshold_{n}_intended": "Intended effect",
            "threshold_{n}_unintended": "Unintended effect",
        },
    ),
    "scr": ("latents ablated", {"threshold_{n}": "SCR"}),
}
#: Replaces "sae" in a metric's name -> (label, colour, dashes).
_PROBES = {
    "llm_top_{n}": ("k raw dimensions", PALETTE[5], (0, (3, 2, 1, 2))),
    "pca_top_{n}": ("k principal components", PALETTE[4], (0, (1, 1.5))),
}


def counts_figure(section: Section) -> Figure | None:
    """A metric against the number of latents it uses: mean per variant, a dot per seed.

    Probes without an SAE (the whole residual stream, k of its dimensions, k principal components)
    are dashed.
    """
    summary, _, eval = section
    xlabel, panels = _COUNTS[eval]
    series = {name: _by_count(summary, f"{eval}/{name}") for name in panels}
    series = {name: metrics for name, metrics in series.items() if metrics}
    if not series:
        return None
    styles = variant_styles(summary.variants)
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(series), height=3.0, width=None if len(series) > 1 else 7.2)
        for axes, (name, metrics) in zip(grid, series.items(), strict=True):
            counts = list(metrics)
            axes.set_xscale("log")
            for row, variant in enumerate(summary.variants):
                colour, marker = styles[variant]
                spreads = {n: metrics[n].variants[variant] for n in counts}
                means = [
                    (n, spread.mean) for n, spread in spreads.items() if spread.mean is not None
                ]
                if not means:
                    continue
                # Side by side, so that the seeds of one variant do not hide another's.
                shift = 1.03 ** (row - (len(summary.variants) - 1) / 2)
                x, y = np.array(means).T
                axes.plot(x * shift, y, color=colour, marker=marker, lw=1.6, markersize=4, zorder=4)
                dots = [(n * shift, v) for n, s in spreads.items() for v in s.by_seed.values()]
                if len(summary.seeds) > 1:
                    axes.scatter(*zip(*dots, strict=True), s=12, color=colour, alpha=0.5, lw=0)
            _probe_lines(axes, summary, f"{eval}/{name}")
            axes.set_xticks(counts, [str(n) for n in counts])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.minorticks_off()
            axes.set_title(panels[name])
            axes.set_xlabel(xlabel)
        if grid[0].get_legend_handles_labels()[0]:
            grid[0].legend(fontsize=7.8, labelcolor=MUTED, loc="best")
        shared_legend(figure, summary.variants, styles)
    return figure


def _by_count(summary: Summary, template: str) -> dict[int, MetricSummary]:
    """Return the measured metrics that ``template`` names, by the number in their names."""
    pattern = re.compile(re.escape(template).replace(re.escape("{n}"), r"(\d+)"))
    found = {
        int(match[1]): metric
        for key, metric in summary.metrics.items()
        if (match := pattern.fullmatch(key)) and any(s.n for s in metric.variants.values())
    }
    return dict(sorted(found.items()))


def _probe_lines(axes: Axes, summary: Summary, template: str) -> None:
    """Draw the probes without an SAE that go with ``.../sae_top_{n}_...``."""
    if "sae_top_{n}" not in template:
        return
    level = _mean(summary, template.replace("sae_top_{n}", "llm"))
    if level is not None:
        axes.axhline(level, color=INK, lw=1.2, ls=(0, (5, 3)), label="whole residual stream")
    for name, (label, colour, dashes) in _PROBES.items():
        metrics = _by_count(summary, template.replace("sae_top_{n}", name))
        points = [(n, _mean(summary, metric.info.key)) for n, metric in metrics.items()]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colour, lw=1.4, ls=dashes, label=label, zorder=3)


def run_figures(summary: Summary, results: Sequence[Result]) -> dict[str, Figure]:
    """Return every figure the results allow, by file name stem, in the order of the page."""
    figures: dict[str, Figure | None] = {"headline": headline_figure(summary)}
    for name, found in summary.evaluations.items():
        for shown in found.info.figures:
            module, _, function = shown.draw.partition(":")
            draw = getattr(importlib.import_module(module), function)
            figures[shown.name] = draw(Section(summary, results, name))
    return {name: figure for name, figure in figures.items() if figure is not None}


def figure_svg(figure: Figure, prefix: str) -> str:
    """Return the figure as an ``<svg>`` element for use inside a page.

    Identifiers start with ``prefix`` so that figures in one page keep their own clip paths and
    glyphs; XML prolog and metadata, which name outside addresses, are left out.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    # The page sets the size; the viewBox keeps the proportions.
    head, rest = text.split(">", 1)
    return re.sub(r'\s(?:width|height)="[^"]*"', "", head) + ">" + rest


def save_figure(figure: Figure, stem: str | Path, dpi: int = 160) -> list[Path]:
    """Write ``STEM.svg`` and ``STEM.png`` and return their paths."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")]
    with matplotlib.rc_context(STYLE):
        figure.savefig(paths[0], format="svg", metadata={"Date": None})
        figure.savefig(paths[1], format="png", dpi=dpi)
    return paths


def save_plots(run_dir: str | Path, out_dir: str | Path | None = None) -> list[Path]:
    """Write every figure of a run to ``out_dir`` (default ``RUN/plots``) as SVG and PNG.

    Raises:
        ResultError: the run has no results, or one of them cannot be used.
    """
    out_dir = Path(run_dir) / "plots" if out_dir is None else Path(out_dir)
    results = load_results(run_dir)
    figures = run_figures(summarise(results), results)
    return [path for name, fig in figures.items() for path in save_figure(fig, out_dir / name)]


def _details(results: Sequence[Result], eval: str, key: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for result in results:
        value = result.details.get(key) if result.ok and result.eval == eval else None
        if value:
            found.setdefault(result.variant, []).append(value)
    return found


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    # The Agg canvas draws without a display and without pyplot's global state.
    FigureCanvasAgg(figure)
    return figure


def panel_grid(
    panels: int, height: float, width: float | None = None, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """An empty figure and its panels, row by row; sizes in inches, height of one row."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = _figure(width or max(7.2, 3.7 * columns), rows * height + 0.5)
    figure.set_layout_engine("constrained", h_pad=0.09, w_pad=0.09, hspace=0.04, wspace=0.04)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]


def shared_legend(
    figure: Figure,
    variants: Sequence[str],
    styles: Mapping[str, tuple[str, str]],
    markers: bool = True,
) -> None:
    """One legend above all panels: the colour and marker of each variant."""
    handles = [
        Line2D([], [], color=styles[v][0], lw=2.4, marker=styles[v][1] if markers else "", label=v)
        for v in variants
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


__all__ = [
    "angles_figure",
    "cosine_figure",
    "counts_figure",
    "figure_svg",
    "firing_figure",
    "frontier_figure",
    "groups_figure",
    "headline_figure",
    "judged_figure",
    "primary_figure",
    "reconstruction_figure",
    "run_figures",
    "save_figure",
    "save_plots",
    "training_figure",
    "variant_styles",
]
