"""Neighbour lists: for each latent, the ``m`` latents most similar to it.

A list is refreshed every so many steps by a blocked matrix product (d_sae^2 * d_in / 2
multiply-adds, each pair of blocks once, some tens of MiB of memory); between refreshes a step
touches d_sae * m pairs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Rows of one block: a block of similarities is square and has 16 MiB in single precision.
BLOCK = 2048


@torch.no_grad()
def top_similar(
    directions: Float[Tensor, "n d"], m: int, block_size: int = BLOCK
) -> tuple[Int[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Indices and values of the ``m`` largest ``<x_i, x_j>``, j != i, in falling order.

    Exact, deterministic, and independent of ``block_size`` up to rounding. As similarity is
    symmetric, the block of rows a and columns b also serves the rows of b.

    Raises:
        ValueError: ``m`` outside [1, n - 1].
    """
    n = directions.shape[0]
    if not 1 <= m <= n - 1:
        raise ValueError(f"m must lie in [1, {n - 1}] for {n} directions, got {m}.")
    values = directions.new_full((n, m), float("-inf"))
    indices = torch.zeros(n, m, dtype=torch.long, device=directions.device)

    def offer(rows: int, columns: int, similarity: Float[Tensor, "rows columns"]) -> None:
        """Keep the m best of those found so far and those of this block."""
        found, where = _largest(similarity, min(m, similarity.shape[1]))
        kept = slice(rows, rows + similarity.shape[0])
        both = torch.cat([values[kept], found], dim=1)
        values[kept], best = both.topk(m, dim=1)
        indices[kept] = torch.cat([indices[kept], where + columns], dim=1).gather(1, best)

    for a in range(0, n, block_size):
        for b in range(a, n, block_size):
            similarity = directions[a : a + block_size] @ directions[b : b + block_size].T
            if a == b:
                similarity.fill_diagonal_(float("-inf"))
            else:
                offer(b, a, similarity.T.contiguous())
            offer(a, b, similarity)
            del similarity  # before the next one is made
    return indices, values


def _largest(
    x: Float[Tensor, "rows n"], m: int, group: int = 32
) -> tuple[Float[Tensor, "rows m"], Int[Tensor, "rows m"]]:
    """``x.topk(m)``, faster where rows are long: the m largest lie in the m best groups of columns.

    A group is as good as its largest member; m groups hold m values at least as large as any
    outside them.
    """
    n = x.shape[1]
    n_groups = n // group
    if n_groups < 4 * m:
        return x.topk(m, dim=-1)
    grouped, rest = (
        x[:, : n_groups * group].unflatten(1, (n_groups, group)),
        x[:, n_groups * group :],
    )
    best = grouped.amax(-1).topk(m, dim=-1, sorted=False).indices
    inside = torch.arange(group, device=x.device)
    columns = (best.unsqueeze(2) * group + inside).flatten(1)
    tail = torch.arange(n_groups * group, n, device=x.device).expand(x.shape[0], -1)
    columns = torch.cat([columns, tail], dim=1)
    candidates = torch.cat([x.gather(1, columns[:, : m * group]), rest], dim=1)
    top = candidates.topk(m, dim=-1)
    return top.values, columns.gather(1, top.indices)


def carry_over(
    values: Float[Tensor, "d_sae m"],
    old: Int[Tensor, "d_sae m"],
    new: Int[Tensor, "d_sae m"],
) -> Float[Tensor, "d_sae m"]:
    """Move per-pair ``values`` from an old neighbour list to a new one; new pairs start at 0."""
    blocks = []
    for value, before, after in zip(*(x.split(1024) for x in (values, old, new)), strict=True):
        match = after.unsqueeze(2) == before.unsqueeze(1)  # [block, m_new, m_old]
        blocks.append((match * value.unsqueeze(1)).sum(-1))
    return torch.cat(blocks)


@torch.no_grad()
def captured_share(
    directions: Float[Tensor, "n d"],
    candidates: Int[Tensor, "n m"],
    rows: Int[Tensor, " k"],
    tolerance: float = 0.01,
) -> Float[Tensor, ""]:
    """Share of the latents ``rows`` whose list, however old, still holds one as similar as any.

    That is ``max_{j in N(i)} <x_i, x_j> >= max_{j != i} <x_i, x_j> - tolerance``. Memory k * n.
    """
    x = directions[rows]
    similarity = x @ directions.T
    kept = similarity.gather(1, candidates[rows]).amax(1)
    similarity.scatter_(1, rows.unsqueeze(1), float("-inf"))
    return (kept >= similarity.amax(1) - tolerance).float().mean()


def sampled_rows(n: int, k: int, turn: int) -> Int[Tensor, " k"]:
    """At least ``k`` of ``n`` rows (or all there are), evenly spaced; other ones each turn."""
    stride = max(1, n // k)
    return torch.arange(turn % stride, n, stride)
