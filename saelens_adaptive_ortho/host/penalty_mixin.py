"""The penalty inside SAELens's training SAEs (:mod:`.switch_mixin` adds the switches).

A leaf class puts :class:`AdaptiveOrthoMixin` before a stock ``TrainingSAE``. Every method calls
``super()`` and adds only what the stock class does not do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from torch import Tensor

from saelens_adaptive_ortho.host.config import ortho_coefficient, penalty_of
from saelens_adaptive_ortho.host.separation_mixin import SeparationMixin, as_rows
from saelens_adaptive_ortho.maths import coactivation, grouping, neighbours, schedule
from saelens_adaptive_ortho.maths.affinity import AFFINITIES
from saelens_adaptive_ortho.maths.coactivation import CoactivationState
from saelens_adaptive_ortho.maths.device import moved
from saelens_adaptive_ortho.maths.directions import compared_directions, pair_cosines
from saelens_adaptive_ortho.maths.grouping import GroupSummary
from saelens_adaptive_ortho.maths.penalties import ChosenPairs, PairStatistics, PenaltyInputs

STATE_FIELDS = CoactivationState._fields
SCALE_DECAY = 0.99
# Steps between checks of the neighbour lists, and number of latents that a check looks at.
CHECK_EVERY = 5
CHECKED_LATENTS = 512
# Buffers that checkpoints of earlier versions do not have, and their first value.
NEWER = {"ortho_partner": -1, "ortho_push": 0, "ortho_churn": 0}


class AdaptiveOrthoMixin(SeparationMixin):
    """Adds ``lambda(t) * scale * L_ortho`` to a stock training SAE.

    The state is in persistent buffers of fixed shape named ``ortho_*``, so that SAELens's own
    checkpoints contain it. An inference export drops them and loads as the stock architecture.
    """

    cfg: Any

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self._ortho_groups: GroupSummary | None = None
        self._ortho_loss: Tensor | None = None  # of the current step
        self._ortho_penalty = penalty_of(cfg)
        self._ortho_affinity = AFFINITIES.find("ortho_affinity", cfg.ortho_affinity)
        self._ortho_settings: Any = None
        self._ortho_read: tuple[Tensor, int, int] | None = None  # see _searched_at
        if self._ortho_penalty is None:
            return  # no buffers, so the state dict also equals that of the stock class
        self._ortho_settings = self._ortho_penalty.own_settings(cfg.ortho_settings)
        device = self.W_dec.device
        self.register_buffer("ortho_scale", torch.zeros(2, device=device))
        if not self._ortho_penalty.needs_lists:
            return
        state = coactivation.empty_state(
            cfg.d_sae,
            cfg.ortho_neighbours,
            cfg.ortho_sketch_size,
            n_domains=2 if cfg.ortho_forget_rows else 1,
            device=device,
        )
        for name, value in state._asdict().items():
            self.register_buffer(f"ortho_{name}", value)
        unset = torch.full((cfg.d_sae, cfg.ortho_neighbours), -1, device=device)
        self.register_buffer("ortho_neighbours", unset)
        # Step of the last neighbour search; -1 before the first search.
        self.register_buffer("ortho_searched", torch.tensor(-1, device=device))
        # Captured share of the lists: latest, lowest, sum of all checks, number of checks.
        self.register_buffer("ortho_captured", torch.tensor([1.0, 1.0, 0.0, 0.0], device=device))
        self.register_buffer("ortho_group_ids", torch.arange(cfg.d_sae, device=device))
        inactive = torch.full((cfg.d_sae,), grouping.INACTIVE, device=device)
        self.register_buffer("ortho_domain_ids", inactive)
        # Share of the latents that changed their group at the last regrouping, for the log.
        self.register_buffer("ortho_churn", torch.tensor(0.0, device=device))
        if self._ortho_penalty.choose is None:
            return
        # The kept pair of each latent; -1 before the first choice. See ChosenPairs.
        unset = torch.full((cfg.d_sae,), NEWER["ortho_partner"], device=device)
        self.register_buffer("ortho_partner", unset)
        self.register_buffer("ortho_push", torch.zeros(2, cfg.d_sae, device=device))

    # ------------------------------------------------------------------ loss

    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        coefficients = dict(super().get_coefficients())  # pyright: ignore[reportAbstractUsage]
        if self._ortho_penalty is not None:
            coefficients["ortho"] = TrainCoefficientConfig(
                value=ortho_coefficient(self.cfg), warm_up_steps=self.cfg.ortho_warm_up_steps
            )
        return coefficients

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        step_input = self.ortho_begin_step(step_input)
        if self._ortho_penalty is None:
            return super().training_forward_pass(step_input)
        # Autocast computes products in bf16, which is too coarse for cosines near 1 and sketches.
        full_precision = torch.autocast(step_input.sae_in.device.type, enabled=False)
        with full_precision:
            self._before_step(step_input)
            # The penalty comes before the forward pass, so that its backward pass comes last. Its
            # gradient then does not use memory at the same time as the activations.
            self._ortho_loss = self._weighted_penalty(step_input)
        output = super().training_forward_pass(step_input)
        with full_precision:
            self._after_step(step_input, output)
        return output

    def _own_losses(self, step_input: TrainStepInput, acts: Tensor) -> dict[str, Tensor]:
        losses = super()._own_losses(step_input, acts)
        loss, self._ortho_loss = self._ortho_loss, None
        return losses if loss is None else {**losses, "ortho_loss": loss}

    def _weighted_penalty(self, step_input: TrainStepInput) -> Tensor | None:
        """``lambda(t) * scale * L_ortho``; None if lambda is 0 during the whole run."""
        if ortho_coefficient(self.cfg) == 0:
            return None
        coefficient = self._coefficient(step_input)
        if coefficient == 0:
            return step_input.sae_in.new_zeros(())
        return coefficient * self._scale() * self._penalty(step_input.n_training_steps)

    def _coefficient(self, step_input: TrainStepInput) -> float:
        """lambda(t). SAELens has already applied the linear warm-up."""
        cfg, step = self.cfg, step_input.n_training_steps
        value = step_input.coefficients["ortho"]
        if cfg.ortho_curriculum_start is not None:
            end = ortho_coefficient(cfg)
            value *= schedule.curriculum(
                step, cfg.ortho_curriculum_start, end, cfg.ortho_curriculum_steps
            )
            value /= end
        if cfg.ortho_fade_start_step is not None:
            value *= schedule.fade_out(step, cfg.ortho_fade_start_step, cfg.ortho_fade_end_step)
        assert self._ortho_penalty is not None
        every = self._ortho_penalty.every(cfg)
        return value * every if step % every == 0 else 0.0

    def _scale(self) -> Tensor | float:
        """Running mean of the batch's total variance ``E ||x - E x||^2``; 1 if not scale-free."""
        if not self.cfg.ortho_scale_free:
            return 1.0
        return self.ortho_scale[0] / self.ortho_scale[1]

    def _penalty(self, step: int) -> Tensor:
        assert self._ortho_penalty is not None
        kept = ChosenPairs(self.ortho_partner, self.ortho_push) if self._chooses() else None
        return self._ortho_penalty.loss(self._penalty_inputs(step, kept))

    def _penalty_inputs(self, step: int, kept: ChosenPairs | None) -> PenaltyInputs:
        return PenaltyInputs(
            W_dec=self.W_dec,
            cfg=self.cfg,
            step=step,
            settings=self._ortho_settings,
            lists=self.ortho_pairs() if self._keeps_lists() else None,
            kept=kept,
        )

    def _chooses(self) -> bool:
        """Whether the penalty chooses pairs and uses them during the run."""
        penalty = self._ortho_penalty
        chooses = penalty is not None and penalty.choose is not None
        return chooses and ortho_coefficient(self.cfg) > 0

    # ------------------------------------------------- statistics and groups

    @property
    def ortho_width(self) -> int:
        """Number of latents of the SAE, also if this object holds only some of them."""
        return self.cfg.d_sae

    @property
    def ortho_state(self) -> CoactivationState:
        """The co-activation statistics as one state for the pure functions."""
        return CoactivationState(*(getattr(self, f"ortho_{name}") for name in STATE_FIELDS))

    @ortho_state.setter
    def ortho_state(self, state: CoactivationState) -> None:
        for name, value in state._asdict().items():
            setattr(self, f"ortho_{name}", value)

    def ortho_pairs(self) -> PairStatistics:
        """Candidate pairs and statistics for the penalty."""
        return PairStatistics(
            state=self.ortho_state,
            neighbours=self.ortho_neighbours,
            variance=self.ortho_scale[0] / self.ortho_scale[1],
            measure=self.ortho_affinities,
        )

    @torch.no_grad()
    def ortho_affinities(self) -> Tensor:
        """``s_ij`` [d_sae, m] of the current candidate pairs, including the factor of domains."""
        state, candidates = self.ortho_state, self.ortho_neighbours
        affinity = self._ortho_affinity.measure(state, candidates, self.ortho_group_ids)
        if self.cfg.ortho_forget_rows:
            affinity = affinity * grouping.domain_sharing(self.ortho_domain_ids, candidates)
        return affinity

    def _keeps_lists(self) -> bool:
        return self._ortho_penalty is not None and self._ortho_penalty.needs_lists

    @torch.no_grad()
    def _before_step(self, step_input: TrainStepInput) -> None:
        x = step_input.sae_in.float()
        variance = (x - x.mean(0)).square().sum(-1).mean()
        sample = torch.stack([variance, torch.ones_like(variance)])
        self.ortho_scale = self.ortho_scale * SCALE_DECAY + sample * (1 - SCALE_DECAY)
        if not self._keeps_lists():
            return
        step, first = step_input.n_training_steps, self._ortho_groups is None
        # At the first step of a process, a resumed SAE has lists and a new SAE has none, even if
        # its training does not start at step 0. The same is true of the chosen pairs.
        search = (first and self._searched_at() < 0) or self._search_due(step)
        regroup = step % self.cfg.ortho_refresh_every == 0
        if search:
            self.ortho_search(step)
        if regroup:
            self.ortho_regroup()
        elif first:
            groups = self._summarise_groups(self.ortho_group_ids)
            self._ortho_groups = groups._replace(churn=float(self.ortho_churn))
        if not self._chooses():
            return
        counted = (step - 1) % self.cfg.ortho_statistics_every == 0  # at the end of the last step
        if search or regroup or counted or (first and int(self.ortho_partner[0]) < 0):
            self.ortho_choose(step)

    def _search_due(self, step: int) -> bool:
        longest = self.cfg.ortho_refresh_every
        if self.cfg.ortho_min_captured == 0:
            return step % longest == 0
        every = min(CHECK_EVERY, longest)
        if step % every:
            return False  # avoids reading from the device
        if step - self._searched_at() >= longest:
            return True
        rows = neighbours.sampled_rows(self.ortho_width, CHECKED_LATENTS, step // every)
        return self.ortho_check(rows) < self.cfg.ortho_min_captured

    def _searched_at(self) -> int:
        """The step of the last search. It is read from the device only once."""
        buffer = self.ortho_searched
        if self._ortho_read is not None:
            read, version, step = self._ortho_read
            if read is buffer and version == buffer._version:
                return step
        self._ortho_read = buffer, buffer._version, int(buffer)
        return self._ortho_read[2]

    @torch.no_grad()
    def _after_step(self, step_input: TrainStepInput, output: TrainStepOutput) -> None:
        cfg = self.cfg
        output.metrics["ortho_scale"] = lambda: self._scale()
        if not self._keeps_lists():
            return
        if step_input.n_training_steps % cfg.ortho_statistics_every == 0:
            self._count(as_rows(output.feature_acts), step_input.n_training_steps)
        if cfg.ortho_min_captured:
            latest, lowest, total, number = self.ortho_captured
            output.metrics["ortho_captured"] = latest
            output.metrics["ortho_captured_lowest"] = lowest
            output.metrics["ortho_captured_mean"] = lambda: torch.where(
                number > 0, total / number, 1.0
            )
        if self._ortho_groups is not None:
            for name, value in self._ortho_groups._asdict().items():
                output.metrics[f"ortho_groups/{name}"] = value

    def _count(self, acts: Tensor, step: int) -> None:
        cfg = self.cfg
        self._need_retain_rows(acts)
        signs = coactivation.random_signs(
            acts.shape[0], cfg.ortho_sketch_size, cfg.ortho_seed, step
        )
        self.ortho_state = coactivation.update(
            self.ortho_state,
            acts,
            self.ortho_neighbours,
            moved(signs, acts.device),
            cfg.ortho_statistics_decay,
            cfg.ortho_forget_rows,
            None if self._unit_rows() else self.W_dec.detach().float().norm(dim=-1),
        )

    @torch.no_grad()
    def ortho_check(self, rows: Tensor) -> float:
        """Measure the captured share of the latents ``rows`` [k] and record it."""
        share = self._captured_share(rows)
        _, lowest, total, number = self.ortho_captured
        lowest = torch.minimum(lowest, share)
        self.ortho_captured = torch.stack([share, lowest, total + share, number + 1])
        return float(share)

    def _captured_share(self, rows: Tensor) -> Tensor:
        directions = compared_directions(self.W_dec)
        return neighbours.captured_share(
            directions, self.ortho_neighbours, rows.to(directions.device)
        )

    @torch.no_grad()
    def ortho_search(self, step: int) -> None:
        """Search the neighbours again and move the pair statistics to the new lists."""
        directions, old = compared_directions(self.W_dec), self.ortho_neighbours
        floor = None
        if self._searched_at() >= 0:
            # The least similar candidate of an old list is at least as far down as that of the new
            # one, up to the rounding of half precision.
            floor = pair_cosines(self.W_dec, old).amin(1).to(directions.dtype) - 2e-3
        found, _ = neighbours.top_similar(directions, old.shape[1], floor=floor)
        self.ortho_state = coactivation.retarget(self.ortho_state, old, found)
        self.ortho_neighbours = found
        self.ortho_searched = torch.full_like(self.ortho_searched, step)
        self._ortho_read = self.ortho_searched, self.ortho_searched._version, step

    @torch.no_grad()
    def ortho_choose(self, step: int) -> None:
        """Choose the pair of each latent from lists and statistics, and keep it."""
        assert self._ortho_penalty is not None
        assert self._ortho_penalty.choose is not None
        pairs = self._ortho_penalty.choose(self._penalty_inputs(step, kept=None))
        self.ortho_partner, self.ortho_push = pairs.partner, pairs.push.float()

    @torch.no_grad()
    def ortho_regroup(self) -> None:
        """Form groups and domains from the statistics."""
        cfg = self.cfg
        state, previous = self.ortho_state, self.ortho_group_ids
        self.ortho_group_ids = grouping.coactivation_groups(
            coactivation.sketch_directions(state), cfg.ortho_group_threshold
        )
        if cfg.ortho_forget_rows:
            self.ortho_domain_ids = grouping.domain_groups(
                coactivation.domain_rates(state), cfg.ortho_domain_ratio
            )
        self._note_groups(previous)

    def _note_groups(self, previous: Tensor) -> None:
        """Summarise the groups for the log, and keep their churn for a process that resumes."""
        self._ortho_groups = self._summarise_groups(previous)
        self.ortho_churn = torch.full_like(self.ortho_churn, self._ortho_groups.churn)

    def _summarise_groups(self, previous: Tensor) -> GroupSummary:
        return grouping.summarise_groups(self.ortho_group_ids, self.ortho_domain_ids, previous)

    # --------------------------------------------------- saving and loading

    def _ortho_buffers(self) -> dict[str, Tensor]:
        """The ``ortho_*`` buffers by name (a stock class may have other buffers)."""
        return {
            name: buffer
            for name, buffer in self._buffers.items()
            if name.startswith("ortho_") and buffer is not None
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # sae.to(bfloat16) must not change counts and ids: they move but keep their dtype.
        held = self._ortho_buffers()
        for name in held:
            self._buffers[name] = None  # nn.Module._apply skips buffers that are None
        try:
            super()._apply(fn, recurse)  # type: ignore[call-arg]
        finally:
            for name, buffer in held.items():
                device = fn(torch.empty(0, dtype=buffer.dtype, device=buffer.device)).device
                self._buffers[name] = buffer.to(device)
        return self

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        for name, buffer in self._ortho_buffers().items():
            # Saved as bytes, because SAELens casts every tensor it loads to the SAE's dtype. A cast
            # to bf16 preserves whole numbers up to 255, but not counts and ids.
            state_dict[name] = buffer.contiguous().reshape(-1).view(torch.uint8)

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        for name, buffer in self._ortho_buffers().items():
            if name in state_dict:
                raw = state_dict[name].to(torch.uint8)
                state_dict[name] = raw.view(buffer.dtype).reshape(buffer.shape)
            elif name in NEWER:
                state_dict[name] = torch.full(buffer.shape, NEWER[name], dtype=buffer.dtype)

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        for name in self._ortho_buffers():
            state_dict.pop(name, None)
