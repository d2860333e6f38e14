"""Draw the ten failed runs beside the trainings of the same ideas here."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from evals.prior_runs.note import PRIOR_RUNS
from evals.prior_runs.tables import IDEAS, SETTINGS, Run
from saelens_adaptive_ortho.report.figures.style import (
    INK,
    MARKERS,
    MUTED,
    PALETTE,
    STYLE,
    panel_grid,
    shared_legend,
)


def figure(runs: Sequence[Run]) -> Figure:
    """Draw the explained variance of every idea: in the note (below 0), and in each setting here.

    A line joins the points of an idea.
    """
    found = {(r["setting"], r["run"]): r["metrics"]["explained_variance"] for r in runs}
    settings = [s for s in SETTINGS if any(setting == s for setting, _ in found)]
    styles = {"the note": (INK, "x")} | dict(
        zip(SETTINGS.values(), zip(PALETTE, MARKERS, strict=True), strict=False)
    )
    with matplotlib.rc_context(STYLE):
        shown, (axes,) = panel_grid(1, height=4.6, columns=1)
        axes.axvline(0, color=MUTED, lw=0.8)
        for y, name in enumerate(IDEAS):
            note = getattr(PRIOR_RUNS.get(name), "explained_variance", None)
            points = [("the note", note), *((SETTINGS[s], found.get((s, name))) for s in settings)]
            values = [value for _, value in points if value is not None]
            axes.plot(values, [y] * len(values), color=MUTED, lw=0.7, zorder=0)
            for label, value in points:
                if value is not None:
                    colour, marker = styles[label]
                    axes.plot(value, y, marker, color=colour, markersize=5)
        axes.set_yticks(range(len(IDEAS)), [f"{n.replace('_', ' ')}: {IDEAS[n]}" for n in IDEAS])
        axes.invert_yaxis()
        axes.set_xlabel("explained variance (0: as good as the mean, 1: perfect)")
        labels = ["the note", *(SETTINGS[s] for s in settings)]
        shared_legend(shown, labels, styles)
    return shown
