"""Figures of the synthetic sweep and the table of its final stage, from the committed results.

python evals/synthetic/figures.py [--results DIR] [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from saelens_adaptive_ortho.report.plots import save_figure
from saelens_adaptive_ortho.report.results import write_text_atomic
from saelens_adaptive_ortho.report.synthetic import figures, update_page
from saelens_adaptive_ortho.synthetic.sweep import load_results

HERE = Path(__file__).parent


def main() -> None:
    """Draw, and bring the page up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "plots")
    args = parser.parse_args()
    stages = [load_results(args.results / stage) for stage in ("coarse", "final", "width")]
    for name, figure in figures(*stages).items():
        for path in save_figure(figure, args.out / name):
            if path.suffix == ".svg":  # a reader of the repository needs one of the two
                path.unlink()
        print(args.out / f"{name}.png")
    page = HERE / "README.md"
    write_text_atomic(page, update_page(page.read_text(encoding="utf-8"), stages[1]))


if __name__ == "__main__":
    main()
