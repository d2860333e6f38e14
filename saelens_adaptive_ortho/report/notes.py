"""Missing values of a run, and caveats and remarks from its results, each with its SAEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from saelens_adaptive_ortho.evaluations import in_order
from saelens_adaptive_ortho.results import Result

Kind = Literal["failed", "missing", "null"]
Sae = tuple[str, int]  # variant, seed

#: Key of a text in the details of a result -> words to put before the text.
_CAVEATS = {"caveat": ""}
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
