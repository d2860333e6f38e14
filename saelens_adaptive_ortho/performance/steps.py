"""One training step of an SAE, as SAELens takes it, at a step number of one's choice."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from torch import Tensor

from saelens_adaptive_ortho.architectures import PREFIX
from saelens_adaptive_ortho.switch_trainer import build_trainer

# A step number that is a multiple of every period below, and not the first step.
ORIGIN = 100_000


class Size(NamedTuple):
    """Widths of an SAE, rows of a batch, and latents that fire per row."""

    d_in: int
    d_sae: int
    batch: int
    k: int = 64


class Variant(NamedTuple):
    """What an SAE is trained with; ``fields`` of None is SAELens's own class."""

    name: str
    fields: dict[str, Any] | None


VARIANTS = (
    Variant("stock", None),
    Variant("off", {"ortho_mode": "off"}),
    Variant("fixed", {"ortho_mode": "fixed"}),
    Variant("fixed, every 5th", {"ortho_mode": "fixed", "ortho_every": 5}),
    Variant("gram", {"ortho_mode": "gram"}),
    Variant("adaptive", {"ortho_mode": "adaptive"}),
)
BASES = ("batchtopk", "standard")


def activations(size: Size, seed: int = 0, device: str = "cpu") -> Float[Tensor, "batch d_in"]:
    """Sparse sums of ``4 d_in`` fixed directions: what an SAE can learn, unlike noise."""
    generator = torch.Generator().manual_seed(seed)
    n = 4 * size.d_in
    D = torch.randn(n, size.d_in, generator=torch.Generator().manual_seed(0))
    codes = torch.rand(size.batch, n, generator=generator)
    return ((codes * (codes > 1 - 16 / n)) @ D).to(device)


class Stepper:
    """Takes single training steps of one SAE: forward, backward, clip, Adam, bookkeeping."""

    def __init__(
        self, base: str, variant: Variant, size: Size, device: str = "cpu", autocast: bool = False
    ) -> None:
        ours = variant.fields is not None
        sparsity = {"k": size.k} if "topk" in base else {"l1_coefficient": 5.0}
        sae_class, cfg_class = get_sae_training_class(f"{PREFIX}{base}" if ours else base)
        torch.manual_seed(0)
        cfg = cfg_class(
            d_in=size.d_in, d_sae=size.d_sae, device=device, **sparsity, **(variant.fields or {})
        )
        trainer_cfg = SAETrainerConfig(
            total_training_samples=size.batch * 10 * ORIGIN,
            train_batch_size_samples=size.batch,
            lr=3e-4,
            lr_end=3e-5,
            device=device,
            autocast=autocast,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.device = device
        self.sae = sae_class(cfg).to(device)
        self.trainer = build_trainer(trainer_cfg, self.sae, data_provider=iter(()))

    def step(self, batch: Float[Tensor, "batch d_in"], number: int) -> float:
        """Train on a batch as if it were step ``number``; seconds."""
        self.trainer.n_training_steps = number
        self._wait()
        started = time.perf_counter()
        self.trainer.step(batch)
        self._wait()
        return time.perf_counter() - started

    def kinds(self) -> dict[str, tuple[int, float]]:
        """Kinds of steps: a step number of the kind, and the share of all steps that are of it.

        Exclusive: a refresh step also counts statistics.
        """
        cfg = self.sae.cfg
        mode = getattr(cfg, "ortho_mode", "off")
        if mode == "fixed" and cfg.ortho_every > 1:
            every = cfg.ortho_every
            return {"plain": (ORIGIN + 1, 1 - 1 / every), "penalty": (ORIGIN, 1 / every)}
        if mode != "adaptive":
            return {"plain": (ORIGIN + 1, 1.0)}
        refresh, count = 1 / cfg.ortho_refresh_every, 1 / cfg.ortho_statistics_every
        counted = ORIGIN + cfg.ortho_statistics_every
        return {
            "plain": (ORIGIN + 1, 1 - count),
            "counted": (counted, count - refresh),
            "refresh": (ORIGIN, refresh),
        }

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
