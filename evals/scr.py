"""Spurious correlation removal. Not for ranking SAEs (arXiv 2605.18229).

    python evals/scr.py SAE [SAE ...] --out DIR [--set scr.FIELD=VALUE]

Needs: texts labelled by two crossed attributes (published ones from the hub, or a JSONL).
"""

import sys

from saelens_adaptive_ortho.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--evals", "scr", *sys.argv[1:]]))
