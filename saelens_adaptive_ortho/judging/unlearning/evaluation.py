"""Unlearning: clamp the forget corpus's latents, and measure what is forgotten at what cost.

The evaluation measures two frontiers and SAEBench's published score:

- The *loss* frontier: the increase of the loss on held-out forget text, at a given increase of the
  loss on held-out retain text.
- The *multiple-choice* frontier: the lowest accuracy on known forget questions, at a given accuracy
  on known retain questions. It needs a model that knows enough questions.

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
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.evaluations.contract import SEED
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.firing import Firings, accumulate, passes
from saelens_adaptive_ortho.judging.saebench.session import keep_result
from saelens_adaptive_ortho.judging.unlearning import published as published_unlearning
from saelens_adaptive_ortho.judging.unlearning import questions as mcq
from saelens_adaptive_ortho.judging.unlearning.clamps import (
    Clamp,
    Measure,
    measure_clamps,
    per_context_loss,
    rank_latents,
)
from saelens_adaptive_ortho.judging.unlearning.questions import Question, QuestionError
from saelens_adaptive_ortho.maths import frontier as frontiers
from saelens_adaptive_ortho.maths.frontier import Frontier
from saelens_adaptive_ortho.text import models

# SAEBench's sweep, and the retain accuracy that its score requires.
PUBLISHED_THRESHOLDS = (0.001, 0.01)
PUBLISHED_COUNTS = (10, 20)
PUBLISHED_MULTIPLIERS = (25, 50, 100, 200)
PUBLISHED_RETAIN_ACCURACY = 0.99

RETAIN_COSTS = (0.05, 0.10, 0.20)  # nats
RETAIN_ACCURACIES = (0.99, 0.95, 0.90)
LOSS_BUDGETS = torch.linspace(0, 0.25, 26)
MCQ_BUDGETS = torch.linspace(0, 1, 101)  # loss of retain accuracy
MIN_KNOWN = 20  # known questions per domain; an accuracy over fewer questions is too noisy
CHANCE = 0.25


class Setting(NamedTuple):
    """A point of the sweep: a path (a set of latents), a strength, and the clamp they give."""

    path: int
    strength: float
    clamp: Clamp


@dataclass(frozen=True)
class Trial:
    """An SAE in a model, the latents of the forget corpus, and the coarse sweep over them.

    Args:
        context: the SAE and its workbench.
        settings: settings of the evaluation.
        model: the model that is clamped: the workbench's model, or ``settings.model_name``.
        sae: the SAE.
        rankings: the forget corpus's latents, sorted by firing rate, for each rule of selection.
        scale: mean activation of each latent where it fires on forget text.
        paths: distinct sets of latents to clamp.
    """

    context: EvalContext
    settings: Settings
    model: HookedRootModule
    sae: SAE[Any]
    rankings: dict[str, Int[Tensor, " n"]]
    scale: Float[Tensor, " d_sae"]
    paths: list[Int[Tensor, " n"]]

    def at(self, path: int, strength: float) -> Setting:
        """Clamp the latents of ``path`` to ``-strength`` times their mean activation."""
        chosen = self.paths[path]
        return Setting(path, strength, Clamp(chosen, -strength * self.scale[chosen]))

    @property
    def coarse(self) -> list[Setting]:
        """Every path at every strength."""
        strengths = sorted(self.settings.strengths)
        return [self.at(p, s) for p, s in itertools.product(range(len(self.paths)), strengths)]

    def measure(
        self, tokens: Int[Tensor, "n context"], sweep: list[Setting], measure: Measure, desc: str
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n_settings n"]]:
        """``measure`` on each row, without intervention and under each setting."""
        return measure_clamps(
            self.model,
            self.sae,
            tokens,
            [s.clamp for s in sweep],
            measure,
            self.settings.batch_size_prompts,
            f"{desc} ({self.context.release})",
        )

    def frontier(
        self,
        cost: Float[Tensor, "n_settings n_cost"],
        gain: Float[Tensor, "n_settings n_gain"],
        sweep: list[Setting],
        budgets: Float[Tensor, " n"],
    ) -> Frontier:
        """The frontier of a sweep.

        The bootstrap draws are the same for every SAE, so the replicates of two SAEs are paired.
        """
        paths = torch.tensor([s.path for s in sweep])
        return frontiers.frontier(cost, gain, paths, budgets, self.settings.replicates, SEED)


class FiringStatistics(NamedTuple):
    """Firing rates of each latent on both corpora, and its mean activation on forget text.

    The mean is over the tokens on which the latent fires.
    """

    forget_rate: Float[Tensor, " d_sae"]
    retain_rate: Float[Tensor, " d_sae"]
    scale: Float[Tensor, " d_sae"]


def run(context: EvalContext, settings: Settings) -> Outcome:
    """The published score, and both frontiers with their areas and intervals.

    Raises:
        EvaluationError: there are not two corpora, or no latent is specific to the forget corpus.
    """
    context.need_corpora(2)
    trial = _trial(context, settings)
    metrics, details = _loss_frontier(trial)
    details["n_latents"] = {name: len(ranking) for name, ranking in trial.rankings.items()}
    try:
        asked = _mcq_frontier(trial)
    except QuestionError as error:
        details["mcq_reason"] = str(error)
        details["verdict"] = f"No multiple-choice accuracy: {error}. Losses only."
        return Outcome(metrics, details)
    for name, value in asked.details.items():
        details[name] = details[name] | value if isinstance(value, dict) else value
    return Outcome(metrics | asked.metrics, details)


# -------------------------------------------------------------------- latents


def _trial(context: EvalContext, settings: Settings) -> Trial:
    """Measure firing rates on training text of both corpora, and rank the latents by them."""
    model = context.bench.language_model(settings.model_name)
    sae = context.load()
    forget, retain, scale = firing_statistics(context, sae, settings)
    limits: dict[str, Any] = {f"retain < {t:g}": t for t in PUBLISHED_THRESHOLDS}
    for ratio in settings.specificities:
        limits[f"forget > {ratio:g} x retain"] = forget / ratio
    rankings = {n: rank_latents(forget, retain, limit) for n, limit in limits.items()}
    if not any(len(r) for r in rankings.values()):
        raise EvaluationError("no latent fires on the forget corpus and hardly on the retain one")
    paths: dict[tuple[int, ...], Tensor] = {}
    for ranking, count in itertools.product(rankings.values(), settings.counts):
        if len(ranking):
            chosen = ranking[:count]
            paths.setdefault(tuple(chosen.tolist()), chosen)
    return Trial(context, settings, model, sae, rankings, scale, list(paths.values()))


def firing_statistics(context: EvalContext, sae: SAE[Any], settings: Settings) -> FiringStatistics:
    """Measure them in one pass over training text of both corpora, in the clamped model."""
    model = context.bench.language_model(settings.model_name)
    contexts = [c.train[: settings.n_select_contexts] for c in context.corpora]
    firings = Firings(sae, len(contexts))
    accumulate(
        passes(sae, model, contexts, settings.batch_size_prompts, "Measuring firing rates"), firings
    )
    forget, retain = firings.rates()
    return FiringStatistics(forget, retain, firings.scales()[0].float())


# ----------------------------------------------------------------------- loss


def _loss_frontier(trial: Trial) -> Outcome:
    """The loss frontier. Training text chooses the settings; held-out text measures them."""
    settings, (forget, retain) = trial.settings, trial.context.corpora

    def loss_increase(part: str, n: int, sweep: list[Setting]) -> list[Tensor]:
        found = []
        for corpus in (forget, retain):
            contexts = getattr(corpus, part)[:n]
            desc = f"Clamping on {corpus.domain}, {part}"
            loss = per_context_loss(contexts, settings.loss_every)
            before, after = trial.measure(contexts, sweep, loss, desc)
            found.append(after - before)
        return found

    gain, cost = loss_increase("train", settings.n_choose_contexts, trial.coarse)
    chosen = _settings_near_frontier(trial.coarse, cost.mean(1), gain.mean(1), RETAIN_COSTS)
    fine = [trial.at(*setting) for setting in sorted(chosen)]
    gain, cost = loss_increase("held_out", settings.n_contexts, fine)
    found = trial.frontier(cost, gain, fine, LOSS_BUDGETS)
    metrics: dict[str, float | None] = {}
    replicates = {}
    for budget in RETAIN_COSTS:
        key = f"loss/forget_damage_at_{budget:.2f}"
        metrics[key], replicates[key] = found.at(budget)
        metrics[f"{key}_halfwidth"] = _halfwidth(replicates[key])
    metrics["loss/area"], replicates["loss/area"] = found.area(0, RETAIN_COSTS[-1])
    return Outcome(
        metrics,
        {
            "frontiers": {"loss": _plain_frontier(found.budgets, found.gain, found.band())},
            "points": {"loss": torch.stack([cost.mean(1), gain.mean(1)], 1).tolist()},
            "replicates": {key: _rounded(values) for key, values in replicates.items()},
            "n_passages": {"forget": gain.shape[1], "retain": cost.shape[1]},
        },
    )


def _settings_near_frontier(
    sweep: list[Setting],
    cost: Float[Tensor, " n"],
    gain: Float[Tensor, " n"],
    budgets: Iterable[float],
) -> set[tuple[int, float]]:
    """Pairs of path and strength near the frontier.

    For each budget, the best path is chosen. Its strengths lie on a grid with steps of a factor
    ``sqrt(2)``. They reach from one step below the strength at which the path's cost meets the
    smallest budget that the path is best at, to one step above that of the largest such budget.
    """
    numbers = torch.tensor([s.path for s in sweep])
    limits = torch.tensor(sorted(budgets))
    by_path = {p: numbers == p for p in numbers.unique().tolist()}
    reached = torch.cat(
        [
            frontiers.envelope(cost[None, o], gain[None, o], numbers[o], limits)[0]
            for o in by_path.values()
        ]
    )
    best_at: dict[int, list[float]] = {}
    for index, budget in zip(reached.argmax(0).tolist(), limits.tolist(), strict=True):
        best_at.setdefault(list(by_path)[index], []).append(budget)
    chosen: set[tuple[int, float]] = set()
    for path, path_budgets in best_at.items():
        strengths = [s.strength for s in sweep if s.path == path]
        first, last = (
            round(2 * math.log2(_strength_at_budget(strengths, cost[by_path[path]], budget)))
            for budget in (path_budgets[0], path_budgets[-1])
        )
        chosen |= {(path, 2 ** (k / 2)) for k in range(first - 1, last + 2)}
    return chosen


def _strength_at_budget(strengths: list[float], cost: Float[Tensor, " n"], budget: float) -> float:
    """The strength at which a path's cost first exceeds the budget.

    Between two measured strengths, the cost is interpolated as a power of the strength.
    """
    before, cost_before = 0.0, 0.0
    for strength, at in zip(strengths, cost.tolist(), strict=True):
        if at > budget:
            if cost_before <= 0 or budget <= 0:
                return max(strength * budget / at, strengths[0] / 4)
            share = math.log(budget / cost_before) / math.log(at / cost_before)
            return before * (strength / before) ** share
        before, cost_before = strength, at
    return strengths[-1]


# ------------------------------------------------------------ multiple choice


def _mcq_frontier(trial: Trial) -> Outcome:
    """The multiple-choice frontier and the published score, on questions that the model knows.

    Raises:
        QuestionError: there are no questions, or the model knows too few.
    """
    known = _known(trial)

    def right(sweep: list[Setting], orders: list[tuple[int, ...]]) -> dict[str, Tensor]:
        return {
            domain: _share_right(trial, sweep, domain, q, orders) for domain, q in known.items()
        }

    coarse = trial.coarse
    first_order = right([*coarse, *_published_sweep(trial)], mcq.CYCLIC_ORDERS[:1])
    wrong = {domain: 1 - r[: len(coarse)].mean(1) for domain, r in first_order.items()}
    budgets = [1 - a for a in RETAIN_ACCURACIES]
    chosen = _settings_near_frontier(coarse, wrong["retain"], wrong["forget"], budgets)
    fine = [trial.at(*setting) for setting in sorted(chosen)]
    wrong = {domain: 1 - r for domain, r in right(fine, mcq.CYCLIC_ORDERS).items()}
    found = trial.frontier(wrong["retain"], wrong["forget"], fine, MCQ_BUDGETS)
    metrics: dict[str, float | None] = {}
    replicates = {}
    for accuracy in RETAIN_ACCURACIES:
        key = f"mcq/forget_accuracy_at_{accuracy:.2f}"
        gain, values = found.at(1 - accuracy)
        metrics[key], replicates[key] = 1 - gain, 1 - values
        metrics[f"{key}_halfwidth"] = _halfwidth(values)
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
    frontier = _plain_frontier(1 - found.budgets, 1 - found.gain, (1 - found.band()).flip(0))
    details: dict[str, Any] = {
        "frontiers": {"mcq": frontier},
        "points": {"mcq": torch.stack(accuracies, 1).tolist()},
        "replicates": {key: _rounded(values) for key, values in replicates.items()},
        "verdict": f"The model knows {len(known['forget'])} forget and {len(known['retain'])} "
        "retain questions (right under all 24 orders of the choices).",
    }
    accuracy = {domain: r[len(coarse) :].mean(1) for domain, r in first_order.items()}
    metrics["score"], file = _score(trial, accuracy, frontier)
    if file is not None:
        details["sae_bench_file"] = file
    return Outcome(metrics, details)


def _share_right(
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


def _published_sweep(trial: Trial) -> Iterator[Setting]:
    """SAEBench's sweep over thresholds, counts and multipliers. Its clamp values are absolute."""
    by_threshold = [trial.rankings[f"retain < {t:g}"] for t in PUBLISHED_THRESHOLDS]
    for path, (ranking, count) in enumerate(itertools.product(by_threshold, PUBLISHED_COUNTS)):
        chosen = ranking[:count]
        for multiplier in PUBLISHED_MULTIPLIERS:
            values = torch.full((len(chosen),), -float(multiplier), device=chosen.device)
            yield Setting(path, float(multiplier), Clamp(chosen, values))


def _score(
    trial: Trial, accuracy: dict[str, Float[Tensor, " n_settings"]], frontier: dict[str, Any]
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


def _known(trial: Trial) -> dict[str, list[Question]]:
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


# ---------------------------------------------------------------------- shared


def _halfwidth(replicates: Float[Tensor, " b"]) -> float:
    low, high = frontiers.interval(replicates).tolist()
    return (high - low) / 2


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{v:.4g}") for v in values.tolist()]


def _plain_frontier(x: Tensor, y: Tensor, band: Tensor) -> dict[str, list[float]]:
    return {k: _rounded(v) for k, v in {"x": x, "y": y, "low": band[0], "high": band[1]}.items()}
