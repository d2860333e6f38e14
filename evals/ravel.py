"""RAVEL: causal and isolation scores of entity attributes.

    python evals/ravel.py SAE [SAE ...] --out DIR [--set ravel.FIELD=VALUE]

Needs: gemma-2-2b or pythia-160m-deduped and the hub.
"""

import sys

from saelens_adaptive_ortho.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--evals", "ravel", *sys.argv[1:]]))
