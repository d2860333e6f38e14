"""The k largest values of rows whose columns are spread over the ranks.

The k-th largest value is found digit by digit: all ranks count how many of their values reach some
bounds, and the sums of the counts give the next digit. So the ranks exchange a few histograms of
some tens of kilobytes, and no values. The selection is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.batchtopk_sae import BatchTopK
from sae_lens.saes.topk_sae import TopK
from torch import Tensor

from saelens_adaptive_ortho.maths import device
from saelens_adaptive_ortho.maths.sparse import keep
from saelens_adaptive_ortho.training.sharded.ranks import Ranks

# About how many counts the ranks add up at a time.
COUNTS = 2**16
MOST_BITS = 11


class ShardedBatchTopK(BatchTopK):
    """SAELens's BatchTopK over the latents of all ranks.

    Of equal values at the threshold, those of the lowest latents are kept, and of one latent those
    of the lowest rows. PyTorch's ``topk`` promises no order of equal values.
    """

    def __init__(self, k: float, ranks: Ranks) -> None:
        super().__init__(k)
        self.ranks = ranks

    def forward(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        rows = x.reshape(-1, x.shape[-1])
        count, flat = int(self.k * len(rows)), rows.detach().reshape(1, -1)
        n = rows.shape[1]

        def earliest(ties: Tensor, quota: Tensor) -> Tensor:
            by_latent = ties.view(-1, n).T.reshape(1, -1)
            return _first_of(by_latent, quota).view(n, -1).T.reshape(1, -1)

        chosen = chosen_of(flat, count, self.ranks, earliest).view_as(rows)
        return _positive(rows, chosen).view(x.shape)


class ShardedTopK(TopK):
    """SAELens's TopK over the latents of all ranks. Of equal values the lowest latents are kept."""

    def __init__(self, k: int, ranks: Ranks) -> None:
        super().__init__(k)
        self.ranks = ranks

    def forward(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        rows = x.reshape(-1, x.shape[-1])
        chosen = chosen_of(rows.detach(), self.k, self.ranks)
        return _positive(rows, chosen).view(x.shape)


def _positive(x: Float[Tensor, "rows n"], chosen: Bool[Tensor, "rows n"]) -> Tensor:
    """The chosen values that are above 0; 0 elsewhere. NaN stays, so that the loss shows it."""
    chosen = chosen & ~(x.detach() <= 0)
    if device.on_gpu(x):
        return torch.where(chosen, x, 0.0)
    return keep(x, chosen.flatten().nonzero().squeeze(1))


def _first_of(ties: Bool[Tensor, "rows n"], quota: Int[Tensor, "rows 1"]) -> Tensor:
    return ties & (ties.cumsum(1) <= quota)


@torch.no_grad()
def chosen_of(
    x: Float[Tensor, "rows n"],
    k: int,
    ranks: Ranks,
    earliest: Callable[[Tensor, Tensor], Tensor] = _first_of,
) -> Bool[Tensor, "rows n"]:
    """Which values of this rank are among the ``k`` largest of their row over all ranks.

    Args:
        x: the columns of this rank. The ranks have the columns in their order.
        k: how many values of each row are chosen.
        ranks: the ranks.
        earliest: function that chooses some of the equal values of this rank, the first ones, from
            their mask and their number.
    """
    bound = kth_largest(x, k, ranks).unsqueeze(1)
    above, ties = ~(x <= bound), x == bound  # NaN is above
    n_ties = ties.sum(1, keepdim=True)
    counts = torch.cat([above.sum(1, keepdim=True), n_ties], dim=1)
    n_above, n_equal = ranks.sum(counts).split(1, dim=1)
    wanted = k - n_above
    if bool((n_equal == wanted).all()):
        return above | ties
    of_ranks = ranks.gather(n_ties, axis=1)
    before = of_ranks[:, : ranks.rank].sum(1, keepdim=True)
    return above | earliest(ties, (wanted - before).clamp(min=0))


@torch.no_grad()
def kth_largest(x: Float[Tensor, "rows n"], k: int, ranks: Ranks) -> Float[Tensor, " rows"]:
    """The ``k``-th largest value of each row over the columns of all ranks."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    best = wide.topk(min(k, x.shape[1]), dim=1).values.flip(1)  # no others can matter
    keys = _ordered(best)
    bits = 8 * wide.dtype.itemsize
    at_a_time = _bits_at_a_time(len(x))
    found = torch.full((len(x), 1), -(2 ** (bits - 1)), dtype=torch.int64, device=x.device)
    left = bits
    while left:
        taken = min(at_a_time, left)
        left -= taken
        digits = torch.arange(2**taken, device=x.device)
        bounds = found + (digits << left)  # int64 wraps, so the first digit may set the sign
        counts = keys.shape[1] - torch.searchsorted(keys, bounds)
        reached = ranks.sum(counts.int()) >= k
        reached[:, 0] = True
        found = bounds.gather(1, reached.sum(1, keepdim=True) - 1)
    return _values(found.squeeze(1), wide.dtype).to(x.dtype)


def _bits_at_a_time(rows: int) -> int:
    """Bits of a digit for this number of rows, so that a round has about ``COUNTS`` counts."""
    return min(MOST_BITS, max(1, (COUNTS // rows).bit_length() - 1))


def rounds_of_counts(rows: int, bits: int = 32) -> tuple[int, int]:
    """How many histograms the ranks add up for values of some bits, and the counts of a row."""
    at_a_time = _bits_at_a_time(rows)
    return -(-bits // at_a_time), 2**at_a_time


def _ordered(x: Tensor) -> Int[Tensor, ...]:
    """Integers in the order of the floating-point numbers."""
    kind, largest = (torch.int32, 2**31 - 1) if x.dtype.itemsize == 4 else (torch.int64, 2**63 - 1)
    bits = x.contiguous().view(kind).long()
    return torch.where(bits < 0, bits ^ largest, bits)


def _values(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`_ordered`."""
    kind, largest = (torch.int32, 2**31 - 1) if dtype.itemsize == 4 else (torch.int64, 2**63 - 1)
    return torch.where(keys < 0, keys ^ largest, keys).to(kind).view(dtype)
