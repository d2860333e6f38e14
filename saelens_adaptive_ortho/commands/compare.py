"""``adaptive-ortho compare``: train, evaluate and report every variant of an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from saelens_adaptive_ortho.commands.options import Command, say


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """The experiment.

    Args:
        config: experiment YAML, or the name of a shipped config, e.g. demo.
        set: override a setting, e.g. --set sae.k=16. Of two values for one setting, the last one
            counts.
    """

    config: str = field(metadata={"positional": "CONFIG"})
    set: list[str] = field(default_factory=list, metadata={"metavar": "KEY=VALUE"})


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ExperimentOptions):
    """The experiment, and how to start it.

    Args:
        fresh: delete the SAEs and results of an earlier run first.
    """

    fresh: bool = False


def run(options: CompareOptions) -> int:
    """Run the experiment and show the table of its report."""
    from rich.console import Console

    from saelens_adaptive_ortho.experiments.comparison import Comparison, run_together
    from saelens_adaptive_ortho.experiments.experiment import load_experiments
    from saelens_adaptive_ortho.report.statistics import summarise
    from saelens_adaptive_ortho.report.tables import terminal_table

    console = Console()
    experiments = load_experiments(options.config, options.set, compared=True)
    several = len(experiments) > 1
    comparisons = [Comparison(experiments[0], say=say)]
    if several:
        cache = Path(str(experiments[0].runner.output_path)).parent / "cache"
        comparisons = [
            Comparison(one, say=say, where=f"{one.runner.hook_name}. ", cache=cache)
            for one in experiments
        ]
    ok = True
    for one, results in zip(
        experiments, run_together(comparisons, fresh=options.fresh), strict=True
    ):
        if several:
            console.print(one.runner.hook_name)
        console.print(terminal_table(summarise(results)))
        ok &= all(r.ok for r in results)
    return 0 if ok else 1


COMMAND = Command(
    name="compare",
    help="Train, evaluate and report every variant of an experiment.",
    options=CompareOptions,
    run=run,
    resume="The same command continues.",
)
