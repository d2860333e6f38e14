"""The synthetic sweep, resumable: one JSON per run under evals/synthetic/results.

python evals/synthetic/sweep.py coarse|width|final|transfer
    [--workers N] [--worlds ...] [--bases ...]
"""

import sys

from saelens_adaptive_ortho.synthetic.sweep import main

if __name__ == "__main__":
    sys.exit(main())
