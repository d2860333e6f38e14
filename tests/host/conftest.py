"""A training loop that the tests can stop, resume and inspect at any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

BATCH = 32


def _make_batches(steps: int, batch: int = BATCH, d_in: int = 16, n_features: int = 40) -> Tensor:
    """Sparse sums of fixed random features [steps, batch, d_in]; the global RNG is not used."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n_features, d_in, generator=generator)
    acts = torch.rand(steps, batch, n_features, generator=generator)
    return (acts * (acts > 0.9)) @ features


def _make_trainer(sae: Any, **overrides: Any) -> SAETrainer[Any, Any]:
    fields: dict[str, Any] = {
        "total_training_samples": 100_000,
        "train_batch_size_samples": BATCH,
        "lr": 1e-2,
        "lr_end": 1e-3,
        "dead_feature_window": 5,
    }
    return SAETrainer(SAETrainerConfig(**(fields | overrides)), sae, iter(()))


def _train(trainer: SAETrainer[Any, Any], batches: Tensor) -> list[TrainStepOutput]:
    """SAELens's steps on ``batches``, with the step count of its ``fit``."""
    outputs = []
    for batch in batches:
        # SAELens's activation store returns batches in the SAE's dtype.
        outputs.append(trainer.step(batch.to(trainer.sae.dtype)))
        trainer.n_training_steps += 1
    return outputs


@pytest.fixture(scope="session")
def make_batches() -> Callable[..., Tensor]:
    return _make_batches


@pytest.fixture(scope="session")
def make_trainer() -> Callable[..., SAETrainer[Any, Any]]:
    return _make_trainer


@pytest.fixture(scope="session")
def train() -> Callable[..., list[TrainStepOutput]]:
    return _train
