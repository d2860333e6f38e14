"""Training steps, the log and the batches over all ranks."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens.config import SAETrainerConfig
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor, nn

from saelens_adaptive_ortho.host.trainer import FUSED_ADAM, SwitchTrainer
from saelens_adaptive_ortho.training.lockstep import (
    LockstepTrainer,
    NonFiniteLossError,
    corruption_named,
)
from saelens_adaptive_ortho.training.sharded import files
from saelens_adaptive_ortho.training.sharded.layout import AXES, Layout
from saelens_adaptive_ortho.training.sharded.ranks import Ranks
from saelens_adaptive_ortho.training.store import StratifiedActivationsStore

# Of the numbers in the log, those of a rank's latents: sums over latents, and means.
SUMMED = ("metrics/l0", "sparsity/dead_features")
AVERAGED = ("sparsity/mean_passes_since_fired",)
# Of a trainer's state, what each latent has, and what every rank has.
PER_LATENT = ("act_freq_scores", "n_forward_passes_since_fired")
COMMON = ("n_training_samples", "n_training_steps", "n_frac_active_samples", "started_fine_tuning")


class ShardedTrainer(SwitchTrainer):
    """SAELens's trainer for the latents of one rank."""

    @property
    def layout(self) -> Layout:
        """Which latents these are."""
        return self.sae.layout

    def _optimise(self, output: TrainStepOutput, n_batches: int) -> None:
        # Each rank has found a part of the gradient of what all of them hold.
        for name, parameter in self.sae.named_parameters():
            if AXES[name] is None and parameter.grad is not None:
                parameter.grad = self.layout.ranks.sum(parameter.grad)
        super()._optimise(output, n_batches)

    @torch.no_grad()
    def _clip(self, parameters: list[nn.Parameter], largest: float) -> Tensor:  # noqa: ARG002
        """The clip of ``clip_grad_norm_``, with the norm of the gradients of all ranks."""
        squares = self.sae.W_dec.new_zeros(2, dtype=torch.float64)  # of all; of a part of them
        gradients = []
        for name, parameter in self.sae.named_parameters():
            if parameter.grad is not None:
                gradients.append(parameter.grad)
                squares[int(AXES[name] is not None)] += parameter.grad.norm().double().square()
        norm = (squares[0] + self.layout.ranks.sum(squares[1])).sqrt().to(gradients[0].dtype)
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
        return norm

    @torch.no_grad()
    def build_train_step_log_dict(
        self, output: TrainStepOutput, n_training_samples: int
    ) -> dict[str, Any]:
        row = super().build_train_step_log_dict(output, n_training_samples)
        names = [*SUMMED, *AVERAGED]
        of_all = self.layout.ranks.sum(torch.tensor([float(row[name]) for name in names]).double())
        row |= dict(zip(names, of_all.tolist(), strict=True))
        return row | {name: row[name] / self.layout.ranks.size for name in AVERAGED}

    @torch.no_grad()
    def set_final_sae_metadata(self) -> None:
        if self.n_frac_active_samples > 0:
            gather = self.layout.ranks.gather
            self.sae.cfg.metadata.l0 = gather(self.feature_sparsity).sum().item()
            dead = gather(self.dead_neurons.int()).sum()
            self.sae.cfg.metadata.num_dead_features = dead.item()

    # ----------------------------------------------------------- checkpoints

    def _tensors(self) -> dict[str, Tensor]:
        """Everything of this rank that a checkpoint has, by name."""
        found = dict(self.sae.state_dict())
        found |= {name: getattr(self, name) for name in PER_LATENT}
        for name, parameter in self.sae.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                state = self.optimizer.state.get(parameter, {})
                if moment in state:
                    found[f"{files.MOMENT}{moment}.{name}"] = state[moment]
        return found

    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,  # noqa: ARG002
    ) -> None:
        assert base_path is not None
        folder = Path(base_path) / checkpoint_name
        files.save_shard(self._tensors(), folder, self.layout)
        if self.layout.ranks.rank == 0:
            config = {**self.sae.cfg.to_dict(), "d_sae": self.layout.total}
            (folder / SAE_CFG_FILENAME).write_text(json.dumps(config))
            self.activation_scaler.save(str(folder / ACTIVATION_SCALER_CFG_FILENAME))
            torch.save(self._common_state(), folder / TRAINER_STATE_FILENAME)

    def _common_state(self) -> dict[str, Any]:
        steps = [float(s["step"]) for s in self.optimizer.state.values()]
        return {
            "optimizer_groups": self.optimizer.state_dict()["param_groups"],
            "optimizer_steps": steps[0] if steps else None,
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "coefficient_schedulers": {
                name: scheduler.state_dict()
                for name, scheduler in self.coefficient_schedulers.items()
            },
            **{name: getattr(self, name) for name in COMMON},
        }

    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        """Load the SAE and the state of the trainer, from a checkpoint of any number of ranks."""
        folder = Path(checkpoint_path)
        saved = torch.load(folder / TRAINER_STATE_FILENAME, map_location="cpu", weights_only=True)
        self.activation_scaler.load(folder / ACTIVATION_SCALER_CFG_FILENAME)
        parameters = dict(self.sae.named_parameters())
        if saved["optimizer_steps"] is not None:
            for parameter in parameters.values():
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(saved["optimizer_steps"]),
                    **{m: torch.zeros_like(parameter) for m in ("exp_avg", "exp_avg_sq")},
                }
        found = files.load_shard(self._tensors(), folder, self.layout)
        found = {name: x.to(self.sae.device) for name, x in found.items()}
        for name in PER_LATENT:
            setattr(self, name, found.pop(name))
        for name in [name for name in found if name.startswith(files.MOMENT)]:
            moment, parameter = name.removeprefix(files.MOMENT).split(".", 1)
            self.optimizer.state[parameters[parameter]][moment] = found.pop(name)
        self.sae.load_state_dict(found)
        # This also puts the steps of Adam where its kernel wants them.
        state = self.optimizer.state_dict()["state"]
        self.optimizer.load_state_dict({"state": state, "param_groups": saved["optimizer_groups"]})
        self.lr_scheduler.load_state_dict(saved["lr_scheduler"])
        for name, scheduler in saved["coefficient_schedulers"].items():
            self.coefficient_schedulers[name].load_state_dict(scheduler)
        for name in COMMON:
            setattr(self, name, saved[name])


class ShardedLockstep(LockstepTrainer):
    """The training loop of one rank. All ranks take the same steps, and stop together."""

    def __init__(self, ranks: Ranks, **settings: Any) -> None:
        self.ranks = ranks
        super().__init__(**settings)

    def _build_trainer(self, cfg: SAETrainerConfig, sae: TrainingSAE[Any]) -> SAETrainer[Any, Any]:
        trainer = ShardedTrainer(cfg=cfg, sae=sae, data_provider=iter(()))
        if sae.ortho_sparse_products and torch.device(cfg.device).type in FUSED_ADAM:
            for group in trainer.optimizer.param_groups:
                group["fused"] = True
        return trainer

    def stop_signal(self, number: int | None) -> int | None:
        # Signals reach the ranks at different steps.
        return int(self.ranks.largest(torch.tensor(number or 0))) or None

    def _is_due(self, saved_at: float) -> bool:
        due = super()._is_due(saved_at)
        return self.checkpoint_every_minutes is not None and self.ranks.any(due)

    def _refuse_non_finite_weights(self) -> None:
        wrong: NonFiniteLossError | None = None
        try:
            super()._refuse_non_finite_weights()
        except NonFiniteLossError as error:
            wrong = error
        said = [text for text in self.ranks.all_say(wrong and str(wrong)) if text]
        if said:
            raise wrong or NonFiniteLossError(said[0])

    def _new_checkpoint(self, target: Path, survives: str) -> AbstractContextManager[Path]:
        return files.shared_folder(self.ranks, target, survives, keep_others=True)

    def _write_state(self, folder: Path) -> None:
        if self.ranks.rank == 0:
            super()._write_state(folder)

    def _delete_old(self, newest: Path) -> None:
        if self.ranks.rank == 0:
            super()._delete_old(newest)

    def _damage(self, path: Path) -> Path | None:
        # Rank 0 reads all files for the others.
        found = super()._damage(path) if self.ranks.rank == 0 else None
        return self.ranks.share(found)

    def _load_one(self, folder: Path, trainer: SAETrainer[Any, Any]) -> None:
        with corruption_named(files.shard_files(folder)[0]):
            trainer.load_trainer_state(folder)


class ShardedStore(StratifiedActivationsStore):
    """The batches of all ranks. Each of them runs the language model on a share of the text.

    The contexts are read in the groups of a single process, so batches are the same to the bit.
    Each group is computed by one rank and sent to the others.
    """

    ranks: Ranks  # set by the runner

    def _activations(
        self, d: int, contexts: Int[Tensor, " n"], chunk: int
    ) -> Float[Tensor, "rows d_in"]:
        domain, sliced = self._domains[d], slice(*self.seqpos_slice)
        groups = contexts.split(self.store_batch_size_prompts)
        served = f" (for the batches of chunk {chunk})"
        size, rank = self.ranks.size, self.ranks.rank
        mine = {g: self.compute(d, groups[g], served) for g in range(rank, len(groups), size)}
        positions = len(range(self.context_size)[sliced])
        out = []
        for g, group in enumerate(groups):
            acts = mine.pop(g, None)
            if acts is None:
                shape = (len(group), positions, self.d_in)
                acts = torch.empty(shape, dtype=self.dtype, device=self.device)
            acts = self.ranks.spread(acts, g % size)
            out.append(acts[domain.usable[group][:, sliced].to(acts.device)])
        return torch.cat(out)
