"""Draw the figure of a finished alpha study: metrics of SAEs on a language model against alpha.
python -m evals.alpha.figures RUN [--out FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from evals.alpha.tables import PANELS, REFERENCES, alpha_of, values_by_metric
from evals.draw import draw_study
from saelens_adaptive_ortho.report.figures.style import (
    INK,
    STYLE,
    panel_grid,
    shared_legend,
    variant_styles,
)
from saelens_adaptive_ortho.report.metrics import describe
from saelens_adaptive_ortho.report.statistics import Spread
from saelens_adaptive_ortho.results import Result


def alpha_figure(results: Sequence[Result]) -> Figure:
    """Draw reconstruction, geometry, unlearning and probing against alpha.

    Each alpha has its mean over seeds, a 95% t-interval and a dot per seed. Baseline and fixed are
    lines with bands. A metric without results gets no panel.

    Raises:
        ResultError: no variant is named ``alpha=VALUE``.
    """
    values, alphas = values_by_metric(results)
    panels = [key for key in PANELS if key in values]
    references = [r for r in REFERENCES if any(r in values[key] for key in panels)]
    shown = [*references, "adaptive"]
    styles = variant_styles(shown)
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(panels), height=2.4)
        for axes, key in zip(grid, panels, strict=True):
            by_variant = values[key]
            for name in references:
                spread = Spread.of(by_variant.get(name, {}))
                if spread.mean is not None:
                    axes.axhline(spread.mean, color=styles[name][0], lw=1.3)
                if spread.ci95 is not None:
                    axes.axhspan(*spread.ci95, color=styles[name][0], alpha=0.12, lw=0)
            points = [(alpha_of(v), by_variant[v]) for v in alphas if v in by_variant]
            colour, marker = styles["adaptive"]
            spreads = [(x, Spread.of(by_seed)) for x, by_seed in points]
            means = [spread.mean or 0.0 for _, spread in spreads]
            axes.plot([x for x, _ in spreads], means, color=colour, marker=marker, lw=1.6)
            for x, spread in spreads:
                if spread.ci95 is not None:
                    axes.plot([x, x], spread.ci95, color=colour, lw=2.4, alpha=0.35)
            for x, by_seed in points:
                axes.scatter([x] * len(by_seed), list(by_seed.values()), s=8, color=INK, alpha=0.4)
            axes.set_title(describe(key).label)
            axes.set_xlabel("alpha, the sharing allowed")
        shared_legend(figure, shown, styles)
    return figure


def main() -> int:
    """Draw the figure; the exit status is 0, or 2 if the folder holds no alpha study."""
    return draw_study("alpha", alpha_figure, __doc__)


if __name__ == "__main__":
    sys.exit(main())
