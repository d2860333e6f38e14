"""Draw the figure of the benchmarks from the committed results.
python -m evals.performance.figures [--results DIR] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from evals.performance.tables import Row, place_of
from saelens_adaptive_ortho.report.figures.files import save_figure
from saelens_adaptive_ortho.report.figures.style import INK, MUTED, STYLE, panel_grid

HERE = Path(__file__).parent


def overhead_figure(documents: Sequence[Row]) -> Figure:
    """Draw step time over stock time, with intervals: a row per variant of each place.

    There is a panel per base, size and batch.
    """
    rows = [row for document in documents for row in document["rows"]]
    places = sorted({place_of(row) for row in rows}, key=lambda p: (p[3], p))
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(places), height=2.6)
        for axes, place in zip(grid, places, strict=True):
            here = [r for r in rows if place_of(r) == place and r["variant"] != "stock"]
            axes.axvline(1, color=MUTED, lw=1)
            for y, row in enumerate(reversed(here)):
                axes.plot([row["ratio_low"], row["ratio_high"]], [y, y], color=INK, lw=3, alpha=0.3)
                axes.plot(row["ratio"], y, "o", color=INK, ms=4)
            axes.set_yticks(range(len(here)), [r["variant"] for r in reversed(here)])
            axes.set_xlim(left=0)
            axes.set_xlabel("time per step, stock = 1")
            d_in, d_sae, batch, base = place
            axes.set_title(f"{base}, {d_in:,} x {d_sae:,}\nbatch {batch:,}")
    return figure


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "plots")
    args = parser.parse_args()
    files = sorted(args.results.glob("overhead*.json"))
    figure = overhead_figure([json.loads(file.read_text()) for file in files])
    for path in save_figure(figure, args.out / "overhead"):
        if path.suffix == ".svg":  # the README shows the PNG only
            path.unlink()
    print(args.out / "overhead.png")


if __name__ == "__main__":
    main()
