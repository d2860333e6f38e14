"""The training switches as pure functions of weights, gradients or activations."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths import typed

EPS = 1e-8


# ---------------------------------------------------------- unit-norm decoder


def unit_rows(W: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """``W[i] / ||W[i]||`` in the dtype of W; a zero row stays zero."""
    wide = W.to(torch.promote_types(W.dtype, torch.float32))
    return (wide / typed.norms(wide, keepdim=True).clamp(min=EPS)).to(W.dtype)


def tangent_gradient(
    gradient: Float[Tensor, "n d"], W: Float[Tensor, "n d"]
) -> Float[Tensor, "n d"]:
    """``g_i - <g_i, d_i> d_i``: the gradient without the component that changes a row's norm.

    Source: Bricken et al. 2023, "Towards Monosemanticity", appendix on training. Otherwise the
    momentum of the optimiser contains a component that the renormalisation undoes.
    """
    d = unit_rows(W)
    return gradient - (gradient * d).sum(-1, keepdim=True) * d


# ------------------------------------------------------- initial decoder rows


def orthogonal_rows(
    n: int, d: int, generator: torch.Generator | None = None
) -> Float[Tensor, "n d"]:
    """Blocks of d orthonormal rows, each a random rotation; float32. The last block may be smaller.

    Cosines are 0 within a block. Across blocks they are the cosines of random directions.
    """
    blocks: list[Tensor] = []
    for start in range(0, n, d):
        Q, R = typed.qr(torch.randn(d, d, generator=generator))
        # If the diagonal of R is made positive, Q is uniform over rotations (Mezzadri 2007).
        blocks.append((Q * R.diagonal().sign()).T[: n - start])
    return torch.cat(blocks)


def data_rows(x: Float[Tensor, "batch d"], n: int, seed: int) -> Float[Tensor, "n d"]:
    """n unit directions from a batch: a pure function of the batch and the seed; float32.

    The directions are centred activations ``x_i - mean(x)``, each used once. If the batch has fewer
    than n rows, the rest are differences ``x_i - x_j`` of random pairs. Equal activations give a
    zero row; the caller then keeps its old row.
    """
    x = x.float()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)[:n].to(x.device)
    rows = x[order] - x.mean(0)
    if n > len(rows):
        i = torch.randint(len(x), (n - len(rows),), generator=generator)
        # j differs from i if the batch has more than one row.
        j = i + torch.randint(1, max(2, len(x)), i.shape, generator=generator)
        rows = torch.cat([rows, x[i.to(x.device)] - x[(j % len(x)).to(x.device)]])
    return unit_rows(rows)


# -------------------------------------------------------------------- dropout


def dropout_mask(
    shape: tuple[int, ...], p: float, seed: int, step: int, device: torch.device | str = "cpu"
) -> Bool[Tensor, " *shape"]:
    """Mask of the entries that a dropout of share ``p`` keeps.

    It is a pure function of ``(seed, step)`` and the shape. It neither reads nor advances torch's
    global random state, so a resumed run drops the same entries.
    """
    # The fixed penalty seeds its chunks with another formula, so that the draws of a step differ.
    generator = torch.Generator(device).manual_seed((seed * 1_000_003 + step * 7 + 5) % 2**63)
    return torch.rand(shape, generator=generator, device=device) >= p


def drop_latents(acts: Tensor, p: float, seed: int, step: int) -> Tensor:
    """``acts * keep / (1 - p)`` (inverted dropout) on dense ``feature_acts``."""
    if p == 0:
        return acts
    keep = dropout_mask(tuple(acts.shape), p, seed, step, acts.device)
    return acts * (keep / (1 - p)).to(acts.dtype)


# ------------------------------------------------------ progressive unlocking


def unlocked_latents(step: int, d_sae: int, start: float, growth: float, every: int) -> int:
    """``ceil(d_sae * min(1, start + growth * floor(step / every)))``, at least 1.

    Source: run 9 of the prior runs (25%, then 10% more every 1,000 steps). Latents are unlocked in
    the order of their index. This is also the order of importance of Matryoshka SAEs.
    """
    # Rounding prevents that .25 + .1 + ... unlocks one latent too many.
    share = min(1.0, round(start + growth * (step // every), 9))
    return max(1, math.ceil(round(d_sae * share, 6)))


def unlocking_ends(start: float, growth: float, every: int) -> int:
    """First step at which every latent is unlocked."""
    return every * math.ceil(round((1 - start) / growth, 9))


# ---------------------------------------------- per-latent learning rates


def lr_multipliers(
    rates: Float[Tensor, " d_sae"], power: float, low: float, high: float
) -> Float[Tensor, " d_sae"]:
    """``clip((g / P(i))^p, low, high)``, where g is the geometric mean of the rates above 0.

    Latents that never fired get ``high``. If no latent has fired yet, all get 1. With Adam, the
    step of a latent does not depend on the size of its gradient, but it depends on how often the
    latent has a gradient.
    """
    alive = rates > 0
    if not bool(alive.any()):
        return torch.ones_like(rates)
    g = rates[alive].log().mean().exp()
    return (g / rates.clamp(min=1e-30)).pow(power).clamp(low, high)


# ------------------------------------------------------ feature-wise scaling


def update_mean_square(
    mean_square: Float[Tensor, " d_sae"], pre: Float[Tensor, "... d_sae"], decay: float
) -> Float[Tensor, " d_sae"]:
    """Running mean ``E[pre_i^2]`` in float32. The first batch sets it (it is all zero before)."""
    batch = pre.detach().float().square().flatten(0, -2).mean(0)
    # torch.where instead of `if` avoids waiting for the device.
    return torch.where(mean_square == 0, batch, decay * mean_square + (1 - decay) * batch)


def locked(d_sae: int, unlocked: Int[Tensor, " 1"]) -> Bool[Tensor, " d_sae"]:
    """Mask of the latents that are still locked."""
    return torch.arange(d_sae, device=unlocked.device) >= unlocked
