"""The input of a figure of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from saelens_adaptive_ortho.report.statistics import Summary
from saelens_adaptive_ortho.results import Result


class Section(NamedTuple):
    """The section of an evaluation in the report.

    Attributes:
        summary: statistics of the run.
        results: results of all evaluations of the run.
        eval: name of the evaluation of this section.
    """

    summary: Summary
    results: Sequence[Result]
    eval: str


def details_by_variant(section: Section, key: str) -> dict[str, list[Any]]:
    """Return the values under ``key`` in the details of the section's results, by variant."""
    found: dict[str, list[Any]] = {}
    for result in section.results:
        value = result.details.get(key) if result.ok and result.eval == section.eval else None
        if value:
            found.setdefault(result.variant, []).append(value)
    return found


def mean_over_saes(summary: Summary, key: str) -> float | None:
    """Return the mean over all SAEs of a metric that does not depend on the SAE."""
    spreads = summary.metrics[key].variants.values() if key in summary.metrics else ()
    values = [value for spread in spreads for value in spread.by_seed.values()]
    return float(np.mean(values)) if values else None
