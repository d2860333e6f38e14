"""Write the statistics and verdicts of a run as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.files import write_text_atomic
from saelens_adaptive_ortho.report.sparsity import AtL0, at_equal_l0
from saelens_adaptive_ortho.report.statistics import (
    Difference,
    EvaluationSummary,
    MetricSummary,
    Spread,
    Summary,
    summarise,
)
from saelens_adaptive_ortho.report.verdicts import EvaluationVerdict, found_text, judge
from saelens_adaptive_ortho.results import SCHEMA_VERSION, load_results, results_dir

Json = dict[str, Any]


def write_summary(run_dir: str | Path) -> Path:
    """Write ``RUN/results/summary.json`` atomically and return its path.

    Raises:
        ResultError: the run has no results, or one of them cannot be used.
    """
    document = summary_json(summarise(load_results(run_dir)))
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    return write_text_atomic(results_dir(run_dir) / "summary.json", text + "\n")


def summary_json(summary: Summary) -> Json:
    """Return the summary as dictionaries, lists, strings and finite numbers.

    Seeds become text keys.
    """
    verdicts = judge(summary)
    equal = [_at_l0(one) for one in at_equal_l0(summary)]
    return {
        "schema_version": SCHEMA_VERSION,
        "variants": list(summary.variants),
        "references": list(summary.references),
        "seeds": list(summary.seeds),
        "verdict": verdicts.text,
        "found": found_text(summary),
        "verdicts": [asdict(verdict) for verdict in verdicts.overall],
        "evaluations": {
            name: _evaluation(found, verdicts.evaluations.get(name, ()))
            for name, found in summary.evaluations.items()
        },
        "metrics": {key: _metric(metric) for key, metric in summary.metrics.items()},
        "without_sae": {name: dict(found) for name, found in summary.without_sae.items()},
        "concerns": list(summary.concerns),
        "gaps": [asdict(gap) for gap in summary.gaps],
        "versions": {name: list(seen) for name, seen in summary.versions.items()},
        **({"at_equal_l0": equal} if equal else {}),
    }


def _at_l0(one: AtL0) -> Json:
    return {
        "metric": one.key,
        "l0": one.l0,
        "methods": {name: _spread(spread) for name, spread in one.values.items()},
        "differences": {name: _spread(spread) for name, spread in one.differences.items()},
    }


def _evaluation(found: EvaluationSummary, verdicts: Sequence[EvaluationVerdict]) -> Json:
    return {
        "title": found.info.title,
        "primary": found.info.keys(found.info.primary),
        "finished": found.finished,
        "failed": found.failed,
        "mean_seconds": found.seconds,
        "verdicts": [_verdict(verdict) for verdict in verdicts],
        "caveats": list(found.caveats),
        "remarks": list(found.remarks),
    }


def _verdict(verdict: EvaluationVerdict) -> Json:
    return {
        "variant": verdict.variant,
        "reference": verdict.reference,
        "verdict": verdict.verdict,
        "judged": verdict.judged,
        "absent": verdict.absent,
        "differing": verdict.differing,
        "equivalent": verdict.equivalent,
        "text": verdict.text,
    }


def _metric(metric: MetricSummary) -> Json:
    return {
        "label": metric.info.label,
        "unit": metric.info.unit,
        "better": metric.info.direction,
        "variants": {name: _spread(spread) for name, spread in metric.variants.items()},
        "differences": [_difference(difference) for difference in metric.differences],
    }


def _spread(spread: Spread) -> Json:
    return {
        "by_seed": {str(seed): value for seed, value in spread.by_seed.items()},
        "mean": spread.mean,
        "std": spread.std,
        "n": spread.n,
        "ci95": None if spread.ci95 is None else list(spread.ci95),
    }


def _difference(difference: Difference) -> Json:
    bootstrap = difference.bootstrap95
    return {
        "variant": difference.variant,
        "reference": difference.reference,
        **_spread(difference.spread),
        "dz": difference.dz,
        "p": difference.p,
        "p_holm": difference.p_holm,
        "family": difference.family,
        "p_equivalence": difference.p_equivalence,
        "margin": difference.margin or None,
        "verdict": difference.verdict,
        "bootstrap95": None if bootstrap is None else list(bootstrap),
    }
