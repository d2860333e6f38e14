"""Put the statistics into sentences: a verdict on each evaluation, and one on the whole run.

A verdict holds its parts (pair, seeds, word, findings). Its `text` joins them to a sentence; a page
can highlight single parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from saelens_adaptive_ortho.evaluations import evaluation, primary_keys
from saelens_adaptive_ortho.report.formatting import capital, estimate, number, value_decimals
from saelens_adaptive_ortho.report.metrics import MetricInfo
from saelens_adaptive_ortho.report.statistics import (
    BETTER,
    EQUIVALENT,
    INCONCLUSIVE,
    MIN_SEEDS,
    MIXED,
    NOT_MEASURED,
    TOO_FEW,
    WORSE,
    Difference,
    JointVerdict,
    MetricVerdict,
    Summary,
)

CAVEAT = (
    "Angles and cosines describe the geometry of decoder directions; on their own they do not "
    "show that the knowledge itself is separated."
)
CAVEAT_WITH_UNLEARNING = (
    "Knowledge is judged by the primary metrics of unlearning. Angles and cosines describe the "
    "geometry of decoder directions, which is not knowledge."
)
#: What the words of a verdict mean; ``{family}`` is a number of metrics.
RULES = (
    "Better and worse: significant at 5% after Holm's correction over the {family} headline and "
    "primary metrics with a better direction, for one pair of variants; at least {seeds} seeds, "
    "and a spread between them above the metric's resolution. Equivalent: shown to differ by less "
    "than the given margin (two one-sided t-tests at 5%: the 90% interval lies within the margin). "
    "Inconclusive: none of these is shown, which is no evidence of equality; after correction: the "
    "metric alone would be significant. The 95% intervals take one metric at a time and are not "
    "corrected."
)

#: Labels in the verdicts. The principal angle is between forget and retain, the cosine is taken
#: over all latents; the labels say so.
_WORDS = {
    "subspace/principal_angle/mean_deg": "mean principal angle between forget and retain",
    "subspace/mean_max_cosine": "mean max cosine among all latents",
}
NEITHER = "unlearning or subspace"
_RECONSTRUCTION = ("explained_variance", "ce_loss_score")

Judged = Sequence[tuple[MetricInfo, Difference]]


class Estimate(NamedTuple):
    """A mean difference and its interval as text; with one seed, the interval is empty.

    ``within`` names the margin if the difference is shown to lie within it.
    """

    mean: str
    interval: str
    within: str = ""

    @property
    def text(self) -> str:
        """``+11.6° [+8.1°, +15.2°]``, or ``+0.001 [-0.001, +0.002] within 0.004``."""
        return " ".join(part for part in self if part)


@dataclass(frozen=True)
class Finding:
    """The differences of one metric, or of several metrics whose names differ only in a number.

    ``colon`` stands between the label and the estimates if there are several.
    """

    label: str
    estimates: Sequence[Estimate]
    colon: str = ""

    @property
    def text(self) -> str:
        """``a +1 [..]``, or ``c at 5 / 10: +1 [..] / +2 [..]``."""
        values = " / ".join(estimate.text for estimate in self.estimates)
        return f"{self.label}{self.colon} {values}"

    @property
    def brief(self) -> str:
        """The means without intervals: ``c at 5 / 10 (+1 / +2)``."""
        means = " / ".join(estimate.mean for estimate in self.estimates)
        within = {estimate.within for estimate in self.estimates}
        note = f" {within.pop()}" if len(within) == 1 else ""
        return f"{self.label} ({means}{note})".replace(" )", ")")


@dataclass(frozen=True)
class Findings:
    """The findings of one verdict; ``words`` are put before the first finding."""

    words: str
    findings: Sequence[Finding]

    @property
    def text(self) -> str:
        """``better: a +1 [..] and b +2 [..]``."""
        return self.words + _joined(self.findings)


@dataclass(frozen=True)
class EvaluationVerdict:
    """The joint verdict of the primary metrics of one evaluation on one pair of variants.

    Args:
        variant: variant that is judged.
        reference: variant that it is compared with.
        seeds: number of seeds in words; empty if nothing was measured.
        verdict: the joint verdict.
        judged: number of primary metrics that were measured.
        absent: number of primary metrics that were not measured.
        differing: number of primary metrics that are better or worse.
        equivalent: number of primary metrics that are equivalent.
        counts: text after the verdict that says in how many metrics it holds.
        findings: the numbers that the verdict rests on.
        reasons: why nothing was measured.
    """

    variant: str
    reference: str
    seeds: str
    verdict: JointVerdict
    judged: int
    absent: int
    differing: int
    equivalent: int
    counts: str
    findings: Sequence[Findings]
    reasons: Sequence[str]

    @property
    def pair(self) -> str:
        """``adaptive against fixed``."""
        return f"{self.variant} against {self.reference}"

    @property
    def rest(self) -> str:
        """The text after the findings: how many metrics are missing, or why all are missing."""
        missing = [f"{self.absent} not measured"] if self.judged and self.absent else []
        return "".join(f"; {part}" for part in [*self.reasons, *missing])

    @property
    def text(self) -> str:
        """The sentence with its numbers."""
        seeds = f", {self.seeds}" if self.seeds else ""
        found = "; ".join(findings.text for findings in self.findings)
        numbers = f" ({found})" if self.findings else ""
        return f"{self.pair}{seeds}: {self.verdict}{self.counts}{numbers}{self.rest}"


@dataclass(frozen=True)
class OverallVerdict:
    """The answer for one pair of variants: does the variant separate better, and at what cost?

    The primary metrics of unlearning decide ``knowledge``, those of subspace decide ``geometry``.
    ``text`` is the answer in words, with the numbers.
    """

    variant: str
    reference: str
    knowledge: JointVerdict
    geometry: JointVerdict
    text: str


@dataclass(frozen=True)
class Verdicts:
    """The verdicts on a run.

    ``evaluations`` holds one verdict per pair for each evaluation with primary metrics.
    ``overall`` holds one verdict per pair. ``focus`` is the variant that the run asks about.
    ``rules`` says what the words of the verdicts mean; it is empty with one variant.
    """

    first: str
    focus: str | None
    evaluations: Mapping[str, Sequence[EvaluationVerdict]]
    overall: Sequence[OverallVerdict]
    rules: str

    def of(self, eval: str, pair: tuple[str, str]) -> EvaluationVerdict | None:
        """Return the verdict of an evaluation on a pair, or None if there is none."""
        for verdict in self.evaluations.get(eval, ()):
            if (verdict.variant, verdict.reference) == pair:
                return verdict
        return None

    @property
    def on_focus(self) -> list[OverallVerdict]:
        """The verdicts on `focus`, one per reference."""
        return [verdict for verdict in self.overall if verdict.variant == self.focus]

    @property
    def caveat(self) -> str:
        """What the verdict does not show, and what its brackets mean; empty if it has neither."""
        known = any(verdict.knowledge != NOT_MEASURED for verdict in self.on_focus)
        angles = any(verdict.geometry != NOT_MEASURED for verdict in self.on_focus)
        parts: list[str] = []
        if known or angles:
            parts.append(CAVEAT_WITH_UNLEARNING if known else CAVEAT)
        if any("[" in verdict.text for verdict in self.overall):
            parts.append("Brackets hold 95% intervals.")
        return " ".join(parts)

    @property
    def text(self) -> str:
        """The verdicts on `focus` and the caveat, in a few sentences."""
        if self.focus is None:
            return f"Only {self.first} has results, so there is nothing to compare."
        return " ".join([*(verdict.text for verdict in self.on_focus), self.caveat]).strip()


def judge(summary: Summary) -> Verdicts:
    """Compute the verdicts on a run from its statistics."""
    return Verdicts(
        first=summary.variants[0],
        focus=summary.focus,
        evaluations={
            name: [_evaluation_verdict(summary, name, *pair) for pair in summary.pairs]
            for name, found in summary.evaluations.items()
            if found.info.primary
        },
        overall=[_overall(summary, *pair) for pair in summary.pairs],
        rules=rules(summary),
    )


def rules(summary: Summary) -> str:
    """Return what the verdicts of a run mean; empty with one variant."""
    sizes = sorted({size for pair in summary.pairs if (size := summary.family(pair))})
    if not sizes:
        return f"A verdict needs at least {MIN_SEEDS} seeds." if summary.pairs else ""
    return RULES.format(family=_range(sizes), seeds=MIN_SEEDS)


def found_text(summary: Summary) -> str:
    """Return a sentence on what is shown about the focus against its reference, and what not.

    It is about the primary metrics of all evaluations, and gives mean differences.
    """
    focus = summary.focus
    if focus is None:
        return f"Only {summary.variants[0]} has results, so there is nothing to compare."
    first = summary.reference(focus)
    judged = _judged(summary, primary_keys(summary.metrics), focus, first)
    pair = f"{focus} against {first}"
    if not judged:
        return f"No primary metric was measured for {pair}."
    over = f"{pair} over {_seeds([judged], 'paired seed')}"
    if joint(judged) == TOO_FEW:
        return f"{over}: too few seeds for a verdict on {_plural(len(judged), 'primary metric')}."
    shown = [
        f"{word} in {', '.join(finding.brief for finding in found)}"
        for word in (BETTER, WORSE, EQUIVALENT)
        if (found := _pick(judged, word, full=True))
    ]
    unknown = [finding.label for finding in _pick(judged, INCONCLUSIVE, full=True)]
    if unknown:
        shown.append(f"inconclusive, so nothing is shown, in {', '.join(unknown)}")
    return f"{over}: {'; '.join(shown)}."


def _judged(summary: Summary, keys: Iterable[str], variant: str, reference: str) -> Judged:
    """Return the differences that were measured with at least one common seed."""
    found: list[tuple[MetricInfo, Difference]] = []
    for key in keys:
        metric = summary.metrics.get(key)
        difference = metric.difference(variant, reference) if metric else None
        if metric is not None and difference is not None and difference.spread.n:
            found.append((metric.info, difference))
    return found


def joint(judged: Judged) -> JointVerdict:
    """Return the verdict of several metrics together.

    "Better" means better in at least one metric and worse in none; "worse" is the opposite.
    "Equivalent" means equivalent in all.
    """
    kinds = {difference.verdict for _, difference in judged}
    if {BETTER, WORSE} <= kinds:
        return MIXED
    order: tuple[JointVerdict, ...] = (BETTER, WORSE, INCONCLUSIVE, TOO_FEW, EQUIVALENT)
    for kind in order:
        if kind in kinds:
            return kind
    return NOT_MEASURED


def _evaluation_verdict(
    summary: Summary, eval: str, variant: str, reference: str
) -> EvaluationVerdict:
    """Put the primary metrics of one evaluation into words for one pair."""
    info = summary.evaluations[eval].info
    judged = _judged(summary, info.keys(info.primary), variant, reference)
    verdict, m = joint(judged), len(judged)
    n: Counter[MetricVerdict | None] = Counter(difference.verdict for _, difference in judged)
    failures = summary.failures(eval) if verdict == NOT_MEASURED else []
    return EvaluationVerdict(
        variant=variant,
        reference=reference,
        seeds=_seeds([judged], "seed"),
        verdict=verdict,
        judged=m,
        absent=len(info.primary) - m,
        differing=n[BETTER] + n[WORSE],
        equivalent=n[EQUIVALENT],
        counts=_counts(verdict, n, m),
        findings=_findings(verdict, judged),
        reasons=[gap.reason for gap in failures],
    )


def _counts(verdict: JointVerdict, n: Mapping[MetricVerdict | None, int], m: int) -> str:
    """Return the text after the verdict, such as `` in 1 of 2 primary metrics``."""
    metrics = _plural(m, "primary metric")
    if verdict == MIXED:
        return f", better in {n[BETTER]} and worse in {n[WORSE]} of {metrics}"
    if verdict == TOO_FEW:
        return f" for a verdict on {metrics}"
    if verdict == NOT_MEASURED or m == 1:
        return ""
    return f" in {metrics}" if n[verdict] == m else f" in {n[verdict]} of {metrics}"


def _findings(verdict: JointVerdict, judged: Judged) -> list[Findings]:
    if verdict == NOT_MEASURED:
        return []
    if verdict == MIXED:
        return [
            Findings("better: ", _pick(judged, BETTER)),
            Findings("worse: ", _pick(judged, WORSE)),
        ]
    found = [Findings("", _pick(judged, verdict))]
    if verdict == INCONCLUSIVE and (equivalent := _pick(judged, EQUIVALENT)):
        found.append(Findings("equivalent: ", equivalent))
    return found


def _overall(summary: Summary, variant: str, reference: str) -> OverallVerdict:
    """Put knowledge, geometry and cost in reconstruction of one pair into words."""
    unlearning, subspace = evaluation("unlearning"), evaluation("subspace")
    knowledge = _judged(summary, unlearning.keys(unlearning.primary), variant, reference)
    geometry = _judged(summary, subspace.keys(subspace.primary), variant, reference)
    cost = _judged(
        summary, [f"core/pooled/{name}" for name in _RECONSTRUCTION], variant, reference
    ) or _judged(
        summary,
        [f"core/{domain}/{name}" for name in _RECONSTRUCTION for domain in ("forget", "retain")],
        variant,
        reference,
    )
    directions = "decoder directions", "subspace"
    if knowledge:
        clauses = [
            _separation(knowledge, variant, "knowledge", "unlearning"),
            capital(_separation(geometry, "it", *directions)),
        ]
    elif geometry:
        clauses = [_separation(geometry, variant, *directions)]
    else:
        clauses = [_separation([], variant, "knowledge or decoder directions", NEITHER)]
    seeds = _seeds([knowledge, geometry, cost], "paired seed")
    over = f" over {seeds}" if seeds else ""
    text = f"Against {reference}{over}, {'. '.join(clauses)}. {_cost(cost)}"
    return OverallVerdict(variant, reference, joint(knowledge), joint(geometry), text)


def _separation(judged: Judged, subject: str, what: str, source: str) -> str:
    """Return a clause on how well ``subject`` separates ``what``, with the decisive numbers."""
    verdict, m = joint(judged), len(judged)
    if verdict == NOT_MEASURED:
        return f"there are no results of {source} to tell whether {subject} separates {what} better"
    better, worse = _finding_text(judged, BETTER), _finding_text(judged, WORSE)
    if verdict == MIXED:
        return (
            f"{subject} gives mixed evidence on separating {what}: better in {better}, worse in "
            f"{worse}"
        )
    n = sum(difference.verdict == verdict for _, difference in judged)
    many = m > 2  # too many numbers for a sentence; the verdict on the evaluation gives them
    numbers = _finding_text(judged, verdict)
    if verdict == EQUIVALENT:
        where = f"in {m} {source} metrics" if many else f"in {numbers}"
        return f"{subject} is equivalent {where}, which measure how far it separates {what}"
    if verdict == INCONCLUSIVE:
        where = f"in {n} of {m} {source} metrics" if many else f"in {numbers}"
        return f"it is not shown that {subject} separates {what} better or worse: {verdict} {where}"
    if verdict == TOO_FEW:
        where = f" by {m} {source} metrics" if many else f": {numbers}"
        return f"there are too few seeds to say whether {subject} separates {what} better{where}"
    text = f"{subject} separates {what} {verdict}"
    if many:
        return f"{text} in {n} of {m} {source} metrics: {numbers}"
    others = ((kind, _finding_text(judged, kind)) for kind in (EQUIVALENT, INCONCLUSIVE))
    rest = "".join(f"; {kind} in {found}" for kind, found in others if found)
    return f"{text}: {numbers}{rest}"


def _cost(judged: Judged) -> str:
    """Return sentences on the cost in reconstruction."""
    if not judged:
        return "The cost in reconstruction is not known, for lack of core results."
    better, worse, equivalent, few = (
        _finding_text(judged, kind) for kind in (BETTER, WORSE, EQUIVALENT, TOO_FEW)
    )
    undecided = [(info, d) for info, d in judged if d.verdict == INCONCLUSIVE]
    same = [info for info, d in undecided if not any(d.spread.by_seed.values())]
    unknown = [(info, d) for info, d in undecided if any(d.spread.by_seed.values())]
    sentences: list[str] = []
    if worse:
        sentences.append(f"It costs reconstruction: {worse}.")
    if better:
        sentences.append(f"Reconstruction is better in {better}.")
    if equivalent:
        sentences.append(f"Reconstruction is equivalent in {equivalent}.")
    if same:
        names = " and ".join(map(_short_label, same))
        sentences.append(f"{capital(names)}: the same in every seed.")
    if unknown:
        names = " or ".join(_short_label(info) for info, _ in unknown)
        losses = [_largest_loss(difference) for _, difference in unknown]
        bounds = " and ".join(number(loss, value_decimals([loss], 2)) for loss in losses)
        sentences.append(
            f"Neither a change nor equivalence is shown in {names}, where the interval leaves room "
            f"for a loss of up to {bounds}."
        )
    if few:
        sentences.append(f"There are too few seeds to judge the cost in reconstruction: {few}.")
    return " ".join(sentences)


def _largest_loss(difference: Difference) -> float:
    """Return the largest loss in the 95% interval of a metric for which higher is better."""
    assert difference.spread.ci95 is not None
    return max(0.0, -difference.spread.ci95[0])


def _pick(judged: Judged, verdict: JointVerdict, full: bool = False) -> list[Finding]:
    """Return the differences with this verdict.

    Metrics whose names differ only in a number become one finding. With ``full``, a label names
    its evaluation.
    """
    groups: dict[str, list[tuple[MetricInfo, Difference]]] = {}
    for info, difference in judged:
        if difference.verdict == verdict:
            groups.setdefault(info.template or info.key, []).append((info, difference))
    findings: list[Finding] = []
    for group in groups.values():
        first = group[0][0]
        source = first.full_label.removesuffix(first.label) if full else ""
        estimates = [_estimate(info, difference) for info, difference in group]
        if len(group) == 1:
            findings.append(Finding(source + _short_label(first), estimates))
        else:
            label = first.with_number(" / ".join(info.number for info, _ in group))
            findings.append(Finding(source + label, estimates, ":"))
    return findings


def _finding_text(judged: Judged, verdict: JointVerdict) -> str:
    return _joined(_pick(judged, verdict))


def _joined(findings: Sequence[Finding]) -> str:
    return " and ".join(finding.text for finding in findings)


def _estimate(info: MetricInfo, difference: Difference) -> Estimate:
    assert difference.spread.mean is not None
    unit = info.unit if info.unit == "°" else ""
    mean, interval = estimate(difference.spread.mean, difference.spread.ci95, unit)
    return Estimate(mean, interval, difference.within)


def _short_label(info: MetricInfo) -> str:
    # A reader expects the pooled value; the label names only another corpus.
    name = info.name if info.qualifier in ("", "pooled") else info.label
    return _WORDS.get(info.key, name)


def _seeds(judged: Sequence[Judged], noun: str) -> str:
    """Return ``3 seeds``, or ``2 to 3 seeds`` if metrics differ in it; empty without seeds."""
    counts = sorted({difference.spread.n for found in judged for _, difference in found})
    if not counts:
        return ""
    return f"{_range(counts)} {noun}{'' if counts[-1] == 1 else 's'}"


def _range(numbers: Sequence[int]) -> str:
    """Return ``3``, or ``2 to 3``, for numbers in rising order."""
    return f"{numbers[0]} to {numbers[-1]}" if numbers[0] < numbers[-1] else f"{numbers[-1]}"


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
