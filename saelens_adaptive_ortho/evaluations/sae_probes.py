"""SAE Probes: sparse probing on the data sets of the package sae_probes."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import PositiveInt

from saelens_adaptive_ortho.evaluations.contract import (
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

# The default data sets, one of each kind.
SUBSET = (
    "24_headline_isiran",  # subject of a headline
    "41_truthqa_tf",  # truth of an answer
    "80_side-effects",  # ends in a given pair of words
    "96_spam_is",  # spam
    "105_click_bait",  # style of a headline
    "119_us_state_TX",  # where a place lies
    "126_art_type_book",  # what a title names
    "129_arith_mc_A",  # arithmetic
    "130_temp_cat_Frequency",  # what a question about time asks for
    "133_context_type_Causality",  # what a question about a story asks for
    "149_twt_emotion_happiness",  # sentiment
    "154_athlete_sport_football",  # what a person is known for
)

PRIMARY = tuple(f"sae_top_{k}_auc" for k in (1, 5, 20))


@dataclass(frozen=True)
class Settings:
    """sae-probes.

    Args:
        datasets: names of data sets in the package sae_probes, or ``[all]`` for all 113. The
            default is twelve, one of each kind.
        k_values: numbers of latents that a probe uses, from 1, 2, 5, 10, 20, 50 and 100.
        context_length: maximum number of tokens of a text (its last ones are kept), limited by the
            model's context.
        llm_batch_size: texts per forward pass.
        seed: seed of the choice of training texts and of every probe.
    """

    datasets: list[str] = field(default_factory=lambda: list(SUBSET))
    k_values: list[PositiveInt] = field(default_factory=lambda: [1, 2, 5, 10, 20, 50])
    context_length: PositiveInt = 1024
    llm_batch_size: PositiveInt = 32
    seed: BenchSeed = SEED


SAE_PROBES = Evaluation(
    name="sae_probes",
    title="SAE Probes",
    description=(
        "Logistic probes on the k latents that tell a concept best, on the data sets of "
        "SAE Probes: area under the ROC curve on test examples, averaged over data sets."
    ),
    settings=Settings,
    module="saelens_adaptive_ortho.judging.saebench.sae_probes",
    needs=SAE_BENCH,
    metrics=probing_metrics(),
    primary=PRIMARY,
    headline=PRIMARY,
    glance=("sae_top_5_auc",),
    short="SAE Probes",
    caveat="The most reliable metric that arXiv 2605.18229 tested, and even this one struggles "
    "to tell variants of one architecture apart.",
    figures=(
        Figure(
            "sae_probes",
            "AUC against the number of latents",
            (
                "Lines are means over seeds, small dots single SAEs (shifted sideways to tell "
                "variants apart). Dashed: probes that need no SAE."
            ),
            f"{FIGURES}.counts:counts_figure",
        ),
    ),
    published=Published("sparse_probing_sae_probes", read_probes),
)
