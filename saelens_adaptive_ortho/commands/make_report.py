"""``adaptive-ortho report``: write the report of a run or a sweep again, and show its table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from saelens_adaptive_ortho.commands.options import Command, say


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The run.

    Args:
        run_dir: a run folder, or the folder of a sweep.
        published: folder with result files that SAEBench wrote, of SAEs of others; the report
            draws them over L0 beside the SAEs of the run, and the run keeps them.
        full: print all headline metrics, and a verdict on each evaluation.
    """

    run_dir: Path = field(metadata={"positional": "RUN_DIR"})
    published: Path | None = field(default=None, metadata={"metavar": "FOLDER"})
    full: bool = False


def run(options: ReportOptions) -> int:
    """Write ``report.html`` and ``summary.json``."""
    from rich.console import Console

    from saelens_adaptive_ortho.errors import reject
    from saelens_adaptive_ortho.files import user_path
    from saelens_adaptive_ortho.manifests import is_sweep
    from saelens_adaptive_ortho.report import published, summary
    from saelens_adaptive_ortho.report.page import run as page
    from saelens_adaptive_ortho.report.statistics import summarise
    from saelens_adaptive_ortho.report.tables import terminal_table
    from saelens_adaptive_ortho.results import load_results

    if options.run_dir.is_file():
        rule = "is a file; name the run folder that holds the results."
        raise reject("RUN_DIR", str(options.run_dir), rule)
    if is_sweep(options.run_dir):
        if options.published is not None:
            rule = "a sweep takes no published results. Name the folder of one of its units."
            raise reject("--published", str(options.published), rule)
        from saelens_adaptive_ortho.sweeps.reporting import write_report

        say(f"Report: {write_report(options.run_dir, Console())}")
        return 0
    if options.published is not None:
        load_results(options.run_dir)  # raises if this is no run
        others = published.read_folder(user_path(str(options.published)), say)
        published.store(options.run_dir, others)
    summary.write_summary(options.run_dir)
    say(f"Report: {page.write_report(options.run_dir)}")
    summarised = summarise(load_results(options.run_dir))
    Console().print(terminal_table(summarised, full=options.full))
    return 0


COMMAND = Command(
    name="report",
    help="Write the report of a run folder or a sweep again, and show its table.",
    options=ReportOptions,
    run=run,
    needs_sae_lens=False,
)
