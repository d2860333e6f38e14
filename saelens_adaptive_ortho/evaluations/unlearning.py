"""Unlearning: clamping latents of the forget corpus, what the model forgets, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from saelens_adaptive_ortho.evaluations.contract import (
    ADDED_LATER,
    FIGURES,
    Direction,
    Evaluation,
    Figure,
    Metric,
    Published,
)

LIMITS = ("0.05", "0.10", "0.20")
PRIMARY = (
    *(f"loss/forget_damage_at_{limit}" for limit in LIMITS),
    *(f"token/forget_damage_at_{limit}" for limit in LIMITS),
    *(f"mcq/forget_accuracy_at_{limit}" for limit in ("0.99", "0.95", "0.90")),
)
#: What other texts lose: a second forget text, and named retain corpora. Then the frontier whose
#: cost is the damage on the corpus of the retain side that loses most.
ELSEWHERE = tuple(
    f"{frontier}/{reading}"
    for frontier in ("loss", "token")
    for reading in (
        *(
            f"{corpus}_{of}"
            for corpus in ("transfer", "{corpus}")
            for of in ("per_forget_damage_at_0.10", "damage_at_forget_2")
        ),
        *(f"kept_forget_damage_at_{limit}" for limit in LIMITS),
        "kept_damage_at_forget_2",
    )
)

#: References that clamp random latents of the SAE. The other references need no SAE.
RANDOM, GATED_RANDOM = "random latents", "random latents, gated"
FLOORS = (RANDOM, GATED_RANDOM)

#: Nats. Differences between paired seeds have a standard deviation of about 0.3, so this is the
#: smallest margin that eight seeds can decide.
DAMAGE_MARGIN = 0.3
#: Share of questions.
ACCURACY_MARGIN = 0.05


@dataclass(frozen=True)
class Settings:
    """Unlearning by clamping latents.

    Args:
        questions: multiple-choice questions: ``demo:questions``, ``demo:questions_second`` (without
            the organisms of ``demo:forget_first``), ``published`` (WMDP-bio and four MMLU subjects,
            from the hub), a file, or ``none``. ``auto`` means
            ``demo:questions`` for the demo model, ``none`` for another local model, and
            ``published`` for a hub model.
        template: template of the prompts: ``plain``, ``chat``, or ``auto`` (chat if the tokenizer
            has a chat template).
        model_name: a model to clamp instead of the model that the SAE was trained on, for example
            the instruction-tuned gemma-2-2b-it for SAEs of gemma-2-2b.
        counts: numbers of latents to clamp.
        strengths: distances of the clamp value below zero, in multiples of a latent's mean
            activation.
        specificities: a latent also qualifies if it fires this many times as often on the forget
            corpus as on the retain corpus.
        selection: rule that ranks latents: ``rate`` (firing rate on forget), ``coverage`` (each
            next latent covers most forget tokens that no earlier one covers, less retain tokens),
            or ``dsg`` (ratio of squared activations, Dynamic SAE Guardrails).
        gate: where a clamp acts: ``token`` (wherever a latent fires), or ``sequence`` (also only
            in contexts where the chosen latents fire on a larger share of the tokens than in 95% of
            the retain training contexts; the prompt of a question is one context). With
            ``sequence``, the loss frontier of ``token`` is measured, too.
        ranks: numbers of directions to remove in the bounded frontier.
        references: whether to measure ceilings and floors: contrastive PCA, difference of means,
            LEACE, a detector of the corpus, random latents.
        retrained: models that are trained to forget, as further references: ``rmu``,
            ``gradient_ascent``. They take some minutes for a model of 100M parameters on a CPU. The
            hook must be at the end of a block.
        n_select_contexts: training contexts per corpus for measuring firing rates.
        n_choose_contexts: training contexts per corpus for choosing settings of the frontier.
        n_contexts: held-out contexts per corpus for measuring the loss frontier.
        n_reference_contexts: the same for the bounded frontier and the references, which need fewer
            contexts. They are the first ones of ``n_contexts``.
        loss_every: the loss is measured at every n-th position. Losses differ more between passages
            than between positions of a passage, so more passages with fewer positions give
            narrower intervals.
        batch_size_prompts: contexts per forward pass.
        replicates: number of bootstrap replicates.
    """

    questions: str = "auto"
    template: str = "auto"
    model_name: str | None = None
    counts: list[PositiveInt] = field(default_factory=lambda: [5, 10, 20, 40])
    strengths: list[NonNegativeFloat] = field(default_factory=lambda: [2.0, 8.0, 32.0])
    specificities: list[PositiveFloat] = field(default_factory=lambda: [9.0, 3.0])
    selection: Literal["rate", "coverage", "dsg"] = "rate"
    gate: Literal["token", "sequence"] = "sequence"
    ranks: list[PositiveInt] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 48])
    references: bool = True
    retrained: list[Literal["rmu", "gradient_ascent"]] = field(
        default_factory=list, metadata=ADDED_LATER
    )
    n_select_contexts: PositiveInt = 256
    n_choose_contexts: PositiveInt = 64
    n_contexts: PositiveInt = 2048
    n_reference_contexts: PositiveInt = 256
    loss_every: PositiveInt = 2
    batch_size_prompts: PositiveInt = 32
    replicates: PositiveInt = 400


def _other_corpora(frontier: str, before: str) -> dict[str, Metric]:
    """Damage on other corpora: at each budget, per forget damage, and at a fixed forget damage."""
    found: dict[str, Metric] = {}
    # A second forget text should lose as much as the first one; any other text should lose nothing.
    texts: tuple[tuple[str, str, Direction], ...] = (
        ("transfer", "second forget text", "higher"),
        ("{corpus}", "{corpus}", "lower"),
    )
    for corpus, text, better in texts:
        at, fixed = "at retain damage ≤ {n} nats", "at forget damage {n} nats"
        for name, label, unit in (
            ("per_forget_damage_at_{n}", f"damage on {text} per forget damage {at}", ""),
            ("damage_at_{n}", f"damage on {text} {at}", "nats"),
            ("damage_at_forget_{n}", f"damage on {text} {fixed}", "nats"),
        ):
            key = f"{frontier}/{corpus}_{name}"
            found[key] = Metric(f"{before}{label}", unit, better)
            found[f"{key}_halfwidth"] = Metric(f"{before}bootstrap half-width: {label}", unit)
    return found | _kept(frontier, before)


def _kept(frontier: str, before: str) -> dict[str, Metric]:
    """The frontier whose cost is the damage on the corpus of the retain side that loses most."""
    at = "forget damage if no retain corpus loses more than {n} nats"
    fixed = "damage on the retain corpus that loses most, at forget damage {n} nats"
    metrics = {
        f"{frontier}/kept_forget_damage_at_{{n}}": Metric(
            before + at, "nats", "higher", DAMAGE_MARGIN
        ),
        f"{frontier}/kept_damage_at_forget_{{n}}": Metric(before + fixed, "nats", "lower"),
    }
    halves = {
        f"{key}_halfwidth": Metric(f"{before}bootstrap half-width: {text}", "nats")
        for key, text in zip(metrics, (at, fixed), strict=True)
    }
    return metrics | halves


def _companion(frontier: str, before: str) -> dict[str, Metric]:
    """The metrics of a frontier beside the first one."""
    at = "at retain damage ≤ {n} nats"
    return {
        f"{frontier}/forget_damage_at_{{n}}": Metric(
            f"{before}forget damage {at}", "nats", "higher", DAMAGE_MARGIN
        ),
        f"{frontier}/forget_damage_at_{{n}}_halfwidth": Metric(
            f"{before}bootstrap half-width {at}", "nats"
        ),
        **_other_corpora(frontier, before),
        f"{frontier}/area": Metric(
            f"{before}forget damage, mean over retain damage ≤ 0.20 nats", "nats", "higher"
        ),
    }


def read_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Our name and the value of SAEBench's only score."""
    return {"score": metrics["unlearning"]["unlearning_score"]}


UNLEARNING = Evaluation(
    name="unlearning",
    title="Unlearning",
    description=(
        "Latents that fire on the forget corpus and hardly on the retain corpus are "
        "clamped below zero, at many strengths, in passages where they fire often: how much of "
        "forget is lost for how little of retain, in next-token loss (damage: its increase) and in "
        "multiple-choice questions the model knows. At every token: clamped wherever they fire. "
        "Bounded: the span of these latents is removed at every token instead."
    ),
    settings=Settings,
    module="saelens_adaptive_ortho.judging.unlearning.evaluation",
    version=4,
    metrics={
        "loss/forget_damage_at_{n}": Metric(
            "forget damage at retain damage ≤ {n} nats", "nats", "higher", DAMAGE_MARGIN
        ),
        "loss/forget_damage_at_{n}_halfwidth": Metric(
            "bootstrap half-width at retain damage ≤ {n} nats", "nats"
        ),
        **_other_corpora("loss", ""),
        "loss/area": Metric(
            "forget damage, mean over retain damage ≤ 0.20 nats", "nats", "higher", DAMAGE_MARGIN
        ),
        **_companion("token", "at every token: "),
        **_companion("bounded", "bounded: "),
        "mcq/forget_accuracy_at_{n}": Metric(
            "forget accuracy at retain accuracy ≥ {n}",
            "",
            "lower",
            ACCURACY_MARGIN,
            "mcq/n_forget_questions",
        ),
        "mcq/forget_accuracy_at_{n}_halfwidth": Metric(
            "bootstrap half-width at retain accuracy ≥ {n}"
        ),
        "mcq/area": Metric(
            "forget accuracy, mean over retain accuracy ≥ 0.90",
            "",
            "lower",
            ACCURACY_MARGIN,
            "mcq/n_forget_questions",
        ),
        "mcq/original_forget_accuracy": Metric("forget accuracy, model untouched"),
        "mcq/original_retain_accuracy": Metric("retain accuracy, model untouched"),
        "mcq/chance": Metric("accuracy by chance"),
        "mcq/n_forget_questions": Metric("forget questions", "questions"),
        "mcq/n_retain_questions": Metric("retain questions", "questions"),
        "score": Metric("published score", "", "higher"),
    },
    primary=PRIMARY,
    headline=(
        *PRIMARY,
        *(f"bounded/forget_damage_at_{limit}" for limit in LIMITS),
        *ELSEWHERE,
        "score",
    ),
    glance=("token/forget_damage_at_0.10", "mcq/forget_accuracy_at_0.95"),
    essential=(*PRIMARY, *ELSEWHERE),
    short="unlearning",
    caveat="Read the frontier, not the published score, which is degenerate: single SAEs of "
    "one architecture span 0.0075 to 0.11.",
    figures=(
        Figure(
            "unlearning",
            "Frontiers",
            (
                "Each point of a curve is the best that any strength of intervention reaches. "
                "Thick lines are means over seeds, thin lines single SAEs, dots single "
                "interventions; the band is the 95% bootstrap band of one SAE over the "
                "evaluation's texts or questions, averaged over seeds. It does not hold the "
                "spread between seeds, which the thin lines show. Dashed grey lines are "
                "references: what directions without an SAE reach, and what random latents do."
            ),
            f"{FIGURES}.frontier:frontier_figure",
        ),
        Figure(
            "unlearning_metrics",
            "Readings of the frontiers",
            "The primary metrics, a dot per SAE.",
            f"{FIGURES}.dots:primary_figure",
        ),
    ),
    published=Published("unlearning", read_metrics, beside=("score",)),
)
