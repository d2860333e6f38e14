"""Absorption: how often a general latent is silent where a specific latent fires."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt

from saelens_adaptive_ortho.evaluations.contract import (
    FIGURES,
    SAE_BENCH,
    Evaluation,
    Figure,
    Metric,
    Published,
)
from saelens_adaptive_ortho.settings import Share


@dataclass(frozen=True)
class Settings:
    """SAEBench absorption.

    Args:
        prompt_template: prompt with the question about a word.
        min_letters: minimum number of letters with a good probe on the model's activations.
        min_probe_f1: a probe is good if its F1 on held-out words is above this value.
        max_k: maximum number of latents that a letter may be split over.
        llm_batch_size: prompts per forward pass.
    """

    prompt_template: str = "{word} has the first letter:"
    min_letters: PositiveInt = 20
    min_probe_f1: Share = 0.6
    max_k: PositiveInt = 10
    llm_batch_size: PositiveInt = 32


def read_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Our names and the values of SAEBench's means over letters."""
    mean = metrics["mean"]
    return {
        "full_absorption": mean["mean_full_absorption_score"],
        "absorption_fraction": mean["mean_absorption_fraction_score"],
        "n_split_features": mean["mean_num_split_features"],
    }


ABSORPTION = Evaluation(
    name="absorption",
    title="Feature absorption",
    description=(
        "First-letter task: how often the latents of a letter stay silent on a word that "
        "begins with it, because a more specific latent has absorbed them."
    ),
    settings=Settings,
    module="saelens_adaptive_ortho.judging.saebench.absorption",
    needs=SAE_BENCH,
    metrics={
        "full_absorption": Metric("full absorption rate", "", "lower"),
        "absorption_fraction": Metric("absorption fraction", "", "lower"),
        "n_split_features": Metric("latents per letter", "latents", "lower"),
        "n_letters": Metric("letters", "letters"),
    },
    primary=("full_absorption",),
    headline=("full_absorption",),
    glance=("full_absorption",),
    short="absorption",
    caveat="Meant for SAEs of at least 16k latents on models of at least 1B parameters; "
    "smaller ones say little.",
    figures=(
        Figure(
            "absorption",
            "Absorption",
            "A dot per SAE; lower means less is absorbed.",
            f"{FIGURES}.dots:judged_figure",
        ),
    ),
    published=Published("absorption_first_letter", read_metrics),
)
