"""``adaptive-ortho train``: train the one SAE of a config and export it."""

from __future__ import annotations

from saelens_adaptive_ortho.commands.compare import ExperimentOptions
from saelens_adaptive_ortho.commands.options import Command, say


def run(options: ExperimentOptions) -> int:
    """Train and export."""
    from saelens_adaptive_ortho.commands.experiment import load_experiment
    from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner

    cfg = load_experiment(options.config, options.set).runner
    runner = AdaptiveOrthoRunner(cfg)
    say(f"Training; {runner.placement()}")
    runner.run()
    say(f"Saved: {cfg.output_path}/sae")
    return 0


COMMAND = Command(
    name="train",
    help="Train the one SAE of a config and export it.",
    options=ExperimentOptions,
    run=run,
    resume="Continue with --set resume_from_checkpoint=FOLDER.",
)
