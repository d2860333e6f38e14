"""Bootstrap intervals over seeds and units, against intervals from normal theory."""

from __future__ import annotations

import numpy as np
import pytest

from saelens_adaptive_ortho.report.bootstrap import difference_interval
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.results import Result


def draws(mean: float, spread: float, seed: int, n: int = 2000) -> list[float]:
    return (mean + spread * np.random.default_rng(seed).standard_normal(n)).tolist()


def test_interval_of_units_alone() -> None:
    """With equal seeds only the units are uncertain."""
    variant = {s: draws(1.0, 0.1, seed=7) for s in range(3)}
    reference = {s: [0.0] * 2000 for s in range(3)}
    low, high = difference_interval(variant, reference) or (0, 0)
    assert (low, high) == pytest.approx((1 - 0.196, 1 + 0.196), abs=0.02)


def test_shared_variation_cancels() -> None:
    shared = draws(0.0, 1.0, seed=1)
    variant = {s: [x + 0.5 for x in shared] for s in range(4)}
    low, high = difference_interval(variant, dict.fromkeys(range(4), shared)) or (0, 0)
    assert (low, high) == pytest.approx((0.5, 0.5))


def test_interval_of_seeds_alone() -> None:
    by_seed = np.random.default_rng(0).standard_normal(40)
    variant = {s: [float(x)] * 50 for s, x in enumerate(by_seed)}
    low, high = difference_interval(variant, {s: [0.0] * 50 for s in variant}) or (0, 0)
    error = by_seed.std() / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)


@pytest.mark.parametrize(
    ("variant", "reference"),
    [
        ({0: [1.0]}, {0: [0.0]}),
        ({0: [1.0], 1: [1.0]}, {2: [0.0], 3: [0.0]}),
        ({0: [1.0], 1: [1.0]}, {0: [0.0], 1: [0.0, 0.0]}),
        ({}, {}),
    ],
)
def test_no_interval_without_matching_replicates(
    variant: dict[int, list[float]], reference: dict[int, list[float]]
) -> None:
    assert difference_interval(variant, reference) is None


def test_summary_has_bootstrap_interval() -> None:
    key = "loss/forget_damage_at_0.10"
    results = [
        Result(
            "unlearning",
            variant,
            seed,
            metrics={key: base + seed},
            details={"replicates": {key: [base + seed - 0.1, base + seed + 0.1]}},
        )
        for variant, base in (("baseline", 1.0), ("adaptive", 2.0))
        for seed in (0, 1, 2)
    ]
    difference = summarise(results).metrics[f"unlearning/{key}"].differences[0]
    assert difference.bootstrap95 == pytest.approx((1.0, 1.0))
