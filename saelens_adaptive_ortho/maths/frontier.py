"""The frontier of an intervention: its largest gain at each cost, with bootstrap intervals.

An intervention on one set of latents has a strength. As the strength grows, the intervention traces
a path from (0, 0) in the plane of cost (on the retained text) and gain (on the text to forget).
The path is assumed to be straight between measured strengths. The frontier at a budget ``b`` is the
largest gain on any path at a cost of at most ``b``:

    F(b) = max { gain(p, s) : cost(p, s) <= b },  F(b) >= 0 (no intervention)

The point on a path where the largest gain is reached lies between two measured settings
(:class:`Points`). Any other quantity, such as the damage on a third text, is read at the same
point.
:func:`cheapest` asks the converse: the smallest cost of a given gain.

Cost and gain are means over units (passages or questions). The bootstrap resamples the units. It
uses the same draws for every SAE, so that the replicates of two SAEs can be subtracted one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths import typed


class Points(NamedTuple):
    """Points on straight pieces between two settings: ``(1 - share) * first + share * second``.

    A setting is named by its index plus one; 0 means no intervention, whose value is zero.

    Attributes:
        first: the setting at the beginning of the piece.
        second: the setting at its end.
        share: position on the piece, from 0 to 1.
    """

    first: Int[Tensor, "b n"]
    second: Int[Tensor, "b n"]
    share: Float[Tensor, "b n"]

    def read(self, values: Float[Tensor, "b n_settings"]) -> Float[Tensor, "b n"]:
        """The value of another quantity at each point.

        Args:
            values: the quantity under each setting; one row for each row of points.
        """
        zero = torch.zeros(len(values), 1, dtype=values.dtype)
        values = torch.cat([zero, values], 1)
        first, second = values.gather(1, self.first), values.gather(1, self.second)
        return first + self.share * (second - first)


@dataclass(frozen=True)
class Frontier:
    """Frontier values at ``budgets``, for the data and for each bootstrap replicate.

    Args:
        budgets: largest costs allowed.
        gain: frontier of the data.
        replicates: frontiers of the bootstrap replicates, one row for each.
        points: where the gain is reached; the first row is the data, the others the replicates.
    """

    budgets: Float[Tensor, " n"]
    gain: Float[Tensor, " n"]
    replicates: Float[Tensor, "b n"]
    points: Points

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
    """Percentile bootstrap interval.

    Raises:
        ValueError: no replicates, or ``level`` outside (0, 1).
    """
    if not len(replicates):
        raise ValueError("replicates must hold at least one row.")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    tail = (1 - level) / 2
    return torch.quantile(replicates, torch.tensor([tail, 1 - tail]).to(replicates), dim=0)


def resampling_weights(n_units: int, replicates: int, seed: int) -> Float[Tensor, "b n_units"]:
    """Bootstrap weights: how often replicate ``r`` draws each unit, divided by ``n_units``.

    The result depends only on the arguments, not on the global RNG.

    Raises:
        ValueError: ``n_units`` below 1.
    """
    if n_units < 1:
        raise ValueError(f"n_units must be at least 1, got {n_units}.")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(n_units, (replicates, n_units), generator=generator)
    counts = torch.zeros(replicates, n_units, dtype=torch.float64)
    counts.scatter_add_(1, draws, torch.ones_like(counts))
    return counts / n_units


def resampled_means(
    values: Float[Tensor, "n_settings n_units"], replicates: int, seed: int
) -> Float[Tensor, "rows n_settings"]:
    """The mean of each setting over the units: first of the data, then of each replicate."""
    n = values.shape[1]
    data = torch.full((1, n), 1 / n, dtype=torch.float64)
    return torch.cat([data, resampling_weights(n, replicates, seed)]) @ values.double().T


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
    costs = resampled_means(cost, replicates, seed)
    gains = resampled_means(gain, replicates, seed + 1)
    values, points = envelope(costs, gains, paths, budgets.double())
    return Frontier(budgets, values[0].float(), values[1:].float(), points)


def envelope(
    costs: Float[Tensor, "b n_settings"],
    gains: Float[Tensor, "b n_settings"],
    paths: Int[Tensor, " n_settings"],
    budgets: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "b n"], Points]:
    """``F(b)`` for each row of costs and gains, and the points where it is reached."""
    best, points = _highest(costs, gains, paths, budgets)
    return best.clamp(min=0), points


def cheapest(
    costs: Float[Tensor, "b n_settings"],
    gains: Float[Tensor, "b n_settings"],
    paths: Int[Tensor, " n_settings"],
    targets: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "b n"], Points]:
    """``min { cost(p, s) : gain(p, s) >= target }`` for each row, and the points where it is.

    The cost is infinite where no point on any path reaches the target. The point is then no
    intervention.
    """
    best, points = _highest(-gains, -costs, paths, -targets)
    return -best, points


def _highest(
    x: Float[Tensor, "b n_settings"],
    y: Float[Tensor, "b n_settings"],
    paths: Int[Tensor, " n_settings"],
    limits: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "b n"], Points]:
    """``max { y : x <= limit }`` over all points of the paths; ``-inf`` where there is none."""
    size = (len(x), len(limits))
    best = torch.full(size, -torch.inf, dtype=x.dtype)
    first, second = torch.zeros(2, *size, dtype=torch.int64)
    where = torch.zeros(size, dtype=x.dtype)
    origin = torch.zeros(len(x), 1, dtype=x.dtype)
    x, y = torch.cat([origin, x], 1), torch.cat([origin, y], 1)
    for path in typed.distinct(paths):
        numbers = [0, *typed.indices(1 + (paths == path).nonzero().flatten())]
        for start, end in zip(numbers, numbers[1:], strict=False):
            x0, x1, y0, y1 = (t[:, None] for t in (x[:, start], x[:, end], y[:, start], y[:, end]))
            # The point where the straight piece reaches the limit, as a share of its length.
            share = ((limits - x0) / torch.where(x1 == x0, 1.0, x1 - x0)).clamp(0, 1)
            for reached, at in (
                (x0 <= limits, torch.zeros_like(share)),
                (x1 <= limits, torch.ones_like(share)),
                ((x0 <= limits) != (x1 <= limits), share),
            ):
                value = y0 + at * (y1 - y0)
                better = reached & (value > best)
                best = torch.where(better, value, best)
                where = torch.where(better, at, where)
                first = torch.where(better, start, first)
                second = torch.where(better, end, second)
    return best, Points(first, second, where)
