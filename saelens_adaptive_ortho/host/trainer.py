"""SAELens's trainer with the switches that change the optimiser step, and a faster step."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor, nn

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.host.switch_config import needs_own_loop
from saelens_adaptive_ortho.maths import switches
from saelens_adaptive_ortho.maths.sparse import Nonzeros

GRADIENTS_FILE = "accumulated_gradients.pt"
HOST_CLIP_NORM = 1.0  # the gradient clip of SAELens's trainer
RATE_DECAY = 0.99
FUSED_ADAM = {"cpu", "cuda"}  # devices


def build_trainer(
    cfg: SAETrainerConfig, sae: TrainingSAE[Any], data_provider: Any
) -> SAETrainer[Any, Any]:
    """SAELens's own trainer, or a :class:`SwitchTrainer` if a switch needs it or it is faster.

    An SAE with ``ortho_sparse_products`` is trained with the fused kernel of Adam, which reads and
    writes each weight once. Its results equal those of SAELens's Adam up to rounding.

    Raises:
        ConfigError: some latents would still be locked at the end of training.
    """
    n_steps = -(-cfg.total_training_samples // cfg.train_batch_size_samples)
    start = getattr(sae.cfg, "ortho_unlock_start", 1.0)
    if start < 1:
        every, growth = sae.cfg.ortho_unlock_every, sae.cfg.ortho_unlock_growth
        end = switches.unlocking_ends(start, growth, every)
        if end >= n_steps:
            raise reject(
                "ortho_unlock_every",
                every,
                f"the last latents are unlocked at step {end}, but training has {n_steps} steps. "
                "Lower it, raise ortho_unlock_growth, or train longer.",
            )
    fast = bool(getattr(sae, "ortho_sparse_products", False))
    own = hasattr(sae.cfg, "ortho_accumulation") and (fast or needs_own_loop(sae.cfg))
    trainer_class = SwitchTrainer if own else SAETrainer
    trainer = trainer_class(cfg=cfg, sae=sae, data_provider=data_provider)
    if fast and trainer.optimizer.param_groups[0]["params"][0].device.type in FUSED_ADAM:
        for group in trainer.optimizer.param_groups:
            group["fused"] = True
    return trainer


class SwitchTrainer(SAETrainer[Any, Any]):
    """Trainer with gradient accumulation, a chosen gradient clip, and per-latent learning rates.

    With only ``ortho_clip_norm: 1`` it is bit-identical to SAELens's trainer, and it logs gradient
    norms.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sae.ortho_own_loop = True
        self.n_steps = -(-self.cfg.total_training_samples // self.cfg.train_batch_size_samples)

    def _train_step(self, sae: Any, sae_in: Tensor) -> TrainStepOutput:
        # A copy of SAELens's step, except for the part between backward and zero_grad.
        sae.train()
        with self.autocast_if_enabled:
            output = sae.training_forward_pass(
                step_input=TrainStepInput(
                    sae_in=sae_in,
                    dead_neuron_mask=self.dead_neurons,
                    coefficients=self.get_coefficients(),
                    n_training_steps=self.n_training_steps,
                    is_logging_step=self._is_logging_step(),
                ),
            )
            with torch.no_grad():
                self._count_firings(output.feature_acts)
        output.loss.backward()
        every, done = sae.cfg.ortho_accumulation, self.n_training_steps + 1
        if done % every == 0 or done == self.n_steps:
            self._optimise(output, self.n_training_steps % every + 1)
        with warnings.catch_warnings():
            # PyTorch warns if the schedule steps before the first optimiser step.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    def _count_firings(self, acts: Tensor) -> None:
        counts = _firings(acts)
        self.n_forward_passes_since_fired += 1
        self.n_forward_passes_since_fired[counts > 0] = 0
        self.act_freq_scores += counts
        self.n_frac_active_samples += self.cfg.train_batch_size_samples
        if self.sae.cfg.ortho_lr_power:
            decayed = RATE_DECAY * self.sae.ortho_lr_rates
            self.sae.ortho_lr_rates = decayed + (1 - RATE_DECAY) * (counts / acts.shape[0])

    def _optimise(self, output: TrainStepOutput, n_batches: int) -> None:
        cfg, parameters = self.sae.cfg, list(self.sae.parameters())
        if n_batches > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad /= n_batches
        clip = HOST_CLIP_NORM if cfg.ortho_clip_norm is None else cfg.ortho_clip_norm
        output.metrics["grad_norm"] = self._clip(parameters, clip)
        if cfg.ortho_lr_power:
            self._step_with_latent_rates(output)
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _clip(self, parameters: list[nn.Parameter], largest: float) -> Tensor:
        """Scale the gradients to a norm of at most ``largest``, and return their norm before."""
        return nn.utils.clip_grad_norm_(parameters, largest)

    @torch.no_grad()
    def _step_with_latent_rates(self, output: TrainStepOutput) -> None:
        """``W_i <- W_i + m_i * (the optimiser's change of W_i)``, exact for any optimiser."""
        cfg = self.sae.cfg
        m = switches.lr_multipliers(
            self.sae.ortho_lr_rates, cfg.ortho_lr_power, cfg.ortho_lr_min, cfg.ortho_lr_max
        )
        per_latent = _per_latent_parameters(self.sae)
        before = {name: parameter.detach().clone() for name, (parameter, _) in per_latent.items()}
        self.optimizer.step()
        for name, (parameter, axis) in per_latent.items():
            shape = [-1 if i == axis else 1 for i in range(parameter.ndim)]
            old = before[name].float()
            change = parameter.float() - old
            parameter.copy_(old + m.view(shape) * change)
        output.metrics["ortho_lr/lowest"], output.metrics["ortho_lr/highest"] = m.aminmax()

    def save_trainer_state(self, checkpoint_path: Path) -> None:
        super().save_trainer_state(checkpoint_path)
        if self.sae.cfg.ortho_accumulation > 1:
            gradients = {name: p.grad for name, p in self.sae.named_parameters()}
            torch.save(gradients, checkpoint_path / GRADIENTS_FILE)

    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        super().load_trainer_state(checkpoint_path)
        if self.sae.cfg.ortho_accumulation > 1:
            file = Path(checkpoint_path) / GRADIENTS_FILE
            gradients = torch.load(file, map_location=self.sae.device, weights_only=True)
            for name, parameter in self.sae.named_parameters():
                parameter.grad = gradients[name]


def _firings(acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, " d_sae"]:
    """How often each latent fires. Counts are exact, in whatever order they are summed."""
    known = None if acts.is_sparse else Nonzeros.known(acts)
    if known is not None:
        return known.columns.bincount(minlength=acts.shape[1]).float()
    counts = acts.bool().float().sum(0)
    return counts.to_dense() if counts.is_sparse else counts


def _per_latent_parameters(sae: TrainingSAE[Any]) -> dict[str, tuple[nn.Parameter, int]]:
    """Parameters with one entry per latent, and the axis of the latents.

    They are found by name, because d_in may equal d_sae.
    """
    shared = {"b_dec", "ortho_skip_in", "ortho_skip_out"}
    return {
        name: (parameter, 1 if name == "W_enc" else 0)
        for name, parameter in sae.named_parameters()
        if name not in shared
    }
