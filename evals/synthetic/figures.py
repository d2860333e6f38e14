"""Figures of the synthetic sweep, from the committed results.

python -m evals.synthetic.figures [--results DIR] [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evals.synthetic.draw import figures
from evals.synthetic.sweep import load_results
from saelens_adaptive_ortho.report.plots import save_figure

HERE = Path(__file__).parent


def main() -> None:
    """Draw every figure the results allow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "plots")
    args = parser.parse_args()
    stages = [
        load_results(args.results / f"{stage}.jsonl") for stage in ("coarse", "final", "width")
    ]
    for name, figure in figures(*stages).items():
        for path in save_figure(figure, args.out / name):
            if path.suffix == ".svg":  # a reader of the repository needs one of the two
                path.unlink()
        print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
