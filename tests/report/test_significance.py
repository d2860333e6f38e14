"""The tests behind the verdicts: t-test, Holm's correction, equivalence, resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from saelens_adaptive_ortho.evaluations import BUILT_IN, Evaluation, Metric
from saelens_adaptive_ortho.report.statistics import (
    LEVEL,
    Difference,
    Spread,
    difference_p,
    equivalence_p,
    families,
    holm,
    summarise,
)
from saelens_adaptive_ortho.results import Result
from tests.report.runs import CLEAR, DAMAGE, EV, SMALL, UNCLEAR, differing

MARGIN_OF_EV = 0.004


def spread(values: Sequence[float]) -> tuple[float, float, int]:
    found = Spread.of(dict(enumerate(values)))
    assert found.mean is not None
    assert found.std is not None
    return found.mean, found.std, found.n


def judged(eval: str, name: str, shift: Sequence[float], **others: Sequence[float]) -> Difference:
    summary = summarise(differing(eval, {name: shift} | others))
    found = summary.metrics[f"{eval}/{name}"].difference("adaptive", "fixed")
    assert found is not None
    return found


@pytest.mark.parametrize("n", [3, 8])
def test_p_values_equal_those_of_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(0.4, 1.0, n)
    assert difference_p(*spread(values.tolist())) == pytest.approx(
        stats.ttest_1samp(values, 0).pvalue
    )
    margin = 1.3
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    assert equivalence_p(*spread(values.tolist()), margin) == pytest.approx(max(above, below))


def test_holm_by_hand() -> None:
    # 4 · 0.01, then 3 · 0.012, which must not be smaller, then 2 · 0.03, then 1 · 0.5.
    assert holm([0.5, 0.01, 0.03, 0.012]) == pytest.approx([0.5, 0.04, 0.06, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_equals_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).uniform(size=30) ** 3
    assert holm(p.tolist()) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_false_claims_are_rare() -> None:
    """Without any true difference, at most 5% of tables contain a claim; the same at the margin."""
    generator = np.random.default_rng(0)
    runs, metrics, n = 1000, 20, 4
    noise = generator.normal(size=(runs, metrics, n))
    means, stds = noise.mean(2), noise.std(2, ddof=1)
    claims = uncorrected = equivalences = 0
    for by_mean, by_std in zip(means, stds, strict=True):
        p = [difference_p(m, s, n) for m, s in zip(by_mean, by_std, strict=True)]
        claims += min(holm(p)) <= LEVEL
        uncorrected += min(p) <= LEVEL
        # The true difference is the margin itself: "equivalent" would be false.
        equivalences += equivalence_p(by_mean[0] + 2.0, by_std[0], n, 2.0) <= LEVEL
    limit = LEVEL + 3 * (LEVEL * (1 - LEVEL) / runs) ** 0.5
    assert 0.02 < claims / runs < limit
    assert uncorrected / runs > 0.5
    assert 0.02 < equivalences / runs < limit


def test_equivalence_needs_a_narrow_interval_and_a_margin() -> None:
    name = EV.removeprefix("core/")
    narrow = judged("core", name, [0.001, 0.0, -0.001])
    assert narrow.verdict == "equivalent"
    assert narrow.words == "equivalent within 0.004"
    wide = judged("core", name, [0.004, 0.0, -0.004])
    assert (wide.verdict, wide.words) == ("inconclusive", "inconclusive")
    # Mean 0.002, 90% half width 2.919986 · s / √3: the upper bound crosses the margin between.
    edge = (MARGIN_OF_EV - 0.002) * 3**0.5 / 2.919986
    for s, verdict in ((0.99 * edge, "equivalent"), (1.01 * edge, "inconclusive")):
        assert judged("core", name, [0.002 - s, 0.002, 0.002 + s]).verdict == verdict
    without = judged("subspace", "mean_max_cosine", [1e-9, 0.0, -1e-9])
    assert (without.verdict, without.p_equivalence) == ("inconclusive", None)


def test_a_clear_difference_within_the_margin_says_both() -> None:
    found = judged("core", "pooled/explained_variance", [-0.0010, -0.00101, -0.00099])
    assert (found.verdict, found.equivalent) == ("worse", True)
    assert found.words == "worse, but within 0.004"
    assert judged("core", "pooled/explained_variance", [-0.9, -0.91, -0.92]).words == "worse"


def test_an_inconclusive_metric_says_whether_the_correction_made_it_so() -> None:
    alone = judged("subspace", "mean_max_cosine", [-0.10, -0.11, -0.12])
    assert alone.verdict == "better"
    corrected = replace(alone, verdict="inconclusive", p_holm=0.2)
    assert corrected.words == "inconclusive after correction"
    assert replace(corrected, p=0.06).words == "inconclusive"


def test_a_zero_spread_gives_no_verdict() -> None:
    for eval, name in (("core", "pooled/explained_variance"), ("sparse_probing", "sae_accuracy")):
        for value in (0.0, 0.25, -0.0025):
            found = judged(eval, name, [value] * 4)
            assert found.verdict == "inconclusive"
            assert found.p == 1.0
            assert not found.equivalent


def test_a_verdict_needs_three_seeds() -> None:
    values = [0.3, 0.3001, 0.3002]
    for n in (1, 2):
        found = judged("core", "pooled/explained_variance", values[:n])
        assert (found.verdict, found.p, found.p_holm) == ("too few seeds", None, None)
    assert judged("core", "pooled/explained_variance", values).verdict == "better"


def test_spread_and_difference_must_exceed_the_resolution() -> None:
    step = 1 / 400
    name = "sae_top_1_accuracy"
    # A spread of less than one question.
    assert judged("sparse_probing", name, [100 * step, 100 * step, 101 * step]).p == 1.0
    assert judged("sparse_probing", name, [99 * step, 100 * step, 102 * step]).verdict == "better"
    # A difference of less than one question; without steps it would count.
    small = [0.9 * step + 2 * step * s for s in (-1, 1) * 20]
    assert judged("sparse_probing", name, small).p == 1.0
    assert judged("sparse_probing", "sae_top_1_auc", small).verdict == "better"


def test_resolution_from_the_number_of_questions() -> None:
    name = "mcq/forget_accuracy_at_0.95"
    shift = [-0.50, -0.51, -0.52]
    by_questions = {n: {"mcq/n_forget_questions": n} for n in (50, 500)}
    for n, verdict in ((50, "inconclusive"), (500, "better")):
        results = [
            Result(r.eval, r.variant, r.seed, metrics={**r.metrics, **by_questions[n]})
            for r in differing("unlearning", {name: shift})
        ]
        found = summarise(results).metrics[f"unlearning/{name}"].difference("adaptive", "fixed")
        assert found is not None
        assert found.verdict == verdict


def test_families() -> None:
    keys = [EV, "core/pooled/l0", "core/pooled/mse", "tpp/threshold_50", "tpp/threshold_20"]
    first, every = families(keys)
    # L0 has no better direction. TPP with 50 latents is primary and not in the headline table.
    assert first == [EV, "tpp/threshold_50"]
    assert every == [EV, "core/pooled/mse", "tpp/threshold_50", "tpp/threshold_20"]


def test_metrics_outside_the_table_are_corrected_over_all() -> None:
    shifts = {"pooled/explained_variance": UNCLEAR, "pooled/mse": CLEAR, "pooled/l0": CLEAR}
    shifts |= {"pooled/kl_div_score": SMALL}
    summary = summarise(differing("core", shifts))

    def found(name: str) -> Difference:
        difference = summary.metrics[f"core/pooled/{name}"].difference("adaptive", "fixed")
        assert difference is not None
        return difference

    assert found("explained_variance").family == 1
    assert found("mse").family == found("kl_div_score").family == 3
    assert found("mse").p_holm == pytest.approx(3 * (found("mse").p or 0.0))
    assert (found("l0").family, found("l0").verdict) == (0, None)
    assert summary.family(("adaptive", "fixed")) == 1


def test_more_metrics_make_a_claim_harder() -> None:
    barely = [0.7, 1.0, 1.3]  # p = 2.9%
    assert judged("unlearning", DAMAGE[0], barely).verdict == "better"
    second = judged("unlearning", DAMAGE[0], barely, **{DAMAGE[1]: UNCLEAR})
    assert (second.verdict, second.family) == ("inconclusive", 2)


def test_margins_and_resolutions_are_declared() -> None:
    metrics = {e.name: e.metrics for e in BUILT_IN}
    margins = {
        "core/explained_variance": 0.004,
        "core/ce_loss_score": 0.002,
        "core/frac_alive": 0.02,
        "sparse_probing/sae_top_{n}_accuracy": 0.01,
        "unlearning/loss/forget_damage_at_{n}": 0.3,
        "unlearning/mcq/forget_accuracy_at_{n}": 0.05,
    }
    for key, margin in margins.items():
        eval, name = key.split("/", 1)
        assert metrics[eval][name].margin == margin
    for info in BUILT_IN:
        for name, metric in info.metrics.items():
            assert isinstance(metric.resolution, (float, type(None))) or (
                metric.resolution in info.metrics
            ), (info.name, name)
            assert metric.margin is None or metric.margin > 0
    assert Metric("x").margin is Metric("x").resolution is None
    assert Evaluation("x", "x").essential == ()
