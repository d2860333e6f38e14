"""Metrics of how well an SAE finds the true features, on held-out samples, as in SAELens."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.saes.sae import SAE
from sae_lens.synthetic import (
    ClassificationMetricsCalculator,
    DeadLatentsCalculator,
    L0Calculator,
    feature_uniqueness,
    mean_correlation_coefficient,
)

from saelens_adaptive_ortho.maths.geometry import mean_max_cosine
from saelens_adaptive_ortho.synthetic.pool import Pool


@torch.no_grad()
def feature_metrics(sae: SAE[Any], pool: Pool, batch_size: int = 1024) -> dict[str, float]:
    """Agreement of an SAE with the true features, on the pool's held-out samples.

    All metrics except ``mean_max_cosine`` are those of
    ``sae_lens.synthetic.eval_sae_on_synthetic_data`` (arXiv 2602.14687). Its calculators compute
    them:

    - ``mcc``: mean |cosine| of latents and true features under the best one-to-one matching;
    - ``precision``, ``recall``, ``f1``: each latent is a detector of the true feature that is
      nearest to its decoder direction; the values are means over latents, and a dead latent
      counts 0;
    - ``uniqueness``: number of distinct nearest features, divided by the number of latents;
    - ``explained_variance``: ``1 - E||x - x'||^2 / E||x - E x||^2``;
    - ``l0``, ``true_l0``: active latents per sample, and firing true features per sample;
    - ``dead_latents``: latents that never fire on these samples;
    - ``mean_max_cosine``: mean over latents of the largest cosine with another latent.

    A training SAE with BatchTopK selects its latents over ``batch_size`` samples, as in SAELens's
    own runner.
    """
    training = sae.training
    sae.eval()
    W_dec = sae.W_dec.detach()
    counts = ClassificationMetricsCalculator(W_dec, pool.directions)
    l0, true_l0 = L0Calculator(), L0Calculator()
    dead = DeadLatentsCalculator(W_dec.shape[0])
    variance = ExplainedVarianceCalculator()
    for x, features in pool.held_out_batches(batch_size):
        acts = sae.encode(x)
        variance.add_batch(sae.decode(acts), x)
        l0.add_batch(acts)
        dead.add_batch(acts)
        true_l0.add_batch(features)
        counts.add_batch(acts, features)
    sae.train(training)
    classification = counts.compute()
    return {
        "mcc": mean_correlation_coefficient(W_dec, pool.directions),
        "f1": classification.f1_score,
        "precision": classification.precision,
        "recall": classification.recall,
        "uniqueness": feature_uniqueness(W_dec, pool.directions),
        "explained_variance": variance.compute(),
        "l0": l0.compute(),
        "true_l0": true_l0.compute(),
        "dead_latents": float(dead.compute()),
        "mean_max_cosine": mean_max_cosine(W_dec),
    }
