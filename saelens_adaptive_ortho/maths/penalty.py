"""Orthogonality penalties on decoder directions, as free functions.

Every penalty sees only unit decoder directions ``d_i = W_dec[i] / ||W_dec[i]||`` and their
sign-sensitive cosines ``c_ij = <d_i, d_j>``; the norm of a decoder row never enters, so all of
them are invariant to row scale, to a rotation of the model space, and to relabelling. A zero row
has no direction: its cosines are 0. Cosines are computed in float32 at least.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from saelens_adaptive_ortho.maths.sparse import Nonzeros, sampled_product

EPS = 1e-8


def decoder_directions(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
    """Unit rows ``d_i = W_dec[i] / max(||W_dec[i]||, 1e-8)``, at least in float32.

    A zero row stays zero: it has no direction and takes part in no pair.
    """
    return _UnitRows.apply(_precise(W_dec))  # type: ignore[no-any-return]


def _precise(W: Tensor) -> Tensor:
    # bf16 rounds a cosine to 3 digits, which is coarser than the differences we act on.
    return W.to(torch.promote_types(W.dtype, torch.float32))


class _UnitRows(torch.autograd.Function):
    """``d_i = W_i / n_i`` with ``n_i = max(||W_i||, eps)``.

    The gradient is ``(g_i - <g_i, d_i> d_i) / n_i``, and ``g_i / eps`` where the norm is below eps.
    By hand, because the decoder is read and written a third as often as by the generic backward.
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor) -> Tensor:
        norms = W.norm(dim=-1, keepdim=True)
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


def gram_penalty(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
    """Mean squared cosine over all ordered pairs: ``1/(n(n-1)) * sum_{i != j} c_ij^2``.

    The classical mutual-coherence penalty (the "basic orthogonality loss"). Exact at any width
    without a [d_sae, d_sae] matrix, since ``||D D^T||_F = ||D^T D||_F``; the diagonal
    ``sum_i ||d_i||^4`` is subtracted.

    Raises:
        ValueError: fewer than two directions.
    """
    n = W_dec.shape[0]
    _need_pairs(n)
    directions = decoder_directions(W_dec)
    gram = directions.T @ directions
    diagonal = directions.square().sum(-1).square().sum()
    return (gram.square().sum() - diagonal) / (n * (n - 1))


def chunk_permutation(n: int, seed: int, step: int) -> Int[Tensor, " n"]:
    """A permutation of ``range(n)`` that is a pure function of ``(seed, step)``.

    It neither reads nor advances torch's global random state, so the penalty cannot disturb the
    training it is added to, and a resumed run draws the same chunks.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return torch.randperm(n, generator=generator)


def fixed_penalty(
    W_dec: Float[Tensor, "d_sae d_in"],
    permutation: Int[Tensor, " d_sae"],
    chunk_size: int = 8192,
) -> Float[Tensor, ""]:
    """OrtSAE's penalty: ``mean_chunks mean_{i in chunk} (max_{j != i in chunk} c_ij)^2``.

    Source: OrtSAE, arXiv 2509.22033, section 3 (signed maximum, then squared). The latents are
    dealt by ``permutation`` into ``K = ceil(d_sae / chunk_size)`` chunks whose sizes differ by at
    most one. Cost: ``d_sae * chunk_size * d_in / 2``, in blocks. The gradient flows through the
    pair of the maximum alone, as it does through ``max``: no [chunk, chunk] matrix is kept for it.
    Differentiable once.

    Raises:
        ValueError: fewer than two directions, or a chunk size below two.
    """
    n, W = W_dec.shape[0], _precise(W_dec)
    _need_pairs(n)
    if chunk_size < 2:
        raise ValueError(f"chunk_size must be at least 2 to hold a pair, got {chunk_size}.")
    # Never more chunks than would leave one latent alone in its chunk.
    n_chunks = max(1, min(-(-n // chunk_size), n // 2))
    chunks = permutation.to(W.device).tensor_split(n_chunks)
    chosen = torch.empty_like(permutation, device=W.device)
    cosine, factor = W.new_empty(n), W.new_empty(n)
    for chunk in chunks:
        cosine[chunk], nearest = _nearest(decoder_directions(W.detach()[chunk]))
        chosen[chunk] = chunk[nearest]
        factor[chunk] = 1 / (n_chunks * len(chunk))
    both = torch.ones_like(factor)
    return _PairCost.apply(W, _norms(W), chosen, cosine, factor, both, both)  # type: ignore[no-any-return]


@torch.no_grad()
def _nearest(
    directions: Float[Tensor, "n d"], block_size: int = 2048
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Largest cosine of each row with another one, and which; each pair of blocks is met once."""
    n = len(directions)
    best = directions.new_full((n,), float("-inf"))
    index = torch.zeros(n, dtype=torch.int64, device=directions.device)
    blocks = torch.arange(n, device=directions.device).split(block_size)

    def improve(rows: Tensor, found: Tensor, where: Tensor) -> None:
        better = found > best[rows]
        best[rows] = torch.where(better, found, best[rows])
        index[rows] = torch.where(better, where, index[rows])

    for a, rows in enumerate(blocks):
        for columns in blocks[a:]:
            cosines = directions[rows] @ directions[columns].T
            if columns is rows:
                cosines.fill_diagonal_(float("-inf"))
            found, where = cosines.max(dim=1)
            improve(rows, found, columns[where])
            if columns is not rows:
                found, where = cosines.max(dim=0)
                improve(columns, found, rows[where])
    return best, index


def adaptive_penalty(
    W_dec: Float[Tensor, "d_sae d_in"],
    neighbours: Int[Tensor, "d_sae m"],
    weights: Float[Tensor, "d_sae m"],
    firing_rates: Float[Tensor, " d_sae"] | None = None,
    energies: Float[Tensor, " d_sae"] | None = None,
) -> Float[Tensor, ""]:
    """``mean_i (w_ij * relu(c_ij))^2`` with ``j`` the latent of ``N(i)`` where that is largest.

    With energies, ``sum_i min(e_i, e_j) (w_ij * relu(c_ij))^2`` instead.

    Args:
        W_dec: decoder rows of any norm.
        neighbours: ``N(i)``, candidate latents of each latent; never contains ``i`` itself.
        weights: ``w_ij`` in [0, 1], aligned with ``neighbours``; see :func:`pair_weights`.
        firing_rates: with it the penalty is *frequency-ordered*: of the chosen pair the
            latent that fires more often is held fixed (no gradient) and only the rarer one is
            pushed away; ties push both. Without it both are pushed (symmetric).
        energies: ``e_i``, share of the activations' variance that a latent contributes. A pair
            then costs what its weaker latent contributes along the other's direction, so that
            rare latents are bent no more than they matter, and silent ones not at all.

    The gradient flows through the chosen pair alone, as it does through ``max``: nothing of the
    decoder's size is kept for the backward pass. Differentiable once.
    """
    n, W = W_dec.shape[0], _precise(W_dec)
    _need_pairs(n)
    weights = weights.to(W.dtype)
    cosines = pair_cosines(W, neighbours)
    slot = (weights * cosines.relu()).argmax(dim=-1, keepdim=True)
    chosen = neighbours.gather(1, slot).squeeze(1)
    weight, cosine = (x.gather(1, slot).squeeze(1) for x in (weights, cosines))
    share = torch.full_like(cosine, 1 / n)
    if energies is not None:
        share = torch.minimum(energies, energies[chosen]).to(cosine.dtype)
    factor = share * weight.square()
    pushed = torch.ones_like(factor), torch.ones_like(factor)
    if firing_rates is not None:
        rate_j = firing_rates[chosen]
        pushed = (firing_rates <= rate_j).to(factor), (rate_j <= firing_rates).to(factor)
    return _PairCost.apply(W, _norms(W), chosen, cosine.relu(), factor, *pushed)  # type: ignore[no-any-return]


class _PairCost(torch.autograd.Function):
    """``sum_i factor_i * c_ij^2`` for one ``j`` per latent, its cosine already known.

    A cosine of 0 stands for a pair that costs nothing. As ``dc_ij/dW_i = (d_j - c_ij d_i) / n_i``,
    every row's gradient is a sum of few rows. With ``a_i = 2 factor_i c_ij`` and norms n, latent i
    gets ``a_i / (n_i n_j) W_j - a_i c_ij / n_i^2 W_i`` where it is pushed; so does j, with i and j
    exchanged, where j is. That is ``S W`` with a sparse S of at most three entries per latent:
    neither directions nor their gradient are ever held.
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
        # Below EPS the norm is held at EPS, and a row may grow along itself.
        own = torch.where(norms > EPS, -along / norms.square(), 0)
        both = norms * norms[chosen]
        rows = torch.cat([latents, latents, chosen])
        columns = torch.cat([chosen, latents, latents])
        values = gradient * torch.cat([slope_i / both, own, slope_j / both])
        S = Nonzeros.of_entries(rows, columns, values, (len(W), len(W)))
        return S.times(W), None, None, None, None, None, None


def _norms(W: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    return W.detach().norm(dim=-1).clamp(min=EPS)


@torch.no_grad()
def pair_cosines(
    W_dec: Float[Tensor, "d_sae d_in"], neighbours: Int[Tensor, "d_sae m"]
) -> Float[Tensor, "d_sae m"]:
    """``c_ij`` of each latent with its candidates, without a graph.

    No row is copied m times: on a CPU it is a product sampled at ``d_sae * m`` places, in compiled
    code one kernel, and elsewhere done in blocks.
    """
    (n, m), W = neighbours.shape, _precise(W_dec)
    if torch.compiler.is_compiling():
        products = (W.unsqueeze(1) * W[neighbours]).sum(-1)
    elif W.device.type == "cpu":
        starts = torch.arange(0, n * m + 1, m)
        products = sampled_product(W, W, starts, neighbours.reshape(-1)).view(n, m)
    else:
        products = _products_in_blocks(W, neighbours)
    norms = _norms(W)
    return products / (norms.unsqueeze(1) * norms[neighbours])


def _products_in_blocks(
    W: Float[Tensor, "n d"], neighbours: Int[Tensor, "n m"], copied: int = 2**23
) -> Float[Tensor, "n m"]:
    """``<W_i, W_j>``, with about ``copied`` numbers held at a time: as much as a GPU caches."""
    rows = max(1, copied // (neighbours.shape[1] * W.shape[1]))
    blocks = zip(W.split(rows), neighbours.split(rows), strict=True)
    return torch.cat([torch.einsum("nd,nmd->nm", own, W[j]) for own, j in blocks])


def pair_weights(affinity: Float[Tensor, "d_sae m"], alpha: float) -> Float[Tensor, "d_sae m"]:
    """``w_ij = 1 - alpha * s_ij``: alpha is the *controlled sharing*.

    ``alpha = 0`` gives full orthogonality; ``alpha = 1`` lets pairs of full affinity share freely.

    Raises:
        ValueError: alpha outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}.")
    return 1.0 - alpha * affinity


def max_cosines(
    W_dec: Float[Tensor, "d_sae d_in"], block_size: int = 2048
) -> Float[Tensor, " d_sae"]:
    """Per latent, ``max_{j != i} c_ij`` over the whole dictionary, in blocks."""
    _need_pairs(W_dec.shape[0])
    return _nearest(decoder_directions(W_dec), block_size)[0]


def _need_pairs(n: int) -> None:
    if n < 2:
        raise ValueError(f"Orthogonality needs at least 2 decoder directions, got {n}.")
