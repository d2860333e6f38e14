"""What was found on separation, in one sentence and one panel for each study.

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
    capital,
    error_decimals,
    estimate,
    number,
    value_decimals,
)
from saelens_adaptive_ortho.report.statistics import MetricSummary, Summary, summarise
from saelens_adaptive_ortho.results import ResultError, load_results

RESULTS = Path(__file__).parent / "results"
FOCUS, BASELINE = "adaptive", "baseline"


class Study(NamedTuple):
    """A study and the metric that answers its question.

    Attributes:
        title: the model and the text.
        gain: key of the metric that answers.
        beside: keys of other metrics that the sentence gives.
    """

    title: str
    gain: str
    beside: Sequence[str] = ()


_DAMAGE = "unlearning/token/forget_damage_at_{}"
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
        "Textbooks, 135M parameters", _DAMAGE.format("0.05"), beside=(_NEAR, _TRANSFER)
    ),
}


def load_studies(results: Path = RESULTS) -> dict[str, Summary]:
    """Return the statistics of each committed study.

    Raises:
        ResultError: the folder holds none.
    """
    found = {
        name: summarise(load_results(results / name))
        for name in STUDIES
        if (results / name).is_dir()
    }
    if not found:
        raise ResultError(f"{results} holds none of the studies {', '.join(STUDIES)}.")
    return found


def answer(studies: Mapping[str, Summary]) -> str:
    """Return a list in markdown with an item for each study."""
    return "\n".join(_sentence(STUDIES[name], summary) for name, summary in studies.items())


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


def _sentence(study: Study, summary: Summary) -> str:
    gain = summary.metrics[study.gain]
    difference = gain.difference(FOCUS, BASELINE)
    seeds = 0 if difference is None else difference.spread.n
    text = f"- **{study.title}**, {seeds} paired seeds. {_compared(gain)}"
    others = [
        f"`{variant}` {_mean(gain, variant)}"
        for variant in summary.variants
        if variant not in (FOCUS, BASELINE)
    ]
    text += f" Others: {', '.join(others)}." if others else ""
    levels = {
        name: metrics[study.gain]
        for name, metrics in summary.without_sae.items()
        if study.gain in metrics
    }
    if levels:
        best = (min if gain.info.direction == "lower" else max)(levels, key=levels.__getitem__)
        text += f" Best without an SAE: {best} {_number(gain, levels[best])}."
    for key in (*study.beside, COST):
        if key in summary.metrics:
            text += f" {_compared(summary.metrics[key])}"
    return text


def _compared(metric: MetricSummary) -> str:
    """``Forget accuracy: 0.58 with `adaptive`, 0.78 with `baseline`: -0.20 [..], better.``"""
    label = capital(metric.info.label)
    values = f"{_mean(metric, FOCUS)} with `{FOCUS}`, {_mean(metric, BASELINE)} with `{BASELINE}`"
    difference = metric.difference(FOCUS, BASELINE)
    if difference is None or difference.spread.mean is None:
        return f"{label}: {values}."
    change = " ".join(estimate(difference.spread.mean, difference.spread.ci95))
    word = f", {difference.words}" if difference.words else ""
    return f"{label}: {values} ({change}{word})."


def _mean(metric: MetricSummary, variant: str) -> str:
    return _number(metric, metric.variants[variant].mean)


def _number(metric: MetricSummary, value: float | None) -> str:
    """The value with as many decimals as the spreads of the metric support."""
    stds = [spread.std for spread in metric.variants.values() if spread.std]
    means = [spread.mean for spread in metric.variants.values() if spread.mean is not None]
    return number(value, error_decimals(max(stds)) if stds else value_decimals(means, figures=3))


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figure and print the list; the exit status is 0, or 2 if there is nothing."""
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
