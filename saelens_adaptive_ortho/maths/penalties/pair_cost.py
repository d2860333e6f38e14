"""The cost of one pair for each latent, used by the penalties that take a maximum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from saelens_adaptive_ortho.maths.directions import EPS
from saelens_adaptive_ortho.maths.sparse import Nonzeros


class PairCost(torch.autograd.Function):
    """``sum_i factor_i * c_ij^2`` for one ``j`` of each latent, whose cosine is already known.

    A cosine of 0 marks a pair without cost. Because ``dc_ij/dW_i = (d_j - c_ij d_i) / n_i``, the
    gradient of each row is a sum of few rows. With ``a_i = 2 factor_i c_ij`` and norms n, the
    gradient of latent i is ``a_i / (n_i n_j) W_j - a_i c_ij / n_i^2 W_i`` if latent i is pushed.
    If latent j is pushed, its gradient is the same with i and j exchanged. The whole gradient is
    ``S W`` with a sparse S of at most three entries per latent, so neither the directions nor
    their gradient are stored.
    """

    @staticmethod
    def forward(
        ctx: Any,
        W: Tensor,
        norms: Tensor,
        chosen: Tensor,
        cosine: Tensor,
        factor: Tensor,
        push_i: Tensor,
        push_j: Tensor,
    ) -> Tensor:
        slope = 2 * factor * cosine
        ctx.save_for_backward(W, norms, chosen, cosine, slope * push_i, slope * push_j)
        return (factor * cosine.square()).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        W, norms, chosen, cosine, slope_i, slope_j = ctx.saved_tensors
        latents = torch.arange(len(W), device=W.device)
        along = (slope_i * cosine).index_add_(0, chosen, slope_j * cosine)
        # A norm below EPS counts as the constant EPS, so the term along the row itself is 0.
        diagonal = torch.where(norms > EPS, -along / norms.square(), 0)
        norm_product = norms * norms[chosen]
        rows = torch.cat([latents, latents, chosen])
        columns = torch.cat([chosen, latents, latents])
        values = gradient * torch.cat([slope_i / norm_product, diagonal, slope_j / norm_product])
        S = Nonzeros.of_entries(rows, columns, values, (len(W), len(W)))
        return S.times(W), None, None, None, None, None, None
