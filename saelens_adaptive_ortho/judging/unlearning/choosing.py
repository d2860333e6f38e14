"""Choose the one intervention to use: the largest damage on forget within a damage budget.

The evaluation measures whole frontiers. Here one setting of its families is chosen, on training
text alone. Latents and gates fit the contexts that ranked them better than other text, so the
damage is measured on further contexts, as far as the training text has them:

1. The coarse sweep of the evaluation, on ``n_choose_contexts`` contexts of each corpus.
2. The settings near the frontier around the budget, on twice as many contexts after those.
3. Of these, the setting with the largest damage on forget, among those under which no corpus of the
   retain side loses more than the budget.

The choice uses the best of several noisy numbers, so the damage on other text may be a little
larger than the budget. ``adaptive-ortho eval --evals unlearning`` measures on held-out text.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.files import check_new_file
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.firing import uncounted_tokens
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.subjects import Subject, workbench_for
from saelens_adaptive_ortho.judging.unlearning.clamps import Clamp
from saelens_adaptive_ortho.judging.unlearning.families import (
    Family,
    Setting,
    gated,
    span_removals,
    spans,
)
from saelens_adaptive_ortho.judging.unlearning.losses import Trial
from saelens_adaptive_ortho.judging.unlearning.saved import (
    BOUNDED,
    CLAMP,
    ChosenOn,
    Corpus,
    Kind,
    UnlearningSelection,
    weights_digest,
)
from saelens_adaptive_ortho.judging.unlearning.selection import (
    Selection,
    measure_statistics,
    paths_of,
    select,
)
from saelens_adaptive_ortho.results import versions
from saelens_adaptive_ortho.settings import check_one_of

BUDGET = 0.05  # nats per token
# Multiples of the budget at which the coarse sweep proposes settings.
AROUND = (0.25, 0.5, 1.0, 2.0)


def choose_selection(
    sae: str | Path,
    *,
    budget: float = BUDGET,
    kind: Kind = CLAMP,
    settings: Settings | None = None,
    save: str | Path | None = None,
    cache: str | Path | None = None,
    **options: Any,
) -> UnlearningSelection:
    """Choose a selection for a finished SAE, on the corpora of its training.

    Args:
        sae: a directory of an SAE, such as ``runs/demo/seed0/adaptive``, or ``release:sae_id``.
        budget: largest rise of the loss, in nats per token, on any corpus of the retain side.
        kind: ``clamp``, or ``bounded`` (see :class:`.saved.UnlearningSelection`).
        settings: settings of the unlearning evaluation; ``gate="token"`` gives a clamp without a
            gate.
        save: new file that the selection is written to; a file that exists is not replaced.
        cache: folder that keeps the tokenised corpora; by default they are not kept.
        options: fields of ``JudgingOptions``: ``model``, ``forget``, ``retain``, ``device``, ...

    Raises:
        ConfigError: an argument cannot work.
        EvaluationError: nothing can be chosen: there is no forget and retain corpus, no latent is
            specific to forget, or no setting does any damage within the budget.
        StorageError: the file could not be written.
    """
    subject = Subject.parse(str(sae), options.get("hook"))
    check_choice(budget, kind)
    if save is not None:
        check_new_file("save", Path(save).expanduser())
    with ExitStack() as stack:
        folder = cache or stack.enter_context(tempfile.TemporaryDirectory())
        judging = JudgingOptions(out=Path(folder), **options)
        context = context_for(subject, judging)
        chosen = choose(context, budget, kind, settings, subject.source)
    if save is not None:
        chosen.save(save)
    return chosen


def context_for(subject: Subject, options: JudgingOptions) -> EvalContext:
    """The SAE on its model and corpora.

    Raises:
        ConfigError: an option cannot work, or the model or a corpus cannot be read.
    """
    return subject.on(workbench_for([subject], options), options.out)


def check_choice(budget: float, kind: str) -> None:
    """Refuse a budget or a kind that cannot work.

    Raises:
        ConfigError: the budget is not a positive number, or the kind is unknown.
    """
    if not 0 < budget < float("inf"):
        raise reject("budget", budget, "must be a number of nats per token above 0.")
    check_one_of("kind", kind, (CLAMP, BOUNDED))


def choose(
    context: EvalContext,
    budget: float = BUDGET,
    kind: Kind = CLAMP,
    settings: Settings | None = None,
    source: str = "",
) -> UnlearningSelection:
    """The setting with the largest damage on forget within the budget, on training text.

    Args:
        context: the SAE and its workbench.
        budget: largest rise of the loss, in nats per token, on any corpus of the retain side.
        kind: ``clamp`` or ``bounded``.
        settings: settings of the evaluation.
        source: where the SAE is, for the record.

    Raises:
        ConfigError: the budget or the kind cannot work.
        EvaluationError: no latent is specific to forget, or no setting does any damage on forget
            within the budget.
    """
    check_choice(budget, kind)
    context.need_corpora(2)
    settings = settings or Settings()
    if kind == BOUNDED:
        settings = replace(settings, gate="token")  # a gate belongs to a clamp
    model, sae = context.bench.language_model(settings.model_name), context.load()
    trial = Trial(context, settings, model, sae)
    selection = select(context, sae, settings, measure_statistics(context, sae, settings))
    sets, family = _paths(sae, selection, settings, kind)

    corpora, first, n = context.trained, settings.n_select_contexts, settings.n_choose_contexts
    damage = _damage(trial, first, n, family.coarse)
    budgets = [budget * multiple for multiple in AROUND]
    near = family.near_frontier(damage[1:].amax(0), damage[0], budgets)
    damage = _damage(trial, first + n, 2 * n, near)
    within = (damage[1:].amax(0) <= budget) & (damage[0] > 0)
    if not within.any():
        raise EvaluationError(
            f"no setting of the kind {kind!r} does damage on the forget corpus while every retain "
            f"corpus stays within {budget:g} nats"
        )
    best = int(torch.where(within, damage[0], -torch.inf).argmax())
    chosen_on = ChosenOn(
        corpora=[
            Corpus(
                name=c.domain,
                path=context.bench.texts[c.domain].path,
                fingerprint=c.fingerprint,
                share=float(c.share),
                damage=float(d),
            )
            for c, d in zip(corpora, damage[:, best], strict=True)
        ],
        context_size=context.bench.context_size,
        budget=float(budget),
        ranking=settings.selection,
        n_select_contexts=settings.n_select_contexts,
        n_choose_contexts=2 * n,
    )
    return UnlearningSelection(
        kind=kind,
        latents=sets[near[best].path].tolist(),
        **_edit(near[best]),
        ignored_tokens=sorted(uncounted_tokens(sae, model)),
        model_name=settings.model_name or context.bench.model_name,
        hook_name=sae.cfg.metadata.hook_name,
        sae=source,
        sae_digest=weights_digest(sae),
        d_in=sae.cfg.d_in,
        versions=versions(),
        chosen_on=chosen_on,
    )


def _paths(
    sae: SAE[Any], selection: Selection, settings: Settings, kind: Kind
) -> tuple[list[Tensor], Family]:
    """The sets of latents of the paths, and the family of these paths."""
    if kind == BOUNDED:
        removed = spans(sae, selection, settings.ranks)
        return [span.latents for span in removed], span_removals(removed, selection)
    found = paths_of(list(selection.rankings.values()), settings.counts)
    return found, gated(selection, found, settings.strengths)


def _damage(
    trial: Trial, first: int, n: int, sweep: list[Setting]
) -> Float[Tensor, "n_corpora n_settings"]:
    """The mean rise of the loss on training text of each corpus under each setting.

    Args:
        first: the first context that is read. A corpus with too little text after it is read from
            its beginning.
        n: number of contexts.
    """
    found = []
    for corpus in trial.context.trained:
        rest = corpus.train[first:]
        further = replace(corpus, train=rest) if len(rest) >= n else corpus
        found.append(trial.loss_increase(further, "train", n, sweep).mean(1))
    return torch.stack(found)


def _edit(setting: Setting) -> dict[str, Any]:
    """The fields of a selection that say what is edited."""
    intervention: Any = setting.intervention
    strength = float(setting.strength)
    if isinstance(intervention, Clamp):
        values = [_short(v) for v in intervention.values.tolist()]
        return {"values": values, "gate": intervention.gate, "strength": strength}
    basis = [[_short(v) for v in row] for row in intervention.erasure.back.tolist()]
    centre = [_short(v) for v in intervention.centre.tolist()]
    return {"basis": basis, "centre": centre, "strength": strength}


def _short(value: float) -> float:
    """The value with nine significant digits, which hold any float32."""
    return float(f"{value:.9g}")
