"""The failures of the prior runs, each made again in a few lines: reproductions.json.

python evals/prior_runs/reproduce.py
"""

from pathlib import Path

from saelens_adaptive_ortho.prior_runs.reproduce import reproduce_all
from saelens_adaptive_ortho.storage import write_json

if __name__ == "__main__":
    write_json(Path(__file__).parent / "reproductions.json", reproduce_all())
