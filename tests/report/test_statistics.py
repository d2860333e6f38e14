"""Spreads over seeds and paired differences, against values computed by hand."""

from __future__ import annotations

import math

import pytest

from saelens_adaptive_ortho.evaluations import headline_keys
from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.report.verdicts import judge
from saelens_adaptive_ortho.results import (
    order_variants,
)
from tests.report.runs import (
    EV,
    core,
)


def test_paired_interval() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, t(0.975; 2) = 4.302653, half width 4.302653 / √3.
    results = [*core("baseline", [10.0, 20.0, 30.0]), *core("adaptive", [11.0, 22.0, 33.0])]
    difference = summarise(results).metrics[EV].difference("adaptive", "baseline")
    assert difference is not None
    assert difference.spread.by_seed == {0: 1.0, 1: 2.0, 2: 3.0}
    assert difference.spread.mean == pytest.approx(2.0)
    assert difference.spread.std == pytest.approx(1.0)
    assert difference.spread.ci95 == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert difference.dz == pytest.approx(2.0)
    assert difference.verdict == "inconclusive"


def test_spread() -> None:
    # 2 and 4: mean 3, deviation √2, t(0.975; 1) = 12.706205, half width 12.706205 · √2 / √2.
    spread = summarise(core("baseline", [2.0, 4.0])).metrics[EV].variants["baseline"]
    assert (spread.mean, spread.n) == (3.0, 2)
    assert spread.std == pytest.approx(math.sqrt(2))
    assert spread.ci95 == pytest.approx((3 - 12.706205, 3 + 12.706205), abs=1e-5)


def test_pairing_finds_hidden_difference() -> None:
    results = [*core("baseline", [0.1, 0.5, 0.9]), *core("adaptive", [0.14, 0.55, 0.94])]
    metric = summarise(results).metrics[EV]
    difference = metric.difference("adaptive", "baseline")
    assert difference is not None
    assert difference.verdict == "better"
    baseline, adaptive = metric.variants["baseline"].ci95, metric.variants["adaptive"].ci95
    assert baseline is not None
    assert adaptive is not None
    assert adaptive[0] < baseline[1]


@pytest.mark.parametrize(
    ("name", "shift", "verdict"),
    [
        ("explained_variance", +0.5, "better"),
        ("explained_variance", -0.5, "worse"),
        ("mse", +0.5, "worse"),
        ("mse", -0.5, "better"),
        ("explained_variance", 0.0, "inconclusive"),
        ("l0", +0.5, None),
        ("never_heard_of", +0.5, None),
    ],
)
def test_direction(name: str, shift: float, verdict: str | None) -> None:
    base: list[float | None] = [0.1, 0.2, 0.3]
    other: list[float | None] = [0.1 + shift, 0.21 + shift, 0.29 + shift]
    results = [*core("baseline", base, name), *core("fixed", other, name)]
    difference = summarise(results).metrics[f"core/pooled/{name}"].difference("fixed", "baseline")
    assert difference is not None
    assert difference.verdict == verdict


def test_one_seed_is_too_few() -> None:
    summary = summarise([*core("baseline", [0.5]), *core("adaptive", [0.9])])
    difference = summary.metrics[EV].difference("adaptive", "baseline")
    assert difference is not None
    assert (difference.verdict, difference.spread.ci95, difference.dz) == (
        "too few seeds",
        None,
        None,
    )
    assert "too few seeds to judge the cost" in judge(summary).text


def test_rounding_counts_as_zero() -> None:
    base: list[float | None] = [0.1, 0.2, 0.3]
    rounding: list[float | None] = [0.1 + 1e-17, 0.2 + 3e-17, 0.1 + 0.2]
    difference = (
        summarise([*core("baseline", base), *core("fixed", rounding)])
        .metrics[EV]
        .difference("fixed", "baseline")
    )
    assert difference is not None
    assert difference.spread.ci95 == (0.0, 0.0)
    assert difference.verdict == "inconclusive"
    assert difference.dz is None


def test_only_common_seeds_are_paired() -> None:
    results = [*core("baseline", [1.0, 2.0, None]), *core("adaptive", [None, 3.0, 4.0])]
    summary = summarise(results)
    difference = summary.metrics[EV].difference("adaptive", "baseline")
    assert difference is not None
    assert difference.spread.by_seed == {1: 1.0}
    assert summary.metrics[EV].variants["adaptive"].n == 2
    assert [gap.kind for gap in summary.gaps] == ["null", "null"]


def test_pairs() -> None:
    results = [r for v in ("odd", "adaptive", "fixed", "baseline") for r in core(v, [0.1, 0.2])]
    summary = summarise(results)
    assert summary.variants == ["baseline", "fixed", "adaptive", "odd"]
    assert summary.pairs == [
        ("fixed", "baseline"),
        ("adaptive", "baseline"),
        ("odd", "baseline"),
        ("adaptive", "fixed"),
    ]
    five = ("adaptive", "groups", "directions", "fixed", "baseline")
    summary = summarise([r for v in five for r in core(v, [0.1, 0.2])])
    assert summary.variants == ["baseline", "fixed", "directions", "groups", "adaptive"]
    assert summary.pairs == [
        *((v, "baseline") for v in ("fixed", "directions", "groups", "adaptive")),
        ("adaptive", "fixed"),
    ]
    assert summarise(core("x", [0.1])).pairs == []
    assert order_variants(["b", "a", "b"]) == ["b", "a"]
    series = ["x=0.1", "y", "x=10", "x=2", "x=big", "baseline"]
    assert order_variants(series) == ["baseline", "x=0.1", "x=2", "x=10", "y", "x=big"]
    assert order_variants(series, series) == series


def test_headline(summary: Summary) -> None:
    keys = summary.headline
    assert "core/forget/explained_variance" in keys
    assert "core/pooled/l0" in keys
    assert "core/forget/l0" not in keys
    assert keys.index("subspace/mean_max_cosine") < keys.index("unlearning/score")
    assert keys[-1] == "training/train_seconds"
    assert headline_keys(["later/x"]) == []
