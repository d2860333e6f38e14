"""Update every table and verdict of the documentation from the committed JSON.

python -m evals.tables [--check] [FILE ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evals.alpha.tables import alpha_table
from evals.compact import read_runs
from evals.performance import tables as performance
from evals.prior_runs import tables as prior_runs
from evals.separation.answer import answer, load_studies
from evals.separation.continuations import tables as continuations
from evals.synthetic import tables as synthetic
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.costs_in_words import sharded_table
from saelens_adaptive_ortho.experiments.experiment import load_experiment
from saelens_adaptive_ortho.report.markdown import (
    RENDERERS,
    Renderer,
    has_tables,
    results_of,
    update_tables,
)
from saelens_adaptive_ortho.results import ResultError
from saelens_adaptive_ortho.training.sharded.costs import sharded_costs

ROOT = Path(__file__).parents[1]


def _alpha(root: Path, path: str, where: str) -> str:
    return alpha_table(results_of(root, path, where))


def _answer(short: bool) -> Renderer:
    def table(root: Path, path: str, where: str) -> str:
        try:
            return answer(load_studies(root / path), short)
        except ResultError as error:
            raise ResultError(f"{where}: {error}") from error

    return table


def _costs(root: Path, path: str, where: str) -> str:
    try:
        found = json.loads((root / path).read_text(encoding="utf-8"))
        return performance.markdown_costs(found).rstrip()
    except (OSError, ValueError, KeyError) as error:
        raise ResultError(f"{where}: {path} holds no measured costs ({error!r})") from error


# Gemma-2-2B in bf16, whose config is gated: its parameters, and the embeddings once more, because
# TransformerLens holds those of input and output separately.
GEMMA_2_2B = 2 * (2_614_341_888 + 256_000 * 2304)


def _sharded(exchanged: bool) -> Renderer:
    """The costs of an SAE on several cards, by arithmetic: ``CONFIG KEY=VALUE ...``."""

    def table(root: Path, path: str, where: str) -> str:
        config, *overrides = path.split()
        try:
            cfg = load_experiment(root / config, overrides).runner
        except ConfigError as error:
            raise ResultError(f"{where}: {error}") from error
        return sharded_table(sharded_costs(cfg, GEMMA_2_2B), exchanged)

    return table


def _runs(render: Callable[[Sequence[Any]], str], pattern: str = "*.json") -> Renderer:
    """Return a renderer that applies ``render`` to the runs of a file, or of a folder's files."""

    def table(root: Path, path: str, where: str) -> str:
        source = root / path
        try:
            if source.is_dir():
                files = sorted(source.glob(pattern))
                runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            else:
                runs = read_runs(source)
            return render(runs) if runs else "No results yet."
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{where}: {path} holds no such results ({error!r})") from error

    return table


#: Word of a marker -> its renderer, for the documentation of this repository.
KINDS: dict[str, Renderer] = {
    **RENDERERS,
    "alpha": _alpha,
    "answer": _answer(short=False),
    "answer-short": _answer(short=True),
    "costs": _costs,
    "continuation-losses": _runs(continuations.losses_table),
    "continuation-texts": _runs(continuations.texts_table),
    "prior-runs": _runs(prior_runs.table),
    "overhead": _runs(performance.overhead_table, "overhead*.json"),
    "gpu": _runs(performance.gpu_table, "gpu*.json"),
    "sharded-exchange": _sharded(exchanged=True),
    "sharded-memory": _sharded(exchanged=False),
    "scaling": _runs(performance.scaling_table, "scaling.json"),
    "levers": _runs(performance.levers_table, "levers*.json"),
    "checksums": _runs(performance.checksums_table, "checksums*.json"),
    "floor": _runs(performance.floor_table, "floor.json"),
    "sweeps": _runs(performance.sweeps_table, "sweeps.json"),
    "synthetic-final": _runs(synthetic.final_table),
    "synthetic-bars": _runs(synthetic.bars_table),
    "synthetic-ablation": _runs(synthetic.ablation_table),
    "synthetic-transfer": _runs(synthetic.transfer_table),
    "synthetic-separation": _runs(synthetic.separation_table),
}


def documents() -> list[Path]:
    """Return the pages that contain tables."""
    folders = sorted((ROOT / "docs").glob("*.md")), sorted((ROOT / "evals").rglob("README.md"))
    return [ROOT / "README.md", *(page for pages in folders for page in pages)]


def main(argv: Sequence[str] | None = None) -> int:
    """Update the tables.

    Returns:
        Exit status: 0 if done, 1 if a page is out of date (only with ``--check``), 2 for results
        that are missing or cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="report outdated pages, write nothing")
    args = parser.parse_args(argv)
    try:
        changed = [
            path
            for path in args.files or documents()
            if update_tables(path, check=args.check, renderers=KINDS)
        ]
    except ResultError as error:
        print(f"tables: error: {error}", file=sys.stderr)
        return 2
    for path in args.files:
        if not has_tables(path, KINDS):
            print(f"{path}: has no table, which is a pair of markers of {', '.join(KINDS)}")
    for path in changed:
        print(f"{path}: {'out of date' if args.check else 'renewed'}")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
