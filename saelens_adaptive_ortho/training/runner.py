"""The runner of one training: a subclass of SAELens's runner."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens import LanguageModelSAETrainingRunner
from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SPARSITY_FILENAME
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from safetensors.torch import save_file
from torch import Tensor, nn
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.devices import check_device, check_placed
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import (
    atomic_directory,
    check_writable,
    without_home,
    write_json,
)
from saelens_adaptive_ortho.text import mixture, models
from saelens_adaptive_ortho.text.activation_cache import check_cache_folder
from saelens_adaptive_ortho.text.corpora import (
    DOMAINS,
    Tokenisation,
    TokenisedCorpus,
    read_documents,
    read_tokens,
    tokenise_corpus,
)
from saelens_adaptive_ortho.text.shared_reads import SharedReads
from saelens_adaptive_ortho.training.lockstep import LockstepTrainer
from saelens_adaptive_ortho.training.memory import check_memory
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig, with_sae
from saelens_adaptive_ortho.training.store import StratifiedActivationsStore
from saelens_adaptive_ortho.training.tracking import TrackedRun, check_tracking

EXPORT_SURVIVES = "The checkpoints are intact."


class Prepared(NamedTuple):
    """A model and its tokenised corpora, checked against the config."""

    model: HookedRootModule
    corpora: list[TokenisedCorpus]


def check(cfg: AdaptiveOrthoRunnerConfig) -> None:
    """Check folders, corpora and model files without loading the model.

    Raises:
        ConfigError: a setting cannot work. The message names field, value and remedy.
    """
    if cfg.output_path is not None:
        check_writable("output_path", cfg.output_path)
    for field in ("device", "llm_device", "act_store_device"):
        if getattr(cfg, field) not in (None, "with_model"):
            check_device(field, getattr(cfg, field))
    check_tracking(cfg.logger)
    if cfg.ortho_cache_activations:
        check_cache_folder()
    models.check_model(cfg.model_name)
    for domain, corpus in cfg.corpora().items():
        where = cfg.corpus_field(domain)
        read = read_documents if corpus.tokens_field is None else read_tokens
        if next(read(corpus, where), None) is None:
            raise reject(f"{where}.path", corpus.path, "holds no text; a corpus needs documents.")


def prepare(
    cfg: AdaptiveOrthoRunnerConfig,
    cache_dir: Path | None = None,
    model: HookedRootModule | None = None,
    hook_names: Sequence[str] = (),
) -> Prepared:
    """Load the model, check hook and ``d_in`` against it, and tokenise the corpora.

    Args:
        cfg: the configuration.
        cache_dir: folder of the tokenised corpora; None for none.
        model: the model, if it is loaded already.
        hook_names: all hooks that the model will be read at, if there are more than one.

    Raises:
        ConfigError: a setting cannot work. The message names field, value and remedy.
    """
    check(cfg)
    if model is None:
        assert cfg.llm_device is not None
        model = models.load_language_model(
            cfg.model_name,
            cfg.llm_device,
            cfg.model_class_name,
            cfg.model_from_pretrained_kwargs,
            list(hook_names) or [cfg.hook_name],
        )
    if isinstance(model, nn.Module):
        check_placed("the language model", model, "llm_device", str(cfg.llm_device))
    check_site(model, cfg)
    models.check_context_size(model, cfg.context_size)
    how = tokenisation(cfg)
    usable = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    corpora = cfg.corpora()
    shares = mixture.shares(corpora)
    tokenised = []
    for name, corpus in corpora.items():
        share = shares[name]
        if len(corpora) > 1:
            forgets = name == mixture.FORGET
            share *= cfg.ortho_forget_fraction if forgets else 1 - cfg.ortho_forget_fraction
        n_contexts = int(cfg.training_tokens * share / usable) + 1
        if name not in (*DOMAINS, mixture.ONLY):
            # A corpus with a small share, or with none, still needs enough text to be judged on.
            n_contexts = max(n_contexts, mixture.TRAIN_CONTEXTS)
        found = tokenise_corpus(
            corpus,
            name,
            model.tokenizer,
            how,
            train_contexts=n_contexts,
            cache_dir=cache_dir,
            where=cfg.corpus_field(name),
        )
        tokenised.append(replace(found, share=shares[name]))
    mixture.check_distinct(tokenised, corpora, cfg.corpus_field)
    return Prepared(model, tokenised)


def tokenisation(cfg: AdaptiveOrthoRunnerConfig) -> Tokenisation:
    """How the corpora of a run become contexts."""
    return Tokenisation(
        cfg.context_size,
        cfg.prepend_bos,
        cfg.sequence_separator_token,
        cfg.disable_concat_sequences,
        cfg.ortho_holdout_fraction,
        cfg.ortho_holdout_contexts,
    )


def check_site(model: HookedRootModule, cfg: AdaptiveOrthoRunnerConfig) -> None:
    """Refuse a hook that the model does not have, or another width than its own.

    Raises:
        ConfigError: see :func:`~saelens_adaptive_ortho.text.models.check_hook`.
    """
    models.check_hook(model, cfg.hook_name)
    models.check_d_in(model, cfg.hook_name, cfg.hook_head_index, cfg.sae.d_in, cfg.model_kwargs)
    excluded = cfg.exclude_special_tokens
    ids = {"exclude_special_tokens": excluded if isinstance(excluded, list) else []}
    if isinstance(cfg.sequence_separator_token, int):
        ids["sequence_separator_token"] = [cfg.sequence_separator_token]
    models.check_token_ids(model, ids)


def build_sae(cfg: AdaptiveOrthoRunnerConfig) -> TrainingSAE[Any]:
    """A new SAE whose initial weights depend only on ``cfg.seed``; the global RNG is restored."""
    sae_cfg = deepcopy(cfg.sae)
    sae_cfg.device = cfg.device
    return with_metadata(
        seeded(cfg.seed, lambda: get_sae_training_class(sae_cfg.architecture())[0](sae_cfg)), cfg
    )


def seeded(seed: int, build: Callable[[], TrainingSAE[Any]]) -> TrainingSAE[Any]:
    """The SAE that a function builds, drawn from a seed; the global RNG is restored."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return build()


def with_metadata(sae: TrainingSAE[Any], cfg: AdaptiveOrthoRunnerConfig) -> TrainingSAE[Any]:
    """The SAE, whose metadata now name the model, the hook and the text of a run."""
    metadata = sae.cfg.metadata
    metadata.dataset_path = cfg.dataset_path or {
        name: corpus.path for name, corpus in mixture.trained(cfg.corpora()).items()
    }
    for name in (
        "hook_name",
        "model_class_name",
        "hook_head_index",
        "context_size",
        "seqpos_slice",
        "prepend_bos",
        "exclude_special_tokens",
        "sequence_separator_token",
        "disable_concat_sequences",
    ):
        metadata[name] = getattr(cfg, name)
    metadata.model_name = cfg.model_name
    # SAEBench passes these on together with its own dtype, so a dtype here would be given twice.
    metadata.model_from_pretrained_kwargs = {
        k: v
        for k, v in (cfg.model_from_pretrained_kwargs or {}).items()
        if k not in {"dtype", "torch_dtype", "center_writing_weights"}
    }
    return sae


class AdaptiveOrthoRunner(LanguageModelSAETrainingRunner):
    """SAELens's runner on domain-stratified batches, with bit-identical resuming.

    >>> AdaptiveOrthoRunner(cfg).run()  # doctest: +SKIP

    Args:
        cfg: the configuration.
        variants: SAEs that are trained in lockstep on one activation stream: changes to
            ``cfg.sae`` by name. By default there is one SAE, ``cfg.sae``, named ``sae``.
        prepared: model and corpora from :func:`prepare`, to share them between runners.
        reads: the same model, if runners of several hooks read it together.
        on_log: function that is called with ``(step, {name: row})`` for each row of the history.
    """

    cfg: AdaptiveOrthoRunnerConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    sharded = False  # whether the SAE is divided among several processes

    def __init__(
        self,
        cfg: AdaptiveOrthoRunnerConfig,
        variants: dict[str, dict[str, Any]] | None = None,
        prepared: Prepared | None = None,
        reads: SharedReads | None = None,
        on_log: Callable[[int, dict[str, dict[str, float]]], None] | None = None,
    ) -> None:
        if cfg.ortho_shards > 1 and not self.sharded:
            rule = "only `adaptive-ortho train` divides an SAE, under torchrun. Leave it out."
            raise reject("ortho_shards", cfg.ortho_shards, rule)
        # super().__init__ is not called: it would load the data set and ignore the corpora.
        self.cfg = cfg  # pyright: ignore[reportIncompatibleVariableOverride]
        cache = Path(cfg.output_path) / "cache" if cfg.output_path else None
        self.model, self.corpora = prepared or prepare(cfg, cache)
        self.weights = models.weights_digest(self.model)
        self._compile_llm_if_needed()
        with _quiet_host():
            self.activations_store = self._build_store(reads)
        self.variants = {"sae": {}} if variants is None else variants
        self.configs = {name: with_sae(cfg, changes) for name, changes in self.variants.items()}
        check_memory(list(self.configs.values()))
        self.saes = {name: self._build_sae(variant) for name, variant in self.configs.items()}
        self.sae = next(iter(self.saes.values()))
        checkpoints = Path(cfg.checkpoint_path) if cfg.checkpoint_path else None
        fingerprints = [c.fingerprint(self.corpora) for c in self.configs.values()]
        self.trainer = self._build_trainer(
            cfg=cfg.to_sae_trainer_config(),
            saes=self.saes,
            store=self.activations_store,
            checkpoint_dir=checkpoints,
            fingerprint=hashlib.sha256("".join(fingerprints).encode()).hexdigest(),
            weights=self.weights,
            checkpoint_every_minutes=cfg.checkpoint_every_minutes,
            log_every=cfg.ortho_log_every,
            prefetch=int(cfg.prefetch_llm_batches),
            sparse_products=cfg.ortho_sparse_products,
            b_dec_at_mean=cfg.ortho_b_dec_init == "mean",
            on_log=on_log,
        )

    def _build_store(self, reads: SharedReads | None) -> StratifiedActivationsStore:
        args = self.model, self.cfg, self.corpora, self.cfg.seed, reads
        return StratifiedActivationsStore.build(*args)

    def _build_sae(self, cfg: AdaptiveOrthoRunnerConfig) -> TrainingSAE[Any]:
        return build_sae(cfg)

    def _build_trainer(self, **settings: Any) -> LockstepTrainer:
        return LockstepTrainer(**settings)

    def placement(self) -> str:
        """Where the model, the SAEs and the batches are, and in which dtype, as one sentence."""
        places = {"language model": next(self.model.parameters()), "SAEs": self.sae.W_dec}
        parts = [f"{what} on {t.device} ({_short(t.dtype)})" for what, t in places.items()]
        store = self.activations_store
        return ", ".join([*parts, f"batches on {store.device} ({_short(store.dtype)})"])

    def run(self) -> Any:
        """Train, starting from ``resume_from_checkpoint`` if set, and export the SAEs.

        Returns the SAE if it is the only one and named ``sae``; otherwise a dict of the variants.
        Each SAE is exported to a folder with its name in ``output_path``, if that is set. With
        ``logger.log_to_wandb`` there is one W&B run; the names of its curves begin with the name of
        the SAE.
        """
        if self.cfg.resume_from_checkpoint is not None:
            self.trainer.load_checkpoint(self.cfg.resume_from_checkpoint)
        with self._tracked():
            self.trainer.fit()
        if self.cfg.output_path is not None:
            for name in self.saes:
                self.export(name, Path(self.cfg.output_path) / name)
        return self.saes if set(self.saes) != {"sae"} else self.sae

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        logger, folder = self.cfg.logger, self.cfg.output_path
        if not logger.log_to_wandb:
            yield
            return
        with TrackedRun(
            logger,
            logger.run_name,
            _plain(self.cfg.to_dict()),
            folder=Path(folder) if folder else None,
            id=logger.wandb_id,
        ) as run:
            other = self.trainer.on_log

            def log(step: int, rows: dict[str, dict[str, float]]) -> None:
                run.log(step, {f"{n}/{k}": v for n, row in rows.items() for k, v in row.items()})
                if other is not None:
                    other(step, rows)

            self.trainer.on_log = log
            yield

    def export(
        self, name: str, target: Path, also: Mapping[str, dict[str, Any]] | None = None
    ) -> Path:
        """Write atomically an SAE that SAELens can load without this package.

        The paths in its settings are written with ``~`` for the home folder. The folder has the
        SHA-256 sums of its files. Files of somebody else in an earlier folder stay.

        Args:
            name: name of the SAE.
            target: the folder.
            also: further JSON files in the folder, by name.

        Raises:
            StorageError: the SAE could not be written. An earlier export survives.
        """
        sae, trainer = self.saes[name], self.trainer.trainers[name]
        with atomic_directory(target, EXPORT_SURVIVES, sums=True, keep_others=True) as temporary:
            sae.save_inference_model(temporary)
            self._describe(name, temporary, trainer.log_feature_sparsity, also)
        return target

    def _describe(
        self, name: str, folder: Path, sparsity: Tensor, also: Mapping[str, dict[str, Any]] | None
    ) -> None:
        """Write what an export has beside weights and config."""
        _rewrite_without_home(folder / SAE_CFG_FILENAME)
        save_file({"sparsity": sparsity}, folder / SPARSITY_FILENAME)
        settings = without_home(_plain(self.configs[name].to_dict()))
        for file, content in {RUNNER_CFG_FILENAME: settings, **(also or {})}.items():
            write_json(folder / file, content)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rewrite_without_home(path: Path) -> None:
    """Write the settings of an SAE again if they name the home folder."""
    text = path.read_text(encoding="utf-8")
    settings = json.loads(text)
    if (hidden := without_home(settings)) != settings:
        path.write_text(json.dumps(hidden), encoding="utf-8")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


@contextmanager
def _quiet_host() -> Iterator[None]:
    """Suppress SAELens's warnings about an override data set: ours comes from the config."""
    logger = logging.getLogger("sae_lens")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
