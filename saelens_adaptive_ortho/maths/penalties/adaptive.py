"""``adaptive``: similar latents compete, unless their co-activation shows that they may share."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths.directions import need_pairs, pair_cosines
from saelens_adaptive_ortho.maths.penalties.contract import (
    MEAN_COEFFICIENT,
    Penalty,
    PenaltyInputs,
)
from saelens_adaptive_ortho.maths.penalties.pair_cost import ChosenPairs, pair_penalty

# There are two defaults because ``uniform`` averages over latents, while ``energy`` sums shares of
# the variance.
DEFAULT_COEFFICIENTS: dict[str, float] = {"uniform": MEAN_COEFFICIENT, "energy": 0.3}


def adaptive_penalty(
    W_dec: Float[Tensor, "d_sae d_in"],
    neighbours: Int[Tensor, "d_sae m"],
    weights: Float[Tensor, "d_sae m"],
    firing_rates: Float[Tensor, " d_sae"] | None = None,
    energies: Float[Tensor, " d_sae"] | None = None,
) -> Float[Tensor, ""]:
    """``mean_i (w_ij * relu(c_ij))^2``, where ``j`` maximises ``w_ij * relu(c_ij)`` in ``N(i)``.

    With energies it is ``sum_i min(e_i, e_j) (w_ij * relu(c_ij))^2``. It is the
    :func:`~.pair_cost.pair_penalty` of :func:`choose_pairs`. A training chooses the pairs when the
    statistics have changed, and keeps them between.

    The gradient flows only through the chosen pair, as through ``max``. The backward pass stores
    nothing of the decoder's size. The function is differentiable once.
    """
    return pair_penalty(W_dec, choose_pairs(W_dec, neighbours, weights, firing_rates, energies))


@torch.no_grad()
def choose_pairs(
    W_dec: Float[Tensor, "d_sae d_in"],
    neighbours: Int[Tensor, "d_sae m"],
    weights: Float[Tensor, "d_sae m"],
    firing_rates: Float[Tensor, " d_sae"] | None = None,
    energies: Float[Tensor, " d_sae"] | None = None,
) -> ChosenPairs:
    """The partner ``j(i) = argmax_{j in N(i)} w_ij * relu(c_ij)`` of each latent.

    The factor of its cost is ``f_i = w_ij^2 / n``, and with energies ``w_ij^2 min(e_i, e_j)``.

    Args:
        W_dec: decoder rows of any norm.
        neighbours: ``N(i)``, candidate latents of each latent; never contains ``i`` itself.
        weights: ``w_ij`` in [0, 1], aligned with ``neighbours``; see :func:`pair_weights`.
        firing_rates: ``P(i)``. They make the penalty *frequency-ordered*: it pushes only the
            rarer latent of a pair, and the more frequent one gets no gradient. At equal rates it
            pushes both. Without firing rates it pushes both latents of every pair (symmetric).
        energies: ``e_i``, share of the activations' variance that a latent contributes. A pair
            then costs what its weaker latent contributes along the other's direction. The penalty
            on a rare latent is therefore small, and a silent latent has none.

    Raises:
        ValueError: fewer than two directions.
    """
    n = len(W_dec)
    need_pairs(n)
    cosines = pair_cosines(W_dec, neighbours)
    return choose_among(cosines, neighbours, weights, n, firing_rates, energies)


@torch.no_grad()
def choose_among(
    cosines: Float[Tensor, "rows m"],
    neighbours: Int[Tensor, "rows m"],
    weights: Float[Tensor, "rows m"],
    n: int,
    firing_rates: Float[Tensor, " n"] | None = None,
    energies: Float[Tensor, " n"] | None = None,
    rows: slice = slice(None),
) -> ChosenPairs:
    """:func:`choose_pairs` for some latents, whose cosines with their candidates are known.

    Args:
        cosines: ``c_ij`` of the candidate pairs.
        neighbours: see :func:`choose_pairs`.
        weights: see :func:`choose_pairs`.
        n: number of latents of the SAE.
        firing_rates: those of all latents.
        energies: those of all latents.
        rows: the latents of the rows.
    """
    weights = weights.to(cosines.dtype)
    slot = (weights * cosines.relu()).argmax(dim=-1, keepdim=True)
    partner, weight = (x.gather(1, slot).squeeze(1) for x in (neighbours, weights))
    factor = weight.square()
    if energies is None:
        factor = factor / n
    else:
        factor = factor * torch.minimum(energies[rows], energies[partner]).to(factor.dtype)
    pushes = torch.ones_like(factor), torch.ones_like(factor)
    if firing_rates is not None:
        rate_i, rate_j = firing_rates[rows], firing_rates[partner]
        pushes = rate_i <= rate_j, rate_j <= rate_i
    return ChosenPairs(partner, torch.stack([factor * push for push in pushes]))


def pair_weights(affinity: Float[Tensor, "d_sae m"], alpha: float) -> Float[Tensor, "d_sae m"]:
    """``w_ij = 1 - alpha * s_ij``, where alpha controls the sharing.

    With ``alpha = 0`` all pairs are penalised fully. With ``alpha = 1`` pairs of affinity 1 share
    freely.

    Raises:
        ValueError: alpha outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}.")
    return 1.0 - alpha * affinity


def _choose(inputs: PenaltyInputs) -> ChosenPairs:
    cfg, pairs = inputs.cfg, inputs.pairs
    return choose_pairs(
        inputs.W_dec,
        pairs.neighbours,
        pair_weights(pairs.affinities(), cfg.ortho_alpha),
        firing_rates=pairs.firing_rates() if cfg.ortho_ordering == "frequency" else None,
        energies=pairs.energies() if cfg.ortho_weighting == "energy" else None,
    )


ADAPTIVE = Penalty(
    name="adaptive",
    help="squared cosine of the most similar latents, reduced for pairs that may share: "
    "sum_i max_j min(e_i, e_j) ((1 - alpha s_ij) relu(c_ij))^2",
    fields=("ortho_alpha", "ortho_ordering", "ortho_weighting"),
    loss=lambda inputs: pair_penalty(inputs.W_dec, inputs.chosen),
    choose=_choose,
    needs_lists=True,
    coefficient=lambda cfg: DEFAULT_COEFFICIENTS[cfg.ortho_weighting],
    version=2,  # 1 chose the pairs at every step
)
