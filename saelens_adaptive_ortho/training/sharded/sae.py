"""Training SAEs that hold the latents of one rank.

The classes have the config, the parameters and the buffers of an SAE with the latents of this rank
alone. They override what depends on the latents of other ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    JumpReLUTrainingSAE,
    StandardTrainingSAE,
    TopKTrainingSAE,
)
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import act_times_W_dec
from torch import Tensor

from saelens_adaptive_ortho.host.config import ortho_coefficient
from saelens_adaptive_ortho.host.penalty_mixin import AdaptiveOrthoMixin
from saelens_adaptive_ortho.host.sparse_mixin import SparseStepMixin
from saelens_adaptive_ortho.maths import coactivation, grouping, sparse
from saelens_adaptive_ortho.maths.coactivation import CoactivationState
from saelens_adaptive_ortho.maths.device import moved
from saelens_adaptive_ortho.maths.directions import compared_directions
from saelens_adaptive_ortho.maths.grouping import GroupSummary
from saelens_adaptive_ortho.maths.penalties import ChosenPairs
from saelens_adaptive_ortho.maths.penalties.adaptive import choose_among, pair_weights
from saelens_adaptive_ortho.maths.sparse import Nonzeros, estimated_nonzeros
from saelens_adaptive_ortho.training.sharded import pairs
from saelens_adaptive_ortho.training.sharded.layout import Layout
from saelens_adaptive_ortho.training.sharded.selection import (
    ShardedBatchTopK,
    ShardedTopK,
    chosen_of,
)
from saelens_adaptive_ortho.training.sharded.similar import (
    ring_cosines,
    ring_top_similar,
    sampled_captured_share,
)

# Losses that are sums over latents: each rank has the part of its own.
SUMMED_LOSSES = ("l1_loss", "l0_loss", "pre_act_loss", "separation_loss")
# Rows of initial weights that are drawn at a time.
DRAWN_ROWS = 4096

if TYPE_CHECKING:
    _Base = AdaptiveOrthoMixin
else:
    _Base = object


class ShardedMixin(_Base):
    """Trains the latents of one rank with those of the others.

    Args:
        cfg: config with the number of latents of a rank as ``d_sae``.
        layout: which latents these are.
    """

    cfg: Any

    def __init__(self, cfg: Any, layout: Layout) -> None:
        self.layout = layout
        self._exchange: pairs.Exchange | None = None  # of the chosen pairs
        super().__init__(cfg)
        if self._keeps_lists():
            self.ortho_group_ids = self.ortho_group_ids + layout.first

    @property
    def ortho_width(self) -> int:
        return self.layout.total

    def initialize_weights(self) -> None:
        """Draw what one process would draw for these latents.

        A generator draws row by row. The rows of the ranks before this one are drawn and thrown
        away, some at a time.
        """
        for start in range(0, self.layout.first, DRAWN_ROWS):
            rows = min(DRAWN_ROWS, self.layout.first - start)
            torch.empty(rows, self.cfg.d_in, dtype=self.dtype, device=self.device).uniform_()
        super().initialize_weights()

    # ------------------------------------------------------------------ step

    def _product(self, acts: Tensor) -> Tensor:
        """``acts @ W_dec`` of this rank, with the scale of the rows."""
        if isinstance(self, SparseStepMixin) and self._multiplies_sparsely(acts):
            return sparse.matmul(acts, self.W_dec, self._norms())
        rescale = getattr(self.cfg, "rescale_acts_by_decoder_norm", False)
        return act_times_W_dec(acts, self.W_dec, rescale)

    def _total(self, product: Tensor) -> Tensor:
        """The sum of the products of all ranks, added in float32 or wider."""
        wide = product.to(torch.promote_types(product.dtype, torch.float32))
        return self.layout.ranks.total(wide).to(product.dtype)

    def decode(self, feature_acts: Tensor) -> Tensor:
        # The gradient of the bias is the sum over the ranks of what each of them finds. The
        # encoder's part is that of its own latents, and the decoder's part counts once.
        bias = self.b_dec if self.layout.ranks.rank == 0 else self.b_dec.detach()
        return self.hook_sae_recons(self._total(self._product(feature_acts)) + bias)

    def calculate_aux_loss(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().calculate_aux_loss(*args, **kwargs)
        parts = [name for name in SUMMED_LOSSES if name in losses]
        return {**losses, **{name: self.layout.ranks.total(losses[name]) for name in parts}}

    def calculate_topk_aux_loss(
        self,
        sae_in: Tensor,
        sae_out: Tensor,
        hidden_pre: Tensor,
        dead_neuron_mask: Tensor | None,
    ) -> Tensor:
        """SAELens's auxiliary loss, with the dead latents of all ranks."""
        if dead_neuron_mask is None:
            return sae_out.new_tensor(0.0)
        num_dead = int(self.layout.ranks.sum(dead_neuron_mask.sum()))
        if num_dead == 0:
            return sae_out.new_tensor(0.0)
        k_aux = sae_in.shape[-1] // 2
        scale = min(num_dead / k_aux, 1.0)
        dead = torch.where(dead_neuron_mask[None], hidden_pre.detach(), -torch.inf)
        chosen = chosen_of(dead, min(k_aux, num_dead), self.layout.ranks)
        acts = torch.where(chosen & dead_neuron_mask[None], hidden_pre, 0.0)
        rescale = self.cfg.rescale_acts_by_decoder_norm
        recons = self._total(act_times_W_dec(acts, self.W_dec, rescale))
        error = recons - (sae_in - sae_out).detach()
        return self.cfg.aux_loss_coefficient * scale * error.pow(2).sum(dim=-1).mean()

    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        """SAELens's update of BatchTopK's threshold, from the least activation of all ranks."""
        known = Nonzeros.known(acts_topk)
        acts = acts_topk if known is None else known.values
        least = torch.where(acts > 0, acts, torch.inf).flatten()
        least = torch.cat([least, least.new_full((1,), torch.inf)]).min()
        least = -self.layout.ranks.largest(-least).to(self.topk_threshold.dtype)
        lr = self.cfg.topk_threshold_lr
        moved_on = (1 - lr) * self.topk_threshold + lr * least
        self.topk_threshold = torch.where(least.isfinite(), moved_on, self.topk_threshold)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = super().training_forward_pass(step_input)
        leaning = output.metrics.get("ortho_leaning_to_forget")
        if callable(leaning):
            of_all = self.layout.ranks.sum
            output.metrics["ortho_leaning_to_forget"] = lambda: of_all(torch.as_tensor(leaning()))
        return output

    # --------------------------------------------------------------- penalty

    def _weighted_penalty(self, step_input: TrainStepInput) -> Tensor | None:
        """``lambda(t) * scale * L_ortho``. Its gradient is added to that of the decoder at once.

        The penalty depends on the decoder alone. Its gradient needs rows of other ranks, and
        nothing is exchanged in the backward pass.
        """
        if ortho_coefficient(self.cfg) == 0:
            return None
        coefficient = self._coefficient(step_input)
        if coefficient == 0:
            return step_input.sae_in.new_zeros(())
        chosen = ChosenPairs(self.ortho_partner, self.ortho_push)
        if self._exchange is None:
            self._exchange = pairs.plan_exchange(chosen, self.layout)
        loss, gradient = pairs.pair_penalty_and_gradient(
            self.W_dec, chosen, self._exchange, self.layout
        )
        factor = coefficient * self._scale()
        if torch.is_grad_enabled():
            gradient = gradient.mul_(factor).to(self.W_dec.dtype)
            before = self.W_dec.grad
            self.W_dec.grad = gradient if before is None else before.add_(gradient)
        return factor * loss

    @torch.no_grad()
    def ortho_choose(self, step: int) -> None:  # noqa: ARG002
        cfg, state = self.cfg, self.ortho_state
        frequency, energy = cfg.ortho_ordering == "frequency", cfg.ortho_weighting == "energy"
        cosines = ring_cosines(compared_directions(self.W_dec), self.ortho_neighbours, self.layout)
        chosen = choose_among(
            cosines.to(torch.promote_types(self.W_dec.dtype, torch.float32)),
            self.ortho_neighbours,
            pair_weights(self.ortho_affinities(), cfg.ortho_alpha),
            self.layout.total,
            self._of_all(coactivation.firing_rates(state)) if frequency else None,
            self._of_all(self.ortho_pairs().energies()) if energy else None,
            self.layout.mine,
        )
        self.ortho_partner, self.ortho_push = chosen.partner, chosen.push.float()
        self._exchange = None

    @torch.no_grad()
    def ortho_search(self, step: int) -> None:
        directions, old = compared_directions(self.W_dec), self.ortho_neighbours
        found, _ = ring_top_similar(directions, old.shape[1], self.layout)
        self.ortho_state = coactivation.retarget(self.ortho_state, old, found)
        self.ortho_neighbours = found
        self.ortho_searched = torch.full_like(self.ortho_searched, step)
        self._ortho_read = self.ortho_searched, self.ortho_searched._version, step

    def _captured_share(self, rows: Tensor) -> Tensor:
        directions = compared_directions(self.W_dec)
        rows = rows.to(directions.device)
        return sampled_captured_share(directions, self.ortho_neighbours, rows, self.layout)

    # ------------------------------------------------- statistics and groups

    def _of_all(self, x: Tensor, axis: int = 0) -> Tensor:
        return self.layout.ranks.gather(x, axis)

    @torch.no_grad()
    def ortho_affinities(self) -> Tensor:
        # The pair counts of all ranks are small: 7 numbers a pair.
        state, candidates = self.ortho_state, self._of_all(self.ortho_neighbours)
        of_all = CoactivationState(
            samples=state.samples,
            fired=self._of_all(state.fired, axis=1),
            joint=self._of_all(state.joint),
            joint_samples=self._of_all(state.joint_samples),
            sketch=state.sketch.new_zeros(self.layout.total, 0),  # no affinity of ours reads it
            sketch_total=state.sketch_total[:0],
            total=self._of_all(state.total),
            squares=self._of_all(state.squares),
            joint_own=self._of_all(state.joint_own),
            joint_other=self._of_all(state.joint_other),
        )
        groups = self._of_all(self.ortho_group_ids)
        affinity = self._ortho_affinity.measure(of_all, candidates, groups)
        if self.cfg.ortho_forget_rows:
            domains = self._of_all(self.ortho_domain_ids)
            affinity = affinity * grouping.domain_sharing(domains, candidates)
        return affinity[self.layout.mine]

    @torch.no_grad()
    def _count(self, acts: Tensor, step: int) -> None:
        cfg = self.cfg
        self._need_retain_rows(acts)
        firings = self.layout.ranks.sum(torch.tensor(estimated_nonzeros(acts)))
        stride = coactivation.counted_stride(int(firings), self.layout.total)
        signs = coactivation.random_signs(
            acts.shape[0], cfg.ortho_sketch_size, cfg.ortho_seed, step
        )
        fired = _fired(acts, stride)
        if not self._unit_rows():
            norms = self.W_dec.detach().float().norm(dim=-1)
            fired = fired._replace(values=fired.values * norms[fired.columns])
        self.ortho_state = coactivation.with_counts(
            self.ortho_state,
            fired,
            pairs.joint_sums(fired, self.ortho_neighbours, self.layout),
            moved(signs, acts.device)[::stride],
            cfg.ortho_statistics_decay,
            -(-cfg.ortho_forget_rows // stride),
        )

    @torch.no_grad()
    def ortho_regroup(self) -> None:
        cfg, state, previous = self.cfg, self.ortho_state, self.ortho_group_ids
        m = min(grouping.GROUP_CANDIDATES, self.layout.total - 1)
        found, similarity = ring_top_similar(
            coactivation.sketch_directions(state),
            m,
            self.layout,
            grouping.link_floor(cfg.ortho_group_threshold),
        )
        groups = grouping.linked_groups(
            self._of_all(found), self._of_all(similarity), cfg.ortho_group_threshold
        )
        self.ortho_group_ids = groups[self.layout.mine].clone()
        if cfg.ortho_forget_rows:
            self.ortho_domain_ids = grouping.domain_groups(
                coactivation.domain_rates(state), cfg.ortho_domain_ratio
            )
        self._note_groups(previous)

    def _summarise_groups(self, previous: Tensor) -> GroupSummary:
        ids = self.ortho_group_ids, self.ortho_domain_ids, previous
        return grouping.summarise_groups(*map(self._of_all, ids))


def _fired(acts: Tensor, stride: int) -> Nonzeros:
    """The positive activations of every n-th row, in float32."""
    counted = acts[::stride]
    known = Nonzeros.known(acts) if stride == 1 else None
    if known is None:
        rows, latents = (counted > 0).nonzero(as_tuple=True)
        return Nonzeros(rows, latents, counted[rows, latents].float(), counted.shape)
    positive = known.values > 0
    rows, latents, values = (x[positive] for x in known[:3])
    return Nonzeros(rows, latents, values.float(), counted.shape)


@final
class ShardedStandardSAE(ShardedMixin, AdaptiveOrthoMixin, SparseStepMixin, StandardTrainingSAE):
    """The part of a standard (L1) SAE that one rank has."""


@final
class ShardedTopKSAE(ShardedMixin, AdaptiveOrthoMixin, SparseStepMixin, TopKTrainingSAE):
    """The part of a TopK SAE that one rank has."""

    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return ShardedTopK(self.cfg.k, self.layout.ranks)


@final
class ShardedBatchTopKSAE(ShardedMixin, AdaptiveOrthoMixin, SparseStepMixin, BatchTopKTrainingSAE):
    """The part of a BatchTopK SAE that one rank has."""

    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return ShardedBatchTopK(self.cfg.k, self.layout.ranks)


@final
class ShardedJumpReLUSAE(ShardedMixin, AdaptiveOrthoMixin, JumpReLUTrainingSAE):
    """The part of a JumpReLU SAE that one rank has."""


SHARDED: dict[str, type[Any]] = {
    "adaptive_ortho_standard": ShardedStandardSAE,
    "adaptive_ortho_topk": ShardedTopKSAE,
    "adaptive_ortho_batchtopk": ShardedBatchTopKSAE,
    "adaptive_ortho_jumprelu": ShardedJumpReLUSAE,
}
"""The sharded class of each architecture that has one."""
