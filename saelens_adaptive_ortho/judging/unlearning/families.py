"""Families of interventions: sets of latents to clamp, spans to remove, each at many strengths.

A family has *paths*. A path is an intervention whose strength grows from zero. A coarse sweep over
all paths finds the settings near the frontier on training text; they are measured in finer steps on
held-out text.

- The *gated* family clamps latents where they fire, to a multiple of their mean activation.
- The *bounded* family removes directions at every token: ``x - s (x - mu) P``, where mu is the mean
  of the retain side, ``0 < s <= 1``, and P projects onto the span of the decoder rows of the first
  r latents of a ranking. Each span also comes without its part in the leading directions of the
  retain side (:data:`RETAIN_SPAN`). The activations cannot leave the region between x and its
  projection, so that damage comes from what is removed and not from a large push.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.judging.unlearning.clamps import Clamp, Intervention, Projection
from saelens_adaptive_ortho.judging.unlearning.selection import Selection, paths_of
from saelens_adaptive_ortho.maths import frontier as frontiers
from saelens_adaptive_ortho.maths.erasure import (
    Erasure,
    leading_directions,
    orthonormal_basis,
    removed,
)

BOUNDED_STRENGTHS = (0.5, 1.0)
# Share of the retain side's variance in the directions that are left alone. Of .25, .5, .75 and .9,
# it is the best one for a plain SAE on local text.
RETAIN_SPAN = 0.75


class Setting(NamedTuple):
    """A point of a sweep: a path, a strength, and the intervention they give."""

    path: int
    strength: float
    intervention: Intervention

    def plain(self) -> list[float | None]:
        """What a result file holds of it: number of latents or directions, strength, and gate."""
        edit = self.intervention
        n = len(edit.latents) if isinstance(edit, Clamp) else None
        n = len(edit.erasure.back) if isinstance(edit, Projection) else n
        gate = getattr(edit, "gate", None)
        return [n, _short(self.strength), None if gate is None else _short(gate)]


@dataclass(frozen=True)
class Family:
    """Interventions of one kind.

    Args:
        paths: each path gives the intervention of a strength.
        strengths: strengths of the coarse sweep, rising.
        largest: the largest strength allowed.
    """

    paths: Sequence[Callable[[float], Intervention]]
    strengths: Sequence[float]
    largest: float = math.inf

    def at(self, path: int, strength: float) -> Setting:
        """The intervention of ``path`` with a strength."""
        return Setting(path, strength, self.paths[path](strength))

    @property
    def coarse(self) -> list[Setting]:
        """Every path at every strength."""
        return [self.at(p, s) for p, s in itertools.product(range(len(self.paths)), self.strengths)]

    def near_frontier(
        self,
        cost: Float[Tensor, " n"],
        gain: Float[Tensor, " n"],
        budgets: Iterable[float],
    ) -> list[Setting]:
        """Settings near the frontier, given the cost and the gain of :attr:`coarse`.

        For each budget, the best path is chosen. Its strengths lie on a grid with steps of a factor
        ``sqrt(2)``. They reach from one step below the strength at which the path's cost meets the
        smallest budget that the path is best at, to one step above that of the largest such budget.
        Two weaker strengths, of a half and a quarter, are for held-out text on which the path costs
        more.
        """
        n = len(self.strengths)
        limits = torch.tensor(sorted(budgets), dtype=cost.dtype)
        one = torch.zeros(n, dtype=torch.int64)
        reached = torch.cat(
            [
                frontiers.envelope(c[None], g[None], one, limits)[0]
                for c, g in zip(cost.split(n), gain.split(n), strict=True)
            ]
        )
        best_at: dict[int, list[float]] = {}
        for path, budget in zip(reached.argmax(0).tolist(), limits.tolist(), strict=True):
            best_at.setdefault(path, []).append(budget)
        chosen: set[tuple[int, float]] = set()
        for path, path_budgets in best_at.items():
            costs = cost[path * n : (path + 1) * n]
            first, last = (
                round(2 * math.log2(_strength_at_budget(self.strengths, costs, budget)))
                for budget in (path_budgets[0], path_budgets[-1])
            )
            steps = {first - 4, first - 2, *range(first - 1, last + 2)}
            grid = (2 ** (k / 2) for k in steps)
            chosen |= {(path, min(s, self.largest)) for s in grid}
        return [self.at(*setting) for setting in sorted(chosen)]


def _strength_at_budget(
    strengths: Sequence[float], cost: Float[Tensor, " n"], budget: float
) -> float:
    """The strength at which a path's cost first exceeds the budget.

    Between two measured strengths, the cost is interpolated as a power of the strength.
    """
    before, cost_before = 0.0, 0.0
    for strength, at in zip(strengths, cost.tolist(), strict=True):
        if at > budget:
            if cost_before <= 0 or budget <= 0:
                return max(strength * budget / at, strengths[0] / 4)
            share = math.log(budget / cost_before) / math.log(at / cost_before)
            return before * (strength / before) ** share
        before, cost_before = strength, at
    return strengths[-1]


def gated(
    selection: Selection,
    paths: Sequence[Int[Tensor, " n"]],
    strengths: Iterable[float],
    everywhere: bool = False,
) -> Family:
    """Clamp each set of latents to ``-strength`` times their mean activation.

    Args:
        selection: the latents, with the gates of their clamps.
        paths: sets of latents.
        strengths: strengths of the coarse sweep.
        everywhere: act wherever a latent fires, without a gate.
    """
    scale = selection.statistics.scale

    def path(latents: Tensor) -> Callable[[float], Intervention]:
        gate = None if everywhere else selection.gate(latents)
        return lambda strength: Clamp(latents, -strength * scale[latents], gate)

    return Family([path(p) for p in paths], sorted(strengths))


class Span(NamedTuple):
    """Directions of a bounded intervention, and the latents that they come from.

    Attributes:
        latents: latents whose decoder rows span the directions.
        basis: orthonormal directions.
    """

    latents: Int[Tensor, " r"]
    basis: Float[Tensor, "r d_in"]


def spans(sae: SAE[Any], selection: Selection, ranks: Iterable[int]) -> list[Span]:
    """The spans of the decoder rows of the first r latents of each ranking by a ratio.

    Rows are orthonormalised in the order of the ranking. The same spans follow without their part
    in the leading directions of the retain side, which hold three quarters of its variance.
    """
    ranks = list(ranks)
    kept = leading_directions(selection.statistics.retain.covariance, RETAIN_SPAN)
    found = []
    for latents in paths_of(selection.by_ratio, [max(ranks)]):
        rows = sae.W_dec[latents].detach().cpu().double().flatten(1)
        for basis in (orthonormal_basis(rows), orthonormal_basis(removed(rows, kept))):
            found += [Span(latents[:r], basis[:r]) for r in distinct_ranks(basis, ranks)]
    return found


def bounded(
    sae: SAE[Any],
    selection: Selection,
    ranks: Iterable[int],
) -> Family:
    """Remove each of the :func:`spans`."""
    return span_removals(spans(sae, selection, ranks), selection)


def span_removals(found: Iterable[Span], selection: Selection) -> Family:
    """A path for each span, in the same order."""
    removals = [Erasure.onto(span.basis) for span in found]
    return erasures(removals, selection.statistics.retain.mean, BOUNDED_STRENGTHS, 1.0)


def projections(
    bases: Iterable[Float[Tensor, "n d_in"]], ranks: Iterable[int], centre: Float[Tensor, " d_in"]
) -> Family:
    """Remove the first r directions of each basis, for each rank r, at strengths up to 1."""
    ranks = list(ranks)
    found = [Erasure.onto(basis[:r]) for basis in bases for r in distinct_ranks(basis, ranks)]
    return erasures(found, centre, BOUNDED_STRENGTHS, 1.0)


def distinct_ranks(basis: Float[Tensor, "n d_in"], ranks: Iterable[int]) -> list[int]:
    """The ranks above 0 that a basis has, rising."""
    return sorted({min(r, len(basis)) for r in ranks} - {0})


def erasures(
    found: Sequence[Erasure],
    centre: Float[Tensor, " d_in"],
    strengths: Iterable[float],
    largest: float,
) -> Family:
    """A path for each erasure."""

    def path(erasure: Erasure) -> Callable[[float], Intervention]:
        return lambda strength: Projection(erasure, centre, strength)

    return Family([path(e) for e in found], sorted(strengths), largest)


def _short(value: float) -> float:
    """The value with four significant digits."""
    return float(f"{value:.4g}")
