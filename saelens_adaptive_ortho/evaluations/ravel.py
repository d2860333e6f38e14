"""RAVEL: cause and isolation of entity attributes."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from saelens_adaptive_ortho.evaluations.contract import (
    AUTO,
    FIGURES,
    SAE_BENCH,
    SEED,
    Evaluation,
    Figure,
    Metric,
)


@dataclass(frozen=True)
class Settings:
    """RAVEL.

    Args:
        source: of entities, their attributes and prompts. ``auto`` takes facts of the demo's
            world for the demo model and the published data set for others; or name one:
            ``demo:facts``, ``published``, a directory with RAVEL's four JSON files per entity
            type.
        attributes: by entity type, two or more each; by default SAEBench's choice.
        top_n_entities: entities kept, those that the model knows best.
        downsample: prompts drawn from all before the model completes them; None for all.
        num_pairs_per_attribute: pairs of prompts per attribute, at most.
        num_epochs: over the training pairs, to learn which latents to exchange.
        learning_rate: of that.
        n_generated_tokens: an answer is read from so many tokens.
        llm_batch_size: prompts per pass.
        seed: of prompts and pairs drawn.
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
    seed: NonNegativeInt = SEED


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
)
