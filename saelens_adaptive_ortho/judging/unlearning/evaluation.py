"""Unlearning: intervene on the forget corpus, and measure what is forgotten at what cost.

The evaluation measures four frontiers, references for them, and SAEBench's published score:

- The *loss* frontier: the increase of the loss on held-out forget text, at a given increase of the
  loss on held-out retain text, when latents are clamped where they fire in contexts above the gate.
- The *token* frontier: the same without the gate of the settings, if they have one.
- The *bounded* frontier: the same, when the span of the latents' decoder rows is removed at every
  token.
- The *multiple-choice* frontier: the lowest accuracy on known forget questions, at a given accuracy
  on known retain questions, for the clamps. It needs a model that knows enough questions.

The budget of a loss frontier is the damage on ``retain``. The damage on every other corpus (named
retain corpora, ``forget_test``) is read at the point that reaches the frontier.

For Gemma-2 instruction models, SAEBench itself computes the score. For models that SAEBench
refuses, two things differ from SAEBench: the prompts follow the model's own template, and the
firing rates come from the corpora of the run.

The score uses SAEBench's absolute clamp values and its single order of the choices. The frontiers
use clamp values in multiples of each latent's mean activation on forget text. The accuracies of
the multiple-choice frontier are means over four cyclic orders.

A coarse sweep chooses settings near the frontier, on training text and on one order of the choices.
These settings are then measured in finer steps, on held-out text and on all four orders.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.judging.contract import EvalContext, Outcome
from saelens_adaptive_ortho.judging.saebench.session import keep_result
from saelens_adaptive_ortho.judging.unlearning import published as published_unlearning
from saelens_adaptive_ortho.judging.unlearning import questions as mcq
from saelens_adaptive_ortho.judging.unlearning import references, retraining
from saelens_adaptive_ortho.judging.unlearning.accuracies import (
    accuracy_frontiers,
    known_questions,
    share_right,
)
from saelens_adaptive_ortho.judging.unlearning.clamps import Clamp
from saelens_adaptive_ortho.judging.unlearning.families import Setting, bounded, gated
from saelens_adaptive_ortho.judging.unlearning.losses import (
    Readings,
    Trial,
    loss_frontiers,
    rounded,
)
from saelens_adaptive_ortho.judging.unlearning.questions import Question, QuestionError
from saelens_adaptive_ortho.judging.unlearning.selection import (
    Statistics,
    measure_statistics,
    paths_of,
    published_rankings,
    select,
)

# SAEBench's sweep, and the retain accuracy that its score requires.
PUBLISHED_COUNTS = (10, 20)
PUBLISHED_MULTIPLIERS = (25, 50, 100, 200)
PUBLISHED_RETAIN_ACCURACY = 0.99

CHANCE = 0.25
FRONTIERS = ("loss", "token", "bounded", "mcq")


def check(settings: Settings) -> None:
    """Read the questions, unless they are on the hub or depend on the model.

    Raises:
        ConfigError: a question cannot be read.
    """
    if settings.questions not in ("auto", "none", mcq.PUBLISHED_QUESTIONS):
        mcq.load_questions(settings.questions)


def run(context: EvalContext, settings: Settings) -> Outcome:
    """The published score, the frontiers with their areas and intervals, and the references.

    Raises:
        EvaluationError: there are not two corpora, or no latent is specific to the forget corpus.
    """
    context.need_corpora(2)
    model, sae = context.bench.language_model(settings.model_name), context.load()
    trial = Trial(context, settings, model, sae)
    known, reason = _known(trial)
    if not settings.references:
        return _run(trial, known, reason, {})
    cache = references.Cache(trial, known)
    with cache.made_once() as kept:
        return _run(trial, known, reason, kept, cache)


def _run(
    trial: Trial,
    known: dict[str, list[Question]] | None,
    reason: str,
    kept: dict[str, dict[str, Any]] | None,
    cache: references.Cache | None = None,
) -> Outcome:
    """The outcome, given the ceilings; if these are None, they are measured for ``cache``."""
    context, settings, model, sae = trial.context, trial.settings, trial.model, trial.sae
    tokens = None
    if kept is None:
        tokens = references.Tokens(context.trained, settings.n_select_contexts)
    found = measure_statistics(context, sae, settings, *([tokens] if tokens else []))
    selection = select(context, sae, settings, found)

    paths = paths_of(list(selection.rankings.values()), settings.counts)
    clamps = gated(selection, paths, settings.strengths)
    own = {"loss": clamps}
    if settings.gate != "token":
        own["token"] = gated(selection, paths, settings.strengths, everywhere=True)
    others = {"bounded": bounded(sae, selection, settings.ranks)}
    floors = references.floors(selection, settings) if settings.references else {}
    ceilings = {}
    if tokens is not None:
        ceilings = references.ceilings(found, tokens.result(), settings)
        methods = [retraining.METHODS[name] for name in settings.retrained]
        ceilings |= retraining.families(context, model, sae, methods)
    # Without a latent or threshold that qualifies, a family has no path and no frontier.
    others, ceilings = (
        {name: family for name, family in families.items() if family.paths}
        for families in (others, ceilings)
    )
    n_others = min(settings.n_contexts, settings.n_reference_contexts)
    losses = loss_frontiers(trial, own, settings.n_contexts)
    if beside := others | floors | ceilings:
        losses |= loss_frontiers(trial, beside, n_others)
    accuracies = {}
    if known is not None:
        accuracies = accuracy_frontiers(trial, known, {"mcq": clamps} | ceilings)
    if kept is None:
        kept = {name: references.as_json(name, losses, accuracies) for name in ceilings}
        assert cache is not None
        cache.write(kept)
    kept |= {name: references.as_json(name, losses, accuracies) for name in floors}
    outcome = _outcome({n: r for n, r in (losses | accuracies).items() if n in FRONTIERS})
    metrics, details = outcome.metrics, outcome.details | references.details(kept)
    details["n_passages"] = {
        c.domain: len(c.held_out[: settings.n_contexts]) for c in context.corpora
    }
    details["n_latents"] = {name: len(ranking) for name, ranking in selection.rankings.items()}
    if known is None:
        details["mcq_reason"] = reason
        details["verdict"] = f"No multiple-choice accuracy: {reason}. Losses only."
        return Outcome(metrics, details)
    metrics |= {
        "mcq/original_forget_accuracy": 1.0,  # by the definition of a known question
        "mcq/original_retain_accuracy": 1.0,
        "mcq/chance": CHANCE,
        "mcq/n_forget_questions": float(len(known["forget"])),
        "mcq/n_retain_questions": float(len(known["retain"])),
    }
    details["verdict"] = (
        f"The model knows {len(known['forget'])} forget and {len(known['retain'])} "
        "retain questions (right under all 24 orders of the choices)."
    )
    metrics["score"], file = _score(trial, found, known, details["frontiers"]["mcq"])
    if file is not None:
        details["sae_bench_file"] = file
    return Outcome(metrics, details)


def _outcome(readings: dict[str, Readings]) -> Outcome:
    """Metrics and details of the SAE's own frontiers."""
    metrics: dict[str, float | None] = {}
    details: dict[str, Any] = {"frontiers": {}, "points": {}, "interventions": {}, "replicates": {}}
    for name, own in readings.items():
        metrics |= {f"{name}/{key}": value for key, value in own.metrics.items()}
        details["frontiers"][name], details["points"][name] = own.frontier, own.points
        details["interventions"][name] = own.interventions
        details["replicates"] |= {f"{name}/{k}": rounded(v) for k, v in own.replicates.items()}
    return Outcome(metrics, details)


def _known(trial: Trial) -> tuple[dict[str, list[Question]] | None, str]:
    """The questions that the model knows; None and the reason if it cannot be asked."""
    try:
        return known_questions(trial), ""
    except QuestionError as error:
        return None, str(error)


def _published_sweep(found: Statistics) -> Iterator[Setting]:
    """SAEBench's sweep over thresholds, counts and multipliers. Its clamp values are absolute."""
    by_threshold = published_rankings(found).values()
    for path, (ranking, count) in enumerate(itertools.product(by_threshold, PUBLISHED_COUNTS)):
        chosen = ranking[:count]
        for multiplier in PUBLISHED_MULTIPLIERS:
            values = torch.full((len(chosen),), -float(multiplier), device=chosen.device)
            yield Setting(path, float(multiplier), Clamp(chosen, values))


def _score(
    trial: Trial, found: Statistics, known: dict[str, list[Question]], frontier: dict[str, Any]
) -> tuple[float | None, str | None]:
    """``1 - min {forget accuracy : retain accuracy >= 0.99}``; 0 if no setting qualifies.

    SAEBench itself computes the score for the models that it accepts.

    Returns:
        The score, and the name of the result file in SAEBench's format, or None.
    """
    context = trial.context
    if published_unlearning.applies(trial.model):
        return published_unlearning.run(context, trial.model)
    sweep = list(_published_sweep(found))
    order = mcq.CYCLIC_ORDERS[:1]
    accuracy = {d: share_right(trial, sweep, d, q, order).mean(1) for d, q in known.items()}
    allowed = accuracy["retain"] >= PUBLISHED_RETAIN_ACCURACY
    score = 1 - float(accuracy["forget"][allowed].min()) if allowed.any() else 0.0
    unstructured = {"frontiers": {"mcq": frontier}, "settings": vars(trial.settings)}
    output = published_unlearning.as_output(context, score, unstructured)
    return score, None if output is None else keep_result(context, "unlearning", output)
