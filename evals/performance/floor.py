"""A profile of one training step, before and after, and its floor in flops and bytes.

python evals/performance/floor.py [--json evals/performance/results/floor.json]
"""

import sys

from saelens_adaptive_ortho.performance.floor import main

if __name__ == "__main__":
    sys.exit(main())
