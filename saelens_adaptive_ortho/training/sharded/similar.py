"""Neighbours and cosines of the latents of a rank, from decoder blocks that travel in a ring."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths.directions import cross_products
from saelens_adaptive_ortho.maths.neighbours import improve_lists
from saelens_adaptive_ortho.training.sharded.layout import Layout


@torch.no_grad()
def ring_top_similar(
    directions: Float[Tensor, "n d"],
    m: int,
    layout: Layout,
    floor: float = float("-inf"),
) -> tuple[Int[Tensor, "n m"], Float[Tensor, "n m"]]:
    """:func:`~saelens_adaptive_ortho.maths.neighbours.top_similar` for the latents of this rank.

    The lists name latents of all ranks. Each rank computes the similarities of its own rows with
    every block, ``d_sae^2 * d / size`` multiply-adds.

    Args:
        directions: the directions of this rank.
        m: length of a list.
        layout: which latents these are.
        floor: smaller similarities are not listed. A shorter list ends in entries of value -inf.
    """
    values = directions.new_full((layout.n, m), float("-inf"))
    indices = torch.zeros(layout.n, m, dtype=torch.long, device=directions.device)
    for owner, block in layout.ranks.around(directions):
        itself = 0 if owner == layout.ranks.rank else None
        improve_lists(values, indices, directions, block, owner * layout.n, floor, itself)
    return indices, values


@torch.no_grad()
def ring_cosines(
    directions: Float[Tensor, "n d"], neighbours: Int[Tensor, "n m"], layout: Layout
) -> Float[Tensor, "n m"]:
    """``c_ij`` of the latents of this rank with candidates of all ranks.

    Args:
        directions: the unit directions of this rank.
        neighbours: the candidates of its latents, by their numbers among all latents.
        layout: which latents these are.
    """
    flat = neighbours.flatten()
    latents = torch.arange(layout.n, device=flat.device).repeat_interleave(neighbours.shape[1])
    owners = flat // layout.n
    found = directions.new_empty(len(flat))
    for owner, block in layout.ranks.around(directions):
        here = (owners == owner).nonzero().squeeze(1)
        columns = flat[here] - owner * layout.n
        found[here] = cross_products(directions, block, latents[here], columns)
    return found.view(neighbours.shape)


@torch.no_grad()
def sampled_captured_share(
    directions: Float[Tensor, "n d"],
    neighbours: Int[Tensor, "n m"],
    rows: Int[Tensor, " k"],
    layout: Layout,
    tolerance: float = 0.01,
) -> Float[Tensor, ""]:
    """:func:`~saelens_adaptive_ortho.maths.neighbours.captured_share` over all ranks.

    Args:
        directions: the directions of this rank.
        neighbours: the lists of its latents.
        rows: numbers of the latents that are looked at, among those of all ranks.
        layout: which latents these are.
        tolerance: how much less similar the best of a list may be.
    """
    ranks, n = layout.ranks, layout.n
    inside = (rows >= layout.first) & (rows < layout.first + n)
    own = rows[inside] - layout.first
    # Each rank fills in its own rows of tables of zeros, and the ranks add them up.
    x = directions.new_zeros(len(rows), directions.shape[1])
    lists = neighbours.new_zeros(len(rows), neighbours.shape[1])
    x[inside], lists[inside] = directions[own], neighbours[own]
    x, lists = ranks.sum(x), ranks.sum(lists)
    similarity = x @ directions.T
    places = lists - layout.first
    listed = (places >= 0) & (places < n)
    kept = similarity.gather(1, places.clamp(0, n - 1)).masked_fill(~listed, float("-inf"))
    similarity[inside.nonzero().squeeze(1), own] = float("-inf")
    best = torch.stack([kept.amax(1), similarity.amax(1)]).float()
    kept_best, overall = ranks.largest(best)
    return (kept_best >= overall - tolerance).float().mean()
