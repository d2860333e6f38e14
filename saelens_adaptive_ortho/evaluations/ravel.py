"""RAVEL: cause and isolation when latents of entity attributes are exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from saelens_adaptive_ortho.evaluations.contract import (
    AUTO,
    FIGURES,
    SAE_BENCH,
    SEED,
    Evaluation,
    Figure,
    Metric,
    Published,
)
from saelens_adaptive_ortho.settings import BenchSeed


@dataclass(frozen=True)
class Settings:
    """RAVEL.

    Args:
        source: source of entities, attributes and prompts: ``demo:facts``, ``published``, or a
            directory with RAVEL's four JSON files per entity type. ``auto`` means ``demo:facts``
            for the demo model and ``published`` for other models.
        attributes: attributes by entity type, two or more per type; by default SAEBench's choice.
        top_n_entities: number of entities kept, the ones that the model knows best.
        downsample: number of prompts drawn before the model completes them; None uses all.
        num_pairs_per_attribute: maximum number of prompt pairs per attribute.
        num_epochs: epochs over the training pairs, for training the mask of exchanged latents.
        learning_rate: learning rate of the mask training.
        n_generated_tokens: number of generated tokens that count as the answer.
        llm_batch_size: prompts per forward pass.
        seed: seed of the drawn prompts and pairs.
    """

    source: str = AUTO
    attributes: dict[str, list[str]] = field(default_factory=dict)
    top_n_entities: PositiveInt = 500
    downsample: PositiveInt | None = None
    num_pairs_per_attribute: PositiveInt = 5000
    num_epochs: PositiveInt = 2
    learning_rate: PositiveFloat = 1e-3
    n_generated_tokens: PositiveInt = 6
    llm_batch_size: PositiveInt = 16
    seed: BenchSeed = SEED


def read_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Our names and the values of SAEBench's scores."""
    return {name.removesuffix("_score"): value for name, value in metrics["ravel"].items()}


RAVEL = Evaluation(
    name="ravel",
    title="RAVEL",
    description=(
        "Exchanging latents between two entities should change one attribute (cause) and "
        "leave the others as they are (isolation); disentanglement is the mean of both."
    ),
    settings=Settings,
    module="saelens_adaptive_ortho.judging.saebench.ravel",
    needs=SAE_BENCH,
    metrics={
        "cause": Metric("cause", "", "higher"),
        "isolation": Metric("isolation", "", "higher"),
        "disentanglement": Metric("disentanglement", "", "higher"),
    },
    primary=("disentanglement",),
    glance=("disentanglement",),
    short="RAVEL",
    figures=(
        Figure(
            "ravel",
            "Cause and isolation",
            "A dot per SAE.",
            f"{FIGURES}.dots:judged_figure",
        ),
    ),
    published=Published("ravel", read_metrics),
)
