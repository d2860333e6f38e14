"""Neighbour lists: for each latent, the ``m`` latents most similar to it.

A list is refreshed every few hundred steps by a blocked matrix product (d_sae^2 * d_in
operations, ``block_size * d_sae`` memory); between refreshes a step touches d_sae * m pairs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def top_similar(
    directions: Float[Tensor, "n d"], m: int, block_size: int = 2048
) -> tuple[Int[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Indices and values of the ``m`` largest ``<x_i, x_j>``, j != i, in falling order.

    Exact, deterministic, and independent of ``block_size``.

    Raises:
        ValueError: ``m`` outside [1, n - 1].
    """
    n = directions.shape[0]
    if not 1 <= m <= n - 1:
        raise ValueError(f"m must lie in [1, {n - 1}] for {n} directions, got {m}.")
    indices, values = [], []
    for start in range(0, n, block_size):
        similarity = directions[start : start + block_size] @ directions.T
        rows = torch.arange(similarity.shape[0], device=similarity.device)
        similarity[rows, rows + start] = float("-inf")
        top = similarity.topk(m, dim=-1)
        indices.append(top.indices)
        values.append(top.values)
    return torch.cat(indices), torch.cat(values)


def carry_over(
    values: Float[Tensor, "d_sae m"],
    old: Int[Tensor, "d_sae m"],
    new: Int[Tensor, "d_sae m"],
) -> Float[Tensor, "d_sae m"]:
    """Move per-pair ``values`` from an old neighbour list to a new one; new pairs start at 0."""
    match = new.unsqueeze(2) == old.unsqueeze(1)  # [d_sae, m_new, m_old]
    return (match * values.unsqueeze(1)).sum(-1)


def captured_share(
    kept: Float[Tensor, " n"], true: Float[Tensor, " n"], tolerance: float = 0.01
) -> Float[Tensor, ""]:
    """Share of latents whose list still holds a latent as similar as any, to within ``tolerance``.

    Args:
        kept: largest cosine of each latent with those of its list, which may have aged.
        true: largest cosine of each latent with any other.
    """
    return (kept >= true - tolerance).float().mean()
