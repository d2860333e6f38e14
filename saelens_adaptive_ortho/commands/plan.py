"""``adaptive-ortho plan``: what a comparison or a sweep will cost, before anything long starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    """Load model and text, time some steps, and print the costs.

    The costs of an SAE that is divided among processes are computed, and nothing is loaded.
    """
    from rich.console import Console

    from saelens_adaptive_ortho.errors import reject
    from saelens_adaptive_ortho.experiments.costs_in_words import TOPIC, described, together
    from saelens_adaptive_ortho.experiments.experiment import (
        check_fits,
        load_experiments,
        overridden_tree,
    )
    from saelens_adaptive_ortho.sweeps.axes import is_sweep_config
    from saelens_adaptive_ortho.sweeps.planning import plan_sweep
    from saelens_adaptive_ortho.training.costs import measure_costs
    from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, check_site, prepare
    from saelens_adaptive_ortho.training.sharded.ranks import world_size

    if options.steps < 1:
        raise reject("--steps", options.steps, "must be at least 1.")
    if (started := world_size()) > 1:
        raise reject("processes", started, "plan needs one. Start it without torchrun.")
    if Path(options.config).is_dir() or is_sweep_config(options.config, options.set):
        plan_sweep(options.config, options.set, options.steps, say, Console())
        return 0
    if overridden_tree(options.config, options.set)[0].get("ortho_shards", 1) != 1:
        return _plan_sharded(options)
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
            say(f"{name:<{TOPIC}}{text}")
    if len(costs) > 1:
        say(f"{'all hooks':<{TOPIC}}{together(experiments[0], costs)}")
    return 0


def _plan_sharded(options: PlanOptions) -> int:
    """Compute the costs of one SAE that ``train`` divides among processes."""
    from saelens_adaptive_ortho.errors import ConfigError
    from saelens_adaptive_ortho.experiments.costs_in_words import TOPIC, sharded_in_words
    from saelens_adaptive_ortho.experiments.experiment import load_experiment
    from saelens_adaptive_ortho.text.models import model_bytes
    from saelens_adaptive_ortho.training.sharded.costs import sharded_costs
    from saelens_adaptive_ortho.training.sharded.runner import check_sharded

    cfg = load_experiment(options.config, options.set).runner
    check_sharded(cfg)
    reason = "its parameters are not known"
    try:
        model = model_bytes(cfg.model_name, cfg.model_from_pretrained_kwargs)
    except ConfigError as error:  # such as a machine without the hub
        model, reason = None, str(error)
    for name, text in sharded_in_words(cfg, sharded_costs(cfg, model)).items():
        say(f"{name:<{TOPIC}}{text}")
    if model is None:
        say(f"{'not counted':<{TOPIC}}the language model, which every card has ({reason})")
    return 0


COMMAND = Command(
    name="plan",
    help="Say what a comparison or a sweep will cost: time, memory, disk. A few steps are timed.",
    options=PlanOptions,
    run=run,
)
