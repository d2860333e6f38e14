"""Sparse probing: how well a few latents predict a concept."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import PositiveInt

from saelens_adaptive_ortho.evaluations.contract import (
    AUTO,
    FIGURES,
    SAE_BENCH,
    SEED,
    Evaluation,
    Figure,
    Published,
    probing_metrics,
    read_probes,
)
from saelens_adaptive_ortho.settings import BenchSeed

PRIMARY = tuple(f"sae_top_{k}_accuracy" for k in (1, 5, 20))


@dataclass(frozen=True)
class Settings:
    """Sparse probing.

    Args:
        source: source of labelled texts: ``demo:probing`` (embedded texts by topic),
            ``published`` (SAEBench's data sets), the name of one published data set, ``corpus``
            (the two corpora), or a file with the fields text and label. ``auto`` means
            ``demo:probing`` for the demo model, ``published`` for a hub model, and ``corpus`` for
            a local model.
        k_values: numbers of latents that a probe uses, from 1, 2, 5, 10, 20, 50 and 100.
        train_size: training texts per class; by default 2000 for published texts, 300 for others.
        test_size: test texts per class; by default 500 for published texts, 200 for others.
        context_length: maximum number of tokens of a text, limited by the model's context.
        llm_batch_size: texts per forward pass.
        sae_batch_size: texts that the SAE encodes at a time.
        seed: seed of the choice of texts and of every probe.
    """

    source: str = AUTO
    k_values: list[PositiveInt] = field(default_factory=lambda: [1, 2, 5, 10, 20, 50])
    train_size: PositiveInt | None = None
    test_size: PositiveInt | None = None
    context_length: PositiveInt = 128
    llm_batch_size: PositiveInt = 32
    sae_batch_size: PositiveInt = 125
    seed: BenchSeed = SEED


SPARSE_PROBING = Evaluation(
    name="sparse_probing",
    title="Sparse probing",
    description=(
        "SAEBench's linear probes on the k latents that tell a concept best: accuracy on "
        "test examples, averaged over data sets."
    ),
    settings=Settings,
    module="saelens_adaptive_ortho.judging.saebench.sparse_probing",
    needs=SAE_BENCH,
    metrics=probing_metrics(),
    primary=PRIMARY,
    headline=PRIMARY,
    glance=("sae_top_5_accuracy",),
    essential=("sae_top_1_accuracy",),
    short="sparse probing",
    figures=(
        Figure(
            "sparse_probing",
            "Accuracy against the number of latents",
            (
                "Lines are means over seeds, small dots single SAEs (shifted sideways to tell "
                "variants apart). Dashed: probes that need no SAE; an SAE earns its keep where "
                "it is above the same number of raw dimensions or principal components."
            ),
            f"{FIGURES}.counts:counts_figure",
        ),
    ),
    published=Published("sparse_probing", read_probes),
)
