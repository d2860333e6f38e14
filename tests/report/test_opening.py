"""The first numbers of a report."""

from __future__ import annotations

import pytest

from saelens_adaptive_ortho.report.opening import best_without_sae, opening
from saelens_adaptive_ortho.report.page.run import render_page
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.results import Result
from tests.report.runs import core, result

GAIN = "token/forget_damage_at_0.10"
REFERENCES = {"references": {"detector": {GAIN: 2.5}, "LEACE": {GAIN: 0.5}, "other": {GAIN: 1.0}}}


def run() -> list[Result]:
    return [
        result(
            "unlearning", variant, seed, {GAIN: value + seed / 10 * (value > 2)}, details=REFERENCES
        )
        for variant, value in (("baseline", 1.0), ("adaptive", 3.0))
        for seed in range(3)
    ]


def test_gain_cost_and_what_needs_no_sae() -> None:
    costs: Sequence[Result] = [
        *core("baseline", [0.91, 0.92, 0.93]),
        *core("adaptive", [0.90, 0.90, 0.91]),
    ]
    gain, cost, beside = opening(summarise([*run(), *costs]))
    assert gain.value == "3.10 nats"
    assert gain.label.endswith("retain damage ≤ 0.10 nats, adaptive ↑")
    assert gain.words.startswith("baseline 1.00 nats; +2.10 [")
    assert cost.value == "0.903"
    assert cost.label == "Explained variance, pooled, adaptive ↑"
    assert (beside.value, beside.label) == ("2.50 nats", "The best without an SAE: detector")
    assert beside.words == "then other 1.00 nats and LEACE 0.50 nats"


def test_what_was_not_measured_is_left_out() -> None:
    assert opening(summarise(core("baseline", [0.9] * 3))) == []
    both = [*core("baseline", [0.9] * 3), *core("adaptive", [0.8, 0.81, 0.82])]
    (cost,) = opening(summarise(both))
    assert cost.value == "0.8100"


def test_lower_is_better_for_accuracies() -> None:
    key = "mcq/forget_accuracy_at_0.95"
    levels = {"references": {"detector": {key: 0.4}, "LEACE": {key: 0.9}}}
    results = [
        result("unlearning", v, s, {key: 0.5}, details=levels)
        for v in ("baseline", "adaptive")
        for s in range(3)
    ]
    summary = summarise(results)
    assert best_without_sae(summary, f"unlearning/{key}") == [
        ("detector", pytest.approx(0.4)),
        ("LEACE", pytest.approx(0.9)),
    ]


def test_page_begins_with_them() -> None:
    page = render_page(run())
    assert page.index('<div class="opening">') < page.index('<div class="verdict">')
    assert "3.10 nats" in page
