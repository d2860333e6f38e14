"""The frontier of an intervention: its largest gain at each cost, with bootstrap intervals.

An intervention on one set of latents has a strength. As the strength grows, the intervention traces
a path from (0, 0) in the plane of cost (on the retained text) and gain (on the text to forget).
The path is assumed to be straight between measured strengths. The frontier at a budget ``b`` is the
largest gain on any path at a cost of at most ``b``:

    F(b) = max { gain(p, s) : cost(p, s) <= b },  F(b) >= 0 (no intervention)

Cost and gain are means over units (passages or questions). The bootstrap resamples the units. It
uses the same draws for every SAE, so that the replicates of two SAEs can be subtracted one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths import typed


@dataclass(frozen=True)
class Frontier:
    """Frontier values at ``budgets``, for the data and for each bootstrap replicate.

    Args:
        budgets: largest costs allowed.
        gain: frontier of the data.
        replicates: frontiers of the bootstrap replicates, one row for each.
    """

    budgets: Float[Tensor, " n"]
    gain: Float[Tensor, " n"]
    replicates: Float[Tensor, "b n"]

    def at(self, budget: float) -> tuple[float, Float[Tensor, " b"]]:
        """The gain at a budget of the grid, and its replicates."""
        index = int((self.budgets - budget).abs().argmin())
        return float(self.gain[index]), self.replicates[:, index]

    def area(self, low: float, high: float) -> tuple[float, Float[Tensor, " b"]]:
        """The mean gain over budgets in ``[low, high]`` (trapezoid rule), and its replicates."""
        inside = (self.budgets >= low - 1e-9) & (self.budgets <= high + 1e-9)
        x = self.budgets[inside]
        width = float(x[-1] - x[0])
        return (
            float(torch.trapezoid(self.gain[inside], x)) / width,
            torch.trapezoid(self.replicates[:, inside], x, dim=1) / width,
        )

    def band(self, level: float = 0.95) -> Float[Tensor, "2 n"]:
        """Percentile interval of the replicates at each budget."""
        return interval(self.replicates, level)


def interval(replicates: Float[Tensor, "b ..."], level: float = 0.95) -> Float[Tensor, "2 ..."]:
    """Percentile bootstrap interval."""
    tail = (1 - level) / 2
    return torch.quantile(replicates, torch.tensor([tail, 1 - tail]).to(replicates), dim=0)


def resampling_weights(n_units: int, replicates: int, seed: int) -> Float[Tensor, "b n_units"]:
    """Bootstrap weights: how often replicate ``r`` draws each unit, divided by ``n_units``.

    The result depends only on the arguments, not on the global RNG.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(n_units, (replicates, n_units), generator=generator)
    counts = torch.zeros(replicates, n_units, dtype=torch.float64)
    counts.scatter_add_(1, draws, torch.ones_like(counts))
    return counts / n_units


def frontier(
    cost: Float[Tensor, "n_settings n_cost"],
    gain: Float[Tensor, "n_settings n_gain"],
    paths: Int[Tensor, " n_settings"],
    budgets: Float[Tensor, " n"],
    replicates: int = 400,
    seed: int = 0,
) -> Frontier:
    """The frontier of settings whose cost and gain are known for each unit.

    Args:
        cost: cost of each setting on each unit (for example, the loss increase on a retain
            passage).
        gain: gain of each setting on each unit. Its units differ from those of ``cost``.
        paths: the path of each setting. Settings of one path are in order of strength, and the
            path begins at no intervention, (0, 0).
        budgets: costs at which the frontier is read.
        replicates: number of bootstrap replicates.
        seed: seed of the resampling.
    """
    weights = [
        torch.cat([torch.full((1, n), 1 / n, dtype=torch.float64), w])
        for n, w in (
            (cost.shape[1], resampling_weights(cost.shape[1], replicates, seed)),
            (gain.shape[1], resampling_weights(gain.shape[1], replicates, seed + 1)),
        )
    ]
    costs, gains = weights[0] @ cost.double().T, weights[1] @ gain.double().T
    values = envelope(costs, gains, paths, budgets.double())
    return Frontier(budgets, values[0].float(), values[1:].float())


def envelope(
    costs: Float[Tensor, "b n_settings"],
    gains: Float[Tensor, "b n_settings"],
    paths: Int[Tensor, " n_settings"],
    budgets: Float[Tensor, " n"],
) -> Float[Tensor, "b n"]:
    """``F(b)`` for each row of costs and gains."""
    best = torch.zeros(len(costs), len(budgets), dtype=costs.dtype)
    for path in typed.distinct(paths):
        chosen = paths == path
        origin = torch.zeros(len(costs), 1, dtype=costs.dtype)
        c = torch.cat([origin, costs[:, chosen]], 1)
        g = torch.cat([origin, gains[:, chosen]], 1)
        for k in range(c.shape[1] - 1):
            c0, c1, g0, g1 = (t[:, None] for t in (c[:, k], c[:, k + 1], g[:, k], g[:, k + 1]))
            # The point where the straight piece reaches the budget, as a share of its length.
            share = ((budgets - c0) / torch.where(c1 == c0, 1.0, c1 - c0)).clamp(0, 1)
            meeting = g0 + share * (g1 - g0)
            for reached, value in (
                (c0 <= budgets, g0),
                (c1 <= budgets, g1),
                ((c0 <= budgets) != (c1 <= budgets), meeting),
            ):
                best = torch.where(reached & (value > best), value, best)
    return best
