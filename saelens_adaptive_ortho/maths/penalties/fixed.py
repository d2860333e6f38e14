"""``fixed``: OrtSAE's penalty, the squared largest cosine of each latent within random chunks."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths import device
from saelens_adaptive_ortho.maths.directions import (
    compared_directions,
    decoder_directions,
    nearest_rows,
    need_pairs,
    partner_cosines,
    precise,
    row_norms,
)
from saelens_adaptive_ortho.maths.penalties.contract import Penalty, PenaltyInputs
from saelens_adaptive_ortho.maths.penalties.pair_cost import PairCost

# Rows of a square block of cosines on a GPU: large, so that few kernels are launched.
GPU_BLOCK = 4096


def chunk_permutation(n: int, seed: int, step: int) -> Int[Tensor, " n"]:
    """A permutation of ``range(n)`` that is a pure function of ``(seed, step)``.

    It neither reads nor advances torch's global random state. The penalty therefore changes no
    other random draw of the training, and a resumed run draws the same chunks.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return torch.randperm(n, generator=generator)


def fixed_penalty(
    W_dec: Float[Tensor, "d_sae d_in"],
    permutation: Int[Tensor, " d_sae"],
    chunk_size: int = 8192,
) -> Float[Tensor, ""]:
    """OrtSAE's penalty: ``mean_chunks mean_{i in chunk} (max_{j != i in chunk} c_ij)^2``.

    Source: OrtSAE, arXiv 2509.22033, section 3 (signed maximum, then squared). ``permutation``
    divides the latents into ``K = ceil(d_sae / chunk_size)`` chunks whose sizes differ by at most
    one. The cost is ``d_sae * chunk_size * d_in / 2``, in blocks. The gradient flows only through
    the pair of the maximum, as through ``max``, so no [chunk, chunk] matrix is stored. The function
    is differentiable once. On a GPU, the maximum is searched in half precision; the cosine of the
    chosen pair is exact.

    Raises:
        ValueError: fewer than two directions, or a chunk size below two.
    """
    n, W = W_dec.shape[0], precise(W_dec)
    need_pairs(n)
    if chunk_size < 2:
        raise ValueError(f"chunk_size must be at least 2 to hold a pair, got {chunk_size}.")
    # At most n // 2 chunks, so that every chunk has at least two latents.
    n_chunks = max(1, min(-(-n // chunk_size), n // 2))
    chunks = device.moved(permutation, W.device).tensor_split(n_chunks)
    on_gpu = device.on_gpu(W)
    directions = compared_directions(W) if on_gpu else None
    chosen = torch.empty_like(permutation, device=W.device)
    cosine, factor = W.new_empty(n), W.new_empty(n)
    for chunk in chunks:
        if directions is None:
            cosine[chunk], nearest = nearest_rows(decoder_directions(W.detach()[chunk]))
        else:
            _, nearest = nearest_rows(directions[chunk], GPU_BLOCK)
        chosen[chunk] = chunk[nearest]
        factor[chunk] = 1 / (n_chunks * len(chunk))
    if on_gpu:
        norms, cosine = partner_cosines(W, chosen)
    else:
        norms = row_norms(W)
    return PairCost.apply(W, norms, chosen, cosine, factor.expand(2, -1))  # type: ignore[no-any-return]


def _loss(inputs: PenaltyInputs) -> Tensor:
    cfg = inputs.cfg
    permutation = chunk_permutation(len(inputs.W_dec), cfg.ortho_seed, inputs.step)
    return fixed_penalty(inputs.W_dec, permutation, cfg.ortho_chunk_size)


FIXED = Penalty(
    name="fixed",
    help="OrtSAE, squared largest cosine within random chunks: mean_i (max_j c_ij)^2",
    fields=("ortho_chunk_size", "ortho_every", "ortho_seed"),
    loss=_loss,
    every=lambda cfg: cfg.ortho_every,
)
