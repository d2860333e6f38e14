"""Spurious correlation removal: does ablation free a classifier from a bias?"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import NonNegativeInt, PositiveInt

from saelens_adaptive_ortho.evaluations.contract import (
    ABLATION_CAVEAT,
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
    """Spurious correlation removal.

    Args:
        source: of texts labelled by two crossed attributes. ``auto`` takes texts about the demo's
            world for the demo model and SAEBench's two published data sets for a model of the
            hub; or name one: ``demo:crossed``, ``published``, one published data set, a .jsonl
            file with the field text and the two in ``columns``.
        columns: the fields of a .jsonl file with the attributes, of two values each.
        train_size: training texts of each value; by default 2000 published ones, 300 others.
        test_size: test texts of each value; by default 500 published ones, 100 others.
        context_length: tokens of a text that are read, at most.
        llm_batch_size: texts per forward pass.
        sae_batch_size: texts encoded at a time.
        seed: of the texts drawn and of the probes.
    """

    source: str = AUTO
    columns: list[str] = field(default_factory=list)
    train_size: PositiveInt | None = None
    test_size: PositiveInt | None = None
    context_length: PositiveInt = 128
    llm_batch_size: PositiveInt = 32
    sae_batch_size: PositiveInt = 125
    seed: NonNegativeInt = SEED


SCR = Evaluation(
    name="scr",
    title="Spurious correlation removal (SCR)",
    description=(
        "Ablating the latents of a spurious feature should free a biased classifier from "
        "it; 1 means the bias is gone, 0 that nothing changed."
    ),
    settings=Settings,
    module="saelens_adaptive_ortho.judging.saebench.scr",
    needs=SAE_BENCH,
    metrics={
        "threshold_{n}": Metric("score, {n} latents ablated", "", "higher"),
        "threshold_{n}_dir1": Metric("score of one direction, {n} latents ablated"),
        "threshold_{n}_dir2": Metric("score of the other direction, {n} latents ablated"),
    },
    primary=("threshold_10", "threshold_50"),
    headline=("threshold_10",),
    glance=("threshold_10",),
    short="SCR",
    caveat=ABLATION_CAVEAT,
    figures=(
        Figure(
            "scr",
            "Score against the number of ablated latents",
            "Lines are means over seeds, small dots single SAEs.",
            f"{FIGURES}.counts:counts_figure",
        ),
    ),
)
