"""The group half of the penalty inside SAELens's training SAEs.

The other half, on decoder directions, is in :mod:`.penalty_mixin`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from torch import Tensor

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.host.config import separation_coefficient
from saelens_adaptive_ortho.host.switch_mixin import SwitchMixin
from saelens_adaptive_ortho.maths import separation
from saelens_adaptive_ortho.maths.separation import CorpusRates


def as_rows(acts: Float[Tensor, "... d_sae"]) -> Float[Tensor, "rows d_sae"]:
    """The activations of a batch as a dense matrix; the tensor itself if it is one."""
    if acts.is_sparse:
        acts = acts.to_dense()
    return acts if acts.ndim == 2 else acts.reshape(-1, acts.shape[-1])


class SeparationMixin(SwitchMixin):
    """Adds ``lambda_sep * L_sep`` to a stock training SAE whose batches hold two corpora.

    The firing rates on both corpora and the leanings of the latents are buffers, so a resumed run
    continues with them.
    """

    cfg: Any

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        if not self._separates():
            return
        device = self.W_dec.device
        self.register_buffer("ortho_corpus_samples", torch.zeros(2, device=device))
        self.register_buffer("ortho_corpus_fired", torch.zeros(2, cfg.d_sae, device=device))
        self.register_buffer("ortho_leaning", torch.zeros(cfg.d_sae, device=device))

    def _separates(self) -> bool:
        return bool(self.cfg.ortho_forget_rows) and separation_coefficient(self.cfg) > 0

    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        coefficients = dict(super().get_coefficients())  # pyright: ignore[reportAbstractUsage]
        if self._separates():
            coefficients["separation"] = TrainCoefficientConfig(
                value=separation_coefficient(self.cfg), warm_up_steps=self.cfg.ortho_warm_up_steps
            )
        return coefficients

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = super().training_forward_pass(step_input)
        if self._separates():
            # Latents that pay on retain text, in units of the full weight.
            output.metrics["ortho_leaning_to_forget"] = lambda: self.ortho_leaning.clamp(
                min=0
            ).sum()
        return output

    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        losses = super().calculate_aux_loss(  # pyright: ignore[reportAbstractUsage]
            step_input=step_input,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            sae_out=sae_out,
        )
        if not isinstance(losses, dict):  # SAELens also allows a single tensor
            losses = {"aux_loss": losses}
        return {**losses, **self._own_losses(step_input, feature_acts)}

    def _own_losses(self, step_input: TrainStepInput, acts: Tensor) -> dict[str, Tensor]:
        """The losses that the stock class does not have, by name."""
        if not self._separates():
            return {}
        with torch.autocast(acts.device.type, enabled=False):
            return {"separation_loss": self._separation(step_input, acts)}

    def _separation(self, step_input: TrainStepInput, acts: Tensor) -> Tensor:
        """``lambda_sep * L_sep`` on every n-th step, with n times the coefficient; else 0."""
        cfg, step = self.cfg, step_input.n_training_steps
        every = cfg.ortho_statistics_every
        counted = step % every == 0
        if counted:
            acts = as_rows(acts)
            self._need_retain_rows(acts)
            self._count_corpora(acts)
        if step % cfg.ortho_refresh_every == 0:
            self._form_leanings()
        if not counted:
            return acts.new_zeros((), dtype=torch.float32)
        leaning = self.ortho_leaning
        if not self._unit_rows():
            # The squared activation of a unit row. The gradient reaches the encoder alone.
            leaning = leaning * self.W_dec.detach().float().square().sum(-1)
        loss = separation.separation_penalty(
            acts, leaning, cfg.ortho_forget_rows, cfg.ortho_separated == "both"
        )
        return step_input.coefficients["separation"] * every * loss

    @torch.no_grad()
    def _count_corpora(self, acts: Tensor) -> None:
        self._corpus_rates = separation.update_rates(
            self._corpus_rates, acts, self.cfg.ortho_forget_rows, self.cfg.ortho_statistics_decay
        )

    @torch.no_grad()
    def _form_leanings(self) -> None:
        self.ortho_leaning = separation.leanings(
            self._corpus_rates.rates(), self.cfg.ortho_alpha, self.cfg.ortho_sharing_ratio
        )

    @property
    def _corpus_rates(self) -> CorpusRates:
        return CorpusRates(self.ortho_corpus_samples, self.ortho_corpus_fired)

    @_corpus_rates.setter
    def _corpus_rates(self, counts: CorpusRates) -> None:
        self.ortho_corpus_samples, self.ortho_corpus_fired = counts

    def _need_retain_rows(self, acts: Tensor) -> None:
        rows = self.cfg.ortho_forget_rows
        if rows >= acts.shape[0]:
            raise reject(
                "ortho_forget_rows",
                rows,
                f"a batch has only {acts.shape[0]} rows and needs some from the retain corpus. "
                "Leave it 0 unless batches are domain-stratified (the project's runner sets it).",
            )

    def _unit_rows(self) -> bool:
        """Whether the activations already belong to decoder rows of norm 1."""
        return getattr(self.cfg, "rescale_acts_by_decoder_norm", False)
