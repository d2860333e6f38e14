"""Affinities ``s_ij`` in [0, 1]: how far two latents may share a direction, from co-activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.maths.coactivation import CoactivationState, domain_rates, firing_rates
from saelens_adaptive_ortho.plugins import Table

PSEUDO_FIRINGS = 3.0


def lift_affinity(
    state: CoactivationState, neighbours: Int[Tensor, "d_sae m"]
) -> Float[Tensor, "d_sae m"]:
    """``s_ij = min(1, n_ij / (N sum_d pi_d p_id p_jd + 1))``: lift, given the domain.

    ``n_ij`` is the number of joint firings in ``N`` rows. The denominator is the number expected if
    the two latents fired independently *within each domain* ``d``, which has the share ``pi_d`` of
    the rows and the firing rates ``p_id``. Pairs that fire together at least as often as expected
    may share. Mutually exclusive pairs compete, and so do pairs without evidence (the pseudo-count
    1). The expectation is taken within each domain because two latents of one corpus fire together
    more often than their overall rates suggest, even if they share nothing.
    """
    rates = domain_rates(state)
    share = state.samples / state.samples.sum().clamp(min=1.0)
    chance = torch.zeros_like(state.joint)
    for pi, p in zip(share, rates, strict=True):
        chance += pi * p.unsqueeze(1) * p[neighbours]
    return (state.joint / (state.joint_samples * chance + 1.0)).clamp(max=1.0)


def overlap_affinity(
    state: CoactivationState, neighbours: Int[Tensor, "d_sae m"]
) -> Float[Tensor, "d_sae m"]:
    """``s_ij = P(i, j) / min(P(i), P(j))``, with a pseudo-count of 1 in the denominator."""
    rates = firing_rates(state)
    rarer = state.joint_samples * torch.minimum(rates.unsqueeze(1), rates[neighbours])
    return (state.joint / (rarer + 1.0)).clamp(max=1.0)


def unsuppressed_affinity(
    state: CoactivationState, neighbours: Int[Tensor, "d_sae m"], tolerance: float = 0.1
) -> Float[Tensor, "d_sae m"]:
    """``s_ij = lift_ij * clip(1 - (1 - min(r_ij, r_ji)) / tolerance, 0, 1)``.

    ``r_ij = E[a_i | i and j fire] / E[a_i | i fires, j does not]`` compares the activation of
    latent i with and without j. Features that truly share a direction add up along it, and neither
    weakens the other. If a latent has taken over part of another's direction (absorption,
    hedging), the other is weaker when both fire. Such a pair competes, however often it fires
    together. :data:`PSEUDO_FIRINGS` shrinks the ratios towards 1.
    """
    counted = state.joint_samples / state.samples.sum().clamp(min=1.0)
    ratio_ij, ratio_ji = (
        _joint_to_alone_ratio(counted * fired, counted * total, state.joint, joint)
        for fired, total, joint in (
            (_as_column(state.fired.sum(0)), _as_column(state.total), state.joint_own),
            (state.fired.sum(0)[neighbours], state.total[neighbours], state.joint_other),
        )
    )
    kept = torch.minimum(ratio_ij, ratio_ji)
    unsuppressed = (1.0 - (1.0 - kept) / tolerance).clamp(0.0, 1.0)
    return lift_affinity(state, neighbours) * unsuppressed


def _as_column(per_latent: Float[Tensor, " d_sae"]) -> Float[Tensor, "d_sae 1"]:
    return per_latent.unsqueeze(1)


def _joint_to_alone_ratio(
    fired: Float[Tensor, "d_sae m"],
    total: Float[Tensor, "d_sae m"],
    joint: Float[Tensor, "d_sae m"],
    joint_total: Float[Tensor, "d_sae m"],
) -> Float[Tensor, "d_sae m"]:
    """Mean activation in joint firings over mean activation alone; 1 where nothing is known."""
    alone = fired - joint
    mean = total / fired.clamp(min=1e-8)
    # A latent that never fires alone is compared with its own overall mean.
    known = alone > PSEUDO_FIRINGS
    mean_alone = torch.where(known, (total - joint_total) / alone.clamp(min=1e-8), mean)
    shrunk = (joint_total + PSEUDO_FIRINGS * mean_alone) / (joint + PSEUDO_FIRINGS)
    return torch.where(mean_alone > 0, shrunk / mean_alone.clamp(min=1e-8), 1.0)


def same_group(
    group_ids: Int[Tensor, " d_sae"], neighbours: Int[Tensor, "d_sae m"]
) -> Float[Tensor, "d_sae m"]:
    """``s_ij = 1`` where i and j are in one co-activation group, else 0."""
    return (group_ids.unsqueeze(1) == group_ids[neighbours]).float()


@dataclass(frozen=True, kw_only=True)
class Affinity:
    """How far two latents may share a direction.

    Args:
        name: value of ``ortho_affinity`` that selects it.
        help: one sentence with the formula.
        measure: function of co-activation counts, candidate pairs ``N(i)`` of shape
            ``[d_sae, m]`` and co-activation groups of shape ``[d_sae]``. It returns ``s_ij`` in
            ``[0, 1]``, of shape ``[d_sae, m]``.
    """

    name: str
    help: str
    measure: Callable[[CoactivationState, Tensor, Tensor], Tensor]


AFFINITIES = Table(
    Affinity,
    "saelens_adaptive_ortho.affinities",
    [
        Affinity(
            name="unsuppressed",
            help="lift, if neither latent is weaker when the other fires too",
            measure=lambda state, neighbours, _: unsuppressed_affinity(state, neighbours),
        ),
        Affinity(
            name="lift",
            help="joint firings over those expected by chance, at most 1: n_ij / (N p_i p_j + 1)",
            measure=lambda state, neighbours, _: lift_affinity(state, neighbours),
        ),
        Affinity(
            name="overlap",
            help="joint firings over firings of the rarer latent: P(i, j) / min(P(i), P(j))",
            measure=lambda state, neighbours, _: overlap_affinity(state, neighbours),
        ),
        Affinity(
            name="group",
            help="1 in the same co-activation group, else 0",
            measure=lambda _, neighbours, group_ids: same_group(group_ids, neighbours),
        ),
    ],
)
