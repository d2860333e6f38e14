"""Take single training steps of an SAE as SAELens does, at any step number."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from torch import Tensor

from saelens_adaptive_ortho.host.architectures import PREFIX
from saelens_adaptive_ortho.host.config import DEFAULT_SEPARATION
from saelens_adaptive_ortho.host.penalty_mixin import CHECK_EVERY
from saelens_adaptive_ortho.host.trainer import build_trainer

# A step number that is a multiple of every period below, and not the first step.
ORIGIN = 100_000
# Steps between searches of neighbour lists. The real number depends on the training: 2,900 steps of
# the local-text comparison at lr 1e-3 searched every 65 steps on average.
SEARCH_EVERY = 50


class Size(NamedTuple):
    """Sizes of a step: widths of the SAE, rows of a batch, and latents that fire per row."""

    d_in: int
    d_sae: int
    batch: int
    k: int = 64


class Variant(NamedTuple):
    """Settings of a training; if ``fields`` is None, the SAE is SAELens's own class.

    The project's runner uses sparse products on a CPU. With ``two_corpora``, half of each batch
    comes from a forget corpus, so that the group half of the penalty acts.
    """

    name: str
    fields: dict[str, Any] | None
    sparse_products: bool = False
    two_corpora: bool = False
    autocast: bool = False
    compiled: bool = False


GROUPS = {"ortho_mode": "off", "ortho_separation": DEFAULT_SEPARATION}
VARIANTS = (
    Variant("stock", None),
    Variant("off", {"ortho_mode": "off"}),
    Variant("fixed", {"ortho_mode": "fixed"}),
    Variant("fixed, every 5th", {"ortho_mode": "fixed", "ortho_every": 5}),
    Variant("gram", {"ortho_mode": "gram"}),
    Variant("adaptive", {"ortho_mode": "adaptive"}),
    Variant("groups", GROUPS, two_corpora=True),
    Variant("adaptive, two corpora", {"ortho_mode": "adaptive"}, two_corpora=True),
    Variant("off, sparse products", {"ortho_mode": "off"}, sparse_products=True),
    Variant("groups, sparse products", GROUPS, sparse_products=True, two_corpora=True),
    Variant("fixed, sparse products", {"ortho_mode": "fixed"}, sparse_products=True),
    Variant("adaptive, sparse products", {"ortho_mode": "adaptive"}, sparse_products=True),
)
# Other ways to make the whole step faster.
LEVERS = (
    Variant("stock, bf16 autocast", None, autocast=True),
    Variant("stock, compiled", None, compiled=True),
    Variant("adaptive, bf16 autocast", {"ortho_mode": "adaptive"}, autocast=True),
)
BY_NAME = {variant.name: variant for variant in (*VARIANTS, *LEVERS)}
BASES = ("batchtopk", "standard")


def activations(size: Size, seed: int = 0, device: str = "cpu") -> Float[Tensor, "batch d_in"]:
    """Return sparse sums of ``4 d_in`` fixed directions, which an SAE can learn, unlike noise."""
    generator = torch.Generator().manual_seed(seed)
    n = 4 * size.d_in
    D = torch.randn(n, size.d_in, generator=torch.Generator().manual_seed(0))
    codes = torch.rand(size.batch, n, generator=generator)
    return ((codes * (codes > 1 - 16 / n)) @ D).to(device)


def median_seconds(call: Callable[[], Any], rounds: int, device: str = "cpu") -> float:
    """Return the median seconds of ``rounds`` calls, after one call that warms up."""
    call()
    times = []
    for _ in range(rounds):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def wait(device: str) -> None:
    """Wait until the device has finished all its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Kind(NamedTuple):
    """A kind of step: an example step number, its share of all steps, whether it searches lists."""

    number: int
    share: float
    search: bool = False


class Stepper:
    """Take single training steps of one SAE: forward, backward, clip, Adam, bookkeeping."""

    def __init__(
        self, base: str, variant: Variant, size: Size, device: str = "cpu", autocast: bool = False
    ) -> None:
        ours = variant.fields is not None
        sparsity = {"k": size.k} if "topk" in base else {"l1_coefficient": 5.0}
        sae_class, cfg_class = get_sae_training_class(f"{PREFIX}{base}" if ours else base)
        torch.manual_seed(0)
        fields = dict(variant.fields or {})
        if fields.get("ortho_mode") == "adaptive":
            fields["ortho_min_captured"] = 1e-9  # a check of the lists never starts a search
        if variant.two_corpora:
            fields["ortho_forget_rows"] = size.batch // 2
        cfg = cfg_class(d_in=size.d_in, d_sae=size.d_sae, device=device, **sparsity, **fields)
        trainer_cfg = SAETrainerConfig(
            total_training_samples=size.batch * 10 * ORIGIN,
            train_batch_size_samples=size.batch,
            # A tiny rate keeps all steps at the same point of training.
            lr=1e-9,
            lr_end=1e-10,
            device=device,
            autocast=autocast or variant.autocast,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.device = device
        self.sae = sae_class(cfg).to(device)
        if base == "standard":
            self._silence(size)
        if ours:
            self.sae.ortho_sparse_products = variant.sparse_products  # type: ignore[assignment]
        if variant.compiled:
            # The same as SAELens's compile_sae.
            self.sae.training_forward_pass = torch.compile(self.sae.training_forward_pass)
        self.trainer = build_trainer(trainer_cfg, self.sae, data_provider=iter(()))

    @torch.no_grad()
    def _silence(self, size: Size) -> None:
        """Lower the bias of the encoder until k latents fire per row, as after some training.

        In an untrained ReLU SAE half of all latents fire, but this holds only for a short time.
        """
        x = activations(size, device=self.device)[:256]
        pre = (x - self.sae.b_dec) @ self.sae.W_enc
        rank = pre.numel() - size.k * len(pre)
        self.sae.b_enc.sub_(pre.flatten().kthvalue(max(1, rank)).values)  # type: ignore[operator]

    def step(self, batch: Float[Tensor, "batch d_in"], number: int, search: bool = False) -> float:
        """Train on a batch as step ``number``, with or without a search, and return the seconds."""
        self.trainer.n_training_steps = number
        searched: Any = getattr(self.sae, "ortho_searched", None)
        if searched is not None and searched >= 0:  # the first step always searches
            searched.fill_(0 if search else number)
        wait(self.device)
        started = time.perf_counter()
        self.trainer.step(batch)
        wait(self.device)
        return time.perf_counter() - started

    def sequence(self, batches: Sequence[Float[Tensor, "batch d_in"]], steps: int) -> float:
        """Take ``steps`` steps one after the other, as a training does, and return their seconds.

        The host waits for the device only at the end. Lists are searched when groups are formed.
        """
        searched: Any = getattr(self.sae, "ortho_searched", None)
        if searched is not None and searched >= 0:
            searched.fill_(ORIGIN - self.sae.cfg.ortho_refresh_every)
        wait(self.device)
        started = time.perf_counter()
        for number in range(steps):
            self.trainer.n_training_steps = ORIGIN + number
            self.trainer.step(batches[number % len(batches)])
        wait(self.device)
        return time.perf_counter() - started

    def kinds(self, search_every: int = SEARCH_EVERY) -> dict[str, Kind]:
        """Return the kinds of steps, each with its share of all steps.

        A step of two kinds, for example one that counts statistics and checks the lists, is counted
        as one step of each kind, and as one plain step less.
        Lists are searched when groups are formed, and in between if ``search_every`` is shorter.
        """
        cfg = self.sae.cfg
        mode = getattr(cfg, "ortho_mode", "off")
        if mode == "fixed" and cfg.ortho_every > 1:
            every = cfg.ortho_every
            return {"plain": Kind(ORIGIN + 1, 1 - 1 / every), "penalty": Kind(ORIGIN, 1 / every)}
        if mode != "adaptive" and not getattr(cfg, "ortho_forget_rows", 0):
            return {"plain": Kind(ORIGIN + 1, 1.0)}
        count, check = cfg.ortho_statistics_every, CHECK_EVERY
        if mode != "adaptive":
            return {
                "plain": Kind(ORIGIN + 1, 1 - 1 / count),
                "counted": Kind(ORIGIN + count, 1 / count),
            }
        refresh = 1 / cfg.ortho_refresh_every
        search = max(0.0, 1 / search_every - refresh)
        # Pairs are chosen at the step after a count, so a check alone is two checks later.
        return {
            "plain": Kind(ORIGIN + 2, 1 - 2 / count - 1 / check),
            "counted": Kind(ORIGIN + count, 1 / count - refresh),
            "chosen": Kind(ORIGIN + 1, 1 / count),
            "checked": Kind(ORIGIN + 2 * check, 1 / check - search),
            "searched": Kind(ORIGIN + 2 * check, search, search=True),
            "refreshed": Kind(ORIGIN, refresh, search=True),
        }
