"""``adaptive-ortho plan``: what a comparison will cost, before anything long starts."""

from __future__ import annotations

from dataclasses import dataclass

from saelens_adaptive_ortho.commands.compare import ExperimentOptions
from saelens_adaptive_ortho.commands.options import Command, say


@dataclass(frozen=True, kw_only=True)
class PlanOptions(ExperimentOptions):
    """The experiment, and how long to measure.

    Args:
        steps: timed steps of each SAE.
    """

    steps: int = 20


def run(options: PlanOptions) -> int:
    """Load model and text, time some steps, and print the costs."""
    from saelens_adaptive_ortho.errors import reject
    from saelens_adaptive_ortho.experiments.costs_in_words import described, together
    from saelens_adaptive_ortho.experiments.experiment import check_fits, load_experiments
    from saelens_adaptive_ortho.training.costs import measure_costs
    from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, check_site, prepare

    if options.steps < 1:
        raise reject("--steps", options.steps, "must be at least 1.")
    experiments = load_experiments(options.config, options.set, compared=True)
    check_fits(experiments[:1])  # hooks are measured one after the other
    prepared = prepare(experiments[0].runner)
    for experiment in experiments[1:]:
        check_site(prepared.model, experiment.runner)
    costs = []
    for experiment in experiments:
        runner = AdaptiveOrthoRunner(experiment.runner, experiment.variants, prepared)
        say(f"{runner.placement()}; timing {options.steps} steps of {', '.join(runner.saes)} ...")
        costs.append(measure_costs(runner, options.steps))
        for name, text in described(experiment, costs[-1]).items():
            say(f"{name:<13}{text}")
    if len(costs) > 1:
        say(f"{'all hooks':<13}{together(experiments[0], costs)}")
    return 0


COMMAND = Command(
    name="plan",
    help="Say what a comparison will cost: time, memory, disk. Some steps are timed, none is kept.",
    options=PlanOptions,
    run=run,
)
