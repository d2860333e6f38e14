"""Neighbour lists: for each latent, the ``m`` latents most similar to it.

A blocked matrix product refreshes the lists every few steps. It costs d_sae^2 * d_in / 2
multiply-adds (each pair of blocks once) and some tens of MiB of memory. Between refreshes, a step
touches only d_sae * m pairs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths import device

# Rows of a square block of similarities. A CPU block fits the cache; larger GPU blocks need fewer
# kernel launches.
CPU_BLOCK = 1024
BLOCK = 8192


@torch.no_grad()
def top_similar(
    directions: Float[Tensor, "n d"],
    m: int,
    block_size: int | None = None,
    floor: Float[Tensor, " n"] | None = None,
) -> tuple[Int[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Indices and values of the ``m`` largest ``<x_i, x_j>``, j != i, in falling order.

    The result is exact, deterministic, and independent of ``block_size``, up to rounding in the
    dtype of ``directions``. Similarity is symmetric, so the block of rows a and columns b also
    serves the rows of b.

    With ``floor``, only similarities above ``floor_i`` are searched for latent i, which is much
    faster if they are few. A list with fewer than m of them ends in entries of value -inf.

    Raises:
        ValueError: ``m`` outside [1, n - 1].
    """
    n = directions.shape[0]
    if not 1 <= m <= n - 1:
        raise ValueError(f"m must lie in [1, {n - 1}] for {n} directions, got {m}.")
    block_size = block_size or (CPU_BLOCK if directions.device.type == "cpu" else BLOCK)
    if floor is not None and device.on_gpu(directions):
        found = _all_above(directions, m, block_size, floor)
        if found is not None:
            return found
    values = directions.new_full((n, m), float("-inf"))
    indices = torch.zeros(n, m, dtype=torch.long, device=directions.device)

    def keep_best(rows: slice, found: Tensor, where: Tensor) -> None:
        """Keep the m best of the entries found so far and the new ones, both [rows, k]."""
        both = torch.cat([values[rows], found], dim=1)
        values[rows], best = both.topk(m, dim=1)
        indices[rows] = torch.cat([indices[rows], where], dim=1).gather(1, best)

    def threshold(rows: slice) -> Tensor:
        last = values[rows, -1]
        return last if floor is None else torch.maximum(last, floor[rows])

    parts = [slice(start, start + block_size) for start in range(0, n, block_size)]
    for a, mine in enumerate(parts):
        for theirs in parts[a:]:
            similarity = directions[mine] @ directions[theirs].T
            if mine == theirs:
                similarity.fill_diagonal_(float("-inf"))
            else:
                found, where = _largest_above(similarity.T, threshold(theirs), m)
                keep_best(theirs, found, where + mine.start)
            found, where = _largest_above(similarity, threshold(mine), m)
            keep_best(mine, found, where + theirs.start)
            del similarity  # free the memory before the next block
    return indices, values


@torch.no_grad()
def improve_lists(
    values: Float[Tensor, "n m"],
    indices: Int[Tensor, "n m"],
    mine: Float[Tensor, "n d"],
    theirs: Float[Tensor, "k d"],
    first: int,
    floor: float = float("-inf"),
    itself: int | None = None,
    block_size: int | None = None,
) -> None:
    """Keep the m most similar of the directions listed so far and of some others, in place.

    :func:`top_similar` for directions that arrive in parts.

    Args:
        values: similarities found so far, in falling order; -inf where there is none.
        indices: numbers of these directions.
        mine: the directions of the rows.
        theirs: the other directions.
        first: number of the first of them; the others have the next numbers.
        floor: smaller similarities are not listed.
        itself: row of ``theirs`` that is row 0 of ``mine``, if they are the same directions.
        block_size: rows of a block of similarities.
    """
    m = values.shape[1]
    block_size = block_size or (CPU_BLOCK if mine.device.type == "cpu" else BLOCK)
    for a in range(0, len(mine), block_size):
        rows = slice(a, a + block_size)
        for b in range(0, len(theirs), block_size):
            similarity = mine[rows] @ theirs[b : b + block_size].T
            if itself is not None:
                similarity.diagonal(itself + a - b).fill_(float("-inf"))
            found, where = _largest_above(similarity, values[rows, -1].clamp(min=floor), m)
            both = torch.cat([values[rows], found], dim=1)
            values[rows], best = both.topk(m, dim=1)
            where = torch.cat([indices[rows], where + first + b], dim=1)
            indices[rows] = where.gather(1, best)


def _all_above(
    directions: Float[Tensor, "n d"], m: int, block_size: int, floor: Float[Tensor, " n"]
) -> tuple[Int[Tensor, "n m"], Float[Tensor, "n m"]] | None:
    """:func:`top_similar` with a floor, in few kernels; None if many similarities are above it.

    All similarities above the floors are collected first. One sort then ranks those of each latent.
    """
    n, kept = len(directions), 0
    entries: list[tuple[Tensor, Tensor, Tensor]] = []  # latent, other latent, similarity
    parts = [slice(start, min(start + block_size, n)) for start in range(0, n, block_size)]
    for a, mine in enumerate(parts):
        for theirs in parts[a:]:
            similarity = directions[mine] @ directions[theirs].T
            low = floor[mine].unsqueeze(1)
            if mine == theirs:
                similarity.fill_diagonal_(float("-inf"))
            else:
                low = torch.minimum(low, floor[theirs])
            row, column = (similarity > low).nonzero(as_tuple=True)
            kept += len(row)
            if kept > 8 * m * n:
                return None
            value = similarity[row, column]
            row, column = row + mine.start, column + theirs.start
            entries.append((row, column, value))
            if mine != theirs:
                entries.append((column, row, value))
            del similarity, low  # free the memory before the next block
    row, column, value = (torch.cat(parts) for parts in zip(*entries, strict=True))
    above = value > floor[row]  # a pair may be above the floor of one of its latents alone
    row, column, value = row[above], column[above], value[above]
    order = value.sort(descending=True, stable=True).indices
    order = order[row[order].sort(stable=True).indices]
    row, column, value = row[order], column[order], value[order]
    starts = torch.searchsorted(row, torch.arange(n, device=row.device))
    slot = torch.arange(len(row), device=row.device) - starts[row]
    best = slot < m
    row, slot = row[best], slot[best]
    indices = torch.zeros(n, m, dtype=torch.long, device=row.device)
    values = directions.new_full((n, m), float("-inf"))
    indices[row, slot], values[row, slot] = column[best], value[best]
    return indices, values


def _largest_above(
    x: Float[Tensor, "rows n"], threshold: Float[Tensor, " rows"], m: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Values and columns that contain those of each row's m largest above its threshold.

    If few entries exceed the thresholds, exactly these are returned, padded with -inf. This costs
    only a comparison.
    """
    exceeds = x > threshold.unsqueeze(1)
    if int(exceeds.count_nonzero()) > 4 * m * x.shape[0]:
        return _largest(x.contiguous(), min(m, x.shape[1]))
    if exceeds.is_contiguous():
        row, column = exceeds.nonzero(as_tuple=True)
    else:  # a transposed block, read in its memory order
        column, row = exceeds.T.nonzero(as_tuple=True)
        row, order = row.sort(stable=True)
        column = column[order]
    counts = row.bincount(minlength=x.shape[0])
    slot = torch.arange(len(row), device=x.device) - (counts.cumsum(0) - counts)[row]
    shape = (x.shape[0], int(counts.max()))
    found, where = x.new_full(shape, float("-inf")), row.new_zeros(shape)
    found[row, slot] = x[row, column]
    where[row, slot] = column
    return found, where


def _largest(
    x: Float[Tensor, "rows n"], m: int, group: int = 32
) -> tuple[Float[Tensor, "rows m"], Int[Tensor, "rows m"]]:
    """``x.topk(m)``, faster for long rows.

    Columns are divided into groups, and groups are ranked by their largest value. The m best groups
    contain m values that are at least as large as any value outside them.
    """
    n = x.shape[1]
    n_groups = n // group
    if n_groups < 4 * m:
        return x.topk(m, dim=-1)
    grouped = x[:, : n_groups * group].reshape(x.shape[0], n_groups, group)
    rest = x[:, n_groups * group :]
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
    """Move ``values`` of pairs from an old neighbour list to a new one. New pairs start at 0."""
    rows = 1024 if values.device.type == "cpu" else 2**16
    blocks = (torch.split(x, rows) for x in (values, old, new))
    moved: list[Tensor] = []
    for value, before, after in zip(*blocks, strict=True):
        match = after.unsqueeze(2) == before.unsqueeze(1)  # [block, m_new, m_old]
        moved.append((match * value.unsqueeze(1)).sum(-1))
    return torch.cat(moved)


@torch.no_grad()
def captured_share(
    directions: Float[Tensor, "n d"],
    candidates: Int[Tensor, "n m"],
    rows: Int[Tensor, " k"],
    tolerance: float = 0.01,
) -> Float[Tensor, ""]:
    """Share of the latents ``rows`` whose list still holds a most similar latent.

    A latent i counts if ``max_{j in N(i)} <x_i, x_j> >= max_{j != i} <x_i, x_j> - tolerance``, up
    to rounding in the dtype of ``directions``. Memory is k * n.
    """
    x = directions[rows]
    similarity = x @ directions.T
    kept = similarity.gather(1, candidates[rows]).amax(1).float()
    similarity.scatter_(1, rows.unsqueeze(1), float("-inf"))
    return (kept >= similarity.amax(1).float() - tolerance).float().mean()


def sampled_rows(n: int, k: int, turn: int) -> Int[Tensor, " k"]:
    """At least ``k`` of ``n`` rows (or all of them), evenly spaced; each turn gives other rows."""
    stride = max(1, n // k)
    return torch.arange(turn % stride, n, stride)
