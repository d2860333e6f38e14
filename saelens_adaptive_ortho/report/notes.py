"""What a run lacks and what its results say in words, each with the SAEs it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from saelens_adaptive_ortho.evaluations import in_order
from saelens_adaptive_ortho.results import Result

Kind = Literal["failed", "missing", "null"]
Sae = tuple[str, int]  # variant, seed

#: What the details of a result say in words -> what to put before it.
_CAVEATS = {"caveat": ""}
_REMARKS = {"source": "Data: ", "verdict": "", "mcq_reason": "No multiple choice: "}


@dataclass(frozen=True)
class Gap:
    """A value the comparison should have and does not.

    ``kind`` is "failed" (the evaluation stopped), "missing" (no file for this variant, seed and
    evaluation although others have one) or "null" (finished without a value for one metric).
    """

    kind: Kind
    variant: str
    seed: int
    eval: str
    reason: str


@dataclass(frozen=True)
class GapGroup:
    """Gaps of one evaluation and one kind that share a reason; ``who`` names the SAEs."""

    kind: Kind
    eval: str
    who: str
    reason: str


def gaps_of(results: Sequence[Result], variants: Sequence[str], seeds: Sequence[int]) -> list[Gap]:
    """Everything that a complete run over ``variants`` and ``seeds`` would have besides."""
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
    """Put gaps together that share evaluation, kind and reason, in the order of the report."""
    every = _saes(results)
    groups: dict[tuple[Kind, str, str], list[Sae]] = {}
    for eval in in_order(gap.eval for gap in gaps):
        for gap in (gap for gap in gaps if gap.eval == eval):
            key = (gap.kind, gap.eval, gap.reason)
            groups.setdefault(key, []).append((gap.variant, gap.seed))
    return [
        GapGroup(kind, eval, _who(saes, every), reason)
        for (kind, eval, reason), saes in groups.items()
    ]


def caveats_of(results: Sequence[Result], eval: str) -> list[str]:
    """What to know before believing the numbers of ``eval``, as its results say it."""
    return _said(results, eval, _CAVEATS)


def remarks_of(results: Sequence[Result], eval: str) -> list[str]:
    """What else the results of ``eval`` say: data, a verdict of their own, what is left out."""
    return _said(results, eval, _REMARKS)


def _said(results: Sequence[Result], eval: str, keys: Mapping[str, str]) -> list[str]:
    """The texts under ``keys`` of the details, each once, with whom it is about."""
    every = _saes(results)
    texts: dict[str, list[Sae]] = {}
    for result in (r for r in results if r.ok and r.eval == eval):
        said = ""
        for key, words in keys.items():
            text = result.details.get(key)
            # A reason that another text repeats is left out.
            if isinstance(text, str) and text and text not in said:
                said += text
                texts.setdefault(words + text, []).append((result.variant, result.seed))
    return [
        text if every <= set(saes) else f"{_who(saes, every)}: {text}"
        for text, saes in texts.items()
    ]


def _saes(results: Sequence[Result]) -> set[Sae]:
    return {(result.variant, result.seed) for result in results}


def _who(saes: Sequence[Sae], every: set[Sae]) -> str:
    """``every SAE (6)``, or ``adaptive (seeds 0, 1), fixed (seed 2)``."""
    if len(every) > 1 and every <= set(saes):
        return f"every SAE ({len(saes)})"
    seeds: dict[str, list[str]] = {}
    for variant, seed in saes:
        seeds.setdefault(variant, []).append(str(seed))
    return ", ".join(
        f"{variant} (seed{'s' if len(found) > 1 else ''} {', '.join(found)})"
        for variant, found in seeds.items()
    )
