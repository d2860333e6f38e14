"""Statistics over seeds: spread of each variant, and paired differences between variants.

For one seed all variants start from the same initial weights and see the same activations in
the same order. A difference between two variants is therefore taken seed by seed, which cancels
what the seed contributes to both; the intervals of two means may overlap although every seed
agrees on the difference.

Formulas, for n values x with mean m and sample standard deviation s (divisor n - 1):

* 95% t-interval of the mean: m ± t(0.975; n - 1) · s / √n
* paired difference: the same interval of d = x(variant, seed) - x(reference, seed)
* effect size (Cohen's dz): mean(d) / s(d)

The intervals are per metric. They are not corrected for looking at many metrics: among twenty
metrics without any true difference, one is expected to miss zero. The verdict on an evaluation
therefore looks at its few primary metrics (`evaluations.every`), says how many these are, and
how many of their differences remain with Bonferroni's correction for that number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from scipy.special import stdtrit

from saelens_adaptive_ortho.evaluations import (
    Evaluation,
    evaluation,
    headline_keys,
    in_order,
)
from saelens_adaptive_ortho.report.bootstrap import difference_interval
from saelens_adaptive_ortho.report.formatting import estimate, number, value_decimals
from saelens_adaptive_ortho.report.metrics import MetricInfo, describe
from saelens_adaptive_ortho.results import SCHEMA_VERSION, Result, order_variants

MetricVerdict = Literal["better", "worse", "no difference at 95%", "too few seeds"]
#: Of several metrics together: "mixed" is better in some and worse in others.
JointVerdict = Literal[MetricVerdict, "mixed", "not measured"]

BETTER: Literal["better"] = "better"
WORSE: Literal["worse"] = "worse"
NO_DIFFERENCE: Literal["no difference at 95%"] = "no difference at 95%"
TOO_FEW: Literal["too few seeds"] = "too few seeds"
MIXED: Literal["mixed"] = "mixed"
NOT_MEASURED: Literal["not measured"] = "not measured"

CAVEAT = (
    "Angles and cosines describe the geometry of decoder directions; on their own they do not "
    "show that the knowledge itself is separated."
)
CAVEAT_WITH_UNLEARNING = (
    "Knowledge is judged by the primary metrics of unlearning; “if corrected” is Bonferroni's "
    "correction for their number. Angles and cosines describe the geometry of decoder directions, "
    "which is not knowledge."
)

#: A difference below this share of the metric's size is rounding and counts as zero.
_ROUNDING = 1e-12

#: Words of the verdicts. Only the angle tells forget from retain; the cosine is taken over all
#: latents, so the words name what each one is between.
_WORDS = {
    "subspace/principal_angle/mean_deg": "mean principal angle between forget and retain",
    "subspace/mean_max_cosine": "mean max cosine among all latents",
}
_RECONSTRUCTION = ("explained_variance", "ce_loss_score")


@dataclass(frozen=True)
class Spread:
    """Values by seed with their mean, sample standard deviation and 95% t-interval.

    ``mean`` is None without values; ``std`` and ``ci95`` are None with fewer than two.
    """

    by_seed: Mapping[int, float]
    mean: float | None
    std: float | None
    ci95: tuple[float, float] | None

    @property
    def n(self) -> int:
        """Number of seeds with a value."""
        return len(self.by_seed)

    @classmethod
    def of(cls, by_seed: Mapping[int, float]) -> Spread:
        """Compute the statistics of ``by_seed`` (see the module's formulas)."""
        values = [by_seed[seed] for seed in sorted(by_seed)]
        n = len(values)
        if n == 0:
            return cls({}, None, None, None)
        mean = math.fsum(values) / n
        ordered = {seed: by_seed[seed] for seed in sorted(by_seed)}
        if n == 1:
            return cls(ordered, mean, None, None)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
        return cls(ordered, mean, std, (mean - half, mean + half))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; seeds become text keys."""
        return {
            "by_seed": {str(seed): value for seed, value in self.by_seed.items()},
            "mean": self.mean,
            "std": self.std,
            "n": self.n,
            "ci95": None if self.ci95 is None else list(self.ci95),
        }


@dataclass(frozen=True)
class Difference:
    """``variant`` minus ``reference``, paired over the seeds that both have.

    ``dz`` is Cohen's effect size for paired values, None with fewer than two seeds or where all
    differences are equal. ``verdict`` is None for a metric without a direction. ``bootstrap95``
    is an interval over seeds and units, where the evaluation left replicates (see `bootstrap`).
    """

    variant: str
    reference: str
    spread: Spread
    dz: float | None
    verdict: MetricVerdict | None
    bootstrap95: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "variant": self.variant,
            "reference": self.reference,
            **self.spread.to_json(),
            "dz": self.dz,
            "verdict": self.verdict,
            "bootstrap95": None if self.bootstrap95 is None else list(self.bootstrap95),
        }


@dataclass(frozen=True)
class MetricSummary:
    """One metric: the spread of every variant and the paired differences between them."""

    info: MetricInfo
    variants: Mapping[str, Spread]
    differences: Sequence[Difference]

    def difference(self, variant: str, reference: str) -> Difference | None:
        """Return ``variant`` minus ``reference``, or None where it is not compared."""
        for difference in self.differences:
            if (difference.variant, difference.reference) == (variant, reference):
                return difference
        return None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "label": self.info.label,
            "unit": self.info.unit,
            "better": self.info.direction,
            "variants": {name: spread.to_json() for name, spread in self.variants.items()},
            "differences": [difference.to_json() for difference in self.differences],
        }


@dataclass(frozen=True)
class Gap:
    """A value the comparison should have and does not.

    ``kind`` is "failed" (the evaluation stopped), "missing" (no file for this variant, seed and
    evaluation although others have one) or "null" (finished without a value for one metric).
    """

    kind: Literal["failed", "missing", "null"]
    variant: str
    seed: int
    eval: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "kind": self.kind,
            "variant": self.variant,
            "seed": self.seed,
            "eval": self.eval,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class GapGroup:
    """Gaps of one evaluation and one kind that share a reason; ``who`` names the SAEs."""

    kind: Literal["failed", "missing", "null"]
    eval: str
    who: str
    reason: str


@dataclass(frozen=True)
class EvaluationVerdict:
    """What the primary metrics of one evaluation say of one pair of variants, taken together.

    ``judged`` counts the primary metrics that were measured, ``absent`` those that were not,
    ``differing`` those that are better or worse, and ``corrected`` those that remain so at 95% for
    all of ``judged`` together (Bonferroni). ``text`` carries the numbers.
    """

    variant: str
    reference: str
    verdict: JointVerdict
    judged: int
    absent: int
    differing: int
    corrected: int
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "variant": self.variant,
            "reference": self.reference,
            "verdict": self.verdict,
            "judged": self.judged,
            "absent": self.absent,
            "differing": self.differing,
            "corrected": self.corrected,
            "text": self.text,
        }


@dataclass(frozen=True)
class EvaluationSummary:
    """One evaluation: its metrics, its verdict on each pair, what it took and what it lacks.

    ``keys`` are the measured metrics, primary ones first. ``seconds`` is the mean over finished
    results. ``caveats`` and ``remarks`` are what the results say in words, each with the SAEs it
    is about; without a caveat in the results, it is that of ``info``.
    """

    info: Evaluation
    keys: Sequence[str]
    finished: int
    failed: int
    seconds: float | None
    verdicts: Sequence[EvaluationVerdict]
    caveats: Sequence[str]
    remarks: Sequence[str]

    @property
    def measured(self) -> bool:
        """Whether there is anything to judge a pair by."""
        return any(verdict.verdict != NOT_MEASURED for verdict in self.verdicts)

    def verdict(self, variant: str, reference: str) -> EvaluationVerdict | None:
        """Return the verdict on a pair, or None where it is not compared."""
        for verdict in self.verdicts:
            if (verdict.variant, verdict.reference) == (variant, reference):
                return verdict
        return None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "title": self.info.title,
            "primary": self.info.keys(self.info.primary),
            "finished": self.finished,
            "failed": self.failed,
            "mean_seconds": self.seconds,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "caveats": list(self.caveats),
            "remarks": list(self.remarks),
        }


@dataclass(frozen=True)
class OverallVerdict:
    """Answer for one pair of variants: does it separate better, and at what cost?

    ``knowledge`` is judged by the primary metrics of unlearning, ``geometry`` by those of
    subspace; ``text`` says it in words with the numbers.
    """

    variant: str
    reference: str
    knowledge: JointVerdict
    geometry: JointVerdict
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "variant": self.variant,
            "reference": self.reference,
            "knowledge": self.knowledge,
            "geometry": self.geometry,
            "text": self.text,
        }


@dataclass(frozen=True)
class Summary:
    """Statistics of a whole run.

    ``references`` are the variants that others are compared with: the first one, and "fixed".
    ``metrics`` is keyed by ``{eval}/{name}``. ``versions`` lists every version seen per library.
    """

    variants: Sequence[str]
    references: Sequence[str]
    seeds: Sequence[int]
    metrics: Mapping[str, MetricSummary]
    gaps: Sequence[Gap]
    versions: Mapping[str, Sequence[str]]
    gap_groups: Sequence[GapGroup] = ()
    evaluations: Mapping[str, EvaluationSummary] = field(default_factory=dict)
    verdicts: Sequence[OverallVerdict] = ()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The compared pairs (variant, reference), in column order."""
        return _pairs(self.variants, self.references)

    @property
    def headline(self) -> list[str]:
        """Keys of the headline metrics that were measured."""
        return headline_keys(self.metrics)

    @property
    def focus(self) -> str | None:
        """The variant the question is about: "adaptive", else the last; None if only one."""
        others = [name for name in self.variants if name != self.variants[0]]
        if not others:
            return None
        return "adaptive" if "adaptive" in others else others[-1]

    @property
    def focus_verdicts(self) -> list[OverallVerdict]:
        """The verdicts on `focus`, one per reference."""
        return [verdict for verdict in self.verdicts if verdict.variant == self.focus]

    @property
    def focus_pairs(self) -> list[tuple[str, str]]:
        """The pairs of `focus`: with baseline, and with fixed."""
        return [pair for pair in self.pairs if pair[0] == self.focus]

    @property
    def caveat(self) -> str:
        """What the verdict does not show, and how its brackets read."""
        brackets = any("[" in verdict.text for verdict in self.verdicts)
        known = any(verdict.knowledge != NOT_MEASURED for verdict in self.focus_verdicts)
        text = CAVEAT_WITH_UNLEARNING if known else CAVEAT
        return text + (" Brackets hold 95% intervals." if brackets else "")

    @property
    def verdict(self) -> str:
        """The answer in a few sentences, computed from the data."""
        if self.focus is None:
            return f"Only {self.variants[0]} has results, so there is nothing to compare."
        return " ".join([*(verdict.text for verdict in self.focus_verdicts), self.caveat])

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain dictionaries, lists, strings and finite numbers."""
        return {
            "schema_version": SCHEMA_VERSION,
            "variants": list(self.variants),
            "references": list(self.references),
            "seeds": list(self.seeds),
            "verdict": self.verdict,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "evaluations": {name: e.to_json() for name, e in self.evaluations.items()},
            "metrics": {key: metric.to_json() for key, metric in self.metrics.items()},
            "gaps": [gap.to_json() for gap in self.gaps],
            "versions": {name: list(seen) for name, seen in self.versions.items()},
        }


def summarise(results: Sequence[Result], variants: Sequence[str] | None = None) -> Summary:
    """Compute the statistics of a run.

    Every variant is compared with the first one (baseline) and, where there is one, with
    "fixed". Differences are paired by seed because the variants of one seed share initial
    weights and activation stream; seeds that only one of the two has are left out of the pair.

    Args:
        results: what `load_results` returned.
        variants: order of the variants; by default `order_variants` decides.

    Raises:
        ValueError: ``results`` is empty, or holds one variant, seed and evaluation twice.
    """
    if not results:
        raise ValueError("no results to summarise")
    order = order_variants((result.variant for result in results), variants)
    references = [order[0]] + [name for name in order[1:] if name == "fixed"]
    seeds = sorted({result.seed for result in results})

    values: dict[str, dict[str, dict[int, float]]] = {}
    replicates: dict[str, dict[str, dict[int, Sequence[float]]]] = {}
    versions: dict[str, list[str]] = {}
    seen: set[tuple[str, int, str]] = set()
    for result in results:
        identity = (result.variant, result.seed, result.eval)
        if identity in seen:
            raise ValueError(f"two results for variant, seed and evaluation {identity}")
        seen.add(identity)
        for library, version in result.versions.items():
            if version not in versions.setdefault(library, []):
                versions[library].append(version)
        if not result.ok:
            continue
        for name, drawn in (result.details.get("replicates") or {}).items():
            by_variant = replicates.setdefault(f"{result.eval}/{name}", {})
            by_variant.setdefault(result.variant, {})[result.seed] = drawn
        for name, value in result.metrics.items():
            by_variant = values.setdefault(f"{result.eval}/{name}", {})
            if value is not None:
                by_variant.setdefault(result.variant, {})[result.seed] = value

    metrics: dict[str, MetricSummary] = {}
    for key, by_variant in values.items():
        info = describe(key)
        differences = [
            _difference(variant, reference, by_variant, replicates.get(key, {}), info)
            for variant, reference in _pairs(order, references)
        ]
        spreads = {name: Spread.of(by_variant.get(name, {})) for name in order}
        metrics[key] = MetricSummary(info, spreads, differences)

    summary = Summary(
        variants=order,
        references=references,
        seeds=seeds,
        metrics=metrics,
        gaps=_gaps(results, order, seeds),
        versions={name: versions[name] for name in sorted(versions)},
    )
    summary = replace(summary, gap_groups=_gap_groups(summary.gaps, results))
    summary = replace(summary, evaluations=_evaluations(summary, results))
    verdicts = [_overall(summary, variant, reference) for variant, reference in summary.pairs]
    return replace(summary, verdicts=verdicts)


def _pairs(variants: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (variant, reference)
        for index, reference in enumerate(references)
        for variant in variants
        # A reference is not compared with itself or, twice over, with an earlier reference.
        if variant not in references[: index + 1]
    ]


def _difference(
    variant: str,
    reference: str,
    by_variant: Mapping[str, Mapping[int, float]],
    replicates: Mapping[str, Mapping[int, Sequence[float]]],
    info: MetricInfo,
) -> Difference:
    values, reference_values = by_variant.get(variant, {}), by_variant.get(reference, {})
    common = sorted(set(values) & set(reference_values))
    size = max((max(abs(values[s]), abs(reference_values[s])) for s in common), default=0.0)
    tolerance = _ROUNDING * size
    paired = {seed: values[seed] - reference_values[seed] for seed in common}
    paired = {seed: 0.0 if abs(d) <= tolerance else d for seed, d in paired.items()}
    spread = Spread.of(paired)
    dz = None
    if spread.mean is not None and spread.std is not None and spread.std > tolerance:
        dz = spread.mean / spread.std
    interval = difference_interval(replicates.get(variant, {}), replicates.get(reference, {}))
    return Difference(variant, reference, spread, dz, _verdict(spread, info), interval)


def _verdict(spread: Spread, info: MetricInfo) -> MetricVerdict | None:
    """Judge a paired difference: it counts when its 95% interval leaves out zero."""
    if info.direction is None:
        return None
    if spread.ci95 is None:
        return TOO_FEW
    low, high = spread.ci95
    if low <= 0.0 <= high:
        return NO_DIFFERENCE
    return BETTER if (low > 0.0) == (info.direction == "higher") else WORSE


def _gaps(results: Sequence[Result], variants: Sequence[str], seeds: Sequence[int]) -> list[Gap]:
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


def _gap_groups(gaps: Sequence[Gap], results: Sequence[Result]) -> list[GapGroup]:
    """Put gaps together that share evaluation, kind and reason, in the order of the report."""
    every = {(result.variant, result.seed) for result in results}
    groups: dict[tuple[Any, ...], list[tuple[str, int]]] = {}
    for eval in in_order(gap.eval for gap in gaps):
        for gap in (gap for gap in gaps if gap.eval == eval):
            key = (gap.kind, gap.eval, gap.reason)
            groups.setdefault(key, []).append((gap.variant, gap.seed))
    return [
        GapGroup(kind, eval, _who(saes, every), reason)
        for (kind, eval, reason), saes in groups.items()
    ]


def _who(saes: Iterable[tuple[str, int]], every: set[tuple[str, int]]) -> str:
    """Return ``every SAE``, or ``adaptive (seeds 0, 1), fixed (seed 2)``."""
    saes = list(saes)
    if len(every) > 1 and every <= set(saes):
        return f"every SAE ({len(saes)})"
    seeds: dict[str, list[str]] = {}
    for variant, seed in saes:
        seeds.setdefault(variant, []).append(str(seed))
    return ", ".join(
        f"{variant} (seed{'s' if len(found) > 1 else ''} {', '.join(found)})"
        for variant, found in seeds.items()
    )


def _evaluations(summary: Summary, results: Sequence[Result]) -> dict[str, EvaluationSummary]:
    every = {(result.variant, result.seed) for result in results}
    found = {}
    for name in in_order(result.eval for result in results):
        info = evaluation(name)
        here = [result for result in results if result.eval == name]
        finished = [result for result in here if result.ok]
        seconds = [result.seconds for result in finished if result.seconds is not None]
        measured = [key for key in summary.metrics if key.startswith(f"{name}/")]
        primary = info.keys(info.primary)
        reasons = [g.reason for g in summary.gap_groups if (g.kind, g.eval) == ("failed", name)]
        found[name] = EvaluationSummary(
            info=info,
            keys=sorted(measured, key=lambda k: primary.index(k) if k in primary else len(primary)),
            finished=len(finished),
            failed=len(here) - len(finished),
            seconds=math.fsum(seconds) / len(seconds) if seconds else None,
            verdicts=[
                _evaluation_verdict(summary, primary, reasons, *pair)
                for pair in (summary.pairs if primary else ())
            ],
            caveats=_said(finished, {"caveat": ""}, every)
            or ([info.caveat] if info.caveat else []),
            remarks=_said(finished, _REMARKS, every),
        )
    return found


#: What the details say in words -> what to put before it.
_REMARKS = {"source": "Data: ", "verdict": "", "mcq_reason": "No multiple choice: "}


def _said(
    finished: Sequence[Result], keys: Mapping[str, str], every: set[tuple[str, int]]
) -> list[str]:
    """Return the texts under ``keys`` of the details, each once, with whom it is about."""
    texts: dict[str, list[tuple[str, int]]] = {}
    for result in finished:
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


_Found = Sequence[tuple[MetricInfo, Difference]]


def _find(summary: Summary, keys: Iterable[str], variant: str, reference: str) -> _Found:
    """Return the differences that were measured with at least one common seed."""
    found = []
    for key in keys:
        metric = summary.metrics.get(key)
        difference = metric.difference(variant, reference) if metric else None
        if metric is not None and difference is not None and difference.spread.n:
            found.append((metric.info, difference))
    return found


def _joint(found: _Found) -> JointVerdict:
    """Return the verdict of several metrics together; one that differs outweighs those that do not.

    "Better" thus means better in at least one metric and worse in none.
    """
    kinds = {difference.verdict for _, difference in found}
    if {BETTER, WORSE} <= kinds:
        return MIXED
    order: tuple[JointVerdict, ...] = (BETTER, WORSE, NO_DIFFERENCE, TOO_FEW)
    for kind in order:
        if kind in kinds:
            return kind
    return NOT_MEASURED


def _evaluation_verdict(
    summary: Summary, primary: Sequence[str], reasons: Sequence[str], variant: str, reference: str
) -> EvaluationVerdict:
    """Put the primary metrics of one evaluation into words for one pair."""
    found = _find(summary, primary, variant, reference)
    joint = _joint(found)
    n = Counter(difference.verdict for _, difference in found)
    better, worse, same, few = (_pick(found, k) for k in (BETTER, WORSE, NO_DIFFERENCE, TOO_FEW))
    m, differing = len(found), n[BETTER] + n[WORSE]
    corrected = sum(_remains(difference, m) for _, difference in found)
    metrics = f"{m} primary metric{'' if m == 1 else 's'}"
    alike = f"{n[NO_DIFFERENCE]} of " if n[NO_DIFFERENCE] < m else ""
    some = f"of {metrics}, {corrected} if corrected for {m}"
    text = {
        BETTER: f"better at 95% in {n[BETTER]} {some} ({better})",
        WORSE: f"worse at 95% in {n[WORSE]} {some} ({worse})",
        MIXED: f"mixed at 95%, better in {n[BETTER]} and worse in {n[WORSE]} {some} (better: "
        f"{better}; worse: {worse})",
        NO_DIFFERENCE: f"no difference at 95% in {alike}{metrics} ({same})",
        TOO_FEW: f"too few seeds for a verdict on {metrics} ({few})",
        NOT_MEASURED: "; ".join([NOT_MEASURED, *reasons]),
    }[joint]
    if m == 1:
        text = text.replace(f" in 1 {some}", "").replace(f" in {metrics}", "")
    absent = len(primary) - m
    if found and absent:
        text += f"; {absent} not measured"
    pair = f"{variant} against {reference}"
    if found:
        counts = sorted({difference.spread.n for _, difference in found})
        pair += f", {_span(counts)}"
    return EvaluationVerdict(
        variant, reference, joint, m, absent, differing, corrected, f"{pair}: {text}"
    )


def _remains(difference: Difference, m: int) -> bool:
    """Whether the interval at level 1 - 0.05 / m, of the same t distribution, leaves out zero."""
    spread = difference.spread
    if spread.ci95 is None or spread.mean is None or difference.verdict not in (BETTER, WORSE):
        return False
    half = (spread.ci95[1] - spread.ci95[0]) / 2
    wider = float(stdtrit(spread.n - 1, 1 - 0.025 / m) / stdtrit(spread.n - 1, 0.975))
    return abs(spread.mean) > half * wider


def _overall(summary: Summary, variant: str, reference: str) -> OverallVerdict:
    """Put knowledge, geometry and cost in reconstruction of one pair into words."""
    unlearning, subspace = evaluation("unlearning"), evaluation("subspace")
    knowledge = _find(summary, unlearning.keys(unlearning.primary), variant, reference)
    geometry = _find(summary, subspace.keys(subspace.primary), variant, reference)
    cost = _find(
        summary, [f"core/pooled/{name}" for name in _RECONSTRUCTION], variant, reference
    ) or _find(
        summary,
        [f"core/{domain}/{name}" for name in _RECONSTRUCTION for domain in ("forget", "retain")],
        variant,
        reference,
    )
    counts = sorted({d.spread.n for _, d in [*knowledge, *geometry, *cost]})
    said = _separation_text(geometry, variant, "decoder directions", "subspace")
    if knowledge:
        geometric = said.replace(f"{variant} ", "it ", 1)
        said = _separation_text(knowledge, variant, "knowledge", "unlearning")
        said += f". {geometric[0].upper()}{geometric[1:]}"
    text = f"Against {reference}{_seeds_text(counts)}, {said}. {_cost_text(cost)}"
    return OverallVerdict(variant, reference, _joint(knowledge), _joint(geometry), text)


def _seeds_text(counts: Sequence[int]) -> str:
    return f" over {_span(counts, 'paired seed')}" if counts else ""


def _span(counts: Sequence[int], noun: str = "seed") -> str:
    """Return ``3 seeds``, or ``2 to 3 seeds``."""
    span = " to ".join(dict.fromkeys([str(counts[0]), str(counts[-1])]))
    return f"{span} {noun}{'' if counts[-1] == 1 else 's'}"


def _pick(found: _Found, verdict: str) -> str:
    """Return the measured differences with this verdict: ``a +1 [..] and b +2 [..]``.

    Metrics that differ in a number only are put together: ``c at 5 / 10: +1 [..] / +2 [..]``.
    """
    groups: dict[str, list[tuple[MetricInfo, Difference]]] = {}
    for info, difference in found:
        if difference.verdict == verdict:
            groups.setdefault(info.template or info.key, []).append((info, difference))
    parts = []
    for group in groups.values():
        values = " / ".join(_value(info, difference) for info, difference in group)
        if len(group) == 1:
            parts.append(f"{_short_label(group[0][0])} {values}")
        else:
            numbers = " / ".join(info.number for info, _ in group)
            parts.append(f"{group[0][0].template.replace('{n}', numbers)}: {values}")
    return " and ".join(parts)


def _value(info: MetricInfo, difference: Difference) -> str:
    """Return ``+11.6° [+8.1°, +15.2°]``."""
    assert difference.spread.mean is not None
    unit = info.unit if info.unit == "°" else ""
    mean, interval = estimate(difference.spread.mean, difference.spread.ci95, unit)
    return f"{mean} {interval}".rstrip()


def _short_label(info: MetricInfo) -> str:
    # Pooled is what a reader expects; only another corpus needs saying.
    name = info.name if info.qualifier in ("", "pooled") else info.label
    return _WORDS.get(info.key, name)


def _separation_text(found: _Found, variant: str, what: str, source: str) -> str:
    """Return a clause on how well ``variant`` separates ``what``, with the numbers that decide."""
    kind = _joint(found)
    better, worse, same, few = (_pick(found, k) for k in (BETTER, WORSE, NO_DIFFERENCE, TOO_FEW))
    if kind == NOT_MEASURED:
        return f"there are no {source} results to tell whether {variant} separates {what} better"
    n = Counter(difference.verdict for _, difference in found)
    m = len(found)
    many = m > 2  # too many numbers for a sentence; the evaluation's own verdict has them
    if kind == MIXED:
        return (
            f"{variant} gives mixed evidence on separating {what}: better in {better}, worse in "
            f"{worse}"
        )
    if kind == NO_DIFFERENCE:
        where = f" in {n[NO_DIFFERENCE]} of {m} {source} metrics" if many else f": {same}"
        return f"{variant} shows no difference at 95% in how far it separates {what}{where}"
    if kind == TOO_FEW:
        where = f" by {m} {source} metrics" if many else f": {few}"
        return f"there are too few seeds to say whether {variant} separates {what} better{where}"
    if many:
        corrected = sum(_remains(difference, m) for _, difference in found)
        where = f" in {n[kind]} of {m} {source} metrics, {corrected} if corrected for {m}"
        return f"{variant} separates {what} {kind}{where}: {better or worse}"
    text = f"{variant} separates {what} {kind}: {better or worse}"
    return f"{text}; no difference is shown at 95% in {same}" if same else text


def _cost_text(found: _Found) -> str:
    if not found:
        return "The cost in reconstruction is not known, for lack of core results."
    better, worse = _pick(found, BETTER), _pick(found, WORSE)
    few = _pick(found, TOO_FEW)
    same = [(info, d) for info, d in found if d.verdict == NO_DIFFERENCE]
    sentences = []
    if worse:
        sentences.append(f"It costs reconstruction: {worse}.")
    if better:
        sentences.append(f"Reconstruction is better in {better}.")
    if same:
        # "No difference" is no proof of equality; the bound says what a loss could still be.
        names = " or ".join(_short_label(info) for info, _ in same)
        bounds = " and ".join(number(_loss(d), value_decimals([_loss(d)], 2)) for _, d in same)
        sentences.append(
            f"No change at 95% is shown in {names}, where the interval leaves room for a loss of "
            f"up to {bounds}."
        )
    if few:
        sentences.append(f"There are too few seeds to judge the cost in reconstruction: {few}.")
    return " ".join(sentences)


def _loss(difference: Difference) -> float:
    """Return the largest loss the 95% interval of a higher-is-better metric allows."""
    assert difference.spread.ci95 is not None
    return max(0.0, -difference.spread.ci95[0])
