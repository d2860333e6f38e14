"""``adaptive-ortho demo``: the comparison of the demo, with the evaluations that can run here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from saelens_adaptive_ortho.commands import compare
from saelens_adaptive_ortho.commands.options import Command, say

CONFIG = "demo"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How to start the demo.

    Args:
        set: override a setting, e.g. --set output_path=elsewhere.
        fresh: delete the SAEs and results of an earlier demo first.
    """

    set: list[str] = field(default_factory=list, metadata={"metavar": "KEY=VALUE"})
    fresh: bool = False


def run(options: DemoOptions) -> int:
    """Run `compare demo` without the evaluations whose package is missing."""
    from saelens_adaptive_ortho.evaluations import evaluation
    from saelens_adaptive_ortho.experiments.experiment import load_experiment

    evals = load_experiment(CONFIG, options.set).evals
    missing = [name for name in evals if evaluation(name).lacks is not None]
    left_out: list[str] = []
    if missing:
        reason = f"Each {evaluation(missing[0]).lacks}. The same command adds them later."
        say(f"Left out: {', '.join(missing)}. {reason}")
        kept = {name: found for name, found in evals.items() if name not in missing}
        left_out = [f"evals={json.dumps(kept)}"]
    asked = compare.CompareOptions(
        config=CONFIG, set=[*options.set, *left_out], fresh=options.fresh
    )
    return compare.run(asked)


COMMAND = Command(
    name="demo",
    help="Compare three SAEs of an embedded model: offline, in minutes, into runs/demo.",
    options=DemoOptions,
    run=run,
    resume="The same command continues.",
)
