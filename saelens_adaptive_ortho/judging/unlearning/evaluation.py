"""Unlearning: intervene on the forget corpus, and measure what is forgotten at what cost.

The evaluation measures three frontiers, references for them, and SAEBench's published score:

- The *loss* frontier: the increase of the loss on held-out forget text, at a given increase of the
  loss on held-out retain text, when latents are clamped where they fire.
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

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelens_adaptive_ortho.evaluations.contract import SEED
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.judging.contract import EvalContext, Outcome
from saelens_adaptive_ortho.judging.saebench.session import keep_result
from saelens_adaptive_ortho.judging.unlearning import published as published_unlearning
from saelens_adaptive_ortho.judging.unlearning import questions as mcq
from saelens_adaptive_ortho.judging.unlearning import references
from saelens_adaptive_ortho.judging.unlearning.clamps import Clamp
from saelens_adaptive_ortho.judging.unlearning.families import Family, Setting, bounded, gated
from saelens_adaptive_ortho.judging.unlearning.losses import (
    Trial,
    halfwidth,
    loss_frontiers,
    plain_frontier,
    rounded,
)
from saelens_adaptive_ortho.judging.unlearning.questions import Question, QuestionError
from saelens_adaptive_ortho.judging.unlearning.selection import (
    Selection,
    measure_statistics,
    paths_of,
    published_rankings,
    select,
)
from saelens_adaptive_ortho.maths import frontier as frontiers
from saelens_adaptive_ortho.text import models

# SAEBench's sweep, and the retain accuracy that its score requires.
PUBLISHED_COUNTS = (10, 20)
PUBLISHED_MULTIPLIERS = (25, 50, 100, 200)
PUBLISHED_RETAIN_ACCURACY = 0.99

RETAIN_ACCURACIES = (0.99, 0.95, 0.90)
MCQ_BUDGETS = torch.linspace(0, 1, 101)  # loss of retain accuracy
MIN_KNOWN = 20  # known questions per domain; an accuracy over fewer questions is too noisy
CHANCE = 0.25


@dataclass(frozen=True)
class Clamping(Trial):
    """An SAE in a model, its chosen latents, and the family of clamps over them.

    Args:
        selection: the latents of the forget corpus.
        clamps: the gated family.
    """

    selection: Selection
    clamps: Family


def run(context: EvalContext, settings: Settings) -> Outcome:
    """The published score, the frontiers with their areas and intervals, and the references.

    Raises:
        EvaluationError: there are not two corpora, or no latent is specific to the forget corpus.
    """
    context.need_corpora(2)
    model, sae = context.bench.language_model(settings.model_name), context.load()
    cache = references.Cache(context, sae, settings)
    ceilings = cache.read() if settings.references else {}
    sizes = [c.train[: settings.n_select_contexts].numel() for c in context.trained]
    tokens = references.Tokens(sizes) if ceilings is None else None
    found = measure_statistics(context, sae, settings, *([tokens] if tokens else []))
    selection = select(context, sae, settings, found)
    paths = paths_of(list(selection.rankings.values()), settings.counts)
    clamps = gated(selection, paths, settings.strengths)
    trial = Clamping(context, settings, model, sae, selection, clamps)

    families = {"bounded": bounded(sae, selection, settings.ranks)}
    if settings.references:
        families[references.RANDOM] = references.floor(selection, settings)
    if tokens is not None:
        shares = [c.share for c in context.trained]
        families |= references.ceilings(found, tokens.result(), shares, settings)
    readings = {
        **loss_frontiers(trial, {"loss": clamps}, settings.n_contexts),
        **loss_frontiers(trial, families, min(settings.n_contexts, settings.n_reference_contexts)),
    }
    beside = {
        n: references.as_json(n, r) for n, r in readings.items() if n in references.FRONTIER_OF
    }
    if ceilings is None:
        ceilings = {n: r for n, r in beside.items() if n != references.RANDOM}
        cache.write(ceilings)
    metrics: dict[str, float | None] = {}
    details: dict[str, Any] = {"frontiers": {}, "points": {}, "replicates": {}}
    for name in ("loss", "bounded"):
        own = readings[name]
        metrics |= {f"{name}/{key}": value for key, value in own.metrics.items()}
        details["frontiers"][name], details["points"][name] = own.frontier, own.points
        details["replicates"] |= {f"{name}/{k}": rounded(v) for k, v in own.replicates.items()}
    details |= references.details(ceilings | beside)
    details["n_passages"] = {
        c.domain: len(c.held_out[: settings.n_contexts]) for c in context.corpora
    }
    details["n_latents"] = {name: len(ranking) for name, ranking in selection.rankings.items()}
    try:
        asked = _mcq_frontier(trial)
    except QuestionError as error:
        details["mcq_reason"] = str(error)
        details["verdict"] = f"No multiple-choice accuracy: {error}. Losses only."
        return Outcome(metrics, details)
    for name, value in asked.details.items():
        details[name] = details[name] | value if isinstance(value, dict) else value
    return Outcome(metrics | asked.metrics, details)


# ------------------------------------------------------------ multiple choice


def _mcq_frontier(trial: Clamping) -> Outcome:
    """The multiple-choice frontier and the published score, on questions that the model knows.

    Raises:
        QuestionError: there are no questions, or the model knows too few.
    """
    known = _known(trial)

    def right(sweep: list[Setting], orders: list[tuple[int, ...]]) -> dict[str, Tensor]:
        return {
            domain: _share_right(trial, sweep, domain, q, orders) for domain, q in known.items()
        }

    coarse = trial.clamps.coarse
    first_order = right([*coarse, *_published_sweep(trial)], mcq.CYCLIC_ORDERS[:1])
    wrong = {domain: 1 - r[: len(coarse)].mean(1) for domain, r in first_order.items()}
    budgets = [1 - a for a in RETAIN_ACCURACIES]
    fine = trial.clamps.near_frontier(wrong["retain"], wrong["forget"], budgets)
    wrong = {domain: 1 - r for domain, r in right(fine, mcq.CYCLIC_ORDERS).items()}
    found = frontiers.frontier(
        wrong["retain"],
        wrong["forget"],
        torch.tensor([s.path for s in fine]),
        MCQ_BUDGETS,
        trial.settings.replicates,
        SEED,
    )
    metrics: dict[str, float | None] = {}
    replicates = {}
    for accuracy in RETAIN_ACCURACIES:
        key = f"mcq/forget_accuracy_at_{accuracy:.2f}"
        gain, values = found.at(1 - accuracy)
        metrics[key], replicates[key] = 1 - gain, 1 - values
        metrics[f"{key}_halfwidth"] = halfwidth(values)
    gain, values = found.area(0, 1 - RETAIN_ACCURACIES[-1])
    metrics["mcq/area"], replicates["mcq/area"] = 1 - gain, 1 - values
    metrics |= {
        "mcq/original_forget_accuracy": 1.0,  # by the definition of a known question
        "mcq/original_retain_accuracy": 1.0,
        "mcq/chance": CHANCE,
        "mcq/n_forget_questions": float(len(known["forget"])),
        "mcq/n_retain_questions": float(len(known["retain"])),
    }
    accuracies = [1 - wrong[d].mean(1) for d in ("retain", "forget")]
    frontier = plain_frontier(1 - found.budgets, 1 - found.gain, (1 - found.band()).flip(0))
    details: dict[str, Any] = {
        "frontiers": {"mcq": frontier},
        "points": {"mcq": torch.stack(accuracies, 1).tolist()},
        "replicates": {key: rounded(values) for key, values in replicates.items()},
        "verdict": f"The model knows {len(known['forget'])} forget and {len(known['retain'])} "
        "retain questions (right under all 24 orders of the choices).",
    }
    accuracy = {domain: r[len(coarse) :].mean(1) for domain, r in first_order.items()}
    metrics["score"], file = _score(trial, accuracy, frontier)
    if file is not None:
        details["sae_bench_file"] = file
    return Outcome(metrics, details)


def _share_right(
    trial: Clamping,
    sweep: list[Setting],
    domain: str,
    asked: list[Question],
    orders: list[tuple[int, ...]],
) -> Float[Tensor, "n_settings n_questions"]:
    """The share of the orders under which each question is answered right, for each setting."""
    prompts = mcq.make_prompts(asked, orders, trial.settings.template, trial.model)
    desc = f"Asking {domain} questions"
    _, after = trial.measure(prompts.tokens, sweep, prompts.right(), desc)
    return after.view(len(sweep), len(asked), len(orders)).mean(2)


def _published_sweep(trial: Clamping) -> Iterator[Setting]:
    """SAEBench's sweep over thresholds, counts and multipliers. Its clamp values are absolute."""
    by_threshold = published_rankings(trial.selection.statistics).values()
    for path, (ranking, count) in enumerate(itertools.product(by_threshold, PUBLISHED_COUNTS)):
        chosen = ranking[:count]
        for multiplier in PUBLISHED_MULTIPLIERS:
            values = torch.full((len(chosen),), -float(multiplier), device=chosen.device)
            yield Setting(path, float(multiplier), Clamp(chosen, values))


def _score(
    trial: Clamping, accuracy: dict[str, Float[Tensor, " n_settings"]], frontier: dict[str, Any]
) -> tuple[float, str | None]:
    """``1 - min {forget accuracy : retain accuracy >= 0.99}``; 0 if no setting qualifies.

    SAEBench itself computes the score for the models that it accepts.

    Returns:
        The score, and the name of the result file in SAEBench's format, or None.
    """
    context = trial.context
    if published_unlearning.applies(trial.model):
        return published_unlearning.run(context, trial.model)
    allowed = accuracy["retain"] >= PUBLISHED_RETAIN_ACCURACY
    score = 1 - float(accuracy["forget"][allowed].min()) if allowed.any() else 0.0
    unstructured = {"frontiers": {"mcq": frontier}, "settings": vars(trial.settings)}
    output = published_unlearning.as_output(context, score, unstructured)
    return score, None if output is None else keep_result(context, "unlearning", output)


def _known(trial: Clamping) -> dict[str, list[Question]]:
    """The questions of each domain that the model knows.

    The cache keeps the result for each pair of model and questions.

    Raises:
        QuestionError: there are no questions, or the model knows too few.
    """
    context, settings, model = trial.context, trial.settings, trial.model
    source = _question_source(context, settings)
    asked = mcq.load_questions(source)
    template = mcq.resolve_template(settings.template, model.tokenizer)
    key = json.dumps([context.bench.model_digest, settings.model_name, mcq.digest(asked, template)])
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    file: Path = context.bench.cache / "unlearning" / f"known-{name}.json"
    if file.is_file():
        knows = json.loads(file.read_text())
    else:
        found = mcq.known_questions(model, asked, template, settings.batch_size_prompts)
        knows = found.tolist()
        write_json(file, knows)
    known: dict[str, list[Question]] = {"forget": [], "retain": []}
    for question, knew in zip(asked, knows, strict=True):
        if knew:
            known[question.domain].append(question)
    for domain, questions in known.items():
        if len(questions) < MIN_KNOWN:
            total = sum(q.domain == domain for q in asked)
            raise QuestionError(
                f"the model answers {len(questions)} of {total} {domain} questions right under "
                f"all 24 orders of the choices; at least {MIN_KNOWN} are needed"
            )
    return known


def _question_source(context: EvalContext, settings: Settings) -> str:
    if settings.questions == "none":
        raise QuestionError("no questions were given (evals.unlearning.questions)")
    if settings.questions != "auto":
        return settings.questions
    name = settings.model_name or context.bench.model_name
    if name == models.DEMO_MODEL:
        return mcq.DEMO_QUESTIONS
    if models.local_model_dir(name) is not None:
        raise QuestionError(
            "no questions were given for a local model (set evals.unlearning.questions to a "
            ".jsonl file)"
        )
    return mcq.PUBLISHED_QUESTIONS
