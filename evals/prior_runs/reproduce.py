"""Reproduce the failures of the note in plain PyTorch, on made-up activations.

The activations have the same norm and the same ratio of mean to variance as those of the note. The
first run of the note reveals the ratio: an SAE that never fires explains ``-|mean|^2 / variance``
of the variance.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from evals.prior_runs.note import CEILING, NORM_IN, PRIOR_RUNS, STEPS
from saelens_adaptive_ortho.files import write_json

MEAN_TO_VARIANCE = -(PRIOR_RUNS["run1"].explained_variance or 0.0)
BATCH = 256


def activations(n: int, d_in: int, seed: int = 0) -> Float[Tensor, "n d_in"]:
    """Return a mean plus sparse sums of 2 d_in fixed directions, with RMS norm NORM_IN."""
    generator = torch.Generator().manual_seed(0)
    D = torch.randn(2 * d_in, d_in, generator=generator)
    mean = torch.randn(d_in, generator=generator)
    generator.manual_seed(seed + 1)
    codes = torch.rand(n, 2 * d_in, generator=generator)
    x = (codes * (codes > 1 - 8 / (2 * d_in))) @ (D / D.norm(dim=1, keepdim=True))
    x = x - x.mean(0)
    variance = x.square().sum(-1).mean()
    x = x + mean / mean.norm() * (MEAN_TO_VARIANCE * variance).sqrt()
    return x * NORM_IN / x.square().sum(-1).mean().sqrt()


class Weights(NamedTuple):
    """A ReLU SAE with tied initial weights: ``x_hat = relu((x - b) W_enc) W_dec + b``."""

    W_enc: Tensor
    W_dec: Tensor
    b: Tensor

    @classmethod
    def at_random(cls, d_in: int, d_sae: int, norm: float = 1.0, seed: int = 0) -> Weights:
        W = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        W = norm * W / W.norm(dim=1, keepdim=True).clamp(min=1e-8)
        encoder = torch.randn(d_in, d_sae, generator=torch.Generator().manual_seed(seed + 1))
        return cls(
            *(w.clone().requires_grad_() for w in (encoder / d_in**0.5, W, W.new_zeros(d_in)))
        )

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        acts = ((x - self.b) @ self.W_enc).relu()
        return acts, acts @ self.W_dec + self.b


@torch.no_grad()
def judge(weights: Weights, x: Tensor) -> dict[str, float]:
    """Compute the metrics of the note."""
    acts, out = weights(x)
    error = (x - out).square().sum(-1).mean()
    variance = (x - x.mean(0)).square().sum(-1).mean()
    return {
        "explained_variance": float(1 - error / variance),
        "mse": float(error / x.shape[1]),
        "norm_in": float(x.norm(dim=-1).mean()),
        "norm_out": float(out.norm(dim=-1).mean()),
        "cosine": float(torch.cosine_similarity(x, out, dim=-1).mean()),
        "l0_share": float((acts > 0).float().mean()),
    }


def train(
    weights: Weights,
    x: Tensor,
    steps: int,
    lr: float,
    ceiling: float | None = None,
    reduce_sum: bool = True,
    sparsity: float = 0.0,
) -> float:
    """Train with Adam on the squared error, in place, and return the last loss.

    Args:
        weights: SAE to train.
        x: activations to draw batches from.
        steps: number of training steps.
        lr: learning rate.
        ceiling: value at which the loss is clamped; None for no clamp.
        reduce_sum: whether the loss is the sum over the batch; otherwise it is the mean per token.
        sparsity: coefficient of the L1 norm of the feature activations.
    """
    optimiser = torch.optim.Adam(list(weights), lr=lr)
    generator = torch.Generator().manual_seed(0)
    loss = x.new_zeros(())
    for _ in range(steps):
        batch = x[torch.randint(len(x), (BATCH,), generator=generator)]
        acts, out = weights(batch)
        per_token = (batch - out).square().sum(-1) + sparsity * acts.sum(-1)
        loss = per_token.sum() if reduce_sum else per_token.mean()
        if ceiling is not None:
            loss = loss.clamp(max=ceiling)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(loss.detach())


def silent(d_in: int, d_sae: int) -> dict[str, Any]:
    """Run 1: an SAE whose output is zero, without any training step."""
    x = activations(8 * BATCH, d_in)
    weights = Weights.at_random(d_in, d_sae)
    with torch.no_grad():
        weights.W_dec.zero_()
        weights.W_enc.zero_()
    return judge(weights, x)


def untrained(d_in: int, d_sae: int) -> dict[str, Any]:
    """Runs 3 to 9: an SAE at its initialisation, where a random half of the latents fire."""
    x = activations(8 * BATCH, d_in)
    found = judge(Weights.at_random(d_in, d_sae), x)
    # If output and input are unrelated, their squared norms add up to the error.
    found["mse_if_unrelated"] = (found["norm_in"] ** 2 + found["norm_out"] ** 2) / d_in
    return found


def clamped(d_in: int, d_sae: int) -> dict[str, Any]:
    """Runs 3 to 9: a loss clamped at a ceiling has no gradient, so the weights never change."""
    x = activations(8 * BATCH, d_in)
    found: dict[str, Any] = {}
    moved = []
    for lr in (3e-4, 1e-4):
        weights = Weights.at_random(d_in, d_sae)
        before = [w.detach().clone() for w in weights]
        found["final_loss"] = train(weights, x, STEPS, lr, ceiling=CEILING)
        moved.append(
            max(float((a - b.detach()).abs().max()) for a, b in zip(before, weights, strict=True))
        )
    return {**found, **judge(weights, x), "largest_change_of_a_weight": max(moved)}


def not_a_number(d_in: int, d_sae: int) -> dict[str, Any]:
    """Run 2, one possible cause: normalising the zero decoder of run 1 without an epsilon."""
    weights = Weights.at_random(d_in, d_sae)
    with torch.no_grad():
        weights.W_dec.zero_()
    bare = weights.W_dec / weights.W_dec.norm(dim=1, keepdim=True)
    guarded = weights.W_dec / weights.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8)
    return {
        "nan_share_without_epsilon": float(bare.isnan().float().mean()),
        "nan_share_with_epsilon": float(guarded.isnan().float().mean()),
        "a_ceiling_keeps_nan": bool(torch.tensor(float("nan")).clamp(max=CEILING).isnan()),
    }


def too_short(d_in: int, d_sae: int, steps: int = 2000) -> dict[str, Any]:
    """Compare 48 steps at the learning rates of the note, without the clamp, with full training."""
    x = activations(64 * BATCH, d_in)
    scaled = x * d_in**0.5 / x.norm(dim=-1).mean()
    found = {}
    for name, data, n, lr in (
        ("raw, 48 steps, lr 1e-4", x, STEPS, 1e-4),
        ("raw, 48 steps, lr 3e-4", x, STEPS, 3e-4),
        ("normalised, 48 steps, lr 3e-4", scaled, STEPS, 3e-4),
        (f"normalised, {steps} steps, lr 3e-4", scaled, steps, 3e-4),
    ):
        weights = Weights.at_random(d_in, d_sae, norm=0.1)
        train(weights, data, n, lr, reduce_sum=False)
        found[name] = judge(weights, data)["explained_variance"]
    return found


def chance_probe() -> dict[str, float]:
    """Run 0: a probe on constant features (an SAE that never fires) is right half of the time."""
    labels = torch.arange(1000) % 2
    constant = torch.zeros(1000, 4)
    guess = (constant.sum(-1) > 0).long()
    return {"accuracy": float((guess == labels).float().mean())}


def reproduce_all(d_in: int = 288, d_sae: int = 288, steps: int = 2000) -> dict[str, Any]:
    """Return the results of every reproduction by name."""
    return {
        "d_in": d_in,
        "d_sae": d_sae,
        "silent": silent(d_in, d_sae),
        "untrained": untrained(d_in, d_sae),
        "clamped": clamped(d_in, d_sae),
        "not_a_number": not_a_number(d_in, d_sae),
        "too_short": too_short(d_in, d_sae, steps),
        "chance_probe": chance_probe(),
    }


def main() -> None:
    """Reproduce every failure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "reproductions.json")
    args = parser.parse_args()
    write_json(args.json, reproduce_all())


if __name__ == "__main__":
    main()
