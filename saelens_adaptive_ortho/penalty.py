"""Orthogonality penalties on decoder directions, as free functions.

Every penalty sees only unit decoder directions ``d_i = W_dec[i] / ||W_dec[i]||`` and their
sign-sensitive cosines ``c_ij = <d_i, d_j>``; the norm of a decoder row never enters, so all of
them are invariant to row scale, to a rotation of the model space, and to relabelling.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

EPS = 1e-8


def decoder_directions(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
    """Unit rows ``d_i = W_dec[i] / max(||W_dec[i]||, 1e-8)``, at least in float32.

    A zero row stays zero: it has no direction and takes part in no pair.
    """
    # bf16 rounds a cosine to 3 digits, which is coarser than the differences we act on.
    W = W_dec.to(torch.promote_types(W_dec.dtype, torch.float32))
    return W / W.norm(dim=-1, keepdim=True).clamp(min=EPS)


def gram_penalty(directions: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
    """Mean squared cosine over all ordered pairs: ``1/(n(n-1)) * sum_{i != j} c_ij^2``.

    The classical mutual-coherence penalty (the "basic orthogonality loss"). Exact at any width
    without a [d_sae, d_sae] matrix, since ``||D D^T||_F = ||D^T D||_F``; the diagonal
    ``sum_i ||d_i||^4`` is subtracted.

    Raises:
        ValueError: fewer than two directions.
    """
    n = directions.shape[0]
    _need_pairs(n)
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
    directions: Float[Tensor, "d_sae d_in"],
    permutation: Int[Tensor, " d_sae"],
    chunk_size: int = 8192,
) -> Float[Tensor, ""]:
    """OrtSAE's penalty: ``mean_chunks mean_{i in chunk} (max_{j != i in chunk} c_ij)^2``.

    Source: OrtSAE, arXiv 2509.22033, section 3 (signed maximum, then squared). The latents are
    dealt by ``permutation`` into ``K = ceil(d_sae / chunk_size)`` chunks whose sizes differ by at
    most one. Cost: ``d_sae * chunk_size * d_in``; memory: one [chunk, chunk] matrix at a time.

    Raises:
        ValueError: fewer than two directions, or a chunk size below two.
    """
    n = directions.shape[0]
    _need_pairs(n)
    if chunk_size < 2:
        raise ValueError(f"chunk_size must be at least 2 to hold a pair, got {chunk_size}.")
    # Never more chunks than would leave one latent alone in its chunk.
    n_chunks = max(1, min(-(-n // chunk_size), n // 2))
    losses = []
    for chunk in permutation.to(directions.device).tensor_split(n_chunks):
        d = directions[chunk]
        cosines = d @ d.T
        cosines = cosines.masked_fill(
            torch.eye(len(chunk), dtype=torch.bool, device=d.device), float("-inf")
        )
        losses.append(cosines.max(dim=-1).values.square().mean())
    return torch.stack(losses).mean()


def adaptive_penalty(
    directions: Float[Tensor, "d_sae d_in"],
    neighbours: Int[Tensor, "d_sae m"],
    weights: Float[Tensor, "d_sae m"],
    firing_rates: Float[Tensor, " d_sae"] | None = None,
    energies: Float[Tensor, " d_sae"] | None = None,
    block_size: int = 2048,
) -> Float[Tensor, ""]:
    """``mean_i (w_ij * relu(c_ij))^2`` with ``j`` the latent of ``N(i)`` where that is largest.

    With energies, ``sum_i min(e_i, e_j) (w_ij * relu(c_ij))^2`` instead.

    Args:
        directions: unit decoder directions.
        neighbours: ``N(i)``, candidate latents of each latent; never contains ``i`` itself.
        weights: ``w_ij`` in [0, 1], aligned with ``neighbours``; see :func:`pair_weights`.
        firing_rates: with it the penalty is *frequency-ordered*: of the chosen pair the
            latent that fires more often is held fixed (no gradient) and only the rarer one is
            pushed away; ties push both. Without it both are pushed (symmetric).
        energies: ``e_i``, share of the activations' variance that a latent contributes. A pair
            then costs what its weaker latent contributes along the other's direction, so that
            rare latents are bent no more than they matter, and silent ones not at all.
        block_size: latents whose candidates are compared at a time (bounds the memory to
            ``block_size * m * d_in``).

    The maximum is found without a graph and the gradient flows through the chosen pair alone, as
    it does through ``max``: memory for the backward pass is 2 * d_sae * d_in, whatever ``m``.
    """
    _need_pairs(directions.shape[0])
    chosen, weight = _strongest_pair(directions.detach(), neighbours, weights, block_size)
    d_i = directions
    # index_select, not indexing: its backward adds in a fixed order on the CPU, so that a run is
    # the same to the bit on any number of threads.
    d_j = directions.index_select(0, chosen)
    if firing_rates is not None:
        rate_j = firing_rates[chosen]
        d_i = torch.where((firing_rates > rate_j).unsqueeze(-1), d_i.detach(), d_i)
        d_j = torch.where((rate_j > firing_rates).unsqueeze(-1), d_j.detach(), d_j)
    cosine = (d_i * d_j).sum(-1)
    cost = (weight * cosine.relu()).square()
    if energies is None:
        return cost.mean()
    return (torch.minimum(energies, energies[chosen]) * cost).sum()


@torch.no_grad()
def _strongest_pair(
    directions: Float[Tensor, "d_sae d_in"],
    neighbours: Int[Tensor, "d_sae m"],
    weights: Float[Tensor, "d_sae m"],
    block_size: int,
) -> tuple[Int[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """Per latent, the neighbour with the largest ``w_ij * relu(c_ij)``, and that ``w_ij``."""
    slots = []
    for start in range(0, directions.shape[0], block_size):
        block = slice(start, start + block_size)
        cosines = torch.einsum("nd,nmd->nm", directions[block], directions[neighbours[block]])
        slots.append((weights[block] * cosines.relu()).argmax(dim=-1, keepdim=True))
    slot = torch.cat(slots)
    return neighbours.gather(1, slot).squeeze(1), weights.gather(1, slot).squeeze(1)


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
    directions: Float[Tensor, "d_sae d_in"], block_size: int = 2048
) -> Float[Tensor, " d_sae"]:
    """Per latent, ``max_{j != i} c_ij`` over the whole dictionary, in blocks of rows."""
    _need_pairs(directions.shape[0])
    out = []
    for start in range(0, directions.shape[0], block_size):
        cosines = directions[start : start + block_size] @ directions.T
        own = _own_column(cosines, start)
        out.append(cosines.masked_fill(own, float("-inf")).max(dim=-1).values)
    return torch.cat(out)


def _own_column(cosines: Float[Tensor, "n d_sae"], start: int) -> Bool[Tensor, "n d_sae"]:
    """Mask of the entries where a row of a block meets itself."""
    rows = torch.arange(start, start + cosines.shape[0], device=cosines.device).unsqueeze(1)
    return rows == torch.arange(cosines.shape[1], device=cosines.device)


def _need_pairs(n: int) -> None:
    if n < 2:
        raise ValueError(f"Orthogonality needs at least 2 decoder directions, got {n}.")
