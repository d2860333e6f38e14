"""The ten failed runs beside the same ideas working: a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from saelens_adaptive_ortho.prior_runs.note import NEXT_STEPS, PRIOR_RUNS

from .formatting import markdown, number
from .plots import INK, MUTED, PALETTE, STYLE, panel_grid

# Setting -> how a table names it.
SETTINGS = {
    "demo": "demo",
    "local_text": "local text",
    "large_norm_1x": "norm 308, d_sae = d_in",
    "large_norm_8x": "norm 308, d_sae = 8 d_in",
}
# Metric -> its name and decimals.
METRICS = {
    "explained_variance": ("explained variance", 3),
    "ce_loss_score": ("CE loss score", 3),
    "l0": ("L0", 1),
    "mean_max_cosine": ("mean max cosine", 3),
}
NOTE = {"explained_variance": 2, "ce_loss_score": 2, "l0": 0}  # what the note has, decimals
IDEAS = {name: run.idea for name, run in PRIOR_RUNS.items()} | NEXT_STEPS

Run = Mapping[str, Any]  # the JSON of one run: setting, run, metrics


def table(runs: Sequence[Run]) -> str:
    """For each metric a table: the note's number beside what the idea reaches in each setting."""
    found = {(r["setting"], r["run"]): r["metrics"] for r in runs}
    settings = [s for s in SETTINGS if any(setting == s for setting, _ in found)]
    tables = []
    for metric, (label, decimals) in METRICS.items():
        head = ["run", "idea", *(["the note"] if metric in NOTE else [])]
        rows = []
        for name, idea in IDEAS.items():
            row = [name.replace("_", " "), idea]
            if metric in NOTE:
                row.append(number(getattr(PRIOR_RUNS.get(name), metric, None), NOTE[metric]))
            values = (found.get((s, name), {}).get(metric) for s in settings)
            rows.append([*row, *(number(value, decimals) for value in values)])
        names = [SETTINGS[s] for s in settings]
        tables.append(f"**{label}**\n\n" + markdown([*head, *names], rows, text_columns=2))
    return "\n\n".join(tables)


def figure(runs: Sequence[Run]) -> Figure:
    """Explained variance of every idea: the note's beside this package's, a panel per setting.

    The note's values all lie below 0, the mean's own score; 1 is a perfect reconstruction.
    """
    found = {(r["setting"], r["run"]): r["metrics"] for r in runs}
    settings = [s for s in SETTINGS if any(setting == s for setting, _ in found)]
    places = {name: place for place, name in enumerate(IDEAS)}
    with matplotlib.rc_context(STYLE):
        shown, grid = panel_grid(len(settings), height=3.6, columns=2)
        for axes, setting in zip(grid, settings, strict=True):
            axes.axvline(0, color=MUTED, lw=0.8)
            for name, y in places.items():
                note = getattr(PRIOR_RUNS.get(name), "explained_variance", None)
                ours = found.get((setting, name), {}).get("explained_variance")
                if note is not None:
                    axes.plot(note, y, "x", color=INK, markersize=5)
                if ours is not None:
                    axes.plot(ours, y, "o", color=PALETTE[2], markersize=5)
                if note is not None and ours is not None:
                    axes.plot([note, ours], [y, y], color=MUTED, lw=0.7, zorder=0)
            axes.set_yticks(list(places.values()), [f"{n}: {IDEAS[n]}" for n in places])
            axes.tick_params(axis="y", labelsize=6)
            axes.invert_yaxis()
            axes.set_xlim(right=1.1)
            axes.set_title(SETTINGS[setting])
            axes.set_xlabel("explained variance (x: the note; dot: here)")
    return shown
