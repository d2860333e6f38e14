"""The first numbers of a report: what is forgotten, at what cost, and what needs no SAE."""

from __future__ import annotations

from dataclasses import dataclass

from saelens_adaptive_ortho.report.figures.tradeoff import COST, GAIN, TOKEN_GAIN
from saelens_adaptive_ortho.report.formatting import (
    capital,
    error_decimals,
    estimate,
    number,
    value_decimals,
)
from saelens_adaptive_ortho.report.statistics import MetricSummary, Summary

#: What is forgotten: the first of these that was measured.
GAINS = ("unlearning/mcq/forget_accuracy_at_0.95", TOKEN_GAIN, GAIN)


@dataclass(frozen=True)
class Number:
    """A number of the opening.

    Attributes:
        value: the number of the focus, with its unit.
        label: what it is.
        words: what it is compared with, and what follows.
    """

    value: str
    label: str
    words: str


def opening(summary: Summary) -> list[Number]:
    """The gain and the cost of the focus against its reference, and the gain without an SAE.

    A number that was not measured is left out; without a focus the list is empty.
    """
    focus = summary.focus
    if focus is None:
        return []
    gain = next((key for key in GAINS if key in summary.metrics), None)
    keys = [key for key in (gain, COST) if key is not None and key in summary.metrics]
    found = [_compared(summary.metrics[key], focus, summary.reference(focus)) for key in keys]
    if gain is not None:
        found.append(_without_sae(summary, gain))
    return [one for one in found if one is not None]


def value_text(metric: MetricSummary, value: float | None) -> str:
    """The value with as many decimals as the spreads of the metric support."""
    stds = [spread.std for spread in metric.variants.values() if spread.std]
    means = [spread.mean for spread in metric.variants.values() if spread.mean is not None]
    return number(value, error_decimals(max(stds)) if stds else value_decimals(means, figures=3))


def best_without_sae(summary: Summary, key: str) -> list[tuple[str, float]]:
    """What needs no SAE, by name, with its value of a metric; the best one first."""
    levels = {name: found[key] for name, found in summary.without_sae.items() if key in found}
    lower = summary.metrics[key].info.direction == "lower"
    return sorted(levels.items(), key=lambda item: item[1], reverse=not lower)


def _compared(metric: MetricSummary, focus: str, reference: str) -> Number | None:
    spread, other = metric.variants.get(focus), metric.variants.get(reference)
    if spread is None or spread.mean is None:
        return None
    words: list[str] = []
    if other is not None and other.mean is not None:
        words.append(f"{reference} {_with_unit(metric, other.mean)}")
    difference = metric.difference(focus, reference)
    if difference is not None and difference.spread.mean is not None:
        change = estimate(difference.spread.mean, difference.spread.ci95)
        words.append(" ".join(part for part in (*change, difference.words) if part))
    label = capital(f"{metric.info.label}, {focus} {metric.info.arrow}").strip()
    return Number(_with_unit(metric, spread.mean), label, "; ".join(words))


def _without_sae(summary: Summary, key: str) -> Number | None:
    metric, ranked = summary.metrics[key], best_without_sae(summary, key)
    if not ranked:
        return None
    (best, value), *others = ranked
    rest = " and ".join(f"{name} {_with_unit(metric, level)}" for name, level in others[:2])
    label = f"The best without an SAE: {best}"
    return Number(_with_unit(metric, value), label, f"then {rest}" if rest else "")


def _with_unit(metric: MetricSummary, value: float) -> str:
    return f"{value_text(metric, value)} {metric.info.unit}".rstrip()
