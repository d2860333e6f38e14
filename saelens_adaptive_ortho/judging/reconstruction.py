"""The share of the activations' variance that an SAE explains."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.judging.firing import Batch


class ExplainedVariance:
    """``1 - sum_t ||x_t - x_hat_t||^2 / sum_t ||x_t - mean(x)||^2`` over all tokens, in float64.

    The value of a constant prediction, the mean, is 0. So an SAE gains nothing from activations
    that lie far from the origin. The sum of two objects is the measurement on both texts together.
    The pass must reconstruct (``passes(..., reconstruct=True)``).
    """

    def __init__(self, sae: SAE[Any]) -> None:
        self.n, self.error, self.square = 0, 0.0, 0.0
        self.total = torch.zeros(sae.cfg.d_in, dtype=torch.float64, device=sae.device)

    def update(self, batch: Batch) -> None:
        assert batch.output is not None, "the pass must reconstruct"
        x, output = batch.x.double(), batch.output.double()
        self.n += len(x)
        self.total += x.sum(0)
        self.square += float(x.square().sum())
        self.error += float((x - output).square().sum())

    def __add__(self, other: ExplainedVariance) -> ExplainedVariance:
        both = object.__new__(ExplainedVariance)
        both.n, both.total = self.n + other.n, self.total + other.total
        both.square, both.error = self.square + other.square, self.error + other.error
        return both

    def result(self) -> float:
        """The explained variance; NaN if there is no token or no variance."""
        variance = self.square - float(self.total.square().sum()) / max(1, self.n)
        return 1 - self.error / variance if variance else float("nan")
