"""Absorption of first-letter features; the full-absorption score first.

    python evals/absorption.py SAE [SAE ...] --out DIR [--set absorption.FIELD=VALUE]

Needs: a tokenizer with single tokens " A" to " Z"; wants >= 16k latents and >= 1B parameters.
"""

import sys

from saelens_adaptive_ortho.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--evals", "absorption", *sys.argv[1:]]))
