"""SAEBench core: reconstruction, behaviour preserved, sparsity; per corpus and pooled.

    python evals/core.py SAE [SAE ...] --out DIR [--set core.FIELD=VALUE]

Needs: a corpus to hold out from (--forget and --retain, or those of the training).
"""

import sys

from saelens_adaptive_ortho.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--evals", "core", *sys.argv[1:]]))
