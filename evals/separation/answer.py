"""What was found on separation: one table, and one panel for each study.

python -m evals.separation.answer [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from evals.draw import keep_png
from saelens_adaptive_ortho.report.figures.files import save_figure
from saelens_adaptive_ortho.report.figures.tradeoff import COST, Panel, panels_side_by_side
from saelens_adaptive_ortho.report.formatting import (
    DASH,
    MINUS,
    capital,
    estimate,
    markdown,
)
from saelens_adaptive_ortho.report.opening import best_without_sae, value_text
from saelens_adaptive_ortho.report.statistics import MetricSummary, Summary, summarise
from saelens_adaptive_ortho.results import ResultError, load_results, order_variants

RESULTS = Path(__file__).parent / "results"
FOCUS, BASELINE = "adaptive", "baseline"
#: What is shown. Other variants are in the tables of their studies.
VARIANTS = (BASELINE, "fixed", "directions", "groups", FOCUS)


class Study(NamedTuple):
    """A study and the metric that answers its question.

    Attributes:
        title: the model and the text.
        gain: key of the metric that answers.
        beside: keys of other metrics in the table.
    """

    title: str
    gain: str
    beside: Sequence[str] = ()


_DAMAGE = "unlearning/token/forget_damage_at_{}"
_KEPT = "unlearning/token/kept_forget_damage_at_0.05"
_NEAR = "unlearning/token/near_per_forget_damage_at_0.05"
_TRANSFER = "unlearning/token/transfer_per_forget_damage_at_0.05"
#: Folder in ``results`` -> what it answers.
STUDIES: Mapping[str, Study] = {
    "demo": Study(
        "Questions about known facts, embedded model", "unlearning/mcq/forget_accuracy_at_0.95"
    ),
    "local_text": Study(
        "Medical abstracts, 1.8M parameters",
        _DAMAGE.format("0.10"),
        beside=("unlearning/token/retain_damage_at_forget_2",),
    ),
    "textbooks": Study(
        "Textbooks, 135M parameters", _DAMAGE.format("0.05"), beside=(_KEPT, _NEAR, _TRANSFER)
    ),
}


def load_studies(results: Path = RESULTS) -> dict[str, Summary]:
    """Return the statistics of :data:`VARIANTS` in each committed study.

    Raises:
        ResultError: the folder holds none.
    """
    found = {
        name: summarise([r for r in load_results(results / name) if r.variant in VARIANTS])
        for name in STUDIES
        if (results / name).is_dir()
    }
    if not found:
        raise ResultError(f"{results} holds none of the studies {', '.join(STUDIES)}.")
    return found


def answer(studies: Mapping[str, Summary], short: bool = False) -> str:
    """Return a table in markdown: what answers in each study, its companions, and the cost.

    Args:
        studies: the statistics of each study.
        short: leave out the companions, and the variants other than baseline and adaptive.
    """
    variants = order_variants(v for summary in studies.values() for v in summary.variants)
    chosen = {name: STUDIES[name] for name in studies}
    if short:
        variants = [v for v in variants if v in (BASELINE, FOCUS)]
        chosen = {name: study._replace(beside=()) for name, study in chosen.items()}
    head = ["mean over seeds", *variants, f"{FOCUS} {MINUS} {BASELINE}", "best without an SAE"]
    rows = [row for name, one in studies.items() for row in _rows(chosen[name], one, variants)]
    return markdown(head, rows, text_columns=1)


def answer_figure(studies: Mapping[str, Summary]) -> Figure:
    """Draw a panel for each study: explained variance against the metric that answers.

    Raises:
        ResultError: no SAE has both metrics.
    """
    panels = []
    for name, summary in studies.items():
        study = STUDIES[name]
        metric = summary.metrics.get(study.gain)
        if metric is not None:
            panels.append(
                Panel(summary, study.gain, f"{study.title}:\n{capital(metric.info.label)}")
            )
    figure = panels_side_by_side(panels, most_columns=3)
    if figure is None:
        raise ResultError("no SAE has both results of core and of unlearning.")
    return figure


def _rows(study: Study, summary: Summary, variants: Sequence[str]) -> list[list[str]]:
    difference = summary.metrics[study.gain].difference(FOCUS, BASELINE)
    seeds = 0 if difference is None else difference.spread.n
    rows = [[f"**{study.title}**, {seeds} paired seeds", *[""] * (len(variants) + 2)]]
    for key in (study.gain, *study.beside, COST):
        if key in summary.metrics:
            metric = summary.metrics[key]
            cells = [
                value_text(metric, metric.variants[v].mean) if v in summary.variants else DASH
                for v in variants
            ]
            label = capital(f"{metric.info.label} {metric.info.arrow}")
            rows.append([label, *cells, _change(metric), _best_without_sae(summary, key)])
    return rows


def _change(metric: MetricSummary) -> str:
    """``-0.20 [-0.25, -0.15] better``."""
    difference = metric.difference(FOCUS, BASELINE)
    if difference is None or difference.spread.mean is None:
        return DASH
    change = " ".join(estimate(difference.spread.mean, difference.spread.ci95))
    return f"{change} {difference.words}".rstrip()


def _best_without_sae(summary: Summary, key: str) -> str:
    """``detector 0.81``."""
    for name, value in best_without_sae(summary, key):
        return f"{name} {value_text(summary.metrics[key], value)}"
    return DASH


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figure and print the table; the exit status is 0, or 2 if there is nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=RESULTS.parent / "answer", help="file name without ending"
    )
    args = parser.parse_args(argv)
    try:
        studies = load_studies()
        figure = answer_figure(studies)
    except ResultError as error:
        print(f"answer: error: {error}", file=sys.stderr)
        return 2
    print(answer(studies))
    for path in keep_png(save_figure(figure, args.out)):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
