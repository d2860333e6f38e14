"""Time per training step and peak memory of every mode, against the stock architecture.

python evals/performance/overhead.py [--json evals/performance/results/overhead.json]
"""

import sys

from saelens_adaptive_ortho.performance.overhead import main

if __name__ == "__main__":
    sys.exit(main())
