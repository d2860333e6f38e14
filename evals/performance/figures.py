"""The figure of the benchmarks, from the committed results.

python -m evals.performance.figures
"""

from __future__ import annotations

import json
from pathlib import Path

from evals.performance.tables import overhead_figure
from saelens_adaptive_ortho.report.plots import save_figure

HERE = Path(__file__).parent


def main() -> None:
    """Draw it."""
    files = sorted((HERE / "results").glob("overhead*.json"))
    figure = overhead_figure([json.loads(file.read_text()) for file in files])
    for path in save_figure(figure, HERE / "plots" / "overhead"):
        if path.suffix == ".svg":  # a reader of the repository needs one of the two
            path.unlink()


if __name__ == "__main__":
    main()
