"""sae-probes: k-sparse probes on the data sets that ship in its wheel, with baselines.

    python evals/sae_probes.py SAE [SAE ...] --out DIR [--set sae_probes.FIELD=VALUE]

Needs: nothing but the model.
"""

import sys

from saelens_adaptive_ortho.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--evals", "sae_probes", *sys.argv[1:]]))
