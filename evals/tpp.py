"""Targeted probe perturbation. Not for ranking SAEs (arXiv 2605.18229).

    python evals/tpp.py SAE [SAE ...] --out DIR [--set tpp.FIELD=VALUE]

Needs: texts labelled by class (as sparse_probing).
"""

import sys

from saelens_adaptive_ortho.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--evals", "tpp", *sys.argv[1:]]))
