"""Which latents a rank has, and which axis of a tensor is that of the latents."""

from __future__ import annotations

from dataclasses import dataclass

from saelens_adaptive_ortho.training.sharded.ranks import Ranks

# The axis of the latents; None if every rank has the whole tensor. Moments of Adam have the axis
# of their parameter.
AXES: dict[str, int | None] = {
    "W_enc": 1,
    "W_dec": 0,
    "b_enc": 0,
    "b_dec": None,
    "threshold": 0,
    "topk_threshold": None,
    "ortho_scale": None,
    "ortho_samples": None,
    "ortho_fired": 1,
    "ortho_joint": 0,
    "ortho_joint_samples": 0,
    "ortho_sketch": 0,
    "ortho_sketch_total": None,
    "ortho_total": 0,
    "ortho_squares": 0,
    "ortho_joint_own": 0,
    "ortho_joint_other": 0,
    "ortho_neighbours": 0,
    "ortho_searched": None,
    "ortho_captured": None,
    "ortho_group_ids": 0,
    "ortho_domain_ids": 0,
    "ortho_churn": None,
    "ortho_partner": 0,
    "ortho_push": 1,
    "ortho_corpus_samples": None,
    "ortho_corpus_fired": 1,
    "ortho_leaning": 0,
    "act_freq_scores": 0,
    "n_forward_passes_since_fired": 0,
}


@dataclass(frozen=True)
class Layout:
    """The latents ``[first, first + n)`` of this rank. Every rank has as many.

    Args:
        ranks: the ranks.
        total: number of latents of the SAE, a multiple of the number of ranks.
    """

    ranks: Ranks
    total: int

    @property
    def n(self) -> int:
        """Number of latents of a rank."""
        return self.total // self.ranks.size

    @property
    def first(self) -> int:
        """Number of the first latent of this rank."""
        return self.ranks.rank * self.n

    @property
    def mine(self) -> slice:
        """The latents of this rank among all."""
        return slice(self.first, self.first + self.n)
