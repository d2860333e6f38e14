"""Config and runner of one training: subclasses of SAELens's own."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import wandb
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, __version__
from sae_lens.config import LoggingConfig
from sae_lens.constants import RUNNER_CFG_FILENAME, SPARSITY_FILENAME
from sae_lens.llm_sae_training_runner import LLMSaeEvaluator
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from safetensors.torch import save_file
from transformer_lens.HookedTransformer import HookedRootModule

from saelens_adaptive_ortho import data, models
from saelens_adaptive_ortho.config import reject
from saelens_adaptive_ortho.data import (
    DOMAINS,
    CorpusConfig,
    StratifiedActivationsStore,
    Tokenisation,
    TokenisedCorpus,
)
from saelens_adaptive_ortho.storage import atomic_directory, check_writable, write_json
from saelens_adaptive_ortho.training import LockstepTrainer

# Where a run writes, how it logs, where it computes: these do not change what is learned.
NOT_FINGERPRINTED = {
    "output_path",
    "checkpoint_path",
    "n_checkpoints",
    "save_final_checkpoint",
    "resume_from_checkpoint",
    "logger",
    "verbose",
    "device",
    "llm_device",
    "act_store_device",
    "prefetch_llm_batches",
    "n_eval_batches",
    "eval_batch_size_prompts",
    "sae_lens_version",
    "sae_lens_training_version",
    "ortho_log_every",
}

# Fields of the host that this runner would otherwise ignore: the only value it takes, and why.
UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "use_cached_activations": (False, "variants share one activation stream instead."),
    "use_chat_formatting": (False, "the corpora are plain text."),
    "activations_mixing_fraction": (
        0.5,
        "batches are shuffled within chunks of n_batches_in_buffer; raise that to mix more.",
    ),
    "compile_sae": (False, "use SAELens's own runner to train a compiled SAE."),
    "from_pretrained_path": (None, "continue a run by resume_from_checkpoint."),
    "save_final_checkpoint": (False, "the finished SAE is exported to output_path."),
}


@dataclass
class AdaptiveOrthoRunnerConfig(LanguageModelSAERunnerConfig[Any]):
    """SAELens's runner config, plus where the two corpora come from.

    Defaults that differ from the host's: nothing goes to W&B, remote code is never run, text is
    tokenised here, and the norm is estimated on 20 batches (not 1,000).

    Args:
        ortho_corpora: ``forget`` and ``retain`` (or ``retain`` alone), each a path or a mapping
            of :class:`~saelens_adaptive_ortho.data.CorpusConfig` fields. Empty: one corpus,
            ``dataset_path``, and no domains.
        ortho_forget_fraction: share of every batch that comes from the forget corpus.
        ortho_holdout_fraction: share of the documents kept out of training, for evaluation.
        ortho_holdout_contexts: at most so many held-out contexts per corpus.
        ortho_log_every: steps between rows of the training history.
        ortho_sparse_products: on a CPU, multiply with firing latents alone
            (:mod:`~saelens_adaptive_ortho.sparse`): equal up to rounding, and several times as fast
            for wide top-k SAEs. Off, a baseline is SAELens's own SAE to the bit.
    """

    dataset_trust_remote_code: bool = False
    is_dataset_tokenized: bool = False
    n_batches_for_norm_estimate: int = 20
    verbose: bool = False
    logger: LoggingConfig = field(default_factory=lambda: LoggingConfig(log_to_wandb=False))

    ortho_corpora: dict[str, Any] = field(default_factory=dict)
    ortho_forget_fraction: float = 0.5
    ortho_holdout_fraction: float = 0.05
    ortho_holdout_contexts: int = 512
    ortho_log_every: int = 50
    ortho_sparse_products: bool = True

    def __post_init__(self) -> None:
        checkpoint_path = self.checkpoint_path
        super().__post_init__()
        # The host appends a random id, so that no run would find its checkpoints again.
        self.checkpoint_path = checkpoint_path
        self._validate()
        self.sae.ortho_forget_rows = self._forget_rows()

    def corpora(self) -> dict[str, CorpusConfig]:
        """The corpora by domain; a single corpus is called ``corpus`` and has no domain."""
        if not self.ortho_corpora:
            return {"corpus": CorpusConfig.from_dict("dataset_path", self.dataset_path)}
        named = {
            domain: CorpusConfig.from_dict(f"ortho_corpora.{domain}", self.ortho_corpora[domain])
            for domain in DOMAINS
            if domain in self.ortho_corpora
        }
        return named if len(named) == 2 else {"corpus": next(iter(named.values()))}

    def corpus_field(self, domain: str) -> str:
        """Name of the config field a corpus comes from, for errors."""
        if not self.ortho_corpora:
            return "dataset_path"
        name = domain if domain in self.ortho_corpora else next(iter(self.ortho_corpora))
        return f"ortho_corpora.{name}"

    def _validate(self) -> None:
        for key, value in self.ortho_corpora.items():
            if key not in DOMAINS:
                raise reject(f"ortho_corpora.{key}", value, f"known corpora: {', '.join(DOMAINS)}.")
        if self.ortho_corpora and self.dataset_path:
            raise reject("dataset_path", self.dataset_path, "give it or ortho_corpora, not both.")
        if not self.ortho_corpora and not self.dataset_path:
            raise reject("dataset_path", "", "name a corpus here, or two in ortho_corpora.")
        self.corpora()
        for name, low, high in (
            ("ortho_forget_fraction", 0.0, 1.0),
            ("ortho_holdout_fraction", 0.0, 0.5),
        ):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not low < value <= high or value == 1:
                raise reject(name, value, f"must lie strictly between {low} and {high}.")
        for name in (
            "ortho_holdout_contexts",
            "ortho_log_every",
            "context_size",
            "training_tokens",
            "train_batch_size_tokens",
            "store_batch_size_prompts",
            "n_batches_in_buffer",
            "n_batches_for_norm_estimate",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise reject(name, value, "must be a positive whole number.")
        if self.context_size < 2:
            raise reject("context_size", self.context_size, "must be at least 2.")
        if not isinstance(self.lr, (int, float)) or not self.lr > 0:
            raise reject("lr", self.lr, "must be positive.")
        if self.training_tokens < self.train_batch_size_tokens:
            raise reject(
                "training_tokens",
                self.training_tokens,
                f"is less than one batch ({self.train_batch_size_tokens} tokens).",
            )
        for name, (only, why) in UNSUPPORTED.items():
            if getattr(self, name) != only:
                raise reject(name, getattr(self, name), f"not supported here: {why}")

    def _forget_rows(self) -> int:
        if not hasattr(self.sae, "ortho_mode"):
            raise reject(
                "sae.architecture",
                self.sae.architecture(),
                f"use adaptive_ortho_{self.sae.architecture()} with ortho_mode: off for the stock "
                "architecture (it is bit-identical).",
            )
        return data.forget_rows(self)

    def fingerprint(self, corpora: list[TokenisedCorpus]) -> str:
        """Digest of everything that decides what is learned: settings, seed, text."""
        settings = {k: v for k, v in self.settings().items() if k != "ortho_corpora"}
        digest = json.dumps([settings, [c.fingerprint for c in corpora]], sort_keys=True)
        return hashlib.sha256(digest.encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """The settings that decide what is learned, as plain JSON values."""
        plain = {k: v for k, v in self.to_dict().items() if k not in NOT_FINGERPRINTED}
        plain["sae"] = {k: v for k, v in plain["sae"].items() if k not in {"metadata", "device"}}
        plain["ortho_corpora"] = {k: asdict(v) for k, v in self.corpora().items()}
        return json.loads(json.dumps(plain, default=str))


class Prepared(NamedTuple):
    """A model and its tokenised corpora, checked against the config."""

    model: HookedRootModule
    corpora: list[TokenisedCorpus]


def check(cfg: AdaptiveOrthoRunnerConfig) -> None:
    """Everything that can be refused without loading the model: folders, corpora, model files.

    Raises:
        ConfigError: naming field, value and remedy.
    """
    if cfg.output_path is not None:
        check_writable("output_path", cfg.output_path)
    models.check_model(cfg.model_name)
    for domain, corpus in cfg.corpora().items():
        where = cfg.corpus_field(domain)
        if next(data.read_documents(corpus, where), None) is None:
            raise reject(f"{where}.path", corpus.path, "holds no text; a corpus needs documents.")


def prepare(
    cfg: AdaptiveOrthoRunnerConfig,
    cache_dir: Path | None = None,
    model: HookedRootModule | None = None,
) -> Prepared:
    """Load the model, check hook and width against it, tokenise the corpora.

    Raises:
        ConfigError: naming field, value and remedy.
    """
    check(cfg)
    if model is None:
        assert cfg.llm_device is not None
        model = models.load_language_model(
            cfg.model_name,
            cfg.llm_device,
            cfg.model_class_name,
            cfg.model_from_pretrained_kwargs,
            [cfg.hook_name],
        )
    models.check_hook(model, cfg.hook_name)
    models.check_d_in(model, cfg.hook_name, cfg.hook_head_index, cfg.sae.d_in)
    models.check_context_size(model, cfg.context_size)
    how = Tokenisation(
        cfg.context_size,
        cfg.prepend_bos,
        cfg.sequence_separator_token,
        cfg.disable_concat_sequences,
        cfg.ortho_holdout_fraction,
        cfg.ortho_holdout_contexts,
    )
    usable = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    corpora = cfg.corpora()
    shares = (
        [cfg.ortho_forget_fraction, 1 - cfg.ortho_forget_fraction] if len(corpora) == 2 else [1.0]
    )
    tokenised = [
        data.tokenise_corpus(
            corpus,
            domain,
            model.tokenizer,
            how,
            train_contexts=int(cfg.training_tokens * share / usable) + 1,
            cache_dir=cache_dir,
            where=cfg.corpus_field(domain),
        )
        for (domain, corpus), share in zip(corpora.items(), shares, strict=True)
    ]
    return Prepared(model, tokenised)


def build_sae(cfg: AdaptiveOrthoRunnerConfig) -> TrainingSAE[Any]:
    """A fresh SAE whose initial weights depend on ``cfg.seed`` alone; the global RNG is kept."""
    sae_cfg = deepcopy(cfg.sae)
    sae_cfg.device = cfg.device
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(cfg.seed)
        sae = get_sae_training_class(sae_cfg.architecture())[0](sae_cfg)
    metadata = sae.cfg.metadata
    metadata.dataset_path = cfg.dataset_path or {k: v.path for k, v in cfg.corpora().items()}
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
    # SAEBench passes these on beside a dtype of its own, so a dtype here would be given twice.
    metadata.model_from_pretrained_kwargs = {
        k: v
        for k, v in (cfg.model_from_pretrained_kwargs or {}).items()
        if k not in {"dtype", "torch_dtype", "center_writing_weights"}
    }
    return sae


class AdaptiveOrthoRunner(LanguageModelSAETrainingRunner):
    """SAELens's runner on domain-stratified batches, with checkpoints that resume to the bit.

    >>> AdaptiveOrthoRunner(cfg).run()  # doctest: +SKIP

    Args:
        cfg: the configuration.
        variants: several SAEs to train in lockstep on the one stream, as changes to ``cfg.sae``
            by name; by default the one SAE of ``cfg.sae``, named ``sae``.
        prepared: a model and corpora made by :func:`prepare`, to share between runners.
    """

    cfg: AdaptiveOrthoRunnerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        cfg: AdaptiveOrthoRunnerConfig,
        variants: dict[str, dict[str, Any]] | None = None,
        prepared: Prepared | None = None,
        on_log: Callable[[int, dict[str, dict[str, float]]], None] | None = None,
    ) -> None:
        # Not super().__init__: it would load the data set and ignore the corpora.
        self.cfg = cfg  # pyright: ignore[reportIncompatibleVariableOverride]
        cache = Path(cfg.output_path) / "cache" if cfg.output_path else None
        self.model, self.corpora = prepared or prepare(cfg, cache)
        self._compile_llm_if_needed()
        with _quiet_host():
            self.activations_store = StratifiedActivationsStore.build(
                self.model, cfg, self.corpora, cfg.seed
            )
        self.variants = {"sae": {}} if variants is None else variants
        self.configs = {name: with_sae(cfg, changes) for name, changes in self.variants.items()}
        self.saes = {name: build_sae(variant) for name, variant in self.configs.items()}
        self.sae = next(iter(self.saes.values()))
        self.evaluator = LLMSaeEvaluator(
            model=self.model,
            activations_store=self.activations_store,
            eval_batch_size_prompts=cfg.eval_batch_size_prompts,
            n_eval_batches=cfg.n_eval_batches,
            model_kwargs=cfg.model_kwargs,
        )
        checkpoints = Path(cfg.checkpoint_path) if cfg.checkpoint_path else None
        fingerprints = [c.fingerprint(self.corpora) for c in self.configs.values()]
        self.trainer = LockstepTrainer(
            cfg=cfg.to_sae_trainer_config(),
            saes=self.saes,
            store=self.activations_store,
            checkpoint_dir=checkpoints,
            fingerprint=hashlib.sha256("".join(fingerprints).encode()).hexdigest(),
            log_every=cfg.ortho_log_every,
            prefetch=int(cfg.prefetch_llm_batches),
            sparse_products=cfg.ortho_sparse_products,
            on_log=on_log or (self._log_to_wandb if cfg.logger.log_to_wandb else None),
        )

    def run(self) -> Any:
        """Train (from ``resume_from_checkpoint``, if set) and save what ``output_path`` asks for.

        Returns the one SAE named ``sae``, or else a dict of the variants. Each is exported to a
        folder of its name in ``output_path``.
        """
        if self.cfg.resume_from_checkpoint is not None:
            self.trainer.load_checkpoint(self.cfg.resume_from_checkpoint)
        logger = self.cfg.logger
        if logger.log_to_wandb:
            wandb.init(
                project=logger.wandb_project,
                entity=logger.wandb_entity,
                config=_plain(self.cfg.to_dict()),
                name=logger.run_name,
                id=logger.wandb_id,
            )
        self.trainer.fit()
        if logger.log_to_wandb:
            wandb.finish()
        if self.cfg.output_path is not None:
            for name in self.saes:
                self.export(name, Path(self.cfg.output_path) / name)
        return self.saes if set(self.saes) != {"sae"} else self.sae

    @staticmethod
    def _log_to_wandb(step: int, rows: dict[str, dict[str, float]]) -> None:
        wandb.log({f"{name}/{k}": v for name, row in rows.items() for k, v in row.items()}, step)

    def export(self, name: str, target: Path) -> Path:
        """Write an SAE that plain SAELens loads, whole or not at all.

        Raises:
            StorageError: it could not be written; an earlier export survives.
        """
        sae, trainer = self.saes[name], self.trainer.trainers[name]
        with atomic_directory(target, "The checkpoints are intact.") as temporary:
            sae.save_inference_model(temporary)
            save_file({"sparsity": trainer.log_feature_sparsity}, temporary / SPARSITY_FILENAME)
            write_json(temporary / RUNNER_CFG_FILENAME, _plain(self.configs[name].to_dict()))
        return target


def with_sae(cfg: AdaptiveOrthoRunnerConfig, changes: dict[str, Any]) -> AdaptiveOrthoRunnerConfig:
    """The same run with other SAE settings; ``architecture`` among them changes the class.

    Raises:
        ConfigError: an invalid value.
    """
    changed = dict(changes)
    current = {f.name: getattr(cfg.sae, f.name) for f in fields(cfg.sae) if f.init}
    architecture = changed.pop("architecture", cfg.sae.architecture())
    config_class = get_sae_training_class(architecture)[1]
    known = {f.name for f in fields(config_class)}
    merged = {k: deepcopy(v) for k, v in current.items() if k in known and k != "metadata"}
    return replace(cfg, sae=config_class(**{**merged, **changed}), logger=deepcopy(cfg.logger))


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from saelens_adaptive_ortho import __version__ as own

    return {"saelens-adaptive-ortho": own, "sae-lens": __version__, "torch": str(torch.__version__)}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


@contextmanager
def _quiet_host() -> Iterator[None]:
    """Hold back the host's warnings about an override data set: ours comes from the config."""
    logger = logging.getLogger("sae_lens")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
