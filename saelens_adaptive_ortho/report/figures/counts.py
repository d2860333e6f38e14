"""Draw a metric against the number of latents that are probed or ablated."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from saelens_adaptive_ortho.report.figures.section import Section, mean_over_saes
from saelens_adaptive_ortho.report.figures.style import (
    INK,
    MUTED,
    PALETTE,
    STYLE,
    Curve,
    Style,
    panel_grid,
    shared_legend,
    variant_styles,
)
from saelens_adaptive_ortho.report.statistics import MetricSummary, Spread, Summary

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
    """Draw a metric against the number of latents it uses: mean per variant, a dot per seed.

    Dashed lines are probes without an SAE: on the whole residual stream, on k of its dimensions,
    and on k principal components.
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
            axes.set_xscale("log")
            for row, variant in enumerate(summary.variants):
                # A small shift keeps the dots of one variant from hiding those of another.
                shift = 1.03 ** (row - (len(summary.variants) - 1) / 2)
                spreads = {n * shift: metric.variants[variant] for n, metric in metrics.items()}
                _draw_counts(axes, spreads, styles[variant], dots=len(summary.seeds) > 1)
            _probe_lines(axes, summary, f"{eval}/{name}")
            axes.set_xticks(list(metrics), [str(n) for n in metrics])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.minorticks_off()
            axes.set_title(panels[name])
            axes.set_xlabel(xlabel)
        if grid[0].get_legend_handles_labels()[0]:
            grid[0].legend(fontsize=7.8, labelcolor=MUTED, loc="best")
        shared_legend(figure, summary.variants, styles)
    return figure


def _draw_counts(axes: Axes, spreads: Mapping[float, Spread], style: Style, dots: bool) -> None:
    """Draw one variant: the means as a line, and a dot per seed."""
    means = [(x, spread.mean) for x, spread in spreads.items() if spread.mean is not None]
    if not means:
        return
    colour, marker = style
    axes.plot(*_columns(means), color=colour, marker=marker, lw=1.6, markersize=4, zorder=4)
    if dots:
        values = [(x, value) for x, spread in spreads.items() for value in spread.by_seed.values()]
        axes.scatter(*_columns(values), s=12, color=colour, alpha=0.5, lw=0)


def _columns(points: Sequence[tuple[float, float]]) -> Curve:
    x, y = np.array(points, dtype=float).T
    return x, y


def _by_count(summary: Summary, template: str) -> dict[int, MetricSummary]:
    """Return the measured metrics that match ``template``, by the number in their names."""
    pattern = re.compile(re.escape(template).replace(re.escape("{n}"), r"(\d+)"))
    found = {
        int(match[1]): metric
        for key, metric in summary.metrics.items()
        if (match := pattern.fullmatch(key)) and any(s.n for s in metric.variants.values())
    }
    return dict(sorted(found.items()))


def _probe_lines(axes: Axes, summary: Summary, template: str) -> None:
    """Draw the probes without an SAE that correspond to ``.../sae_top_{n}_...``."""
    if "sae_top_{n}" not in template:
        return
    level = mean_over_saes(summary, template.replace("sae_top_{n}", "llm"))
    if level is not None:
        axes.axhline(level, color=INK, lw=1.2, ls=(0, (5, 3)), label="whole residual stream")
    for name, (label, colour, dashes) in _PROBES.items():
        metrics = _by_count(summary, template.replace("sae_top_{n}", name))
        points = [(n, mean_over_saes(summary, metric.info.key)) for n, metric in metrics.items()]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colour, lw=1.4, ls=dashes, label=label, zorder=3)
