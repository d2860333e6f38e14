"""Spurious correlation removal: does ablating latents remove the bias of a classifier?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """Spurious correlation removal.

    Args:
        source: source of texts labelled by two crossed attributes: ``demo:crossed``,
            ``published`` (SAEBench's two data sets), the name of one published data set, or a
            file with the field text and the two fields in ``columns``. ``auto`` means
            ``demo:crossed`` for the demo model and ``published`` for a hub model.
        columns: the two fields of a file that hold the attributes, with two values each.
        train_size: training texts per value; by default 2000 for published texts, 300 for others.
        test_size: test texts per value; by default 500 for published texts, 100 for others.
        context_length: maximum number of tokens of a text.
        llm_batch_size: texts per forward pass.
        sae_batch_size: texts that the SAE encodes at a time.
        seed: seed of the drawn texts and of the probes.
    """

    source: str = AUTO
    columns: list[str] = field(default_factory=list)
    train_size: PositiveInt | None = None
    test_size: PositiveInt | None = None
    context_length: PositiveInt = 128
    llm_batch_size: PositiveInt = 32
    sae_batch_size: PositiveInt = 125
    seed: BenchSeed = SEED


def read_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Our names and the values of SAEBench's scores, without those of single directions."""
    return {
        name.removeprefix("scr_metric_"): value
        for name, value in metrics["scr_metrics"].items()
        if name.startswith("scr_metric_")
    }


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
    published=Published("scr", read_metrics),
)
