"""Sparse probing: k latents against the LLM's probe, k raw activations and k principal components.

    python evals/sparse_probing.py SAE [SAE ...] --out DIR [--set sparse_probing.FIELD=VALUE]

Needs: labelled texts (published ones from the hub, the demo's, the two corpora, or a JSONL).
"""

import sys

from saelens_adaptive_ortho.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "--evals", "sparse_probing", *sys.argv[1:]]))
