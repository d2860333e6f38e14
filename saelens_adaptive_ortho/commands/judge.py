"""``adaptive-ortho eval``: judge finished SAEs side by side, from folders or from the hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from saelens_adaptive_ortho.commands.evaluations import titles
from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.judging.formats import titles as formats
from saelens_adaptive_ortho.judging.options import JudgingOptions


@dataclass(frozen=True, kw_only=True)
class EvalOptions(JudgingOptions):
    """The SAEs, and the evaluations to run.

    Args:
        evals: names of evaluations, separated by commas, e.g. core,unlearning; see the list below.
        set: set a field of an evaluation, e.g. --set core.n_contexts=64.
        published: folder with result files that SAEBench wrote, of SAEs of others; the report
            draws them over L0 beside these SAEs.
    """

    evals: str = field(default="core", metadata={"metavar": "NAMES"})
    set: list[str] = field(default_factory=list, metadata={"metavar": "EVAL.FIELD=VALUE"})
    published: Path | None = field(default=None, metadata={"metavar": "FOLDER"})


def run(options: EvalOptions) -> int:
    """Judge the SAEs, write the report and show its table."""
    from rich.console import Console

    from saelens_adaptive_ortho.commands.suite import run_suite
    from saelens_adaptive_ortho.report.statistics import summarise
    from saelens_adaptive_ortho.report.tables import terminal_table

    results = run_suite(options, say=say)
    Console().print(terminal_table(summarise(results)))
    return 0 if all(r.ok for r in results) else 1


def _lists() -> str:
    return (
        f"evaluations:\n{titles()}\n\n`adaptive-ortho evaluations NAME` lists the settings of one."
        f"\n\ndirectories of SAEs, by their files:\n{formats()}"
    )


COMMAND = Command(
    name="eval",
    help="Judge finished SAEs side by side: directories of several libraries, or release:sae_id.",
    options=EvalOptions,
    run=run,
    resume="The same command continues.",
    more=_lists,
)
