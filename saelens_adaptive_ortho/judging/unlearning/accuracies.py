"""Multiple-choice frontiers of families of interventions, on questions that the model knows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelens_adaptive_ortho.evaluations.contract import SEED
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.files import made_once, read_cached, write_sealed
from saelens_adaptive_ortho.judging.contract import EvalContext
from saelens_adaptive_ortho.judging.unlearning import questions as mcq
from saelens_adaptive_ortho.judging.unlearning.families import Family, Setting
from saelens_adaptive_ortho.judging.unlearning.losses import (
    Readings,
    Trial,
    halfwidth,
    plain_frontier,
)
from saelens_adaptive_ortho.judging.unlearning.questions import Question, QuestionError
from saelens_adaptive_ortho.maths import frontier as frontiers
from saelens_adaptive_ortho.text import models

RETAIN_ACCURACIES = (0.99, 0.95, 0.90)
MCQ_BUDGETS = torch.linspace(0, 1, 101)  # loss of retain accuracy
MIN_KNOWN = 20  # known questions per domain; an accuracy over fewer questions is too noisy


def accuracy_frontiers(
    trial: Trial, known: Mapping[str, list[Question]], families: Mapping[str, Family]
) -> dict[str, Readings]:
    """The lowest accuracy on known forget questions, at a given accuracy on known retain questions.

    One order of the choices chooses the settings of each family, and four cyclic orders measure
    them.
    """

    def wrong(sweep: list[Setting], orders: list[tuple[int, ...]]) -> dict[str, Tensor]:
        return {d: 1 - share_right(trial, sweep, d, asked, orders) for d, asked in known.items()}

    found = {}
    for name, family in families.items():
        coarse = {d: w.mean(1) for d, w in wrong(family.coarse, mcq.CYCLIC_ORDERS[:1]).items()}
        budgets = [1 - a for a in RETAIN_ACCURACIES]
        fine = family.near_frontier(coarse["retain"], coarse["forget"], budgets)
        found[name] = read(fine, wrong(fine, mcq.CYCLIC_ORDERS), trial.settings.replicates)
    return found


def read(
    sweep: list[Setting],
    wrong: Mapping[str, Float[Tensor, "n_settings n_questions"]],
    replicates: int,
) -> Readings:
    """The frontier of a sweep, given the share of wrong answers to each question."""
    paths = torch.tensor([s.path for s in sweep])
    found = frontiers.frontier(
        wrong["retain"], wrong["forget"], paths, MCQ_BUDGETS, replicates, SEED
    )
    metrics: dict[str, float | None] = {}
    drawn = {}
    for accuracy in RETAIN_ACCURACIES:
        key = f"forget_accuracy_at_{accuracy:.2f}"
        gain, values = found.at(1 - accuracy)
        metrics[key], drawn[key] = 1 - gain, 1 - values
        metrics[f"{key}_halfwidth"] = halfwidth(values)
    gain, values = found.area(0, 1 - RETAIN_ACCURACIES[-1])
    metrics["area"], drawn["area"] = 1 - gain, 1 - values
    accuracies = [1 - wrong[d].mean(1) for d in ("retain", "forget")]
    return Readings(
        metrics,
        drawn,
        plain_frontier(1 - found.budgets, 1 - found.gain, (1 - found.band()).flip(0)),
        torch.stack(accuracies, 1).tolist(),
        [setting.plain() for setting in sweep],
    )


def share_right(
    trial: Trial,
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


def known_questions(trial: Trial) -> dict[str, list[Question]]:
    """The questions of each domain that the model knows, at least ``MIN_KNOWN`` of each.

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

    def read() -> list[bool] | None:
        kept = read_cached(file)
        knows = kept.get("knows") if isinstance(kept, dict) else kept  # a list in earlier versions
        return knows if isinstance(knows, list) and len(knows) == len(asked) else None

    with made_once(file, read) as knows:
        if knows is None:
            found = mcq.known_questions(model, asked, template, settings.batch_size_prompts)
            knows = found.tolist()
            write_sealed(file, {"knows": knows})
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
