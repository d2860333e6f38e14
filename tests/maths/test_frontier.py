"""The frontier of an intervention against brute force and closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saelens_adaptive_ortho.maths.frontier import (
    cheapest,
    envelope,
    frontier,
    interval,
    resampled_means,
    resampling_weights,
)


def brute_force(costs: Tensor, gains: Tensor, paths: Tensor, budgets: Tensor) -> Tensor:
    """Walk every path in tiny steps and keep the best gain within each budget."""
    best = torch.zeros(len(budgets), dtype=torch.float64)
    for path in paths.unique():
        points = torch.stack([costs[paths == path], gains[paths == path]], 1)
        points = torch.cat([torch.zeros(1, 2, dtype=torch.float64), points])
        for start, end in zip(points[:-1], points[1:], strict=True):
            walk = start + torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None] * (end - start)
            allowed = walk[:, :1] <= budgets
            best = torch.maximum(best, torch.where(allowed, walk[:, 1:], 0.0).amax(0))
    return best


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_envelope_equals_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Costs fall and rise and may be negative, as measured ones do.
    costs, gains = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    paths = torch.tensor([0, 0, 0, 1, 1, 2])
    budgets = torch.linspace(0, 1.5, 7, dtype=torch.float64)
    exact = envelope(costs[None], gains[None], paths, budgets)[0][0]
    walked = brute_force(costs, gains, paths, budgets)
    assert (exact >= walked - 1e-12).all()
    torch.testing.assert_close(exact, walked, atol=5e-3, rtol=0)


def walk(values: list[Tensor], paths: Tensor, steps: int = 2001) -> Tensor:
    """Values of several quantities at many points of every path, one row per point."""
    found = []
    share = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    for path in paths.unique():
        points = torch.stack([v[paths == path] for v in values], 1)
        points = torch.cat([torch.zeros(1, len(values), dtype=torch.float64), points])
        found += [a + share * (b - a) for a, b in zip(points[:-1], points[1:], strict=True)]
    return torch.cat(found)


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_other_quantity_is_read_where_the_frontier_is(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs, gains, others = torch.rand(3, 2, 7, generator=generator, dtype=torch.float64)
    paths = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    budgets = torch.linspace(0.05, 1, 6, dtype=torch.float64)
    best, points = envelope(costs, gains, paths, budgets)
    torch.testing.assert_close(points.read(gains), best)
    assert (points.read(costs) <= budgets + 1e-12).all()
    read = points.read(others)
    for row in range(2):
        walked = walk([costs[row], gains[row], others[row]], paths)
        for column, budget in enumerate(budgets):
            allowed = walked[walked[:, 0] <= budget]
            near = allowed[:, 1] > best[row, column] - 2e-3
            assert (allowed[near, 2] - read[row, column]).abs().min() < 5e-3


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_cheapest_equals_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs, gains = torch.rand(2, 7, generator=generator, dtype=torch.float64)
    paths = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    targets = torch.linspace(0.1, 1.2, 6, dtype=torch.float64)
    found, points = cheapest(costs[None], gains[None], paths, targets)
    walked = walk([costs, gains], paths)
    for column, target in enumerate(targets):
        allowed = walked[walked[:, 1] >= target]
        if not len(allowed):
            assert found[0, column] == torch.inf
            assert points.read(costs[None])[0, column] == 0
            continue
        assert float(found[0, column]) == pytest.approx(float(allowed[:, 0].min()), abs=2e-3)
        torch.testing.assert_close(points.read(costs[None])[0, column], found[0, column])


def test_replicates_are_read_at_their_own_points() -> None:
    """Each replicate has its own draw, and so its own point on the path."""
    generator = torch.Generator().manual_seed(3)
    cost, gain, other = torch.rand(3, 4, 25, generator=generator)
    paths, budgets = torch.tensor([0, 0, 1, 1]), torch.tensor([0.2, 0.4])
    found = frontier(cost, gain, paths, budgets, replicates=5, seed=7)
    others = resampled_means(other, 5, 9)
    read = found.points.read(others)
    assert read.shape == (6, 2)
    weights = resampling_weights(25, 5, 9)
    torch.testing.assert_close(others[3], (weights[2] * other.double()).sum(1))
    torch.testing.assert_close(others[0], other.double().mean(1))
    costs, gains = resampled_means(cost, 5, 7), resampled_means(gain, 5, 8)
    _, points = envelope(costs[3:4], gains[3:4], paths, budgets.double())
    torch.testing.assert_close(points.read(others[3:4])[0], read[3])


def test_straight_path_gives_straight_frontier() -> None:
    cost = torch.tensor([[0.1], [0.2]])
    found = frontier(cost, 3 * cost, torch.tensor([0, 0]), torch.linspace(0, 0.4, 5))
    torch.testing.assert_close(found.gain, torch.tensor([0.0, 0.3, 0.6, 0.6, 0.6]))
    assert found.area(0, 0.2)[0] == pytest.approx(0.3)
    assert found.at(0.1)[0] == pytest.approx(0.3)


def test_harmful_intervention_is_not_used() -> None:
    cost, gain = torch.full((1, 4), 0.1), torch.full((1, 4), -1.0)
    found = frontier(cost, gain, torch.tensor([0]), torch.tensor([0.0, 1.0]))
    assert found.gain.tolist() == [0.0, 0.0]


def test_frontier_never_falls_with_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    cost, gain = torch.rand(2, 12, 30, generator=generator)
    paths = torch.arange(12) // 4
    found = frontier(cost, gain, paths, torch.linspace(0, 1, 50))
    assert (found.gain.diff() >= 0).all()
    assert (found.replicates.diff(dim=1) >= 0).all()


def test_equal_units_give_zero_uncertainty() -> None:
    cost, gain = torch.full((1, 20), 0.05), torch.full((1, 30), 2.0)
    found = frontier(cost, gain, torch.tensor([0]), torch.tensor([0.1]))
    torch.testing.assert_close(found.replicates, torch.full((400, 1), 2.0))


def test_interval_width_matches_standard_error() -> None:
    generator = torch.Generator().manual_seed(1)
    gain = torch.randn(1, 400, generator=generator) + 5
    found = frontier(torch.zeros(1, 10), gain, torch.tensor([0]), torch.tensor([0.1]), 2000)
    low, high = interval(found.replicates)[:, 0]
    expected = 1.96 * float(gain.std()) / 20
    assert float(high - low) / 2 == pytest.approx(expected, rel=0.06)
    assert low < found.gain[0] < high


def test_bootstrap_resamples_costs_too() -> None:
    """The gain is certain but its cost is not, and the interval must show this."""
    generator = torch.Generator().manual_seed(2)
    cost = 0.1 + 0.1 * torch.randn(1, 100, generator=generator)
    found = frontier(cost, torch.full((1, 5), 1.0), torch.tensor([0]), torch.tensor([0.05]))
    assert found.band()[1, 0] - found.band()[0, 0] > 0.05


def test_empty_input_is_refused() -> None:
    with pytest.raises(ValueError, match="n_units must be at least 1, got 0"):
        resampling_weights(0, 10, 0)
    with pytest.raises(ValueError, match="replicates must hold at least one row"):
        interval(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="level must lie in"):
        interval(torch.zeros(2, 3), 1.5)


def test_resampling_depends_only_on_seed() -> None:
    torch.manual_seed(1)
    first = resampling_weights(10, 3, seed=5)
    torch.manual_seed(2)
    assert torch.equal(first, resampling_weights(10, 3, seed=5))
    assert not torch.equal(first, resampling_weights(10, 3, seed=6))
    torch.testing.assert_close(first.sum(1), torch.ones(3, dtype=torch.float64))
