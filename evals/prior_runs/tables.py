"""Make the tables of the ten failed runs beside the trainings of the same ideas here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.prior_runs.note import NEXT_STEPS, PRIOR_RUNS
from saelens_adaptive_ortho.report.formatting import markdown, number

# Setting -> its name in tables.
SETTINGS = {
    "demo": "demo",
    "local_text": "local text",
    "large_norm_1x": "norm 308, d_sae = d_in",
    "large_norm_8x": "norm 308, d_sae = 8 d_in",
    "gemma-2-2b_layer19": "Gemma-2-2B, layer 19",
}
# Metric -> its name and decimals.
METRICS = {
    "explained_variance": ("explained variance", 3),
    "ce_loss_score": ("CE loss score", 3),
    "l0": ("L0", 1),
    "mean_max_cosine": ("mean max cosine", 3),
}
NOTE = {"explained_variance": 2, "ce_loss_score": 2, "l0": 0}  # metrics of the note -> decimals
IDEAS = {name: run.idea for name, run in PRIOR_RUNS.items()} | NEXT_STEPS

Run = Mapping[str, Any]  # the JSON of one run: setting, run, metrics


def table(runs: Sequence[Run]) -> str:
    """Return a table for each metric: the number of the note, and ours in each setting."""
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
