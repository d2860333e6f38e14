"""Core: reconstruction, preserved model behaviour and sparsity, per corpus and pooled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt

from saelens_adaptive_ortho.evaluations.contract import (
    DOMAINS,
    FIGURES,
    SAE_BENCH,
    Evaluation,
    Figure,
    Metric,
    Published,
)

PRIMARY = ("pooled/explained_variance", "pooled/ce_loss_score")
ALIVE = "pooled/frac_alive"
#: L0 in training, in the details of a result, if the files of the SAE tell it.
TRAINED_L0 = "l0_in_training"

# The metrics of these categories of SAEBench's core output keep their names in our results.
CATEGORIES = (
    "model_behavior_preservation",
    "model_performance_preservation",
    "reconstruction_quality",
    "shrinkage",
    "sparsity",
    "misc_metrics",
    "token_stats",
)

# A cost below these margins does not matter.
EXPLAINED_VARIANCE_MARGIN = 0.004
CE_LOSS_SCORE_MARGIN = 0.002
ALIVE_MARGIN = 0.02


@dataclass(frozen=True)
class Settings:
    """SAEBench core.

    Args:
        n_contexts: maximum number of held-out contexts per corpus.
        batch_size_prompts: contexts per forward pass.
    """

    n_contexts: PositiveInt = 256
    batch_size_prompts: PositiveInt = 16


def read_metrics(categories: Mapping[str, Any]) -> dict[str, float | None]:
    """Our names and the values of SAEBench core's metrics, which it sorts into categories.

    ``explained_variance`` is our own number, so SAEBench's has another name. Files from before
    March 2025 have no ``explained_variance_legacy``: there, ``explained_variance`` is what was
    renamed to it.
    """
    found = [pair for category in CATEGORIES for pair in categories.get(category, {}).items()]
    current = any(name == "explained_variance_legacy" for name, _ in found)
    theirs = "explained_variance_sae_bench" if current else "explained_variance_legacy"
    return {theirs if name == "explained_variance" else name: value for name, value in found}


CORE = Evaluation(
    name="core",
    title="Reconstruction",
    description=(
        "SAEBench core on held-out passages: how much of the variance of the activations "
        "the SAE reconstructs, and how well the model predicts the next token with the "
        "reconstruction in their place."
    ),
    settings=Settings,
    module="saelens_adaptive_ortho.judging.saebench.core",
    version=3,
    needs=SAE_BENCH,
    metrics={
        "explained_variance": Metric("explained variance", "", "higher", EXPLAINED_VARIANCE_MARGIN),
        "explained_variance_legacy": Metric("explained variance (legacy)", "", "higher"),
        "explained_variance_sae_bench": Metric(
            "explained variance (SAEBench's formula)", "", "higher"
        ),
        "ce_loss_score": Metric("CE loss score", "", "higher", CE_LOSS_SCORE_MARGIN),
        "ce_loss_with_sae": Metric("CE loss with SAE", "nats", "lower"),
        "ce_loss_without_sae": Metric("CE loss without SAE", "nats"),
        "ce_loss_with_ablation": Metric("CE loss with ablation", "nats"),
        "kl_div_score": Metric("KL divergence score", "", "higher"),
        "kl_div_with_sae": Metric("KL divergence with SAE", "nats", "lower"),
        "kl_div_with_ablation": Metric("KL divergence with ablation", "nats"),
        "mse": Metric("reconstruction MSE", "", "lower"),
        "cossim": Metric("reconstruction cosine", "", "higher"),
        "l0": Metric("L0", "latents"),
        "l1": Metric("L1"),
        "frac_alive": Metric("fraction alive", "", "higher", ALIVE_MARGIN),
        "average_max_decoder_cosine_sim": Metric("mean max decoder cosine", "", "lower"),
        "average_max_encoder_cosine_sim": Metric("mean max encoder cosine", "", "lower"),
    },
    by_corpus=True,
    primary=PRIMARY,
    headline=(
        *(
            f"{corpus}/{name}"
            for name in ("explained_variance", "ce_loss_score")
            for corpus in (*DOMAINS, "{corpus}")
        ),
        "pooled/l0",
        ALIVE,
    ),
    glance=(*PRIMARY, "pooled/l0", ALIVE),
    essential=(*PRIMARY, ALIVE),
    figures=(
        Figure(
            "reconstruction",
            "Reconstruction on each corpus",
            (
                "As in the first figure: a dot per SAE, the seeds of one line share initial "
                "weights and activations."
            ),
            f"{FIGURES}.dots:reconstruction_figure",
        ),
    ),
    published=Published(
        "core",
        read_metrics,
        corpus="pooled/",
        beside=("pooled/explained_variance_sae_bench", "pooled/explained_variance_legacy"),
    ),
)
