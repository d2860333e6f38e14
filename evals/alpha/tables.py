"""Make the table of a comparison whose variants are values of alpha (``alpha=0.25``)."""

from __future__ import annotations

from collections.abc import Sequence

from saelens_adaptive_ortho.report.formatting import (
    DASH,
    MINUS,
    estimate,
    markdown,
    plus_minus,
    spread_decimals,
)
from saelens_adaptive_ortho.report.metrics import describe
from saelens_adaptive_ortho.report.statistics import Spread
from saelens_adaptive_ortho.results import Result, ResultError

PREFIX = "alpha="
REFERENCES = ("baseline", "fixed")
PANELS = (
    "core/pooled/explained_variance",
    "core/pooled/ce_loss_score",
    "subspace/mean_max_cosine",
    "subspace/condition_number/forget",
    "subspace/condition_number/forget+retain",
    "subspace/principal_angle/mean_deg",
    "unlearning/token/forget_damage_at_0.10",
    "unlearning/mcq/forget_accuracy_at_0.90",
    "sparse_probing/sae_top_1_accuracy",
)


def alpha_table(results: Sequence[Result]) -> str:
    """Return the metrics as markdown: mean and standard deviation of every variant over seeds.

    The last column is the value at the largest alpha minus the value at the smallest alpha, paired
    by seed, with its 95% t-interval.

    Raises:
        ResultError: no variant is named ``alpha=VALUE``.
    """
    values, alphas = values_by_metric(results)
    rows = []
    for key in (key for key in PANELS if key in values):
        by_variant = values[key]
        variants = [*REFERENCES, *alphas]
        spreads = [Spread.of(by_variant.get(v, {})) for v in variants]
        decimals = spread_decimals(
            [s.mean for s in spreads if s.mean is not None],
            [s.std for s in spreads if s.std is not None],
        )
        first, last = by_variant.get(alphas[0], {}), by_variant.get(alphas[-1], {})
        change = Spread.of({seed: last[seed] - first[seed] for seed in last if seed in first})
        text = DASH if change.mean is None else " ".join(estimate(change.mean, change.ci95))
        info = describe(key)
        label = f"{info.full_label} {info.arrow}".rstrip()
        rows.append([label, *(plus_minus(s.mean, s.std, decimals) for s in spreads), text.rstrip()])
    ends = f" {MINUS} ".join(alphas[i].removeprefix(PREFIX) for i in (-1, 0))
    return markdown(["metric", *REFERENCES, *alphas, f"alpha {ends}"], rows, text_columns=1)


def is_alpha_study(results: Sequence[Result]) -> bool:
    """Whether all variants but the references are named by a value of alpha."""
    others = {r.variant for r in results} - set(REFERENCES)
    return bool(others) and all(variant.startswith(PREFIX) for variant in others)


def values_by_metric(
    results: Sequence[Result],
) -> tuple[dict[str, dict[str, dict[int, float]]], list[str]]:
    """Return the values by metric, variant and seed, and the alpha variants in rising order.

    Raises:
        ResultError: no variant is named ``alpha=VALUE``.
    """
    values: dict[str, dict[str, dict[int, float]]] = {}
    for result in results:
        for name, value in result.metrics.items():
            if value is not None:
                by_variant = values.setdefault(f"{result.eval}/{name}", {})
                by_variant.setdefault(result.variant, {})[result.seed] = value
    alphas = sorted({r.variant for r in results if r.variant.startswith(PREFIX)}, key=alpha_of)
    if not alphas:
        raise ResultError("no variant is named alpha=VALUE; run a config of evals/alpha/configs")
    return values, alphas


def alpha_of(variant: str) -> float:
    """Return the value of alpha in the name of a variant."""
    return float(variant.removeprefix(PREFIX))
