"""The cost of one pair for each latent, used by the penalties that take a maximum."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from saelens_adaptive_ortho.maths import device, kernels
from saelens_adaptive_ortho.maths.directions import EPS, need_pairs, partner_cosines, precise
from saelens_adaptive_ortho.maths.sparse import Nonzeros

# Attribute of a tensor of partners: its version and the layout of the gradient.
_REMEMBERED = "_ortho_layout"


class ChosenPairs(NamedTuple):
    """One pair of each latent i, and the factors of its cost.

    Attributes:
        partner: latent ``j(i)``, never i itself.
        push: how strongly the cost pushes latent i away (row 0), and its partner (row 1). Each is
            the factor ``f_i`` of the cost, or 0 if the pair does not push that latent.
    """

    partner: Int[Tensor, " d_sae"]
    push: Float[Tensor, "2 d_sae"]


def pair_penalty(W_dec: Float[Tensor, "d_sae d_in"], pairs: ChosenPairs) -> Float[Tensor, ""]:
    """``sum_i f_i relu(c_ij)^2`` over the chosen pairs, from their exact cosines.

    The gradient flows through the chosen pairs alone. The backward pass stores nothing of the
    decoder's size. The function is differentiable once.

    Raises:
        ValueError: fewer than two directions.
    """
    need_pairs(len(W_dec))
    W = precise(W_dec)
    norms, cosine = partner_cosines(W, pairs.partner)
    return PairCost.apply(W, norms, pairs.partner, cosine.relu(), pairs.push)  # type: ignore[no-any-return]


class PairCost(torch.autograd.Function):
    """``sum_i f_i * c_ij^2`` for one ``j`` of each latent, whose cosine is already known.

    ``f_i`` is the larger entry of column i of ``push``, see :class:`ChosenPairs`. A cosine of 0
    marks a pair without cost. Because ``dc_ij/dW_i = (d_j - c_ij d_i) / n_i``, the gradient of each
    row is a sum of few rows. With ``a_i = 2 f_i c_ij`` and norms n, the gradient of latent i is
    ``a_i / (n_i n_j) W_j - a_i c_ij / n_i^2 W_i`` if latent i is pushed. If latent j is pushed, its
    gradient is the same with i and j exchanged. The whole gradient is ``S W`` with a sparse S of at
    most three entries per latent, so neither the directions nor their gradient are stored.
    """

    @staticmethod
    def forward(
        ctx: Any, W: Tensor, norms: Tensor, chosen: Tensor, cosine: Tensor, push: Tensor
    ) -> Tensor:
        push = push.to(cosine.dtype)
        slope_i, slope_j = 2 * push * cosine
        ctx.layout = _layout(chosen) if device.on_gpu(W) else None
        ctx.save_for_backward(W, norms, chosen, cosine, slope_i, slope_j)
        return (push.amax(0) * cosine.square()).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        W, norms, chosen, cosine, slope_i, slope_j = ctx.saved_tensors
        along = (slope_i * cosine).index_add_(0, chosen, slope_j * cosine)
        # A norm below EPS counts as the constant EPS, so the term along the row itself is 0.
        diagonal = torch.where(norms > EPS, -along / norms.square(), 0)
        norm_product = norms * norms[chosen]
        values = gradient * torch.cat([slope_i / norm_product, diagonal, slope_j / norm_product])
        if ctx.layout is not None:
            return ctx.layout.times(values, W), None, None, None, None
        rows, columns = _entries(chosen)
        S = Nonzeros.of_entries(rows, columns, values, (len(W), len(W)))
        return S.times(W), None, None, None, None


def _entries(chosen: Int[Tensor, " n"]) -> tuple[Int[Tensor, " entries"], Int[Tensor, " entries"]]:
    """Rows and columns of S: (i, j), (i, i) and (j, i) for each latent i and its partner j."""
    latents = torch.arange(len(chosen), device=chosen.device)
    return torch.cat([latents, latents, chosen]), torch.cat([chosen, latents, latents])


class _Layout(NamedTuple):
    """The entries of S row by row. Only their values change while the partners are kept."""

    order: Int[Tensor, " entries"]
    rows: Int[Tensor, " entries"]
    columns: Int[Tensor, " entries"]
    starts: Int[Tensor, " n"]

    def times(
        self, values: Float[Tensor, " entries"], W: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n d"]:
        """``S @ W``."""
        values = values[self.order]
        if kernels.available(W):
            return kernels.sparse_times(self.starts, self.columns, values, W.detach())
        # An entry of 0 reads the row itself, which is in the cache, instead of another one.
        columns = torch.where(values == 0, self.rows, self.columns)
        return embedding_bag(
            columns, W.detach(), self.starts, mode="sum", per_sample_weights=values
        )


def _layout(chosen: Int[Tensor, " n"]) -> _Layout:
    """The layout of S. The tensor of partners remembers it until it changes."""
    version, found = getattr(chosen, _REMEMBERED, (None, None))
    if found is None or version != chosen._version:
        rows, columns = _entries(chosen)
        order = rows.argsort(stable=True)
        rows = rows[order]
        starts = torch.searchsorted(rows, torch.arange(len(chosen), device=rows.device))
        found = _Layout(order, rows, columns[order], starts)
        setattr(chosen, _REMEMBERED, (chosen._version, found))
    return found
