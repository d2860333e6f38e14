"""``adaptive-ortho train``: train the one SAE of a config and export it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from saelens_adaptive_ortho.commands.compare import ExperimentOptions
from saelens_adaptive_ortho.commands.options import Command, say


def run(options: ExperimentOptions) -> int:
    """Train and export."""
    from sae_lens.saes.sae import SAE

    from saelens_adaptive_ortho.errors import reject
    from saelens_adaptive_ortho.experiments.costs_in_words import taken_in_words
    from saelens_adaptive_ortho.experiments.experiment import load_experiment
    from saelens_adaptive_ortho.experiments.health import health_of
    from saelens_adaptive_ortho.report.notes import concerns
    from saelens_adaptive_ortho.training.costs import costs_taken
    from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner

    cfg = load_experiment(options.config, options.set).runner
    if cfg.output_path is None:
        raise reject("output_path", None, "the SAE would be lost. Name a folder to write it to.")
    with _locks(cfg.output_path, cfg.checkpoint_path):
        runner = AdaptiveOrthoRunner(cfg)
        say(f"Training; {runner.placement()}")
        runner.run()
        say(taken_in_words(costs_taken(runner.trainer)))
        sae = SAE.load_from_disk(f"{cfg.output_path}/sae", cfg.device)
        for text in concerns({("sae", cfg.seed): health_of(runner, sae, "sae")}):
            say(f"Doubtful: {text}")
    say(f"Saved: {cfg.output_path}/sae")
    return 0


@contextmanager
def _locks(output_path: str | None, checkpoint_path: str | None) -> Iterator[None]:
    """Both folders, each locked once."""
    from saelens_adaptive_ortho.files import check_writable
    from saelens_adaptive_ortho.locks import run_lock

    fields = {"checkpoint_path": checkpoint_path, "output_path": output_path}
    folders = {Path(folder).resolve(): field for field, folder in fields.items() if folder}
    with ExitStack() as stack:
        for folder, field in folders.items():
            if not folder.exists():  # without checkpoints, none is left
                stack.callback(_remove_empty, folder)
            check_writable(field, folder)
            stack.enter_context(run_lock(field, folder, "adaptive-ortho train"))
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


COMMAND = Command(
    name="train",
    help="Train the one SAE of a config and export it.",
    options=ExperimentOptions,
    run=run,
    resume="Continue with --set resume_from_checkpoint=FOLDER.",
)
