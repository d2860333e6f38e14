"""The switches inside SAELens's training SAEs.

:class:`~.penalty_mixin.AdaptiveOrthoMixin` builds on this class. If every switch is off, this
module adds no parameter, buffer or operation to a training SAE.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import calculate_topk_aux_acts
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint  # no top-level name; SAELens uses this path too

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.host.switch_config import (
    SKIP_EXPORTS,
    UNDONE_NORMALISATIONS,
    needs_own_loop,
)
from saelens_adaptive_ortho.maths import switches

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE

    _Base = TrainingSAE[Any]
else:
    _Base = object

MEAN_SQUARE_DECAY = 0.99
MEAN_SQUARE_EPS = 1e-12
LAYER_NORM_EPS = 1e-5  # SAELens's
# Pre-activation of a locked latent. It is below every threshold and outside every JumpReLU
# bandwidth. It is finite, so that products with it never become NaN.
SILENT = -1e4


def inference_config(cfg: Any, stock: type[SAEConfig]) -> type[SAEConfig]:
    """The stock config for the export: ``stock``, or the matching one with a skip connection."""
    if not cfg.ortho_skip_rank:
        return stock
    return get_sae_class(SKIP_EXPORTS[cfg.architecture().removeprefix("adaptive_ortho_")])[1]


class LatentHookPoint(HookPoint):
    """Hook point of the pre-activations that also scales them and silences locked latents.

    Every stock architecture sends its pre-activations through this hook point.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rms: Tensor | None = None
        self.locked: Tensor | None = None
        self.observe: Any = None

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.observe is not None:
            self.rms = self.observe(x)
        if self.rms is not None:
            x = x / self.rms.to(x.dtype)
        if self.locked is not None:
            x = x.masked_fill(self.locked, SILENT)
        return super().forward(x)


class SwitchMixin(_Base):
    """Implements the switches of :class:`~.switch_config.SwitchConfig`."""

    cfg: Any
    # Factor and centre of the rows that are being encoded, of a normalisation that is undone.
    _ortho_normal: tuple[Tensor, Tensor] | None = None

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.ortho_own_loop = False  # the trainer that implements the loop's switches sets it
        self._ortho_step: int | None = None  # set only during a training forward pass
        self._ortho_skipped: Tensor | None = None
        device, d_sae = self.W_dec.device, cfg.d_sae
        if cfg.ortho_latent_norm:
            self.register_buffer("ortho_mean_square", torch.zeros(d_sae, device=device))
        if cfg.ortho_unlock_start < 1:
            self.register_buffer("ortho_unlocked", torch.tensor([self._unlocked(0)], device=device))
        if cfg.ortho_lr_power:
            self.register_buffer("ortho_lr_rates", torch.zeros(d_sae, device=device))
        if cfg.ortho_decoder_init == "data":
            unset = torch.zeros(1, dtype=torch.uint8, device=device)
            self.register_buffer("ortho_initialised", unset)
        if cfg.ortho_skip_rank:
            # A separate generator, so that the other weights equal those of an SAE without a skip.
            generator = torch.Generator().manual_seed(cfg.ortho_seed)
            A = switches.orthogonal_rows(cfg.ortho_skip_rank, cfg.d_in, generator).T
            self.ortho_skip_in = nn.Parameter(A.contiguous().to(device, self.dtype))
            B = torch.zeros(cfg.ortho_skip_rank, cfg.d_in, dtype=self.dtype, device=device)
            self.ortho_skip_out = nn.Parameter(B)  # zero, so that the skip starts silent
        if cfg.ortho_latent_norm or cfg.ortho_unlock_start < 1:
            self.hook_sae_acts_pre = LatentHookPoint()
            self.setup()  # registers the new hook point in the hook dictionary

    def initialize_weights(self) -> None:
        super().initialize_weights()
        if self.cfg.ortho_decoder_init == "orthogonal":
            self._set_directions(switches.orthogonal_rows(self.cfg.d_sae, self.cfg.d_in))

    @torch.no_grad()
    def _set_directions(self, rows: Tensor) -> None:
        """Set the decoder directions, keep the row norms, and tie the encoder to the decoder."""
        old = self.W_dec.data
        new = rows.to(old.device) * old.float().norm(dim=-1, keepdim=True)
        usable = new.abs().sum(-1, keepdim=True) > 0
        self.W_dec.data = torch.where(usable, new.to(old.dtype), old)
        self.W_enc.data = self.W_dec.data.T.clone().contiguous()

    # ------------------------------------------------------------------ step

    @torch.no_grad()
    def ortho_begin_step(self, step_input: TrainStepInput) -> TrainStepInput:
        """Apply the switches to weights and input before a training step.

        Raises:
            ConfigError: a switch needs this project's training loop, but another loop runs.
        """
        cfg, step = self.cfg, step_input.n_training_steps
        if not self.ortho_own_loop:
            for name in needs_own_loop(cfg):
                raise reject(
                    name,
                    getattr(cfg, name),
                    "SAELens's own trainer takes one optimiser step per batch, with one learning "
                    "rate for all latents and a clip at 1. Train with AdaptiveOrthoRunner "
                    "(adaptive-ortho train or compare), or build the trainer with "
                    "saelens_adaptive_ortho.host.trainer.build_trainer.",
                )
        if cfg.ortho_decoder_init == "data" and step == 0 and not bool(self.ortho_initialised):
            x = self.run_time_activation_norm_fn_in(step_input.sae_in.to(self.dtype))
            self._set_directions(switches.data_rows(x, cfg.d_sae, cfg.ortho_seed))
            self.b_dec.data = x.float().mean(0).to(self.b_dec.dtype)
            self.ortho_initialised = torch.ones_like(self.ortho_initialised)
        self.ortho_project()
        if cfg.ortho_unlock_start < 1:
            self.ortho_unlocked = torch.full_like(self.ortho_unlocked, self._unlocked(step))
            if step_input.dead_neuron_mask is not None:
                # A locked latent is not dead: the auxiliary loss must not revive it.
                mask = step_input.dead_neuron_mask & ~self._locked()
                step_input = replace(step_input, dead_neuron_mask=mask)
        self._hook_decoder_gradient()
        return step_input

    @torch.no_grad()
    def ortho_project(self) -> None:
        """Renormalise the decoder rows to norm 1 if ``ortho_unit_norm`` is on."""
        if self.cfg.ortho_unit_norm:
            self.W_dec.data.copy_(switches.unit_rows(self.W_dec.data))

    def _hook_decoder_gradient(self) -> None:
        cfg = self.cfg
        if not cfg.ortho_unit_norm and cfg.ortho_unlock_start == 1:
            return
        # The mark is on the parameter: loading and copying create new parameters without hooks.
        if getattr(self.W_dec, "ortho_watched", False):
            return

        def hook(gradient: Tensor) -> Tensor:
            if cfg.ortho_unit_norm:
                gradient = switches.tangent_gradient(gradient, self.W_dec.detach())
            if cfg.ortho_unlock_start < 1:
                # The penalty would move locked rows, and no reconstruction loss would oppose it.
                gradient = gradient.masked_fill(self._locked().unsqueeze(1), 0)
            return gradient

        self.W_dec.register_hook(hook)
        self.W_dec.ortho_watched = True  # type: ignore[attr-defined]

    def _unlocked(self, step: int) -> int:
        cfg = self.cfg
        start, growth = cfg.ortho_unlock_start, cfg.ortho_unlock_growth
        return switches.unlocked_latents(step, cfg.d_sae, start, growth, cfg.ortho_unlock_every)

    def _locked(self) -> Tensor:
        return switches.locked(self.cfg.d_sae, self.ortho_unlocked)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self._ortho_step = step_input.n_training_steps
        try:
            output = super().training_forward_pass(step_input)
            self._add_metrics(output)
        finally:
            self._ortho_step = None
            self._ortho_skipped = self._ortho_normal = None
        return output

    @torch.no_grad()
    def _add_metrics(self, output: TrainStepOutput) -> None:
        if self.cfg.ortho_unlock_start < 1:
            output.metrics["ortho_unlocked"] = self.ortho_unlocked[0].clone()
        skipped = self._ortho_skipped
        if skipped is not None:
            x = output.sae_in.float()
            variance = (x - x.mean(0)).square().sum()
            error = (x - x.mean(0) - (skipped - skipped.mean(0)).float()).square().sum()
            output.metrics["ortho_skip_explained_variance"] = 1 - error / variance

    # ----------------------------------------------------------- forward pass

    def _setup_activation_normalization(self) -> None:
        super()._setup_activation_normalization()
        if self.cfg.normalize_activations in UNDONE_NORMALISATIONS:
            self.run_time_activation_norm_fn_in = self._normalised
            self.run_time_activation_norm_fn_out = self._in_old_units

    def _normalised(self, x: Tensor) -> Tensor:
        """SAELens's normalisation to the bit. A row without a norm is also allowed: it stays."""
        if self.cfg.normalize_activations == "layer_norm":
            centre = x.mean(dim=-1, keepdim=True)
            x = x - centre
            spread = x.std(dim=-1, keepdim=True)
            self._ortho_normal = spread, centre
            return x / (spread + LAYER_NORM_EPS)
        factor = self.cfg.d_in**0.5 / x.norm(dim=-1, keepdim=True)
        factor = torch.where(factor.isfinite(), factor, 1.0)
        self._ortho_normal = factor, torch.zeros_like(factor)
        return x * factor

    def _in_old_units(self, out: Tensor) -> Tensor:
        """Undo :meth:`_normalised`. A training step has several outputs: levels of a Matryoshka."""
        if self._ortho_normal is None:
            raise RuntimeError(
                f"With normalize_activations: {self.cfg.normalize_activations} the output depends "
                "on the input. Call the SAE itself, or encode the same batch right before decode."
            )
        factor, centre = self._ortho_normal
        if self._ortho_step is None:
            self._ortho_normal = None
        if self.cfg.normalize_activations == "layer_norm":
            return out * factor + centre
        return out / factor

    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        centred = super().process_sae_in(sae_in)
        if self.cfg.ortho_skip_rank:
            self._ortho_skipped = centred @ self.ortho_skip_in @ self.ortho_skip_out
        return centred

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        point = self.hook_sae_acts_pre
        if isinstance(point, LatentHookPoint):
            if self.cfg.ortho_unlock_start < 1:
                point.locked = self._locked()
            if self.cfg.ortho_latent_norm:
                point.rms = self._latent_rms() if self._ortho_step is None else None
                point.observe = None if self._ortho_step is None else self._observe
        try:
            return super().encode_with_hidden_pre(x)  # pyright: ignore[reportAbstractUsage]
        finally:
            if isinstance(point, LatentHookPoint):
                # The hook point must not refer to this SAE, otherwise a copy of the SAE would.
                point.rms = point.locked = point.observe = None

    @torch.no_grad()
    def _observe(self, pre: Tensor) -> Tensor:
        self.ortho_mean_square = switches.update_mean_square(
            self.ortho_mean_square, pre, MEAN_SQUARE_DECAY
        )
        return self._latent_rms()

    def _latent_rms(self) -> Tensor:
        """Running root mean square [d_sae]; 1 before the first batch."""
        ms = self.ortho_mean_square
        return torch.where(ms == 0, 1.0, ms + MEAN_SQUARE_EPS).sqrt()

    def decode(self, feature_acts: Tensor) -> Tensor:
        out = super().decode(self._dropped(feature_acts))
        return self._with_skip(out)

    def _iterable_decode(
        self, feature_acts: Tensor, include_outer_loss: bool = False
    ) -> Generator[tuple[int, Tensor], None, None]:
        # Each inner level of a Matryoshka SAE is a separate reconstruction.
        levels = super()._iterable_decode(self._dropped(feature_acts), include_outer_loss)  # type: ignore[misc]
        for width, out in levels:
            yield width, self._with_skip(out)

    def _dropped(self, acts: Tensor) -> Tensor:
        if self._ortho_step is None or not self.cfg.ortho_dropout:
            return acts
        cfg = self.cfg
        return switches.drop_latents(acts, cfg.ortho_dropout, cfg.ortho_seed, self._ortho_step)

    def _with_skip(self, out: Tensor) -> Tensor:
        if not self.cfg.ortho_skip_rank:
            return out
        skipped = self._ortho_skipped
        if skipped is None or skipped.shape != out.shape:
            raise RuntimeError(
                "With ortho_skip_rank the output depends on the input, not on feature_acts alone. "
                "Call the SAE itself, or encode the same batch right before decode."
            )
        if self._ortho_step is None:
            self._ortho_skipped = None  # the stored skip is valid for one output only
        return out + skipped

    def calculate_topk_aux_loss(
        self,
        sae_in: Tensor,
        sae_out: Tensor,
        hidden_pre: Tensor,
        dead_neuron_mask: Tensor | None,
    ) -> Tensor:
        kind = self.cfg.normalize_activations
        if kind not in UNDONE_NORMALISATIONS:
            return super().calculate_topk_aux_loss(sae_in, sae_out, hidden_pre, dead_neuron_mask)  # type: ignore[misc]
        # SAELens refuses these normalisations as soon as a latent dies: dead latents decode into
        # normalised units, but the residual is in units of the activations. So scale them back.
        if dead_neuron_mask is None or (num_dead := int(dead_neuron_mask.sum())) == 0:
            return sae_out.new_tensor(0.0)
        half = sae_in.shape[-1] // 2
        k_aux = min(half, num_dead)
        acts = calculate_topk_aux_acts(k_aux, hidden_pre, dead_neuron_mask)
        if self.cfg.rescale_acts_by_decoder_norm:
            acts = acts / self.W_dec.norm(dim=-1)
        if kind == "layer_norm":
            unit = (sae_in - sae_in.mean(-1, keepdim=True)).std(-1, keepdim=True)
        else:
            unit = sae_in.norm(dim=-1, keepdim=True) / self.cfg.d_in**0.5
        error = acts @ self.W_dec * unit - (sae_in - sae_out).detach()
        scale = self.cfg.aux_loss_coefficient * min(num_dead / half, 1.0)
        return scale * error.square().sum(-1).mean()

    # ------------------------------------------------------- folds and export

    @torch.no_grad()
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        if not self.cfg.ortho_skip_rank:
            return
        A, B = self.ortho_skip_in, self.ortho_skip_out
        dtype = torch.promote_types(A.dtype, whitening_matrix.dtype)
        to = {"device": A.device, "dtype": dtype}
        A.data.copy_(whitening_matrix.to(**to) @ A.data.to(dtype))
        B.data.copy_(B.data.to(dtype) @ unwhitening_matrix.to(**to))
        if not self.cfg.apply_b_dec_to_input:  # otherwise b_dec already centres the input
            self.b_dec.data.sub_((mean.to(**to) @ A.data.to(dtype) @ B.data.to(dtype)).to(A.dtype))

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        cfg = self.cfg
        # A state dict shares its tensors with the SAE, so they are replaced, not changed in place.
        if cfg.ortho_latent_norm:
            rms = self._latent_rms()
            if "r_mag" in state_dict:  # gated: only the magnitude is scaled, not the gate
                state_dict["r_mag"] = state_dict["r_mag"] - rms.log().to(self.dtype)
                state_dict["b_mag"] = state_dict["b_mag"] / rms.to(self.dtype)
            else:
                state_dict["W_enc"] = (state_dict["W_enc"] / rms.to(self.dtype)).contiguous()
                state_dict["b_enc"] = state_dict["b_enc"] / rms.to(self.dtype)
        if cfg.ortho_unlock_start < 1:
            locked = self._locked()
            state_dict["W_enc"] = state_dict["W_enc"].masked_fill(locked, 0)
            state_dict["b_enc"] = state_dict["b_enc"].masked_fill(locked, SILENT)
        if cfg.ortho_skip_rank:
            self._export_skip(state_dict)

    def _export_skip(self, state_dict: dict[str, Any]) -> None:
        """``x_hat = acts @ W_dec + b_dec + (x - b_dec) @ S`` as ``... + x @ S + b``.

        The stock class does not subtract b_dec from its input, so b_dec is folded into both biases.
        """
        A = state_dict.pop("ortho_skip_in").float()
        S = A @ state_dict.pop("ortho_skip_out").float()
        state_dict["W_skip"] = S.T.contiguous().to(self.dtype)
        if self.cfg.apply_b_dec_to_input:
            b_dec = state_dict["b_dec"].float()
            shift = b_dec @ state_dict["W_enc"].float()
            state_dict["b_enc"] = (state_dict["b_enc"].float() - shift).to(self.dtype)
            state_dict["b_dec"] = (b_dec - b_dec @ S).to(self.dtype)
