"""Absorption candidates: pairs of latents with similar directions that never fire together.

In feature absorption, a general latent stays silent exactly where a specific latent fires, and the
direction of the specific latent contains part of the general direction (Chanin et al. 2024). Such
pairs are similar and mutually exclusive. Latents for two meanings of one ambiguous token look the
same, so the pairs are only candidates. The texts that activate them must decide.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths import typed
from saelens_adaptive_ortho.maths.neighbours import top_similar


class Pairs(NamedTuple):
    """Unordered pairs of latents, most similar first."""

    indices: Int[Tensor, "n_pairs 2"]
    cosines: Float[Tensor, " n_pairs"]


class PairCounts(NamedTuple):
    """Number of tokens seen, tokens on which each latent fired, and tokens on which both fired."""

    n_tokens: int
    fired: Int[Tensor, " d_sae"]
    both: Int[Tensor, " n_pairs"]


class Candidate(NamedTuple):
    """A similar pair that fires together at most ``lift`` times as often as chance."""

    frequent: int
    rare: int
    cosine: float
    lift: float
    rate_frequent: float
    rate_rare: float
    expected: float


def similar_pairs(
    directions: Float[Tensor, "d_sae d_in"], min_cosine: float, m: int = 8, limit: int = 2000
) -> Pairs:
    """Pairs with ``c_ij >= min_cosine`` among each latent's ``m`` nearest, at most ``limit``.

    The cost is ``d_sae^2 * d_in``, in blocks; memory is linear in d_sae.
    """
    neighbours, cosines = top_similar(directions, min(m, len(directions) - 1))
    latents = torch.arange(len(directions), device=directions.device).unsqueeze(1)
    pairs = torch.stack([latents.expand_as(neighbours), neighbours], -1).flatten(0, 1)
    cosines = cosines.flatten()
    pairs, cosines = pairs[cosines >= min_cosine], cosines[cosines >= min_cosine]
    pairs, first = _unique(pairs.sort(dim=1).values)
    cosines = cosines[first]
    order = cosines.argsort(descending=True, stable=True)[:limit]
    return Pairs(pairs[order], cosines[order])


def _unique(
    pairs: Int[Tensor, "n 2"],
) -> tuple[Int[Tensor, "k 2"], Int[Tensor, " k"]]:
    """Distinct rows, and the index of the first occurrence of each."""
    found, inverse = typed.distinct_rows(pairs)
    first = torch.full((len(found),), len(pairs), device=pairs.device)
    places = torch.arange(len(pairs), device=pairs.device)
    return found, first.scatter_reduce(0, inverse, places, "amin")


def count_pairs(
    counts: PairCounts, active: Bool[Tensor, "n d_sae"], pairs: Int[Tensor, "n_pairs 2"]
) -> PairCounts:
    """Counts with one more batch of firings."""
    both = (active[:, pairs[:, 0]] & active[:, pairs[:, 1]]).sum(0)
    return PairCounts(
        counts.n_tokens + len(active), counts.fired + active.sum(0), counts.both + both
    )


def lifts(counts: PairCounts, pairs: Int[Tensor, "n_pairs 2"]) -> Float[Tensor, " n_pairs"]:
    """``P(i, j) / (P(i) P(j))``: 1 for independent latents, 0 for mutually exclusive ones.

    It is NaN if one of the two never fired.
    """
    fired = counts.fired.double()
    product = fired[pairs[:, 0]] * fired[pairs[:, 1]]
    return counts.both.double() * counts.n_tokens / torch.where(product > 0, product, torch.nan)


def absorption_candidates(
    counts: PairCounts, pairs: Pairs, max_lift: float = 0.25, min_expected: float = 5.0
) -> list[Candidate]:
    """Pairs whose lift is at most ``max_lift``, most similar first.

    A pair counts only if independent latents would fire together on at least ``min_expected``
    tokens. Two rare latents that never fired together need not exclude each other.
    """
    lift = lifts(counts, pairs.indices)
    rates = counts.fired.double() / max(1, counts.n_tokens)
    expected = rates[pairs.indices].prod(1) * counts.n_tokens
    found: list[Candidate] = []
    for row in typed.indices(((lift <= max_lift) & (expected >= min_expected)).nonzero().flatten()):
        i, j = typed.indices(pairs.indices[row])
        frequent, rare = (i, j) if rates[i] >= rates[j] else (j, i)
        found.append(
            Candidate(
                frequent,
                rare,
                float(pairs.cosines[row]),
                float(lift[row]),
                float(rates[frequent]),
                float(rates[rare]),
                float(expected[row]),
            )
        )
    return found
