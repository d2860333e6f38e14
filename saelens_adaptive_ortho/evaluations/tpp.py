"""Targeted probe perturbation: causal effect of ablating a class's latents."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Targeted probe perturbation.

    Args:
        source: of labelled texts. ``auto`` takes the embedded topics for the demo model and
            SAEBench's two published data sets for a model of the hub; or name one:
            ``demo:probing``, ``published``, one published data set, a .jsonl file with the fields
            text and label. Three classes are the least.
        train_size: training texts of each class; by default 2000 published ones, 300 others.
        test_size: test texts of each class; by default 500 published ones, 100 others.
        context_length: tokens of a text that are read, at most.
        llm_batch_size: texts per forward pass.
        sae_batch_size: texts encoded at a time.
        seed: of the texts drawn and of the probes.
    """

    source: str = AUTO
    train_size: PositiveInt | None = None
    test_size: PositiveInt | None = None
    context_length: PositiveInt = 128
    llm_batch_size: PositiveInt = 32
    sae_batch_size: PositiveInt = 125
    seed: NonNegativeInt = SEED


TPP = Evaluation(
    name="tpp",
    title="Targeted probe perturbation (TPP)",
    description=(
        "Ablating the latents of one class should lower the accuracy of that class's "
        "probe (intended) and leave the probes of other classes alone (unintended); TPP "
        "is the difference."
    ),
    settings=Settings,
    module="saelens_adaptive_ortho.judging.saebench.tpp",
    needs=SAE_BENCH,
    metrics={
        "threshold_{n}": Metric("score, {n} latents ablated", "", "higher"),
        "threshold_{n}_intended": Metric("intended effect, {n} latents ablated"),
        "threshold_{n}_unintended": Metric("unintended effect, {n} latents ablated"),
    },
    primary=("threshold_10", "threshold_50"),
    headline=("threshold_10",),
    glance=("threshold_10",),
    short="TPP",
    caveat=ABLATION_CAVEAT,
    figures=(
        Figure(
            "tpp",
            "Effect against the number of ablated latents",
            "Lines are means over seeds, small dots single SAEs.",
            f"{FIGURES}.counts:counts_figure",
        ),
    ),
)
