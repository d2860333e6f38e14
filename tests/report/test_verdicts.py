"""Verdicts in sentences, from constructed differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest

from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.report.summary import summary_json
from saelens_adaptive_ortho.report.verdicts import EvaluationVerdict, judge
from saelens_adaptive_ortho.results import (
    Result,
)
from tests.report.runs import (
    ACCURACY,
    CLEAR,
    DAMAGE,
    SMALL,
    UNCLEAR,
    core,
    differing,
    failed,
    result,
)


def verdict(results: Sequence[Result]) -> EvaluationVerdict:
    (found,) = judge(summarise(results)).evaluations[results[0].eval]
    return found


def verdict_of(angles: list[float], cosines: list[float], ev: list[float]) -> str:
    results = []
    for seed in range(3):
        results += [
            result(
                "subspace",
                "baseline",
                seed,
                {"principal_angle/mean_deg": 50.0 + seed, "mean_max_cosine": 0.5},
            ),
            result(
                "subspace",
                "adaptive",
                seed,
                {
                    "principal_angle/mean_deg": 50 + angles[seed],
                    "mean_max_cosine": 0.5 + cosines[seed],
                },
            ),
            result("core", "baseline", seed, {"pooled/explained_variance": 0.9}),
            result("core", "adaptive", seed, {"pooled/explained_variance": 0.9 + ev[seed]}),
        ]
    return judge(summarise(results)).text


def test_better_at_a_cost() -> None:
    text = verdict_of([10, 11.1, 12], [-0.1, -0.11, -0.12], [-0.02, -0.021, -0.022])
    assert "over 3 paired seeds, adaptive separates" in text
    assert "decoder directions better: mean principal angle between forget and retain +1" in text
    assert "It costs reconstruction: explained variance −0.021" in text
    assert "do not show that the knowledge itself is separated" in text


def test_no_difference_is_not_no_cost() -> None:
    text = verdict_of([10, 11.1, 12], [-0.1, -0.11, -0.12], [-0.01, 0.01, 0.0])
    # Half width 0.01 · 4.302653 / √3 = 0.0248.
    assert "leaves room for a loss of up to 0.025" in text
    assert "no cost" not in text


def test_worse_mixed_and_undecided() -> None:
    none = [0.0, 0.0, 0.0]
    assert "directions worse" in verdict_of([-10, -9, -8.5], [0.1, 0.11, 0.12], none)
    assert "mixed evidence" in verdict_of([10, 11.1, 12], [0.1, 0.11, 0.12], none)
    text = verdict_of([0, 1, 2], [0.0, 0.001, -0.001], none)
    assert "not shown that adaptive separates decoder directions better or worse: inconc" in text
    assert "no difference" not in text


def test_not_measured() -> None:
    only_core = judge(summarise([*core("baseline", [0.1, 0.2]), *core("adaptive", [0.1, 0.2])]))
    assert "no results of unlearning or subspace" in only_core.text
    angles = [
        result("subspace", v, s, {"mean_max_cosine": 0.1 * s + 0.3})
        for v in ("baseline", "adaptive")
        for s in range(2)
    ]
    assert "cost in reconstruction is not known" in judge(summarise(angles)).text
    assert "nothing to compare" in judge(summarise(core("baseline", [0.1]))).text


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        ({DAMAGE[0]: CLEAR, DAMAGE[1]: UNCLEAR}, "better"),
        ({DAMAGE[0]: [-d for d in CLEAR], DAMAGE[1]: UNCLEAR}, "worse"),
        # Lower accuracy on forget questions is better.
        ({ACCURACY[0]: CLEAR}, "worse"),
        ({ACCURACY[0]: [-d for d in CLEAR]}, "better"),
        ({DAMAGE[0]: CLEAR, ACCURACY[0]: CLEAR}, "mixed"),
        ({DAMAGE[0]: UNCLEAR, ACCURACY[0]: UNCLEAR}, "inconclusive"),
        ({DAMAGE[0]: SMALL, ACCURACY[0]: SMALL}, "equivalent"),
        ({DAMAGE[0]: SMALL, ACCURACY[0]: UNCLEAR}, "inconclusive"),
        ({DAMAGE[0]: SMALL, ACCURACY[0]: CLEAR}, "worse"),
        ({DAMAGE[0]: [0.3]}, "too few seeds"),
        # The published score is not a primary metric.
        ({"score": CLEAR}, "not measured"),
    ],
    ids=[
        "better",
        "worse",
        "lower",
        "lower better",
        "mixed",
        "none",
        "equivalent",
        "part",
        "with equivalent",
        "few",
        "secondary",
    ],
)
def test_primary_metrics_decide(shifts: Mapping[str, Sequence[float]], expected: str) -> None:
    found = verdict(differing("unlearning", shifts))
    assert found.verdict == expected
    assert found.text.startswith("adaptive against fixed")
    assert expected.split()[0] in found.text


def test_sentence() -> None:
    found = verdict(differing("unlearning", {DAMAGE[0]: UNCLEAR, DAMAGE[1]: CLEAR}))
    assert (found.judged, found.absent, found.differing) == (2, 7, 1)
    # Half width 0.01 · 4.302653 / √3 = 0.0248.
    assert found.text == (
        "adaptive against fixed, 3 seeds: better in 1 of 2 primary metrics "
        "(forget damage at retain damage ≤ 0.10 nats +0.310 [+0.285, +0.335]); 7 not measured"
    )
    same = verdict(differing("tpp", {"threshold_10": UNCLEAR, "threshold_50": UNCLEAR}))
    # Half width 0.2 · 4.302653 / √3 = 0.497.
    assert same.text == (
        "adaptive against fixed, 3 seeds: inconclusive in 2 primary metrics "
        "(score, 10 / 50 latents ablated: 0.00 [−0.50, +0.50] / 0.00 [−0.50, +0.50])"
    )
    one = verdict(differing("absorption", {"full_absorption": CLEAR}))
    assert one.text == (
        "adaptive against fixed, 3 seeds: worse (full absorption rate +0.310 [+0.285, +0.335])"
    )
    equal = verdict(differing("unlearning", {DAMAGE[0]: SMALL, DAMAGE[1]: UNCLEAR}))
    # Half width 0.01 · 4.302653 / √3 = 0.0248.
    assert equal.text == (
        "adaptive against fixed, 3 seeds: inconclusive in 1 of 2 primary metrics "
        "(forget damage at retain damage ≤ 0.10 nats 0.00 [−0.50, +0.50]; equivalent: forget "
        "damage at retain damage ≤ 0.05 nats 0.000 [−0.025, +0.025] within 0.3 nats); "
        "7 not measured"
    )
    mixed = verdict(differing("unlearning", {DAMAGE[0]: CLEAR, ACCURACY[0]: CLEAR}))
    assert "mixed, better in 1 and worse in 1 of 2 primary metrics (better: " in mixed.text


def test_correction() -> None:
    # Mean 1, deviation 0.3: |t| = 5.8 with 2 degrees of freedom. This is above 4.30 (one metric)
    # and below 10.9 (six metrics).
    barely = (0.7, 1.0, 1.3)
    alone = verdict(differing("unlearning", {DAMAGE[0]: barely}))
    assert (alone.verdict, alone.differing) == ("better", 1)
    rest: dict[str, Sequence[float]] = dict.fromkeys([*DAMAGE[1:], *ACCURACY], UNCLEAR)
    found = verdict(differing("unlearning", {DAMAGE[0]: barely} | rest))
    assert (found.verdict, found.differing, found.equivalent) == ("inconclusive", 0, 0)
    # CLEAR has |t| = 54. Beside it, the second of two needs p = 5% (Bonferroni: 2.5%); it has 2.9%.
    found = verdict(differing("unlearning", {DAMAGE[0]: CLEAR, DAMAGE[1]: barely}))
    assert (found.verdict, found.differing) == ("better", 2)


def test_every_pair_gets_a_verdict(summary: Summary) -> None:
    for name in ("core", "subspace", "unlearning", "sparse_probing", "sae_probes", "scr", "tpp"):
        found = judge(summary).evaluations[name]
        assert [(v.variant, v.reference) for v in found] == summary.pairs
        assert all(v.judged for v in found)
    assert "training" not in judge(summary).evaluations
    document = json.loads(json.dumps(summary_json(summary), allow_nan=False))
    assert document["evaluations"]["training"]["verdicts"] == []
    tpp = document["evaluations"]["tpp"]
    assert tpp["primary"] == ["tpp/threshold_10", "tpp/threshold_50"]
    assert tpp["mean_seconds"] == 61.0
    assert tpp["verdicts"][0]["judged"] == 2


def test_knowledge_and_geometry() -> None:
    geometry = differing("subspace", {"mean_max_cosine": CLEAR})
    without = judge(summarise(geometry))
    assert "on their own they do not show that the knowledge" in without.text
    assert (without.overall[0].knowledge, without.overall[0].geometry) == (
        "not measured",
        "worse",
    )
    both = judge(summarise([*geometry, *differing("unlearning", {DAMAGE[0]: CLEAR})]))
    assert (both.overall[0].knowledge, both.overall[0].geometry) == ("better", "worse")
    assert "adaptive separates knowledge better: forget damage" in both.text
    assert ". It separates decoder directions worse: mean max cosine" in both.text
    assert "which is not knowledge" in both.text
    assert "on their own they do not show" not in both.text
    six: dict[str, Sequence[float]] = dict.fromkeys([*DAMAGE, *ACCURACY], UNCLEAR)
    none = judge(summarise([*geometry, *differing("unlearning", six)]))
    assert "better or worse: inconclusive in 6 of 6 unlearning metrics" in none.text
    some = judge(summarise([*geometry, *differing("unlearning", six | {DAMAGE[0]: CLEAR})]))
    assert "adaptive separates knowledge better in 1 of 6 unlearning metrics: forget" in some.text
    equal = judge(summarise([*geometry, *differing("unlearning", dict.fromkeys(DAMAGE, SMALL))]))
    assert "adaptive is equivalent in 3 unlearning metrics, which measure" in equal.text
    assert equal.overall[0].knowledge == "equivalent"
    useless = judge(summarise([*geometry, *failed("unlearning", "no questions")]))
    assert "on their own they do not show that the knowledge" in useless.text


def test_variant_named_like_a_word_of_the_sentence() -> None:
    results = [
        Result(eval, variant, 0, metrics={name: 0.1})
        for eval, name in (("unlearning", DAMAGE[0]), ("subspace", "mean_max_cosine"))
        for variant in ("baseline", "few")
    ]
    (found,) = judge(summarise(results)).overall
    assert "there are too few seeds to say whether few separates knowledge better: " in found.text
    assert ". There are too few seeds to say whether it separates decoder direct" in found.text


def test_parts() -> None:
    found = verdict(differing("unlearning", {DAMAGE[0]: CLEAR, ACCURACY[0]: CLEAR}))
    assert (found.pair, found.seeds) == ("adaptive against fixed", "3 seeds")
    assert [part.words for part in found.findings] == ["better: ", "worse: "]
    (better,) = found.findings[0].findings
    assert better.label == "forget damage at retain damage ≤ 0.05 nats"
    assert [(e.mean, e.interval) for e in better.estimates] == [("+0.310", "[+0.285, +0.335]")]
    assert found.rest == "; 7 not measured"
