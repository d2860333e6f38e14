"""``adaptive-ortho train``: train the one SAE of a config and export it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from saelens_adaptive_ortho.commands.compare import ExperimentOptions
from saelens_adaptive_ortho.commands.options import Command, say

if TYPE_CHECKING:
    from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner
    from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig


def run(options: ExperimentOptions) -> int:
    """Train and export."""
    if os.environ.get("RANK", "0") != "0":
        os.environ["TQDM_DISABLE"] = "1"  # one of several processes shows progress
    from sae_lens.saes.sae import SAE

    from saelens_adaptive_ortho.errors import reject
    from saelens_adaptive_ortho.experiments.experiment import load_experiment
    from saelens_adaptive_ortho.experiments.health import health_of
    from saelens_adaptive_ortho.report.notes import concerns
    from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner
    from saelens_adaptive_ortho.training.sharded.runner import check_processes

    cfg = load_experiment(options.config, options.set).runner
    if cfg.output_path is None:
        raise reject("output_path", None, "the SAE would be lost. Name a folder to write it to.")
    check_processes(cfg.ortho_shards)
    if cfg.ortho_shards > 1:
        return _run_sharded(cfg)
    with _locks(cfg.output_path, cfg.checkpoint_path):
        runner = AdaptiveOrthoRunner(cfg)
        _train(runner, say)
        sae = SAE.load_from_disk(f"{cfg.output_path}/sae", cfg.device)
        for text in concerns({("sae", cfg.seed): health_of(runner, sae, "sae")}):
            say(f"Doubtful: {text}")
    say(f"Saved: {cfg.output_path}/sae")
    return 0


def _run_sharded(cfg: AdaptiveOrthoRunnerConfig) -> int:
    """Train one SAE with the other processes. The first of them reports, and holds the locks."""
    from saelens_adaptive_ortho.training.sharded.ranks import connected
    from saelens_adaptive_ortho.training.sharded.runner import ShardedRunner, check_sharded

    check_sharded(cfg)
    with connected(cfg.device) as ranks:
        first = ranks.rank == 0
        locks = _locks(cfg.output_path, cfg.checkpoint_path) if first else nullcontext()
        with locks:
            _train(ShardedRunner(cfg, ranks), say if first else lambda _: None)
            if first:
                say(f"Saved: {cfg.output_path}/sae")
    return 0


def _train(runner: AdaptiveOrthoRunner, tell: Callable[[str], None]) -> None:
    from saelens_adaptive_ortho.experiments.costs_in_words import taken_in_words
    from saelens_adaptive_ortho.training.costs import costs_taken

    tell(f"Training; {runner.placement()}")
    runner.run()
    tell(taken_in_words(costs_taken(runner.trainer)))


@contextmanager
def _locks(output_path: str | None, checkpoint_path: str | None) -> Iterator[None]:
    """Both folders, each locked once."""
    from saelens_adaptive_ortho.files import check_writable, new_folders_removed
    from saelens_adaptive_ortho.locks import run_lock

    fields = {"checkpoint_path": checkpoint_path, "output_path": output_path}
    folders = {Path(folder).resolve(): field for field, folder in fields.items() if folder}
    with ExitStack() as stack:
        stack.enter_context(new_folders_removed(folders))  # without checkpoints, none is left
        for folder, field in folders.items():
            check_writable(field, folder)
            stack.enter_context(run_lock(field, folder, "adaptive-ortho train"))
        yield


COMMAND = Command(
    name="train",
    help="Train the one SAE of a config and export it.",
    options=ExperimentOptions,
    run=run,
    resume="Continue with --set resume_from_checkpoint=FOLDER.",
)
