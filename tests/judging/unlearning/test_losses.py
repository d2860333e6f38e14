"""Families, their settings near the frontier, and what is read there, against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from torch import Tensor

from saelens_adaptive_ortho.judging.unlearning import families, losses
from saelens_adaptive_ortho.judging.unlearning.clamps import Clamp, Intervention, Projection
from saelens_adaptive_ortho.judging.unlearning.families import Family, Setting
from saelens_adaptive_ortho.judging.unlearning.selection import Selection, Statistics
from saelens_adaptive_ortho.maths.erasure import Moments
from saelens_adaptive_ortho.maths.frontier import resampling_weights

NO_CLAMP = Clamp(torch.arange(3), -torch.ones(3))


def nothing(strength: float) -> Intervention:
    return NO_CLAMP


def family(n_paths: int, strengths: list[float], largest: float = float("inf")) -> Family:
    paths: list[Callable[[float], Intervention]] = [nothing] * n_paths
    return Family(paths, strengths, largest)


def test_fine_settings_surround_each_budget() -> None:
    """For each budget, strengths of the best path lie on both sides of the budget."""
    strengths = [2.0, 8.0, 32.0]
    s = torch.tensor(strengths)
    # Path 0 is better at small costs, path 1 at large ones; costs grow as s^2 and s^1.5.
    cost = torch.cat([1e-3 * s**2, 1e-3 * s**1.5])
    gain = torch.cat([0.2 * s**0.5, 0.05 * s])
    chosen = family(2, strengths).near_frontier(cost, gain, (0.01, 0.1))
    by_path = {p: [f.strength for f in chosen if f.path == p] for p in (0, 1)}
    meeting = (0.01 / 1e-3) ** 0.5, (0.1 / 1e-3) ** (1 / 1.5)
    for path, at in enumerate(meeting):
        assert by_path[path] == sorted(by_path[path])
        assert by_path[path][0] < at < by_path[path][-1]
        assert by_path[path][0] > at / 6
        assert by_path[path][-1] < at * 2.1


def test_bounded_strengths_end_at_one() -> None:
    cost, gain = torch.tensor([0.01, 0.03]), torch.tensor([0.5, 1.0])
    chosen = family(1, [0.5, 1.0], 1.0).near_frontier(cost, gain, (0.05, 0.2))
    assert [f.strength for f in chosen] == pytest.approx([0.25, 0.5, 0.5**0.5, 1.0])


def linear(slope: float, spread: float = 0.0, n: int = 40) -> Tensor:
    """Damage in proportion to the strength, for two paths with strengths 1 and 2."""
    units = 1 + spread * torch.randn(n, generator=torch.Generator().manual_seed(0))
    return torch.stack([s * slope * units for s in (1.0, 2.0)])


SWEEP = [Setting(0, 1.0, NO_CLAMP), Setting(0, 2.0, NO_CLAMP)]


def test_other_corpora_are_read_at_the_frontier() -> None:
    """Retain pays 0.1 and forget loses 3 per unit of strength, so a budget of 0.05 is at 0.5."""
    increases = {
        "forget": linear(3.0),
        "retain": linear(0.1),
        "near": linear(0.6),
        "forget_test": linear(1.5),
    }
    found = losses.read(SWEEP, increases, 20).metrics
    for budget in (0.05, 0.10, 0.20):
        strength = budget / 0.1
        for name, slope in (("forget", 3.0), ("near", 0.6), ("transfer", 1.5)):
            key = f"{name}_damage_at_{budget:.2f}"
            assert found[key] == pytest.approx(strength * slope, rel=1e-5)
            assert found[f"{key}_halfwidth"] == pytest.approx(0, abs=1e-6)
        assert found[f"near_per_forget_damage_at_{budget:.2f}"] == pytest.approx(0.2)
        assert found[f"transfer_per_forget_damage_at_{budget:.2f}"] == pytest.approx(0.5)
    # Forget loses 2 nats at strength 2/3.
    for name, slope in (("retain", 0.1), ("near", 0.6), ("transfer", 1.5)):
        assert found[f"{name}_damage_at_forget_2"] == pytest.approx(2 / 3 * slope)
    assert found["area"] == pytest.approx(3.0, rel=1e-5)


def test_kept_frontier_costs_what_the_worst_corpus_loses() -> None:
    """Near pays 0.6 and forget loses 3 per unit of strength; retain pays less than near."""
    increases = {
        "forget": linear(3.0),
        "retain": linear(0.1),
        "near": linear(0.6),
        "unseen": linear(9.0),
    }
    found = losses.read(SWEEP, increases, 20, ["retain", "near"]).metrics
    for budget in (0.05, 0.10, 0.20):
        key = f"kept_forget_damage_at_{budget:.2f}"
        assert found[key] == pytest.approx(budget / 0.6 * 3, rel=1e-5)
        assert found[f"{key}_halfwidth"] == pytest.approx(0, abs=1e-6)
    assert found["kept_damage_at_forget_2"] == pytest.approx(2 / 3 * 0.6)
    for alone in (["retain"], []):
        assert not any("kept" in key for key in losses.read(SWEEP, increases, 20, alone).metrics)


def test_replicates_are_read_at_their_own_points() -> None:
    """A replicate with a cheap retain corpus reaches a larger strength, and more near damage."""
    cost, near = linear(0.2, 0.3), linear(0.5, 0.3)
    found = losses.read(SWEEP, {"forget": linear(3.0), "retain": cost, "near": near}, 30)
    retain, near_draws = (resampling_weights(40, 30, losses.SEED + k).float() for k in (0, 2))
    strength = 0.1 / (retain @ cost[0])
    expected = strength * (near_draws @ near[0])
    torch.testing.assert_close(
        found.replicates["near_damage_at_0.10"].float(), expected, rtol=1e-4, atol=0
    )
    low, high = torch.quantile(expected, torch.tensor([0.025, 0.975])).tolist()
    halfwidth = found.metrics["near_damage_at_0.10_halfwidth"]
    assert halfwidth == pytest.approx((high - low) / 2, rel=1e-3)


def test_fixed_damage_that_is_not_reached_is_left_out() -> None:
    found = losses.read(SWEEP, {"forget": linear(0.5), "retain": linear(0.1)}, 5).metrics
    assert not any("at_forget" in key for key in found)


def test_ratio_to_no_damage_is_left_out() -> None:
    increases = {"forget": linear(-1.0), "retain": linear(0.1), "near": linear(0.1)}
    found = losses.read(SWEEP, increases, 5).metrics
    assert found["forget_damage_at_0.10"] == 0
    assert "near_per_forget_damage_at_0.10" not in found


@pytest.mark.parametrize(("slope", "expected"), [(3.0, [2 / 3 * 0.1]), (0.5, []), (20.0, [0.01])])
def test_cost_of_the_fixed_damage_is_a_budget(slope: float, expected: list[float]) -> None:
    cost, gain = torch.tensor([0.1, 0.2]), torch.tensor([slope, 2 * slope])
    budgets = losses.budgets_for(SWEEP, cost, gain)
    assert budgets == [0.05, 0.10, 0.20, *(pytest.approx(e) for e in expected)]


# ------------------------------------------------------------------ bounded


def test_bounded_family_removes_the_decoder_rows_in_ranking_order() -> None:
    sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=3))
    rows = torch.tensor([[0.0, 0.0, 2.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]])
    with torch.no_grad():
        sae.W_dec.copy_(rows)
    mean = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    # Retain varies most along the first axis, so this direction is left alone the second time.
    retain = Moments(mean, torch.diag(torch.tensor([9.0, 1.0, 1.0, 0.5])).double())
    zero = torch.zeros(3)
    found = Statistics(zero, zero, zero, zero, zero, retain, retain)
    ranking = {"forget > 9 x retain": torch.tensor([1, 0]), "retain < 0.01": torch.tensor([2])}
    chosen = families.bounded(
        sae, Selection(found, ranking, ranking["retain < 0.01"], None), [1, 2, 9]
    )
    bases = []
    for setting in chosen.coarse:
        projection = setting.intervention
        assert isinstance(projection, Projection)
        assert torch.equal(projection.centre, mean)
        if setting.strength == 1.0:
            bases.append(projection.erasure.back)
    root = 0.5**0.5
    expected = [
        [[root, root, 0, 0]],
        [[root, root, 0, 0], [0, 0, 1, 0]],
        [[0, 1, 0, 0]],
        [[0, 1, 0, 0], [0, 0, 1, 0]],
    ]
    assert len(bases) == len(expected)
    for basis, wanted in zip(bases, expected, strict=True):
        torch.testing.assert_close(basis, torch.tensor(wanted).double())
    assert chosen.largest == 1.0
