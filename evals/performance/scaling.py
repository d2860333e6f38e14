"""Cost of the penalty, of its statistics and of a refresh against d_sae, with fitted exponents.

python evals/performance/scaling.py [--json evals/performance/results/scaling.json]
"""

import sys

from saelens_adaptive_ortho.performance.scaling import main

if __name__ == "__main__":
    sys.exit(main())
