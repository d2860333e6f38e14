"""Statistics over seeds: spread of each variant, and paired differences between variants.

For one seed, all variants start from the same initial weights and see the same activations in
the same order. The difference between two variants is therefore computed seed by seed, so that
the effect of the seed on both cancels. The intervals of two means can overlap even if all seeds
agree on the difference.

Formulas, for n values x with mean m and sample standard deviation s (divisor n - 1):

* 95% t-interval of the mean: m ± t(0.975; n - 1) · s / √n
* paired difference: the same interval of d = x(variant, seed) - x(reference, seed)
* effect size (Cohen's dz): mean(d) / s(d)

The intervals are per metric. They are not corrected for the number of metrics: among twenty
metrics without any true difference, one interval is expected to exclude zero. The verdict on an
evaluation (see `verdicts`) therefore uses only its few primary metrics. It gives their number, and
how many of their differences remain after Bonferroni's correction for that number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

from saelens_adaptive_ortho.evaluations import (
    Evaluation,
    evaluation,
    headline_keys,
    in_order,
)
from saelens_adaptive_ortho.report.bootstrap import difference_interval
from saelens_adaptive_ortho.report.metrics import MetricInfo, describe
from saelens_adaptive_ortho.report.notes import (
    Gap,
    GapGroup,
    caveats_of,
    gap_groups,
    gaps_of,
    remarks_of,
)
from saelens_adaptive_ortho.results import Result, order_variants, refuse_doubles

MetricVerdict = Literal["better", "worse", "no difference at 95%", "too few seeds"]
#: The verdict on several metrics together; "mixed" means better in some and worse in others.
JointVerdict = Literal[
    "better", "worse", "no difference at 95%", "too few seeds", "mixed", "not measured"
]

BETTER: Literal["better"] = "better"
WORSE: Literal["worse"] = "worse"
NO_DIFFERENCE: Literal["no difference at 95%"] = "no difference at 95%"
TOO_FEW: Literal["too few seeds"] = "too few seeds"
MIXED: Literal["mixed"] = "mixed"
NOT_MEASURED: Literal["not measured"] = "not measured"

#: A difference below this share of the metric's size is rounding and counts as zero.
_ROUNDING = 1e-12


def brief(verdict: JointVerdict) -> str:
    """Return the verdict without the level of 95%, for places that name the level elsewhere."""
    return "no difference" if verdict == NO_DIFFERENCE else verdict


def t_quantile(freedom: int, p: float) -> float:
    """Return quantile ``p`` of the t distribution with ``freedom`` degrees of freedom."""
    return float(stdtrit(freedom, p))


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
        half = t_quantile(n - 1, 0.975) * std / math.sqrt(n)
        return cls(ordered, mean, std, (mean - half, mean + half))


@dataclass(frozen=True)
class Difference:
    """``variant`` minus ``reference``, paired over the seeds that both have.

    ``dz`` is Cohen's effect size for paired values. It is None with fewer than two seeds, or if
    all differences are equal. ``verdict`` is None for a metric without a direction.
    ``bootstrap95`` is an interval over seeds and units; it is None if the evaluation stored no
    replicates (see `bootstrap`).
    """

    variant: str
    reference: str
    spread: Spread
    dz: float | None
    verdict: MetricVerdict | None
    bootstrap95: tuple[float, float] | None = None

    def remains(self, m: int) -> bool:
        """Whether the difference is better or worse at 95% for ``m`` metrics together (Bonferroni).

        This is so if the t-interval at level 1 - 0.05 / m excludes zero.
        """
        spread = self.spread
        if spread.ci95 is None or spread.mean is None or self.verdict not in (BETTER, WORSE):
            return False
        half = (spread.ci95[1] - spread.ci95[0]) / 2
        wider = t_quantile(spread.n - 1, 1 - 0.025 / m) / t_quantile(spread.n - 1, 0.975)
        return abs(spread.mean) > half * wider


@dataclass(frozen=True)
class MetricSummary:
    """One metric: the spread of every variant and the paired differences between them."""

    info: MetricInfo
    variants: Mapping[str, Spread]
    differences: Sequence[Difference]

    def difference(self, variant: str, reference: str) -> Difference | None:
        """Return ``variant`` minus ``reference``, or None if they are not compared."""
        for difference in self.differences:
            if (difference.variant, difference.reference) == (variant, reference):
                return difference
        return None


@dataclass(frozen=True)
class EvaluationSummary:
    """One evaluation: its metrics, its duration and its failures.

    ``keys`` are the measured metrics, with the primary metrics first. ``seconds`` is the mean over
    finished results. ``caveats`` and ``remarks`` are texts from the results, each with the SAEs it
    is about. If the results contain no caveat, the caveat of ``info`` is used.
    """

    info: Evaluation
    keys: Sequence[str]
    finished: int
    failed: int
    seconds: float | None
    caveats: Sequence[str]
    remarks: Sequence[str]


@dataclass(frozen=True)
class Summary:
    """Statistics of a whole run.

    ``references`` are the variants that others are compared with: the first variant and "fixed".
    The keys of ``metrics`` are ``{eval}/{name}``. ``versions`` lists all versions of each library.
    """

    variants: Sequence[str]
    references: Sequence[str]
    seeds: Sequence[int]
    metrics: Mapping[str, MetricSummary]
    evaluations: Mapping[str, EvaluationSummary]
    gaps: Sequence[Gap]
    gap_groups: Sequence[GapGroup]
    versions: Mapping[str, Sequence[str]]

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
        """The variant that the verdict is about: "adaptive" if present, else the last variant.

        None if there is only one variant.
        """
        others = [name for name in self.variants if name != self.variants[0]]
        if not others:
            return None
        return "adaptive" if "adaptive" in others else others[-1]

    @property
    def focus_pairs(self) -> list[tuple[str, str]]:
        """The pairs in which `focus` is compared with a reference."""
        return [pair for pair in self.pairs if pair[0] == self.focus]

    def failures(self, eval: str) -> list[GapGroup]:
        """Return the gap groups of the SAEs for which ``eval`` failed."""
        return [g for g in self.gap_groups if (g.kind, g.eval) == ("failed", eval)]


def summarise(results: Sequence[Result], variants: Sequence[str] | None = None) -> Summary:
    """Compute the statistics of a run.

    Every variant is compared with the first variant (baseline) and with "fixed" if the run has
    it. Differences are paired by seed, because the variants of one seed share initial weights and
    activation stream. A seed that only one of the two variants has is left out of the pair.

    Args:
        results: results as `load_results` returns them.
        variants: order of the variants; by default `order_variants` decides.

    Raises:
        ValueError: ``results`` is empty, or holds one variant, seed and evaluation twice.
    """
    if not results:
        raise ValueError("no results to summarise")
    refuse_doubles(results, "the run")
    order = order_variants((result.variant for result in results), variants)
    references = [order[0]] + [name for name in order[1:] if name == "fixed"]
    seeds = sorted({result.seed for result in results})
    metrics = {
        key: MetricSummary(
            describe(key),
            {name: Spread.of(measured.values.get(name, {})) for name in order},
            [_difference(key, measured, *pair) for pair in _pairs(order, references)],
        )
        for key, measured in _measured(results).items()
    }
    gaps = gaps_of(results, order, seeds)
    return Summary(
        variants=order,
        references=references,
        seeds=seeds,
        metrics=metrics,
        evaluations={
            name: _evaluation(name, results, metrics) for name in in_order(r.eval for r in results)
        },
        gaps=gaps,
        gap_groups=gap_groups(gaps, results),
        versions=_versions(results),
    )


class _Measured(NamedTuple):
    """Values and bootstrap replicates of one metric, by variant and seed."""

    values: dict[str, dict[int, float]]
    replicates: dict[str, dict[int, Sequence[float]]]


def _measured(results: Sequence[Result]) -> dict[str, _Measured]:
    found: dict[str, _Measured] = {}
    for result in (result for result in results if result.ok):
        replicates: Mapping[str, Sequence[float]] = result.details.get("replicates") or {}
        for name, value in result.metrics.items():
            metric = found.setdefault(f"{result.eval}/{name}", _Measured({}, {}))
            if value is not None:
                metric.values.setdefault(result.variant, {})[result.seed] = value
            if name in replicates:
                drawn = metric.replicates.setdefault(result.variant, {})
                drawn[result.seed] = replicates[name]
    return found


def _versions(results: Sequence[Result]) -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {}
    for result in results:
        for library, version in result.versions.items():
            if version not in versions.setdefault(library, []):
                versions[library].append(version)
    return {library: versions[library] for library in sorted(versions)}


def _evaluation(
    name: str, results: Sequence[Result], metrics: Mapping[str, MetricSummary]
) -> EvaluationSummary:
    info = evaluation(name)
    here = [result for result in results if result.eval == name]
    finished = [result for result in here if result.ok]
    seconds = [result.seconds for result in finished if result.seconds is not None]
    measured = [key for key in metrics if key.startswith(f"{name}/")]
    primary = info.keys(info.primary)
    return EvaluationSummary(
        info=info,
        keys=sorted(measured, key=lambda k: primary.index(k) if k in primary else len(primary)),
        finished=len(finished),
        failed=len(here) - len(finished),
        seconds=math.fsum(seconds) / len(seconds) if seconds else None,
        caveats=caveats_of(results, name) or ([info.caveat] if info.caveat else []),
        remarks=remarks_of(results, name),
    )


def _pairs(variants: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (variant, reference)
        for index, reference in enumerate(references)
        for variant in variants
        # A reference is compared neither with itself nor with an earlier reference; the latter
        # pair already exists the other way round.
        if variant not in references[: index + 1]
    ]


def _difference(key: str, measured: _Measured, variant: str, reference: str) -> Difference:
    values = measured.values.get(variant, {})
    reference_values = measured.values.get(reference, {})
    common = sorted(set(values) & set(reference_values))
    size = max((max(abs(values[s]), abs(reference_values[s])) for s in common), default=0.0)
    tolerance = _ROUNDING * size
    paired = {seed: values[seed] - reference_values[seed] for seed in common}
    paired = {seed: 0.0 if abs(d) <= tolerance else d for seed, d in paired.items()}
    spread = Spread.of(paired)
    dz = None
    if spread.mean is not None and spread.std is not None and spread.std > tolerance:
        dz = spread.mean / spread.std
    interval = difference_interval(
        measured.replicates.get(variant, {}), measured.replicates.get(reference, {})
    )
    return Difference(variant, reference, spread, dz, _verdict(spread, describe(key)), interval)


def _verdict(spread: Spread, info: MetricInfo) -> MetricVerdict | None:
    """Judge a paired difference: it counts if its 95% interval excludes zero."""
    if info.direction is None:
        return None
    if spread.ci95 is None:
        return TOO_FEW
    low, high = spread.ci95
    if low <= 0.0 <= high:
        return NO_DIFFERENCE
    return BETTER if (low > 0.0) == (info.direction == "higher") else WORSE
