"""The work of ``adaptive-ortho eval``: run every evaluation on every SAE, then write the report."""

from __future__ import annotations

from collections.abc import Callable

from saelens_adaptive_ortho.commands.judge import EvalOptions
from saelens_adaptive_ortho.experiments.experiment import eval_settings
from saelens_adaptive_ortho.files import (
    check_writable,
    remove_litter,
    remove_scratch,
    user_path,
    write_failures_named,
)
from saelens_adaptive_ortho.judging.running import check_evals_runnable, run_missing
from saelens_adaptive_ortho.judging.subjects import named_subjects, workbench_for
from saelens_adaptive_ortho.locks import run_lock
from saelens_adaptive_ortho.report import published, summary
from saelens_adaptive_ortho.report.page import run as page
from saelens_adaptive_ortho.results import Result, load_results


def run_suite(options: EvalOptions, say: Callable[[str], None] = print) -> list[Result]:
    """Run each evaluation on each SAE, unless it has a result already, and write the report.

    Raises:
        ConfigError: a setting cannot work, or another process writes to the folder. This is
            checked before any evaluation starts.
        StorageError: a file could not be written. Results finished before are intact.
    """
    evals = eval_settings(options.evals.split(","), options.set)
    subjects = named_subjects(options.saes, options.hook)
    check_evals_runnable(evals)
    others = None
    if options.published is not None:
        others = published.read_folder(user_path(str(options.published)), say)
    check_writable("--out", options.out)
    with (
        run_lock("--out", options.out, "adaptive-ortho eval"),
        write_failures_named(options.out, "Results finished before are intact."),
    ):
        cache, raw = options.out / "cache", options.out.resolve() / "results" / "sae_bench"
        remove_scratch(cache)
        within = [cache / "unlearning", *(raw.iterdir() if raw.is_dir() else [])]
        remove_litter([options.out, raw.parent, *within])
        bench = workbench_for(subjects, options)
        for subject in subjects:
            run_missing(subject.on(bench, raw), evals, options.out, say)
        if others is not None:
            published.store(options.out, others)
        results = load_results(options.out)
        summary.write_summary(options.out)
        say(f"Report: {page.write_report(options.out)}")
    return results
