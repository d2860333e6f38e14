"""Statistics over seeds: spread of each variant, paired differences, and verdicts on them.

For one seed, all variants start from the same initial weights and see the same activations in
the same order. The difference between two variants is therefore computed seed by seed, so that
the effect of the seed on both cancels. The intervals of two means can overlap even if all seeds
agree on the difference.

Formulas, for n values x with mean m and sample standard deviation s (divisor n - 1):

* 95% t-interval of the mean: m ± t(0.975; n - 1) · s / √n
* paired difference: the same interval of d = x(variant, seed) - x(reference, seed)
* effect size (Cohen's dz): mean(d) / s(d)

The intervals take one metric at a time: among twenty metrics without any true difference, one
interval is expected to exclude zero. The verdicts are corrected for that. A difference is

* *better* or *worse* if its paired t-test is significant at 5% after Holm's correction over the
  family of the metric (:func:`families`), for one pair of variants;
* *equivalent* if two one-sided t-tests (:func:`equivalence_p`) show at 5% that it lies within the
  margin of the metric. A metric without a margin never gives this verdict;
* *inconclusive* in all other cases. It does not mean that there is no difference.

A verdict needs three seeds (`MIN_SEEDS`). The standard deviation of the differences must exceed the
resolution of the metric, because a smaller spread only says that the steps of the metric hide it.
For "better" and "worse" the mean difference must exceed the resolution, too. A metric without a
resolution needs a spread above zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from scipy.special import stdtr, stdtrit  # pyright: ignore[reportMissingTypeStubs]

from saelens_adaptive_ortho.evaluations import (
    Evaluation,
    evaluation,
    glance_keys,
    headline_keys,
    in_order,
    primary_keys,
)
from saelens_adaptive_ortho.report.bootstrap import difference_interval
from saelens_adaptive_ortho.report.metrics import MetricInfo, describe
from saelens_adaptive_ortho.report.notes import (
    Gap,
    GapGroup,
    caveats_of,
    concerns_of,
    gap_groups,
    gaps_of,
    remarks_of,
)
from saelens_adaptive_ortho.results import Result, order_variants, refuse_doubles, split_series

MetricVerdict = Literal["better", "worse", "equivalent", "inconclusive", "too few seeds"]
#: The verdict on several metrics together; "mixed" means better in some and worse in others.
JointVerdict = Literal[
    "better", "worse", "equivalent", "inconclusive", "too few seeds", "mixed", "not measured"
]

BETTER: Literal["better"] = "better"
WORSE: Literal["worse"] = "worse"
EQUIVALENT: Literal["equivalent"] = "equivalent"
INCONCLUSIVE: Literal["inconclusive"] = "inconclusive"
TOO_FEW: Literal["too few seeds"] = "too few seeds"
MIXED: Literal["mixed"] = "mixed"
NOT_MEASURED: Literal["not measured"] = "not measured"

#: A verdict needs this many paired seeds.
MIN_SEEDS = 3
#: Level of the tests.
LEVEL = 0.05
#: A difference below this share of the metric's size is rounding and counts as zero.
_ROUNDING = 1e-12


def t_quantile(freedom: int, p: float) -> float:
    """Return quantile ``p`` of the t distribution with ``freedom`` degrees of freedom."""
    return float(stdtrit(freedom, p))


def difference_p(mean: float, std: float, n: int) -> float:
    """Two-sided p of the t-test that a mean is zero: ``2 T(-|mean| √n / std; n - 1)``.

    ``T`` is the distribution function of Student's t. ``std`` must be positive.
    """
    return 2 * float(stdtr(n - 1, -abs(mean) * math.sqrt(n) / std))


def equivalence_p(mean: float, std: float, n: int, margin: float) -> float:
    """p of two one-sided t-tests (TOST) that a mean lies outside (-margin, margin).

    ``T((|mean| - margin) √n / std; n - 1)``, the larger p of the two tests. It is at most 0.05 if
    the 90% t-interval lies within the margin. ``std`` must be positive.
    """
    return float(stdtr(n - 1, (abs(mean) - margin) * math.sqrt(n) / std))


def holm(p: Sequence[float]) -> list[float]:
    """Return the p values after Holm's correction for their number m, in the given order.

    The k-th smallest p (k from 1) becomes ``max_{j <= k} min(1, (m - j + 1) p_j)``. Rejecting all
    that are at most 5% gives a false rejection among them in at most 5% of cases, however the tests
    depend on each other.
    """
    corrected = [1.0] * len(p)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def families(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the two families of metrics that Holm's correction is for, among ``keys``.

    The first family is the headline and primary metrics with a better direction: those of the
    headline table and of the verdicts. The second family is every metric with a better direction;
    it is used for the metrics that are not in the first family.
    """
    directed = [key for key in keys if describe(key).direction is not None]
    first = {*headline_keys(directed), *primary_keys(directed)}
    return [key for key in directed if key in first], directed


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
        # The mean of equal values is their value, without rounding.
        mean = values[0] if len(set(values)) == 1 else math.fsum(values) / n
        ordered = {seed: by_seed[seed] for seed in sorted(by_seed)}
        if n == 1:
            return cls(ordered, mean, None, None)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        half = t_quantile(n - 1, 0.975) * std / math.sqrt(n)
        return cls(ordered, mean, std, (mean - half, mean + half))


@dataclass(frozen=True)
class Difference:
    """``variant`` minus ``reference``, paired over the seeds that both have.

    Args:
        variant: variant that is judged.
        reference: variant that it is compared with.
        spread: the differences by seed, with their mean and interval.
        dz: Cohen's effect size for paired values; None with fewer than two seeds, or if all
            differences are equal.
        bootstrap95: interval over seeds and units (see `bootstrap`); None if the evaluation stored
            no replicates.
        p: p of the paired t-test; None for a metric without a direction or with too few seeds, 1 if
            differences or their spread do not exceed the resolution of the metric.
        p_equivalence: p of the two one-sided t-tests against the margin; None if there is no margin
            or no sufficient spread.
        margin: the margin as text; empty if the metric has none.
        p_holm: ``p`` after Holm's correction.
        family: number of metrics that Holm's correction is for.
        verdict: the verdict; None for a metric without a direction.
    """

    variant: str
    reference: str
    spread: Spread
    dz: float | None = None
    bootstrap95: tuple[float, float] | None = None
    p: float | None = None
    p_equivalence: float | None = None
    margin: str = ""
    p_holm: float | None = None
    family: int = 0
    verdict: MetricVerdict | None = None

    @property
    def equivalent(self) -> bool:
        """Whether the difference is shown to lie within the margin.

        A difference can be better or worse and yet lie within the margin.
        """
        return self.p_equivalence is not None and self.p_equivalence <= LEVEL

    @property
    def within(self) -> str:
        """``within 0.004`` if the difference is shown to lie within the margin, else empty."""
        return f"within {self.margin}" if self.equivalent else ""

    @property
    def remark(self) -> str:
        """What the verdict alone does not say; it follows the verdict. Empty if there is nothing.

        The margin, if the difference is shown to lie within it; or that an inconclusive metric
        would be significant without the correction.
        """
        if self.equivalent:
            joint = " " if self.verdict == EQUIVALENT else ", but "
            return f"{joint}{self.within}"
        alone = self.p is not None and self.p <= LEVEL
        return " after correction" if self.verdict == INCONCLUSIVE and alone else ""

    @property
    def words(self) -> str:
        """The verdict in words: ``better``, ``worse, but within 0.004``; empty if there is none."""
        return f"{self.verdict}{self.remark}" if self.verdict else ""


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

    ``references`` are the variants that others are compared with: the first variant and, for the
    focus, "fixed". The keys of ``metrics`` are ``{eval}/{name}``. ``versions`` lists all versions
    of each library. ``without_sae`` holds the ceilings, which need no SAE, and the floors, which
    clamp random latents, by name and key of the metric: the means of
    ``details["references"][NAME][METRIC]`` over the results. ``concerns`` are reasons to doubt the
    SAEs (`notes.concerns`).
    """

    variants: Sequence[str]
    references: Sequence[str]
    seeds: Sequence[int]
    metrics: Mapping[str, MetricSummary]
    evaluations: Mapping[str, EvaluationSummary]
    gaps: Sequence[Gap]
    gap_groups: Sequence[GapGroup]
    versions: Mapping[str, Sequence[str]]
    without_sae: Mapping[str, Mapping[str, float]]
    concerns: Sequence[str]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The compared pairs (variant, reference), in column order.

        Every variant is compared with its `reference`, and `focus` also with "fixed".
        """
        return _pairs(self.variants, self.references)

    def reference(self, variant: str) -> str:
        """The variant that another one is compared with (:func:`reference_of`)."""
        return reference_of(variant, self.variants)

    @property
    def headline(self) -> list[str]:
        """Keys of the headline metrics that were measured."""
        return headline_keys(self.metrics)

    @property
    def glance(self) -> list[str]:
        """Keys of the metrics of the headline figure that were measured."""
        return glance_keys(self.metrics)

    @property
    def focus(self) -> str | None:
        """The variant that the verdict is about: "adaptive" if present, else the last variant.

        None if there is only one variant.
        """
        return focus_of(self.variants)

    @property
    def focus_pairs(self) -> list[tuple[str, str]]:
        """The pairs in which `focus` is compared with a reference."""
        return [pair for pair in self.pairs if pair[0] == self.focus]

    def family(self, pair: tuple[str, str]) -> int:
        """Return for how many headline and primary metrics the verdicts on ``pair`` are corrected.

        It is 0 if the pair has too few seeds for a verdict.
        """
        first, _ = families(self.metrics)
        found = [self.metrics[key].difference(*pair) for key in first]
        return max((d.family for d in found if d is not None), default=0)

    def failures(self, eval: str) -> list[GapGroup]:
        """Return the gap groups of the SAEs for which ``eval`` failed."""
        return [g for g in self.gap_groups if (g.kind, g.eval) == ("failed", eval)]


def summarise(results: Sequence[Result], variants: Sequence[str] | None = None) -> Summary:
    """Compute the statistics of a run.

    Every variant is compared with the first variant (baseline; see also :func:`reference_of`), and
    the focus (adaptive) also with "fixed" if the run has it. Differences are paired by seed,
    because the variants of one seed share initial weights and activation stream. A seed that only
    one of the two variants has is left out of the pair.

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
    measured = _measured(results)
    columns = [_judged(measured, *pair) for pair in _pairs(order, references)]
    metrics = {
        key: MetricSummary(
            describe(key),
            {name: Spread.of(found.values.get(name, {})) for name in order},
            [column[key] for column in columns],
        )
        for key, found in measured.items()
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
        without_sae=_without_sae(results),
        concerns=concerns_of(results),
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


def _without_sae(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {}
    for result in (result for result in results if result.ok):
        references: Mapping[str, Mapping[str, float | None]] = (
            result.details.get("references") or {}
        )
        for name, metrics in references.items():
            values = found.setdefault(name, {})
            for metric, value in metrics.items():
                if value is not None:
                    values.setdefault(f"{result.eval}/{metric}", []).append(value)
    return {
        name: {key: math.fsum(drawn) / len(drawn) for key, drawn in values.items()}
        for name, values in found.items()
    }


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


def reference_of(variant: str, variants: Sequence[str]) -> str:
    """Return the variant that another one is compared with.

    It is the first one. If that is of a series, it is the variant of this series with the same
    number, if there is one: ``adaptive=40`` is compared with ``baseline=40``, not with
    ``baseline=20``.
    """
    series, first_number = split_series(variants[0])
    number = split_series(variant)[1]
    if first_number is not None and number is not None:
        for other in variants:
            if split_series(other) == (series, number) and other != variant:
                return other
    return variants[0]


def _pairs(variants: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    _, *others = references
    focus = focus_of(variants)
    found = [(variant, reference_of(variant, variants)) for variant in variants[1:]]
    return found + [(focus, other) for other in others if focus not in (None, other)]


def focus_of(variants: Sequence[str]) -> str | None:
    """Return "adaptive" if it is there, else the last variant; None if there is only one."""
    if len(variants) < 2:
        return None
    return "adaptive" if "adaptive" in variants[1:] else variants[-1]


def _judged(
    measured: Mapping[str, _Measured], variant: str, reference: str
) -> dict[str, Difference]:
    """Return the differences of one pair by metric, with their verdicts."""
    found = {key: _difference(key, measured, variant, reference) for key in measured}
    first, every = families(key for key, difference in found.items() if difference.p is not None)
    # The first family is judged last: its metrics are in both families.
    for family in (every, first):
        corrected = holm([found[key].p or 0.0 for key in family])
        for key, p in zip(family, corrected, strict=True):
            found[key] = replace(found[key], p_holm=p, family=len(family))
    return {
        key: replace(difference, verdict=_verdict(difference, describe(key)))
        for key, difference in found.items()
    }


def _difference(
    key: str, every: Mapping[str, _Measured], variant: str, reference: str
) -> Difference:
    """Return the difference of one metric, with its p values and without a verdict."""
    info, measured = describe(key), every[key]
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
    p, p_equivalence = _p_values(spread, info, tolerance + _resolution(info, every, common))
    return Difference(variant, reference, spread, dz, interval, p, p_equivalence, info.margin_text)


def _p_values(
    spread: Spread, info: MetricInfo, resolution: float
) -> tuple[float | None, float | None]:
    """Return p of the t-test and of the test of equivalence, as `Difference` has them."""
    mean, std, n = spread.mean, spread.std, spread.n
    if info.direction is None or n < MIN_SEEDS or mean is None or std is None:
        return None, None
    if std <= resolution:
        return 1.0, None
    p = difference_p(mean, std, n) if abs(mean) > resolution else 1.0
    return p, None if info.margin is None else equivalence_p(mean, std, n, info.margin)


def _resolution(info: MetricInfo, every: Mapping[str, _Measured], seeds: Sequence[int]) -> float:
    """Return the smallest step of a metric; 0 if it has none or if it is not known."""
    if not isinstance(info.resolution, str):
        return info.resolution or 0.0
    counts = every.get(f"{info.key.split('/')[0]}/{info.resolution}")
    by_variant = counts.values.values() if counts else ()
    found = [by_seed[seed] for by_seed in by_variant for seed in seeds if seed in by_seed]
    return max((1 / count for count in found if count > 0), default=0.0)


def _verdict(difference: Difference, info: MetricInfo) -> MetricVerdict | None:
    """Judge a paired difference by its corrected p values."""
    mean = difference.spread.mean
    if info.direction is None:
        return None
    if mean is None or difference.p_holm is None:
        return TOO_FEW
    if difference.p_holm <= LEVEL:
        return BETTER if (mean > 0) == (info.direction == "higher") else WORSE
    return EQUIVALENT if difference.equivalent else INCONCLUSIVE
