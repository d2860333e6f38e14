"""Unlearning: the published score, and frontiers of loss and of multiple-choice accuracy.

    python evals/unlearning.py SAE [SAE ...] --out DIR [--set unlearning.FIELD=VALUE]

Needs: a forget and a retain corpus; for multiple choice, a model that answers questions
(--set unlearning.questions=FILE.jsonl for a local model; Gemma: --model gemma-2-2b-it).
"""

import sys

from saelens_adaptive_ortho.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--evals", "unlearning", *sys.argv[1:]]))
