"""``adaptive-ortho check``: validate a config without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saelens_adaptive_ortho.commands.compare import ExperimentOptions
from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.report.formatting import counted

if TYPE_CHECKING:
    from saelens_adaptive_ortho.experiments.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ExperimentOptions):
    """The experiment, and the extent of the check.

    Local corpora are read to their end, which training may not do.

    Args:
        offline: check only the settings; open no corpora and no model.
    """

    offline: bool = False


def run(options: CheckOptions) -> int:
    """Read the config, and open the texts and the model that it names. No new folder is left."""
    from saelens_adaptive_ortho.files import new_folders_removed
    from saelens_adaptive_ortho.sweeps.axes import is_sweep_config
    from saelens_adaptive_ortho.sweeps.starting import by_text, check_sweep, open_sweep
    from saelens_adaptive_ortho.text.activation_cache import cache_root

    if is_sweep_config(options.config, options.set):
        opened = open_sweep(options.config, options.set)
        if not options.offline:
            with new_folders_removed([cache_root()]):
                for group in by_text(check_sweep(opened)):
                    _open(group)
        n, saes = counted(len(opened.manifest.units), "unit"), len(opened.manifest.points)
        opened_too = "Corpora and model were not opened." if options.offline else ""
        say(
            f"{options.config}: {counted(saes, 'SAE')} in {n}; "
            + (f"all settings are valid. {opened_too}" if options.offline else "ready to run.")
        )
        return 0
    experiments = _experiments(options)
    if options.offline:
        say(
            f"{options.config}: settings are valid. Corpora and model were not opened, and their "
            "paths were not checked."
        )
        return 0
    outputs = [Path(path) for one in experiments if (path := one.runner.output_path)]
    with new_folders_removed([*outputs, cache_root()]):
        _open(experiments)
    say(f"{options.config}: ready to run.")
    return 0


def _experiments(options: CheckOptions) -> list[Experiment]:
    """The experiment at each hook, refused if ``compare`` (or ``train``) would refuse it.

    A config that divides its SAE among processes is one for ``train``. So is one without variants,
    seeds and evaluations; then fields count that only ``train`` has.
    """
    from saelens_adaptive_ortho.experiments.experiment import (
        EXPERIMENT_KEYS,
        check_fits,
        load_experiment,
        load_experiments,
        overridden_tree,
    )
    from saelens_adaptive_ortho.training.memory import check_memory
    from saelens_adaptive_ortho.training.sharded.runner import check_sharded

    tree = overridden_tree(options.config, options.set)[0]
    if tree.get("ortho_shards", 1) != 1:
        experiment = load_experiment(options.config, options.set)
        check_sharded(experiment.runner)
        check_memory([experiment.runner])
        return [experiment]
    compared = any(key in tree for key in EXPERIMENT_KEYS)
    experiments = load_experiments(options.config, options.set, compared)
    check_fits(experiments)
    return experiments


def _open(experiments: Sequence[Experiment]) -> None:
    """Open texts and model, and say what they are."""
    from saelens_adaptive_ortho.judging.running import check_evals_corpora, check_evals_runnable
    from saelens_adaptive_ortho.text.corpora import check_contexts, read_to_the_end
    from saelens_adaptive_ortho.training import runner
    from saelens_adaptive_ortho.training.store import StratifiedActivationsStore, rows_per_batch

    experiment = experiments[0]
    cfg = experiment.runner
    check_evals_runnable(experiment.evals)
    runner.check(cfg)
    for name, corpus in cfg.corpora().items():
        read_to_the_end(corpus, cfg.corpus_field(name))
    prepared = runner.prepare(cfg)
    for other in experiments[1:]:
        runner.check_site(prepared.model, other.runner)
    for name, corpus in cfg.corpora().items():
        if corpus.tokens_field is not None:
            how = runner.tokenisation(cfg)
            check_contexts(corpus, prepared.model.tokenizer, how, cfg.corpus_field(name))
    store = StratifiedActivationsStore.build(prepared.model, cfg, prepared.corpora, cfg.seed)
    epochs = store.epochs(-(-cfg.training_tokens // cfg.train_batch_size_tokens))
    rows = dict(zip(epochs, rows_per_batch(cfg), strict=True))
    for corpus in prepared.corpora:
        name = corpus.domain
        use = "only evaluated"
        if name in rows:
            use = f"{rows[name]} rows of each batch, {epochs[name]:.3g} epochs"
        say(
            f"{name}: {len(corpus.train)} training and {len(corpus.held_out)} held-out contexts of "
            f"{cfg.context_size} tokens ({corpus.train.numel():,} and {corpus.held_out.numel():,} "
            f"tokens); {use}"
        )
    check_evals_corpora(experiment.evals, prepared.corpora)
    stores = {cfg.hook_name: store}
    for other in (one.runner for one in experiments[1:]):
        stores[other.hook_name] = StratifiedActivationsStore.build(
            prepared.model, other, prepared.corpora, other.seed
        )
    for hook, store in stores.items():
        if store.cached:
            size, folder = store.cache_size(), store.cached[0].folder
            say(
                f"cached activations at {hook}: {size.total / 1e9:.3g} GB in {folder}, of which "
                f"{size.missing / 1e9:.3g} GB are not there yet; delete the folder to free the "
                "space"
            )


COMMAND = Command(
    name="check",
    help="Validate a config: settings, folders, corpora, model; nothing is trained.",
    options=CheckOptions,
    run=run,
)
