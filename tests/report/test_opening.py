"""The first numbers of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from saelens_adaptive_ortho.report.opening import best_without_sae, opening
from saelens_adaptive_ortho.report.page.run import render_page
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.results import Result
from tests.report.pages import plain
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


def test_random_latents_are_not_without_an_sae() -> None:
    levels = {"detector": {GAIN: 0.5}, "random latents": {GAIN: 2.0}}
    results = [
        result("unlearning", v, 0, {GAIN: 1.0}, details={"references": levels})
        for v in ("baseline", "adaptive")
    ]
    assert best_without_sae(summarise(results), f"unlearning/{GAIN}") == [("detector", 0.5)]


# ----------------------------------------------------- runs that measured less, and ties


def unlearning(
    values: Mapping[str, float | None], levels: Mapping[str, float], key: str = GAIN, **more: float
) -> list[Result]:
    """Three equal seeds of each variant, with what each method without an SAE reaches."""
    references = {name: {key: level} for name, level in levels.items()}
    return [
        result(
            "unlearning", variant, seed, {key: value, **more}, details={"references": references}
        )
        for variant, value in values.items()
        for seed in range(3)
    ]


def cores(**values: float) -> list[Result]:
    return [r for variant, value in values.items() for r in core(variant, [value] * 3)]


def screen(results: Sequence[Result]) -> tuple[str, str, list[tuple[str, str, str]]]:
    """The question, the verdict and the numbers (value, label, words) of the first screen."""
    page = render_page(results)
    head = page[page.index("<h1>") :].split("</header>")[0]
    question = plain(head.split("</h1>")[0])
    verdict = " ".join(plain(head[head.index('<div class="verdict">') :]).split())
    numbers = [(one.value, one.label, one.words) for one in opening(summarise(results))]
    for number in numbers:
        assert all(part in plain(head) for part in number)
    return question, verdict, numbers


def test_nothing_forgets() -> None:
    question, verdict, (gain, cost, beside) = screen(
        [
            *unlearning({"baseline": 0.0, "adaptive": 0.0}, {"detector": 0.0, "LEACE": 0.0}),
            *cores(baseline=0.9, adaptive=0.9),
        ]
    )
    assert question.startswith("Does adaptive orthogonality separate knowledge")
    same = "the same in all 3 seeds (inconclusive)"
    assert (gain[0], gain[2]) == ("0 nats", f"nothing is forgotten; baseline 0 nats; {same}")
    assert cost[2] == f"baseline 0.900; {same}"
    assert beside == ("0 nats", "Without an SAE, nothing is forgotten", "by detector and LEACE")
    assert "it is not shown that adaptive separates knowledge better or worse" in verdict
    assert "Explained variance: the same in every seed." in verdict
    assert "leaves room" not in verdict


def test_no_question_is_forgotten() -> None:
    key = "mcq/forget_accuracy_at_0.95"
    values: dict[str, float | None] = {"baseline": 1.0, "adaptive": 1.0}
    levels = {"detector": 1.0, "LEACE": 1.0, "difference of means": 1.0}
    untouched = {"mcq/original_forget_accuracy": 1.0}
    gain, _, beside = opening(summarise(unlearning(values, levels, key, **untouched)))
    assert gain.value == "1"
    assert gain.words.startswith("nothing is forgotten; baseline 1; the same")
    assert (beside.label, beside.words) == (
        "Without an SAE, nothing is forgotten",
        "by detector, LEACE and difference of means",
    )
    # Without the accuracy of the untouched model, nobody knows.
    gain, _, beside = opening(summarise(unlearning(values, levels, key)))
    assert gain.words.startswith("baseline 1; the same")
    assert beside.label == "Without an SAE, all methods are alike"


def test_equal_methods_share_the_place() -> None:
    values: dict[str, float | None] = {"baseline": 1.0, "adaptive": 1.0}

    def beside(levels: Mapping[str, float]) -> tuple[str, str, str]:
        *_, one = opening(summarise(unlearning(values, levels)))
        return one.value, one.label, one.words

    every = {"detector": 2.0, "LEACE": 2.0}
    alike = ("2 nats", "Without an SAE, all methods are alike", "detector and LEACE")
    assert beside(every) == alike
    assert beside({**every, "other": 1.0}) == (
        "2 nats",
        "The best without an SAE: detector and LEACE",
        "then other 1 nats",
    )
    only = ("2 nats", "The best without an SAE: detector", "no other was measured")
    assert beside({"detector": 2.0}) == only
    # With random latents beside it, there is still no other.
    assert beside({"detector": 2.0, "random latents": 3.0}) == only


def test_without_core_the_cost_is_not_known() -> None:
    found = unlearning({"baseline": 1.0, "adaptive": 3.0}, {"detector": 2.0})
    question, verdict, numbers = screen(found)
    assert question.endswith("separate knowledge, the forget corpus from the retain corpus?")
    assert numbers[1] == (
        "–",
        "The cost in reconstruction",
        "not measured: there are no results of core",
    )
    assert "The cost in reconstruction is not known, for lack of core results." in verdict
    broken = [Result("core", v, s, "failed", "why") for v in ("baseline", "adaptive") for s in (0,)]
    assert screen([*found, *broken])[2][1][2] == "not measured: core failed, see below"
    empty = [*core("baseline", [None]), *core("adaptive", [None])]
    assert screen([*found, *empty])[2][1][2] == "not measured: core gave no value, see below"


def test_without_unlearning_nothing_is_said_on_knowledge() -> None:
    question, verdict, numbers = screen(cores(baseline=0.9, adaptive=0.8))
    assert question == "How does adaptive differ from baseline, and at what cost in reconstruction?"
    assert [number[:2] for number in numbers] == [
        ("–", "What is forgotten"),
        ("0.800", "Explained variance, pooled, adaptive ↑"),
    ]
    assert numbers[0][2] == "not measured: there are no results of unlearning"
    assert "there are no results of unlearning or subspace to tell whether" in verdict
    assert "Angles and cosines" not in verdict
    angles = [
        result("subspace", v, s, {"mean_max_cosine": 0.3 + 0.01 * s})
        for v in ("baseline", "adaptive")
        for s in range(3)
    ]
    question, verdict, numbers = screen(angles)
    assert question == "How does adaptive differ from baseline?"
    assert numbers == []
    assert "Angles and cosines" in verdict


def test_one_variant_is_compared_with_nothing() -> None:
    question, verdict, (gain, cost, beside) = screen(
        [*unlearning({"adaptive": 3.0}, {"detector": 2.0}), *cores(adaptive=0.9)]
    )
    corpora = "the forget corpus from the retain corpus"
    assert question == (
        f"How far does adaptive separate knowledge, {corpora}, and how well does it reconstruct?"
    )
    assert (gain[0], gain[2]) == ("3 nats", "")
    assert (cost[0], cost[2]) == ("0.900", "")
    assert beside[1] == "The best without an SAE: detector"
    assert verdict == "Only adaptive has results, so there is nothing to compare."
    question, _, numbers = screen(cores(mine=0.9))
    assert question == "What do the evaluations say about mine?"
    assert [number[0] for number in numbers] == ["–", "0.900"]


def test_a_variant_without_a_value_is_named() -> None:
    found = unlearning({"baseline": 1.0, "adaptive": None}, {"detector": 2.0})
    gain, *_ = opening(summarise(found))
    assert (gain.value, gain.words) == ("–", "not measured for adaptive; baseline 1 nats")


def test_the_question_names_another_focus() -> None:
    found = [*unlearning({"baseline": 1.0, "mine": 3.0}, {}), *cores(baseline=0.9, mine=0.8)]
    assert screen(found)[0].startswith("Does mine separate knowledge, the forget corpus from")


def test_nothing_measured_gives_no_numbers() -> None:
    assert opening(summarise([result("training", "x", 0, {"tokens": 1.0})])) == []


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
