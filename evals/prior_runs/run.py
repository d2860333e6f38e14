"""Every idea of the prior runs, trained and judged; resumable, one JSON per run.

python evals/prior_runs/run.py [--settings demo local_text large_norm_1x large_norm_8x]
                               [--runs run0 ...] [--report-only]
"""

import sys

from saelens_adaptive_ortho.prior_runs.run import main

if __name__ == "__main__":
    sys.exit(main())
