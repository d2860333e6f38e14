"""Targeted probe perturbation: the causal effect of ablating the latents of a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt

from saelens_adaptive_ortho.evaluations.contract import (
    ABLATION_CAVEAT,
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
    """Targeted probe perturbation.

    Args:
        source: source of labelled texts with at least three classes: ``demo:probing`` (embedded
            texts by topic), ``published`` (SAEBench's two data sets), the name of one published
            data set, or a file with the fields text and label. ``auto`` means
            ``demo:probing`` for the demo model and ``published`` for a hub model.
        train_size: training texts per class; by default 2000 for published texts, 300 for others.
        test_size: test texts per class; by default 500 for published texts, 100 for others.
        context_length: maximum number of tokens of a text.
        llm_batch_size: texts per forward pass.
        sae_batch_size: texts that the SAE encodes at a time.
        seed: seed of the drawn texts and of the probes.
    """

    source: str = AUTO
    train_size: PositiveInt | None = None
    test_size: PositiveInt | None = None
    context_length: PositiveInt = 128
    llm_batch_size: PositiveInt = 32
    sae_batch_size: PositiveInt = 125
    seed: BenchSeed = SEED


# How SAEBench ends the names of its metrics, and how we end ours.
_ENDS = {
    "_total_metric": "",
    "_intended_diff_only": "_intended",
    "_unintended_diff_only": "_unintended",
}


def read_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Our names and the values of SAEBench's scores and of their two parts."""
    return {
        name.removeprefix("tpp_").removesuffix(end) + ours: value
        for name, value in metrics["tpp_metrics"].items()
        for end, ours in _ENDS.items()
        if name.endswith(end)
    }


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
    published=Published("tpp", read_metrics),
)
