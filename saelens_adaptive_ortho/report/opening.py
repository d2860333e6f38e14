"""The first numbers of a report: what is forgotten, at what cost, and what needs no SAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saelens_adaptive_ortho.evaluations.unlearning import FLOORS
from saelens_adaptive_ortho.report.figures.tradeoff import COST, GAIN, TOKEN_GAIN
from saelens_adaptive_ortho.report.formatting import (
    DASH,
    capital,
    error_decimals,
    estimate,
    number,
    value_decimals,
)
from saelens_adaptive_ortho.report.statistics import Difference, MetricSummary, Summary

#: What is forgotten: the first of these that was measured.
GAINS = ("unlearning/mcq/forget_accuracy_at_0.95", TOKEN_GAIN, GAIN)
#: The accuracy on forget questions before anything is forgotten.
UNTOUCHED = "unlearning/mcq/original_forget_accuracy"


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

    With one variant, they are its own numbers. If only one of gain and cost was measured, the other
    number says so; without both, the list is empty.
    """
    gain = next((key for key in GAINS if _measured(summary, key)), None)
    if gain is None and not _measured(summary, COST):
        return []
    found = [
        _unmeasured(summary, "What is forgotten", "unlearning")
        if gain is None
        else _compared(summary, gain),
        _compared(summary, COST)
        if _measured(summary, COST)
        else _unmeasured(summary, "The cost in reconstruction", "core"),
        None if gain is None else _without_sae(summary, gain),
    ]
    return [one for one in found if one is not None]


def value_text(metric: MetricSummary, value: float | None) -> str:
    """The value with as many decimals as the spreads of the metric support."""
    stds = [spread.std for spread in metric.variants.values() if spread.std]
    means = [spread.mean for spread in metric.variants.values() if spread.mean is not None]
    return number(value, error_decimals(max(stds)) if stds else value_decimals(means, figures=3))


def best_without_sae(summary: Summary, key: str) -> list[tuple[str, float]]:
    """What needs no SAE, by name, with its value of a metric; the best one first."""
    levels = {
        name: found[key]
        for name, found in summary.without_sae.items()
        if key in found and name not in FLOORS
    }
    lower = summary.metrics[key].info.direction == "lower"
    return sorted(levels.items(), key=lambda item: item[1], reverse=not lower)


def _measured(summary: Summary, key: str) -> bool:
    """Whether any SAE has a value of the metric."""
    metric = summary.metrics.get(key)
    return metric is not None and any(spread.n for spread in metric.variants.values())


def _unmeasured(summary: Summary, label: str, name: str) -> Number:
    """A number that no SAE has: the evaluation ``name`` did not run, failed, or lacks it."""
    found = summary.evaluations.get(name)
    reason = f"there are no results of {name}"
    if found is not None:
        reason = f"{name} {'gave no value' if found.finished else 'failed'}, see below"
    return Number(DASH, label, f"not measured: {reason}")


def _compared(summary: Summary, key: str) -> Number:
    """A metric of the focus, or of the only variant, against its reference."""
    metric, variant = summary.metrics[key], summary.focus or summary.variants[0]
    reference, value = summary.reference(variant), metric.variants[variant].mean
    words = [f"not measured for {variant}"] if value is None else []
    if value is not None and _forgets_nothing(summary, key, value):
        words.append("nothing is forgotten")
    other = metric.variants[reference].mean
    if reference != variant and other is not None:
        words.append(f"{reference} {_with_unit(metric, other)}")
    difference = metric.difference(variant, reference)
    if difference is not None and difference.spread.mean is not None:
        words.append(_change(difference, difference.spread.mean))
    label = capital(f"{metric.info.label}, {variant} {metric.info.arrow}").strip()
    return Number(_with_unit(metric, value), label, "; ".join(words))


def _change(difference: Difference, mean: float) -> str:
    """The mean difference with its interval and verdict, or that both are the same."""
    spread = difference.spread
    if any(spread.by_seed.values()):
        change = estimate(mean, spread.ci95)
        return " ".join(part for part in (*change, difference.words) if part)
    seeds = f" in all {spread.n} seeds" if spread.n > 1 else ""
    return f"the same{seeds}" + (f" ({difference.words})" if difference.words else "")


def _forgets_nothing(summary: Summary, key: str, value: float) -> bool:
    """Whether a value of a gain is that of a model that has forgotten nothing, as it is shown.

    That is no damage, or the accuracy of the untouched model.
    """
    metric = summary.metrics[key]
    if key not in GAINS:
        return False
    nothing = 0.0
    if metric.info.direction == "lower":
        if not _measured(summary, UNTOUCHED):
            return False
        spreads = summary.metrics[UNTOUCHED].variants.values()
        nothing = max(spread.mean for spread in spreads if spread.mean is not None)
        value, nothing = -value, -nothing
    return value <= nothing or value_text(metric, value) == value_text(metric, nothing)


def _without_sae(summary: Summary, key: str) -> Number | None:
    """The best of what needs no SAE. Methods whose values look the same share the place."""
    metric, ranked = summary.metrics[key], best_without_sae(summary, key)
    if not ranked:
        return None
    shown = [(name, _with_unit(metric, value)) for name, value in ranked]
    best = shown[0][1]
    alike = [name for name, value in shown if value == best]
    others = shown[len(alike) :]
    names = _listed(alike)
    if _forgets_nothing(summary, key, ranked[0][1]):
        return Number(best, "Without an SAE, nothing is forgotten", f"by {names}")
    if others:
        rest = _listed([f"{name} {value}" for name, value in others[:2]])
        return Number(best, f"The best without an SAE: {names}", f"then {rest}")
    if len(alike) == 1:
        return Number(best, f"The best without an SAE: {names}", "no other was measured")
    return Number(best, "Without an SAE, all methods are alike", names)


def _listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, or ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _with_unit(metric: MetricSummary, value: float | None) -> str:
    return DASH if value is None else f"{value_text(metric, value)} {metric.info.unit}".rstrip()
