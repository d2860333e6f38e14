"""``adaptive-ortho eval``: judge finished SAEs, wherever they come from, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import check_writable, write_failures_named
from saelens_adaptive_ortho.judging.contract import EvalContext
from saelens_adaptive_ortho.judging.running import check_evals_runnable, run_missing
from saelens_adaptive_ortho.judging.subjects import Subject, SuiteOptions, workbench_for
from saelens_adaptive_ortho.report import summary
from saelens_adaptive_ortho.report.page import run as page
from saelens_adaptive_ortho.results import Result, load_results


def run_suite(
    saes: Sequence[str], options: SuiteOptions, say: Callable[[str], None] = print
) -> list[Result]:
    """Run every evaluation on every SAE that has no result yet, and write the report.

    Raises:
        ConfigError: a setting that cannot work, before any evaluation starts.
        StorageError: something could not be written; what was finished before survives.
    """
    subjects = [Subject.parse(text) for text in saes]
    seen: dict[tuple[str, int], Subject] = {}
    for subject in subjects:
        other = seen.setdefault((subject.variant, subject.seed), subject)
        if other is not subject:
            raise reject(
                "SAE",
                subject.source,
                f"has the same name and seed as {other.source}; give it a name: NAME=...",
            )
    check_evals_runnable(options.evals)
    check_writable("--out", options.out)
    bench = workbench_for(subjects, options)
    with write_failures_named(options.out, "Results finished before are intact."):
        for subject in subjects:
            context = EvalContext(
                bench=bench,
                load=lambda s=subject: s.load(options.device, options.dtype),
                variant=subject.variant,
                seed=subject.seed,
                raw_dir=options.out.resolve() / "results" / "sae_bench",
            )
            run_missing(context, options.evals, options.out, say)
        results = load_results(options.out)
        summary.write_summary(options.out)
        say(f"Report: {page.write_report(options.out)}")
    return results
