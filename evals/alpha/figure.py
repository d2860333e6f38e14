"""What alpha does, on a language model: one figure of a finished alpha study.

adaptive-ortho compare evals/alpha/configs/demo.yaml
python -m evals.alpha.figure runs/alpha_study/demo [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evals.alpha.tables import alpha_figure
from saelens_adaptive_ortho.report.plots import save_figure
from saelens_adaptive_ortho.results import ResultError, load_results


def main() -> int:
    """Draw the figure. Exit status: 0 done, 2 the folder holds no alpha study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--out", type=Path, help="file name without ending; default RUN/plots/alpha"
    )
    args = parser.parse_args()
    try:
        figure = alpha_figure(load_results(args.run))
    except ResultError as error:
        print(f"alpha_study: error: {error}", file=sys.stderr)
        return 2
    for path in save_figure(figure, args.out or args.run / "plots" / "alpha"):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
