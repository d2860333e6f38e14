"""The benchmarks measure what they say; no time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saelens_adaptive_ortho.performance import overhead, scaling
from saelens_adaptive_ortho.performance.steps import (
    BASES,
    ORIGIN,
    VARIANTS,
    Size,
    Stepper,
    Variant,
    activations,
)

TINY = Size(d_in=8, d_sae=32, batch=16, k=4)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_the_kinds_of_steps_make_up_all_steps_and_their_numbers_are_of_their_kind(
    base: str, variant: Variant
) -> None:
    stepper = Stepper(base, variant, TINY)
    kinds = stepper.kinds()
    assert sum(share for _, share in kinds.values()) == pytest.approx(1)
    numbers = range(ORIGIN, ORIGIN + 100)
    cfg = stepper.sae.cfg
    if variant.name == "adaptive":
        counted = [n for n in numbers if n % cfg.ortho_statistics_every == 0]
        refreshed = [n for n in numbers if n % cfg.ortho_refresh_every == 0]
        assert kinds["refresh"] == (ORIGIN, len(refreshed) / 100)
        assert kinds["counted"][1] == pytest.approx((len(counted) - len(refreshed)) / 100)
        assert kinds["counted"][0] in counted
        assert kinds["counted"][0] not in refreshed
        assert kinds["plain"][0] not in counted
    if variant.name == "fixed, every 5th":
        assert kinds["penalty"] == (ORIGIN, 0.2)


def test_a_step_of_adaptive_does_what_its_number_says() -> None:
    (variant,) = (v for v in VARIANTS if v.name == "adaptive")
    stepper, batch = Stepper("batchtopk", variant, TINY), activations(TINY)
    kinds = stepper.kinds()
    lists, samples = [], []
    for kind in ("refresh", "counted", "plain"):
        stepper.step(100 * batch, kinds[kind][0])
        lists.append(stepper.sae.ortho_neighbours)
        samples.append(float(stepper.sae.ortho_samples))
    assert lists[1] is lists[0]
    assert lists[2] is lists[0]
    assert 0 < samples[0] < samples[1] == samples[2]


def test_the_time_per_step_weighs_medians_by_shares() -> None:
    stock = {"plain": (1.0, [1.0, 1.0, 9.0])}
    own = {"plain": (0.75, [1.0, 1.0, 9.0]), "counted": (0.25, [3.0, 3.0, 11.0])}
    assert overhead.per_step(stock) == 1
    assert overhead.per_step(own) == 1.5
    # The rounds are drawn for both, so that a round that is slow for both does not count.
    low, high = overhead.ratio_interval(own, stock)
    assert low == pytest.approx(9.5 / 9, abs=0.01)
    assert high == pytest.approx(1.5)
    assert overhead.ratio_interval(stock, stock) == (1.0, 1.0)


def test_overhead_writes_a_row_per_base_and_variant(tmp_path: Path) -> None:
    path = tmp_path / "overhead.json"
    arguments = "--sizes 8x80 --batch 16 --rounds 2 --no-memory --variants off adaptive".split()
    assert overhead.main([*arguments, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    names = [(r["base"], r["variant"]) for r in rows]
    assert names == [(b, v) for b in BASES for v in ("stock", "off", "adaptive")]
    assert all(r["d_sae"] == 80 and r["ratio_low"] <= r["ratio_high"] for r in rows)


def test_the_exponent_is_that_of_a_power_law(tmp_path: Path) -> None:
    widths = [10, 20, 40]
    assert scaling.exponent(widths, [3 * w**1.5 for w in widths]) == pytest.approx(1.5)
    path = tmp_path / "scaling.json"
    arguments = "--widths 128 256 --d-in 8 --batch 16 --rounds 1".split()
    assert scaling.main([*arguments, "--json", str(path)]) == 0
    parts = json.loads(path.read_text())["parts"]
    assert set(parts) == {"penalty", "statistics", "refresh", "penalty + statistics"}
