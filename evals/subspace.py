"""Geometry: condition numbers, principal angles and cosines of the found groups.

    python evals/subspace.py SAE [SAE ...] --out DIR [--set subspace.FIELD=VALUE]

Needs: a corpus; two for forget, retain and shared groups.
"""

import sys

from saelens_adaptive_ortho.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--evals", "subspace", *sys.argv[1:]]))
