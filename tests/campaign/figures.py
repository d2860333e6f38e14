"""The figures of the campaign: ``CAMPAIGN=full`` runs everything and writes them down.

``python -m tests.campaign.figures`` writes the table of ``tests/README.md`` from ``figures.json``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

HERE = Path(__file__).parent
FILE = HERE / "figures.json"
FULL = os.environ.get("CAMPAIGN") == "full"
BEGIN, END = "<!-- figures -->\n", "<!-- /figures -->\n"


def record(driver: str, **figures: float | str) -> None:
    """Print the figures of a driver. In a full run, keep them."""
    print(f"{driver}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    if FULL:
        known = json.loads(FILE.read_text()) if FILE.exists() else {}
        known[driver] = figures
        FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def table() -> str:
    """The table of all recorded figures."""
    rows = ["| driver | figures |", "|---|---|"]
    for driver, figures in json.loads(FILE.read_text()).items():
        listed = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in figures.items())
        rows.append(f"| {driver} | {listed} |")
    return "\n".join(rows) + "\n"


def readme(text: str) -> str:
    """The text of the README with the table of now."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    path = HERE.parent / "README.md"
    path.write_text(readme(path.read_text()))
