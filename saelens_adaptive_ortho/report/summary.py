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
metrics without any true difference, one is expected to miss zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from scipy.special import stdtrit

from .formatting import estimate, number, value_decimals
from .metrics import MetricInfo, describe, headline_keys
from .results import SCHEMA_VERSION, Result, order_variants

MetricVerdict = Literal["better", "worse", "no difference at 95%", "too few seeds"]

BETTER: MetricVerdict = "better"
WORSE: MetricVerdict = "worse"
NO_DIFFERENCE: MetricVerdict = "no difference at 95%"
TOO_FEW: MetricVerdict = "too few seeds"

CAVEAT = (
    "Angles and cosines describe the geometry of decoder directions; on their own they do not "
    "show that the knowledge itself is separated."
)

#: A difference below this share of the metric's size is rounding and counts as zero.
_ROUNDING = 1e-12

#: What the verdict calls separation. Only the angle tells forget from retain; the cosine is
#: taken over all latents, so the words name what each one is between.
_SEPARATION = {
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
    differences are equal. ``verdict`` is None for a metric without a direction.
    """

    variant: str
    reference: str
    spread: Spread
    dz: float | None
    verdict: MetricVerdict | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "variant": self.variant,
            "reference": self.reference,
            **self.spread.to_json(),
            "dz": self.dz,
            "verdict": self.verdict,
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
class OverallVerdict:
    """Answer for one pair of variants: does it separate better, and at what cost?

    ``separation`` is "better", "worse", "mixed", "no difference at 95%", "too few seeds" or
    "not measured"; ``text`` says it in words with the numbers.
    """

    variant: str
    reference: str
    separation: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "variant": self.variant,
            "reference": self.reference,
            "separation": self.separation,
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
    verdicts: Sequence[OverallVerdict] = field(default_factory=tuple)

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
    def caveat(self) -> str:
        """What the verdict does not show, and how its brackets read."""
        brackets = any("[" in verdict.text for verdict in self.verdicts)
        return CAVEAT + (" Brackets hold 95% intervals." if brackets else "")

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
        for name, value in result.metrics.items():
            by_variant = values.setdefault(f"{result.eval}/{name}", {})
            if value is not None:
                by_variant.setdefault(result.variant, {})[result.seed] = value

    metrics: dict[str, MetricSummary] = {}
    for key, by_variant in values.items():
        info = describe(key)
        differences = [
            _difference(
                variant, reference, by_variant.get(variant, {}), by_variant.get(reference, {}), info
            )
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
    values: Mapping[int, float],
    reference_values: Mapping[int, float],
    info: MetricInfo,
) -> Difference:
    common = sorted(set(values) & set(reference_values))
    size = max((max(abs(values[s]), abs(reference_values[s])) for s in common), default=0.0)
    tolerance = _ROUNDING * size
    paired = {seed: values[seed] - reference_values[seed] for seed in common}
    paired = {seed: 0.0 if abs(d) <= tolerance else d for seed, d in paired.items()}
    spread = Spread.of(paired)
    dz = None
    if spread.mean is not None and spread.std is not None and spread.std > tolerance:
        dz = spread.mean / spread.std
    return Difference(variant, reference, spread, dz, _verdict(spread, info))


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
    evals = sorted({r.eval for r in results})
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


def _overall(summary: Summary, variant: str, reference: str) -> OverallVerdict:
    """Put the separation and reconstruction differences of one pair into words."""

    def find(keys: Sequence[str]) -> list[tuple[MetricInfo, Difference]]:
        found = []
        for key in keys:
            metric = summary.metrics.get(key)
            difference = metric.difference(variant, reference) if metric else None
            if metric is not None and difference is not None and difference.spread.n:
                found.append((metric.info, difference))
        return found

    separation = find(list(_SEPARATION))
    cost = find([f"core/pooled/{name}" for name in _RECONSTRUCTION]) or find(
        [f"core/{domain}/{name}" for name in _RECONSTRUCTION for domain in ("forget", "retain")]
    )
    counts = sorted({difference.spread.n for _, difference in [*separation, *cost]})
    kind, said = _separation_text(separation, variant)
    text = f"Against {reference}{_seeds_text(counts)}, {said}. {_cost_text(cost)}"
    return OverallVerdict(variant, reference, kind, text)


def _seeds_text(counts: Sequence[int]) -> str:
    if not counts:
        return ""
    span = " to ".join(dict.fromkeys([str(counts[0]), str(counts[-1])]))
    return f" over {span} paired seed{'' if counts[-1] == 1 else 's'}"


def _pick(found: Sequence[tuple[MetricInfo, Difference]], verdict: str) -> str:
    """Return the measured differences with this verdict: ``a +1 [..] and b +2 [..]``."""
    return " and ".join(_measured(info, d) for info, d in found if d.verdict == verdict)


def _measured(info: MetricInfo, difference: Difference) -> str:
    """Return ``mean principal angle +11.6° [+8.1°, +15.2°]``."""
    assert difference.spread.mean is not None
    unit = info.unit if info.unit == "°" else ""
    mean, interval = estimate(difference.spread.mean, difference.spread.ci95, unit)
    return f"{_short_label(info)} {mean} {interval}".rstrip()


def _short_label(info: MetricInfo) -> str:
    # Pooled is what a reader expects; only another corpus needs saying.
    name = info.name if info.qualifier in ("", "pooled") else info.label
    return _SEPARATION.get(info.key, name)


def _separation_text(
    found: Sequence[tuple[MetricInfo, Difference]], variant: str
) -> tuple[str, str]:
    if not found:
        return "not measured", (
            f"there are no subspace results to tell whether {variant} separates decoder "
            "directions better"
        )
    better, worse, same = (_pick(found, kind) for kind in (BETTER, WORSE, NO_DIFFERENCE))
    few = _pick(found, TOO_FEW)
    if better and worse:
        return "mixed", (
            f"{variant} gives mixed evidence on separating decoder directions: better in "
            f"{better}, worse in {worse}"
        )
    for kind, measures in ((BETTER, better), (WORSE, worse)):
        if measures:
            text = f"{variant} separates decoder directions {kind}: {measures}"
            if same:
                text += f"; no difference is shown at 95% in {same}"
            return kind, text
    if same:
        return NO_DIFFERENCE, (
            f"{variant} shows no difference at 95% in how far it separates decoder directions: "
            f"{same}"
        )
    return TOO_FEW, (
        f"there are too few seeds to say whether {variant} separates decoder directions better: "
        f"{few}"
    )


def _cost_text(found: Sequence[tuple[MetricInfo, Difference]]) -> str:
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
