"""Groups of latents: ``group_ids [d_sae]`` from co-activation, domains from firing rates.

Both are deterministic functions of the statistics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths import typed
from saelens_adaptive_ortho.maths.neighbours import top_similar

INACTIVE, FORGET, RETAIN, SHARED = -1, 0, 1, 2
# Nearest firing patterns among which a latent looks for others of its group.
GROUP_CANDIDATES = 8
DOMAIN_NAMES = {FORGET: "forget", RETAIN: "retain", SHARED: "shared"}


class GroupSummary(NamedTuple):
    """The numbers that a regrouping logs.

    ``churn`` is the share of latents whose label changed. A group is labelled by its smallest
    member, so all latents of a group that loses this member count as changed.
    """

    n_groups: int
    largest: int
    grouped: int
    churn: float
    forget: int
    retain: int
    shared: int


def domain_groups(
    rates: Float[Tensor, "2 d_sae"], ratio: float = 9.0, min_rate: float = 1e-6
) -> Int[Tensor, " d_sae"]:
    """Forget, retain or shared, from firing rates on the two corpora (row 0 forget, row 1 retain).

    A latent is FORGET if ``P(i | forget) >= ratio * P(i | retain)``, RETAIN if
    ``P(i | retain) >= ratio * P(i | forget)``, INACTIVE if both rates are below ``min_rate``, and
    SHARED otherwise. A ratio of 9 means that on equal amounts of text at least nine in ten firings
    fall on one corpus.

    Raises:
        ValueError: ``ratio`` not above 1, or ``rates`` without exactly two rows or with NaN.
    """
    if not ratio > 1:
        raise ValueError(f"ratio must be above 1, got {ratio}.")
    if rates.shape[0] != 2:
        raise ValueError(f"rates needs a row for forget and one for retain, got {rates.shape[0]}.")
    typed.check_finite("rates", rates)
    forget, retain = rates
    ids = torch.full(forget.shape, SHARED, dtype=torch.int64, device=rates.device)
    ids[forget >= ratio * retain] = FORGET
    ids[retain >= ratio * forget] = RETAIN
    ids[(forget < min_rate) & (retain < min_rate)] = INACTIVE
    return ids


def domain_sharing(
    domain_ids: Int[Tensor, " d_sae"], neighbours: Int[Tensor, "d_sae m"]
) -> Float[Tensor, "d_sae m"]:
    """Factor in [0, 1] on the affinity of a pair: how much sharing the domains permit.

    It is 1 within a domain, 0 between a forget and a retain latent, and 1/2 between a shared latent
    and a latent of one domain. A pair with an inactive latent keeps its affinity (factor 1).
    """
    domain_i = domain_ids.unsqueeze(1)
    domain_j = domain_ids[neighbours]
    factor = torch.ones(neighbours.shape, dtype=torch.float32, device=neighbours.device)
    factor[(domain_i != domain_j) & ((domain_i == SHARED) | (domain_j == SHARED))] = 0.5
    factor[(domain_i == FORGET) & (domain_j == RETAIN)] = 0.0
    factor[(domain_i == RETAIN) & (domain_j == FORGET)] = 0.0
    factor[(domain_i == INACTIVE) | (domain_j == INACTIVE)] = 1.0
    return factor


def coactivation_groups(
    sketches: Float[Tensor, "d_sae r"],
    threshold: float,
    m: int = GROUP_CANDIDATES,
    block_size: int | None = None,
) -> Int[Tensor, " d_sae"]:
    """Connected components of the mutual nearest-neighbour graph over firing patterns.

    Latents i and j are linked when each is among the other's ``m`` nearest sketches and their
    estimated phi correlation is at least ``threshold``. A group is labelled by its smallest
    member. A latent without links is its own group. The cost is d_sae^2 * r, in blocks; memory is
    linear in d_sae.
    """
    n = sketches.shape[0]
    m = min(m, n - 1)
    floor = sketches.new_full((n,), link_floor(threshold))
    indices, similarity = top_similar(sketches, m, block_size, floor)
    return linked_groups(indices, similarity, threshold)


def link_floor(threshold: float) -> float:
    """The similarity from which down no two latents are linked."""
    return max(threshold - 1e-6, 0.0)


def linked_groups(
    indices: Int[Tensor, "d_sae m"], similarity: Float[Tensor, "d_sae m"], threshold: float
) -> Int[Tensor, " d_sae"]:
    """The groups of :func:`coactivation_groups`, from the nearest sketches of each latent.

    Args:
        indices: the m nearest sketches; an entry of similarity -inf is none.
        similarity: the estimated phi correlations with them.
        threshold: smallest correlation of a link.
    """
    n = len(indices)
    itself = torch.arange(n, device=indices.device).unsqueeze(1)
    mutual = (indices[indices] == itself.unsqueeze(2)).any(-1)  # is i in the list of its neighbour?
    # Also required at threshold 0: a latent that never fired has a zero sketch and gets no link.
    linked = mutual & (similarity >= threshold) & (similarity > 0)
    # An unlinked slot points at the latent itself, so it does not change the minimum below.
    targets = torch.where(linked, indices, itself)
    labels = torch.arange(n, device=indices.device)
    while True:  # this ends, because labels only fall and stay >= 0
        spread = torch.minimum(labels, labels[targets].amin(-1))
        spread = spread[spread]  # pointer jumping: distances halve at each sweep
        if torch.equal(spread, labels):
            return labels
        labels = spread


def group_sizes(group_ids: Int[Tensor, " d_sae"]) -> Int[Tensor, " n_groups"]:
    """Sizes of the groups, largest first."""
    return typed.value_counts(group_ids).sort(descending=True).values


def summarise_groups(
    group_ids: Int[Tensor, " d_sae"],
    domain_ids: Int[Tensor, " d_sae"],
    previous: Int[Tensor, " d_sae"],
) -> GroupSummary:
    """Counts for the log. Groups of one latent are not counted as groups."""
    sizes = group_sizes(group_ids)
    real = sizes[sizes > 1]
    return GroupSummary(
        n_groups=len(real),
        largest=int(sizes[0]),
        grouped=int(real.sum()),
        churn=float((group_ids != previous).float().mean()),
        forget=int((domain_ids == FORGET).sum()),
        retain=int((domain_ids == RETAIN).sum()),
        shared=int((domain_ids == SHARED).sum()),
    )
