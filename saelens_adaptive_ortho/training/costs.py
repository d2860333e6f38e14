"""What a training will cost in time, memory and disk, from a few timed steps."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from saelens_adaptive_ortho.training.lockstep import KEPT_CHECKPOINTS, LockstepTrainer
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner
from saelens_adaptive_ortho.training.store import StratifiedActivationsStore

TIMED_STEPS = 20
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Costs:
    """The costs of training the variants of one seed in lockstep. Bytes are bytes, not GB.

    Attributes:
        steps: number of steps.
        batch: rows of a batch.
        step_seconds: mean time of a step of each SAE.
        activation_seconds: time in which the model computes the activations of one batch.
        parameters: parameters of each SAE.
        memory: largest memory of the process while it took these steps.
        buffer: memory of the activations that a training holds beside this.
        export: disk space of the finished SAEs.
        checkpoints: disk space of the checkpoints, which are deleted at the end.
        cache: disk space of the cached activations that are not there yet.
    """

    steps: int
    batch: int
    step_seconds: dict[str, float]
    activation_seconds: float
    parameters: dict[str, int]
    memory: int
    buffer: int
    export: int
    checkpoints: int
    cache: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all SAEs together, from text to SAE."""
        return self.batch / (sum(self.step_seconds.values()) + self.activation_seconds)

    def seconds(self, seeds: int = 1, cached: bool = False) -> float:
        """Time of the training of some seeds.

        Args:
            seeds: number of seeds, one after the other.
            cached: whether all seeds read the same cached activations.
        """
        per_seed = self.steps * sum(self.step_seconds.values())
        return seeds * per_seed + (1 if cached else seeds) * self.steps * self.activation_seconds


def measure_costs(runner: AdaptiveOrthoRunner, n_steps: int = TIMED_STEPS) -> Costs:
    """Take a few steps on real activations, and compute the costs of the whole training.

    The SAEs of the runner are trained a little by this, so the runner is of no further use.

    Args:
        runner: a new runner with the SAEs of one seed.
        n_steps: timed steps of each SAE. Some steps are taken before without timing.
    """
    trainer, cfg = runner.trainer, runner.cfg
    store = trainer.store
    pieces, seconds_per_row = _read_some(store)
    batch = _batch_of(pieces, store.rows_per_batch)
    step_seconds = {}
    for name, one in trainer.trainers.items():
        one.sae.to(trainer.cfg.device)
        if one.sae.cfg.normalize_activations == "expected_average_only_in":
            norm = float(batch.norm(dim=-1).mean())
            one.activation_scaler.scaling_factor = math.sqrt(batch.shape[1]) / norm
        _steps(one, batch, WARM_UP_STEPS)
        step_seconds[name] = _steps(one, batch, n_steps) / n_steps
    saes = list(runner.saes.values())
    rows = store.batches_per_chunk * len(batch)
    saves = cfg.n_checkpoints or cfg.checkpoint_every_minutes
    return Costs(
        steps=trainer.n_steps,
        batch=len(batch),
        step_seconds=step_seconds,
        activation_seconds=seconds_per_row * len(batch),
        parameters={n: sum(p.numel() for p in s.parameters()) for n, s in runner.saes.items()},
        memory=_peak_memory(batch),
        buffer=2 * rows * batch.shape[1] * batch.element_size(),
        export=_bytes_of(saes),
        # Weights and two moments of Adam; one checkpoint is written before an old one is deleted.
        checkpoints=(KEPT_CHECKPOINTS + 1) * 3 * _bytes_of(saes) if saves else 0,
        cache=store.cache_size().missing if store.cached else 0,
    )


@dataclass(frozen=True)
class Taken:
    """What a training has cost, to compare with :class:`Costs`.

    Attributes:
        tokens: tokens that each SAE was trained on.
        seconds: time in which the model made the activations (``activations``), and time of the
            steps of each SAE. A resumed training counts the time of all its processes.
    """

    tokens: int
    seconds: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all SAEs together, from text to SAE."""
        return self.tokens / sum(self.seconds.values())


def costs_taken(trainer: LockstepTrainer) -> Taken:
    """What a finished training has cost."""
    tokens = trainer.state.n_training_steps * trainer.cfg.train_batch_size_samples
    return Taken(tokens, dict(trainer.state.seconds))


def _steps(trainer: SAETrainer[Any, Any], batch: Tensor, n: int) -> float:
    """Take ``n`` steps, and return their time."""
    _wait(batch)
    started = time.perf_counter()
    for _ in range(n):
        trainer.step(batch)
        trainer.n_training_steps += 1
    _wait(batch)
    return time.perf_counter() - started


def _read_some(store: StratifiedActivationsStore) -> tuple[list[Tensor], float]:
    """Activations of some contexts of each corpus, and the time of the model for each row."""
    size = store.store_batch_size_prompts
    pieces, seconds, rows = [], 0.0, 0
    for number, corpus in enumerate(store.corpora):
        contexts = torch.arange(min(size, len(corpus.train)))
        store.compute(number, contexts)  # the first call also sets up the model's memory
        started = time.perf_counter()
        found = store.compute(number, contexts).flatten(0, 1)
        _wait(found)
        seconds += time.perf_counter() - started
        rows += len(found)
        pieces.append(found)
    return pieces, seconds / rows


def _batch_of(
    pieces: Sequence[Float[Tensor, "rows d_in"]], rows_per_batch: Sequence[int]
) -> Float[Tensor, "batch d_in"]:
    """A batch from these activations, with the usual number of rows of each corpus."""
    chosen = [
        piece[torch.arange(n) % len(piece)] for piece, n in zip(pieces, rows_per_batch, strict=True)
    ]
    return torch.cat(chosen)


def _bytes_of(saes: Sequence[TrainingSAE[Any]]) -> int:
    return sum(p.numel() * p.element_size() for sae in saes for p in sae.parameters())


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _peak_memory(x: Tensor) -> int:
    """The largest memory so far: of the card if ``x`` is on one, else of the process."""
    if x.device.type == "cuda":
        return torch.cuda.max_memory_allocated(x.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
