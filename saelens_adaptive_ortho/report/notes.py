"""Missing values of a run, caveats and remarks from its results, and doubts about its SAEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from saelens_adaptive_ortho.evaluations import in_order
from saelens_adaptive_ortho.evaluations.core import TRAINED_L0
from saelens_adaptive_ortho.results import Result

Kind = Literal["failed", "missing", "null"]
Sae = tuple[str, int]  # variant, seed

#: Key of a text in the details of a result -> words to put before the text.
_CAVEATS = {"caveat": ""}
#: Where an SAE is doubtful. At half, as much of the variance is lost as explained, and as many
#: latents are idle as used. At a factor of two in L0, SAEs of one k lie further apart than the
#: usual grid of k (16, 32, 64, ...), so that a comparison at equal k is none at equal L0.
LOW_EXPLAINED = 0.5
FEW_ALIVE = 0.5
L0_FACTOR = 2.0

_REMARKS = {"source": "Data: ", "verdict": "", "mcq_reason": "No multiple choice: "}


@dataclass(frozen=True)
class Gap:
    """A value that the comparison should have but does not have.

    ``kind`` is "failed" (the evaluation stopped), "missing" (this variant and seed has no result
    file for the evaluation, but others have one) or "null" (the evaluation finished without a
    value for some metric).
    """

    kind: Kind
    variant: str
    seed: int
    eval: str
    reason: str


@dataclass(frozen=True)
class GapGroup:
    """Gaps of one evaluation and one kind that share a reason; ``saes`` names the SAEs."""

    kind: Kind
    eval: str
    saes: str
    reason: str


def gaps_of(results: Sequence[Result], variants: Sequence[str], seeds: Sequence[int]) -> list[Gap]:
    """Return the values that a complete run over ``variants`` and ``seeds`` has in addition."""
    gaps = [
        Gap("failed", r.variant, r.seed, r.eval, r.reason or "no reason was recorded")
        for r in results
        if not r.ok
    ]
    present = {(r.variant, r.seed, r.eval) for r in results}
    evals = in_order(r.eval for r in results)
    gaps += [
        Gap("missing", variant, seed, eval, "no result file")
        for variant in variants
        for seed in seeds
        for eval in evals
        if (variant, seed, eval) not in present
    ]
    for result in results:
        names = [name for name, value in result.metrics.items() if value is None]
        if result.ok and names:
            reason = "no value for " + ", ".join(names)
            gaps.append(Gap("null", result.variant, result.seed, result.eval, reason))
    return gaps


def gap_groups(gaps: Sequence[Gap], results: Sequence[Result]) -> list[GapGroup]:
    """Group the gaps that share evaluation, kind and reason, in the order of the report."""
    every = _saes(results)
    groups: dict[tuple[Kind, str, str], list[Sae]] = {}
    for eval in in_order(gap.eval for gap in gaps):
        for gap in (gap for gap in gaps if gap.eval == eval):
            key = (gap.kind, gap.eval, gap.reason)
            groups.setdefault(key, []).append((gap.variant, gap.seed))
    return [
        GapGroup(kind, eval, _sae_names(saes, every), reason)
        for (kind, eval, reason), saes in groups.items()
    ]


def caveats_of(results: Sequence[Result], eval: str) -> list[str]:
    """Return the caveats on the numbers of ``eval`` that its results contain."""
    return _texts(results, eval, _CAVEATS)


def remarks_of(results: Sequence[Result], eval: str) -> list[str]:
    """Return the remarks in the results of ``eval``: their data, verdicts and omissions."""
    return _texts(results, eval, _REMARKS)


class Health(NamedTuple):
    """Numbers of one SAE that say whether its training worked; None where one is not known.

    Attributes:
        explained: explained variance, from 0 to 1.
        alive: fraction of the latents that fired on the evaluated text.
        l0: latents that fire per token, at the evaluation.
        trained_l0: the same in training; with TopK and BatchTopK it is k.
        dead: fraction of the latents that are dead at the end of training.
    """

    explained: float | None = None
    alive: float | None = None
    l0: float | None = None
    trained_l0: float | None = None
    dead: float | None = None


def concerns(saes: Mapping[Sae, Health]) -> list[str]:
    """Return a line for each reason to doubt the SAEs: what was measured, its meaning, a remedy.

    The reasons are an explained variance below `LOW_EXPLAINED`, a fraction of living latents below
    `FEW_ALIVE`, and an L0 that differs from the one in training by more than `L0_FACTOR`.
    """
    explained = {sae: h.explained for sae, h in saes.items() if h.explained is not None}
    alive = {sae: h.alive for sae, h in saes.items() if h.alive is not None}
    dead = {sae: h.dead for sae, h in saes.items() if h.dead is not None}
    far = {sae: h.l0 for sae, h in saes.items() if h.l0 is not None and _is_far(h)}
    trained = _span([h.trained_l0 for sae, h in saes.items() if sae in far and h.trained_l0])
    lines = (
        (
            "explained variance",
            {sae: value for sae, value in explained.items() if value < LOW_EXPLAINED},
            f"below {LOW_EXPLAINED:g}. More of the activations is lost than kept, so the latents "
            "say little about the model. Try more training_tokens, a larger sae.k or sae.d_sae, or "
            "another lr.",
        ),
        (
            "fraction alive",
            {sae: value for sae, value in alive.items() if value < FEW_ALIVE},
            f"below {FEW_ALIVE:g}. Most latents never fired on the evaluated text: they are dead, "
            "or the text is short. Try a smaller sae.d_sae, more training_tokens, or more text in "
            "the evaluation.",
        ),
        (
            "fraction dead",
            {sae: value for sae, value in dead.items() if value > 1 - FEW_ALIVE},
            f"above {1 - FEW_ALIVE:g}. Most latents no longer fire. Try a smaller sae.d_sae, more "
            "training_tokens, or another lr.",
        ),
        (
            "L0",
            far,
            f"but {trained} in training. The threshold that replaces the top k after training does "
            "not fit this text: a short training leaves it behind, or the text is of another kind. "
            "Compare such SAEs at equal L0 only. Try more training_tokens, or evaluate on text "
            "like that of the training.",
        ),
    )
    return [
        f"{_sae_names(list(values), set(saes))}: {what} {_span(list(values.values()))}, {rest}"
        for what, values, rest in lines
        if values
    ]


def _is_far(sae: Health) -> bool:
    """Whether L0 at the evaluation is far from L0 in training."""
    if sae.l0 is None or not sae.trained_l0:
        return False
    return not 1 / L0_FACTOR <= sae.l0 / sae.trained_l0 <= L0_FACTOR


def _span(values: Sequence[float]) -> str:
    """Return ``0.31 to 0.42``, or ``0.31``, with three figures."""
    texts = list(dict.fromkeys(f"{value:.3g}" for value in sorted(values)))
    return texts[0] if len(texts) == 1 else " to ".join([*texts[:1], *texts[-1:]])


def concerns_of(results: Sequence[Result]) -> list[str]:
    """Return the `concerns` about the SAEs of a run, from its results of core and of training.

    Without a result of core, the explained variance is that of the last batch of the training.
    """
    finished: dict[Sae, dict[str, Result]] = {}
    for result in (r for r in results if r.ok):
        finished.setdefault((result.variant, result.seed), {})[result.eval] = result
    return concerns(
        {sae: _health(of.get("core"), of.get("training")) for sae, of in finished.items()}
    )


def _health(core: Result | None, training: Result | None) -> Health:
    history: Sequence[Mapping[str, Any]] = training.details.get("history") or [] if training else []
    last: Mapping[str, Any] = history[-1] if history else {}
    if core is None:
        return Health(explained=last.get("explained_variance"))
    return Health(
        explained=core.metrics.get("pooled/explained_variance"),
        alive=core.metrics.get("pooled/frac_alive"),
        l0=core.metrics.get("pooled/l0"),
        trained_l0=core.details.get(TRAINED_L0, last.get("l0")),
    )


def _texts(results: Sequence[Result], eval: str, keys: Mapping[str, str]) -> list[str]:
    """Return each text under ``keys`` of the details once, with the SAEs it is about."""
    every = _saes(results)
    texts: dict[str, list[Sae]] = {}
    for result in (r for r in results if r.ok and r.eval == eval):
        earlier = ""
        for key, prefix in keys.items():
            text = result.details.get(key)
            # A text that an earlier one contains is left out.
            if isinstance(text, str) and text and text not in earlier:
                earlier += text
                texts.setdefault(prefix + text, []).append((result.variant, result.seed))
    return [
        text if every <= set(saes) else f"{_sae_names(saes, every)}: {text}"
        for text, saes in texts.items()
    ]


def _saes(results: Sequence[Result]) -> set[Sae]:
    return {(result.variant, result.seed) for result in results}


def _sae_names(saes: Sequence[Sae], every: set[Sae]) -> str:
    """Return ``every SAE (6)``, or ``adaptive (seeds 0, 1), fixed (seed 2)``."""
    if len(every) > 1 and every <= set(saes):
        return f"every SAE ({len(saes)})"
    seeds: dict[str, list[str]] = {}
    for variant, seed in saes:
        seeds.setdefault(variant, []).append(str(seed))
    return ", ".join(
        f"{variant} (seed{'s' if len(found) > 1 else ''} {', '.join(found)})"
        for variant, found in seeds.items()
    )
