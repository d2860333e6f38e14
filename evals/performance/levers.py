"""Whole trainings with each lever, and three variants on one stream against one training.

python evals/performance/levers.py [CONFIG] [--set KEY=VALUE ...] [--json FILE]
"""

import sys

from saelens_adaptive_ortho.performance.levers import main

if __name__ == "__main__":
    sys.exit(main())
