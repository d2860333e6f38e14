"""Decoder directions and their cosines, from which every penalty is computed.

The penalties depend only on the unit decoder directions ``d_i = W_dec[i] / ||W_dec[i]||`` and their
signed cosines ``c_ij = <d_i, d_j>``. The norms of the decoder rows do not matter. All penalties are
therefore invariant to row scale, to a rotation of the model space, and to relabelling of the
latents. A zero row has no direction: its cosines are 0. Cosines are computed in float32 or wider.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from saelens_adaptive_ortho.maths import device, kernels, typed
from saelens_adaptive_ortho.maths.sparse import sampled_product

EPS = 1e-8


def decoder_directions(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
    """Unit rows ``d_i = W_dec[i] / max(||W_dec[i]||, 1e-8)``, in float32 or wider.

    A zero row stays zero: it has no direction and takes part in no pair.
    """
    return _UnitRows.apply(precise(W_dec))  # type: ignore[no-any-return]


def precise(W: Tensor) -> Tensor:
    # bf16 rounds a cosine to 3 digits. The penalties depend on smaller differences.
    return W.to(torch.promote_types(W.dtype, torch.float32))


class _UnitRows(torch.autograd.Function):
    """``d_i = W_i / n_i`` with ``n_i = max(||W_i||, eps)``.

    The gradient is ``(g_i - <g_i, d_i> d_i) / n_i``, and ``g_i / eps`` where the norm is below eps.
    It is written by hand because it reads and writes the decoder a third as often as autograd does.
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor) -> Tensor:
        norms = typed.norms(W, keepdim=True)
        directions = W / norms.clamp(min=EPS)
        ctx.save_for_backward(directions, norms)
        return directions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        directions, norms = ctx.saved_tensors
        along = torch.einsum("nd,nd->n", gradient, directions).unsqueeze(1)
        along = torch.where(norms > EPS, along, 0)
        return torch.addcmul(gradient, along, directions, value=-1).div_(norms.clamp(min=EPS))


def row_norms(W: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    return typed.norms(W.detach()).clamp(min=EPS)


def max_cosines(
    W_dec: Float[Tensor, "d_sae d_in"], block_size: int = 2048
) -> Float[Tensor, " d_sae"]:
    """``max_{j != i} c_ij`` of each latent over the whole dictionary, computed in blocks."""
    need_pairs(W_dec.shape[0])
    return nearest_rows(decoder_directions(W_dec), block_size)[0]


@torch.no_grad()
def nearest_rows(
    directions: Float[Tensor, "n d"], block_size: int = 512
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Largest cosine of each row with another row, and the index of that row.

    Each pair of blocks is multiplied once. The default is for a CPU: the cosines of two blocks stay
    in its cache.
    """
    n = len(directions)
    best = directions.new_full((n,), float("-inf"))
    index = torch.zeros(n, dtype=torch.int64, device=directions.device)
    blocks = [slice(start, min(start + block_size, n)) for start in range(0, n, block_size)]

    def improve(rows: slice, found: Tensor, where: Tensor) -> None:
        better = found > best[rows]
        best[rows] = torch.where(better, found, best[rows])
        index[rows] = torch.where(better, where, index[rows])

    for a, rows in enumerate(blocks):
        for columns in blocks[a:]:
            cosines = directions[rows] @ directions[columns].T
            if columns is rows:
                cosines.fill_diagonal_(float("-inf"))
            found, where = cosines.max(dim=1)
            improve(rows, found, where + columns.start)
            if columns is not rows:
                found, where = cosines.max(dim=0)
                improve(columns, found, where + rows.start)
    return best, index


@torch.no_grad()
def compared_directions(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
    """Decoder directions for comparisons: which latents are the most similar ones?

    On a GPU they are in half precision, which is many times faster there. Its rounding changes
    cosines by less than 1e-3. A penalty computes the cosine of a chosen pair from ``W_dec`` itself.
    """
    W = precise(W_dec.detach())
    if not device.on_gpu(W):
        return decoder_directions(W)
    norms = typed.norms(W, keepdim=True).clamp(min=EPS)
    return torch.div(W, norms, out=torch.empty_like(W, dtype=torch.float16))


@torch.no_grad()
def pair_cosines(
    W_dec: Float[Tensor, "d_sae d_in"], neighbours: Int[Tensor, "d_sae m"]
) -> Float[Tensor, "d_sae m"]:
    """``c_ij`` of each latent with its candidates, to choose among them, without a gradient graph.

    On a GPU they are the cosines of :func:`compared_directions`.
    """
    W = precise(W_dec)
    if device.on_gpu(W):
        return _products(compared_directions(W), neighbours).to(W.dtype)
    norms = row_norms(W)
    return _products(W, neighbours) / (norms.unsqueeze(1) * norms[neighbours])


@torch.no_grad()
def partner_cosines(
    W: Float[Tensor, "d_sae d_in"], partner: Int[Tensor, " d_sae"]
) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """Norms ``||W_i||``, at least 1e-8, and ``c_ij`` of each latent with its one partner j.

    Both are computed in the dtype of ``W``.
    """
    if kernels.available(W) and device.on_gpu(W):
        squares, products = kernels.partner_products(W, partner)
        norms = squares.sqrt().clamp(min=EPS)
    elif device.on_gpu(W):  # both in one pass over W
        itself = torch.arange(len(W), device=W.device)
        squares, products = _products(W, torch.stack([itself, partner], dim=1)).unbind(1)
        norms = squares.sqrt().clamp(min=EPS)
    else:
        norms = row_norms(W)
        products = _products(W, partner.unsqueeze(1)).squeeze(1)
    return norms, products / (norms * norms[partner])


@torch.no_grad()
def cross_products(
    X: Float[Tensor, "n d"],
    Y: Float[Tensor, "k d"],
    rows: Int[Tensor, " entries"],
    columns: Int[Tensor, " entries"],
) -> Float[Tensor, " entries"]:
    """``<X_i, Y_j>`` for each i of ``rows``, in rising order, and j of ``columns``."""
    if device.on_gpu(X):
        return typed.row_products(X, rows, columns, Y)
    if X.device.type == "cpu":
        starts = torch.searchsorted(rows, torch.arange(len(X) + 1))
        return sampled_product(X, Y, starts, columns)
    return (X[rows] * Y[columns]).sum(-1)


def _products(W: Float[Tensor, "n d"], neighbours: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """``<W_i, W_j>`` of each row with its candidates. No row is copied m times.

    A CPU computes a sampled product, a GPU one kernel, compiled code a fused one, and other devices
    blocks.
    """
    n, m = neighbours.shape
    if torch.compiler.is_compiling():
        return (W.unsqueeze(1) * W[neighbours]).sum(-1)
    if device.on_gpu(W):
        if kernels.available(W):
            return kernels.list_products(W, neighbours)
        rows = torch.arange(n, device=W.device).repeat_interleave(m)
        return typed.row_products(W, rows, neighbours.reshape(-1)).view(n, m)
    if W.device.type == "cpu":
        starts = torch.arange(0, n * m + 1, m)
        return sampled_product(W, W, starts, neighbours.reshape(-1)).view(n, m)
    return _products_in_blocks(W, neighbours)


def _products_in_blocks(
    W: Float[Tensor, "n d"], neighbours: Int[Tensor, "n m"], copied: int = 2**23
) -> Float[Tensor, "n m"]:
    """``<W_i, W_j>`` in blocks of about ``copied`` numbers."""
    rows = max(1, copied // (neighbours.shape[1] * W.shape[1]))
    blocks = zip(torch.split(W, rows), torch.split(neighbours, rows), strict=True)
    return torch.cat([torch.einsum("nd,nmd->nm", W_i, W[j]) for W_i, j in blocks])


def need_pairs(n: int) -> None:
    if n < 2:
        raise ValueError(f"Orthogonality needs at least 2 decoder directions, got {n}.")
