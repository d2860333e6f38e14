"""Pairs of latents of different ranks: their penalty, and how often they fire together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths import device
from saelens_adaptive_ortho.maths.coactivation import FIRINGS_PER_BLOCK, GPU_FIRINGS_PER_BLOCK
from saelens_adaptive_ortho.maths.directions import EPS, precise, row_norms
from saelens_adaptive_ortho.maths.penalties import ChosenPairs
from saelens_adaptive_ortho.maths.sparse import Nonzeros
from saelens_adaptive_ortho.training.sharded.layout import Layout

# Numbers of the decoder that are copied at a time.
COPIED = 2**23


class Exchange(NamedTuple):
    """Which decoder rows the ranks send each other for their chosen pairs.

    Attributes:
        latents: the latents of this rank whose pair costs something.
        places: for each of them, the place of its partner among the received rows.
        given: rows of this rank that others want, those for rank 0 first.
        sends: how many of them go to each rank.
        receives: how many rows come from each rank.
    """

    latents: Int[Tensor, " pairs"]
    places: Int[Tensor, " pairs"]
    given: Int[Tensor, " sent"]
    sends: list[int]
    receives: list[int]


@torch.no_grad()
def plan_exchange(pairs: ChosenPairs, layout: Layout) -> Exchange:
    """The exchange for some chosen pairs. It stays valid until other pairs are chosen.

    A partner that several latents of a rank share is sent once. A pair without a cost needs none.

    Args:
        pairs: the pairs of the latents of this rank; partners by their numbers among all latents.
        layout: which latents these are.
    """
    latents = (pairs.push.amax(0) > 0).nonzero().squeeze(1)
    wanted, places = torch.unique(pairs.partner[latents], return_inverse=True)  # in rising order
    receives = (wanted // layout.n).bincount(minlength=layout.ranks.size)
    table = layout.ranks.gather(receives.unsqueeze(0).cpu())
    sends = table[:, layout.ranks.rank].tolist()
    given = layout.ranks.exchange(wanted, receives.tolist(), sends)
    return Exchange(latents, places, given - layout.first, sends, receives.tolist())


@torch.no_grad()
def pair_penalty_and_gradient(
    W_dec: Float[Tensor, "n d"], pairs: ChosenPairs, exchange: Exchange, layout: Layout
) -> tuple[Float[Tensor, ""], Float[Tensor, "n d"]]:
    """:func:`~saelens_adaptive_ortho.maths.penalties.pair_cost.pair_penalty` over all ranks.

    Each rank computes the cost of its own latents. The decoder rows of their partners come from
    the ranks that have them, and the gradients of these rows go back there.

    Args:
        W_dec: the decoder rows of this rank.
        pairs: the pairs of its latents.
        exchange: their :func:`plan_exchange`.
        layout: which latents these are.

    Returns:
        The penalty of all latents, and its gradient for the decoder rows of this rank.
    """
    W = precise(W_dec.detach())
    latents, places, given, sends, receives = exchange
    norms = row_norms(W)
    theirs = layout.ranks.exchange(W[given], sends, receives)
    their_norms = row_norms(theirs)
    gradient, of_theirs = torch.zeros_like(W), torch.zeros_like(theirs)
    along, their_along = torch.zeros_like(norms), torch.zeros_like(their_norms)
    cost = W.new_zeros(())
    push = pairs.push.to(W.dtype)
    rows = max(1, COPIED // W.shape[1])
    for i, j in zip(latents.split(rows), places.split(rows), strict=True):
        W_i, W_j = W[i], theirs[j]
        product = norms[i] * their_norms[j]
        cosine = ((W_i * W_j).sum(-1) / product).relu()
        cost += (push[:, i].amax(0) * cosine.square()).sum()
        slope_i, slope_j = 2 * push[:, i] * cosine
        along[i] = slope_i * cosine
        their_along.index_add_(0, j, slope_j * cosine)
        gradient[i] = W_j * (slope_i / product).unsqueeze(1)
        of_theirs.index_add_(0, j, W_i * (slope_j / product).unsqueeze(1))
    _without_own_direction(gradient, along, norms, W)
    _without_own_direction(of_theirs, their_along, their_norms, theirs)
    gradient.index_add_(0, given, layout.ranks.exchange(of_theirs, receives, sends))
    return layout.ranks.sum(cost), gradient


def _without_own_direction(gradient: Tensor, along: Tensor, norms: Tensor, W: Tensor) -> None:
    """Subtract ``along / norm^2 * W``, except where the norm counts as the constant EPS."""
    factor = torch.where(norms > EPS, along / norms.square(), 0)
    gradient.addcmul_(factor.unsqueeze(1), W, value=-1)


@torch.no_grad()
def joint_sums(
    fired: Nonzeros, neighbours: Int[Tensor, "n m"], layout: Layout
) -> Float[Tensor, "3 n m"]:
    """Joint firings of each pair of this rank, and the sums of ``a_i`` and of ``a_j`` over them.

    The ranks exchange the list of all firings of the batch, which is short.

    Args:
        fired: the firings of the latents of this rank, with activations for unit decoder rows.
        neighbours: the candidates of its latents.
        layout: which latents these are.
    """
    n, m = neighbours.shape
    keys, activations = _all_firings(fired, layout)
    sums = fired.values.new_zeros(3, n * m)
    size = GPU_FIRINGS_PER_BLOCK if device.on_gpu(fired.values) else FIRINGS_PER_BLOCK
    blocks = (torch.split(x, size) for x in fired[:3])
    for r, i, a in zip(*blocks, strict=True):
        wanted = (r * layout.total).unsqueeze(1) + neighbours[i]
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        firing, slot = (keys[place] == wanted).nonzero(as_tuple=True)
        pair = i[firing] * m + slot
        sums[0].index_add_(0, pair, torch.ones_like(a[firing]))
        sums[1].index_add_(0, pair, a[firing])
        sums[2].index_add_(0, pair, activations[place[firing, slot]])
    return sums.view(3, n, m)


def _all_firings(fired: Nonzeros, layout: Layout) -> tuple[Tensor, Tensor]:
    """The firings of all ranks: ``row * d_sae + latent`` in rising order, and the activations."""
    keys = fired.rows * layout.total + fired.columns + layout.first
    keys = layout.ranks.gather_lists(keys)
    activations = layout.ranks.gather_lists(fired.values)
    order = keys.argsort()
    return keys[order], activations[order]
