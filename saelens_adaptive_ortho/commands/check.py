"""``adaptive-ortho check``: validate a config without training."""

from __future__ import annotations

from dataclasses import dataclass

from saelens_adaptive_ortho.commands.compare import ExperimentOptions
from saelens_adaptive_ortho.commands.options import Command, say


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ExperimentOptions):
    """The experiment, and the extent of the check.

    Local corpora are read to their end, which training may not do.

    Args:
        offline: check only the settings; open no corpora and no model.
    """

    offline: bool = False


def run(options: CheckOptions) -> int:
    """Read the config, and open the texts and the model that it names."""
    from saelens_adaptive_ortho.experiments.experiment import check_fits, load_experiments
    from saelens_adaptive_ortho.judging.running import check_evals_corpora, check_evals_runnable
    from saelens_adaptive_ortho.sweeps.axes import is_sweep_config
    from saelens_adaptive_ortho.sweeps.starting import check_sweep, open_sweep
    from saelens_adaptive_ortho.text.corpora import check_contexts, read_to_the_end
    from saelens_adaptive_ortho.training import runner
    from saelens_adaptive_ortho.training.store import StratifiedActivationsStore, rows_per_batch

    if is_sweep_config(options.config, options.set):
        opened = open_sweep(options.config, options.set)
        if not options.offline:
            check_sweep(opened)
        n, saes = len(opened.manifest.units), len(opened.manifest.points)
        opened_too = "Corpora and model were not opened." if options.offline else "Texts are there."
        say(f"{options.config}: {saes} SAEs in {n} units; all settings are valid. {opened_too}")
        return 0
    experiments = load_experiments(options.config, options.set)
    experiment = experiments[0]
    check_fits(experiments)
    if options.offline:
        say(
            f"{options.config}: settings are valid. Corpora and model were not opened, and their "
            "paths were not checked."
        )
        return 0
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
    say(f"{options.config}: ready to run.")
    return 0


COMMAND = Command(
    name="check",
    help="Validate a config: settings, folders, corpora, model; nothing is trained.",
    options=CheckOptions,
    run=run,
)
