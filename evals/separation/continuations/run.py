"""Continue prompts before and after unlearning with the SAEs of a run, and write a JSON.

python -m evals.separation.continuations.run RUN --out FILE [--model DIRECTORY] [--variants ...]

The prompts are in ``prompts.jsonl``: ten openings of sentences for each of three subjects, each
with a true ending. They were written for this purpose and are in no training text. The loss of an
ending is measured, beside the text that the model writes by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.commands.unlearn import UnlearnOptions
from saelens_adaptive_ortho.commands.unlearning import before_and_after
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.progress import progress

PROMPTS = Path(__file__).parent / "prompts.jsonl"


def read_prompts(file: Path = PROMPTS) -> list[dict[str, str]]:
    """The prompts: ``subject``, ``prompt`` and its true ``continuation``."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def continued(options: UnlearnOptions, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """The selection in words, and what the model writes after each prompt."""
    said: list[str] = []
    answers = before_and_after(options, said.append)
    found = []
    shown = progress(answers, "Continuing", len(rows), unit=" prompts")
    for row, answer in zip(rows, shown, strict=True):
        written = {"before": answer.before._asdict(), "after": answer.after._asdict()}
        found.append({**row, **written})
    return {"variant": options.variant, "seed": options.seed, "said": said, "answers": found}


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and write the file after each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--variants", nargs="+", default=["baseline", "adaptive"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--set", nargs="*", default=[], metavar="EVAL.FIELD=VALUE")
    parser.add_argument("--max-new-tokens", type=int, default=30)
    args = parser.parse_args(argv)
    rows, runs = read_prompts(), []
    try:
        for variant in args.variants:
            options = UnlearnOptions(
                sae=str(args.run),
                variant=variant,
                seed=args.seed,
                prompt=[row["prompt"] for row in rows],
                continuation=[row["continuation"] for row in rows],
                budget=args.budget,
                set=args.set,
                model=args.model,
                max_new_tokens=args.max_new_tokens,
            )
            runs.append(continued(options, rows))
            write_json(args.out, {"budget": args.budget, "set": args.set, "runs": runs})
    except ConfigError as error:
        print(f"continuations: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
