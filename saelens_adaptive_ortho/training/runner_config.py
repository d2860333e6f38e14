"""The runner's configuration: SAELens's configuration with a forget corpus and retain corpora."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, Optional, Union

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.config import LoggingConfig
from sae_lens.registry import get_sae_training_class

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import refuse_url, user_path
from saelens_adaptive_ortho.host.config import without_defaults_added_later
from saelens_adaptive_ortho.settings import Dtype, Seed, check_values
from saelens_adaptive_ortho.text import mixture
from saelens_adaptive_ortho.text.corpora import CorpusConfig, TokenisedCorpus, single_corpus
from saelens_adaptive_ortho.training import store
from saelens_adaptive_ortho.training.host_fields import check_host_fields

# Fields for output, logging and devices. They do not change what is learned.
NOT_FINGERPRINTED = {
    "output_path",
    "checkpoint_path",
    "n_checkpoints",
    "checkpoint_every_minutes",
    "save_final_checkpoint",
    "resume_from_checkpoint",
    "logger",
    "verbose",
    "device",
    "llm_device",
    "act_store_device",
    "prefetch_llm_batches",
    "n_eval_batches",  # these two are refused, but older digests leave them out
    "eval_batch_size_prompts",
    "sae_lens_version",
    "sae_lens_training_version",
    "ortho_log_every",
    "ortho_cache_activations",
    "ortho_shards",
}

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Momentum = Annotated[float, Field(ge=0, lt=1)]

# Bounds of SAELens's own fields of a runner config. The largest numbers of contexts and batches are
# beyond any memory, so that a slip of the finger does not run for years.
RUNNER_FIELDS: dict[str, Any] = {
    "context_size": Annotated[int, Field(ge=2, le=2**24)],
    "seqpos_slice": tuple[Annotated[int, Field(gt=-(2**31), lt=2**31)] | None, ...],
    "training_tokens": PositiveInt,
    "train_batch_size_tokens": PositiveInt,
    "store_batch_size_prompts": Annotated[int, Field(ge=1, le=2**20)],
    "n_batches_in_buffer": Annotated[int, Field(ge=1, le=2**20)],
    "n_batches_for_norm_estimate": Annotated[int, Field(ge=1, le=100_000)],
    "sequence_separator_token": Union[TokenId, Literal["bos", "eos", "sep"], None],  # noqa: UP007
    "exclude_special_tokens": bool | list[TokenId],
    "lr": PositiveFloat,
    "lr_end": Optional[NonNegativeFloat],  # noqa: UP045  an Annotated takes no |
    "lr_scheduler_name": Literal["constant", "cosineannealing", "cosineannealingwarmrestarts"],
    "lr_warm_up_steps": NonNegativeInt,
    "lr_decay_steps": NonNegativeInt,
    "n_restart_cycles": PositiveInt,
    "adam_beta1": Momentum,
    "adam_beta2": Momentum,
    "dead_feature_window": PositiveInt,
    "feature_sampling_window": PositiveInt,
    "n_checkpoints": NonNegativeInt,
    "llm_compilation_mode": Literal[
        "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ]
    | None,
    "seed": Seed,
    "dtype": Dtype,
}


@dataclass
class AdaptiveOrthoRunnerConfig(LanguageModelSAERunnerConfig[Any]):
    """SAELens's runner config with fields for the corpora.

    Some defaults differ from SAELens's: nothing is logged to W&B, remote code is never run, text is
    tokenised here, and the norm is estimated on 20 batches (not 1,000).

    Args:
        checkpoint_every_minutes: save a checkpoint whenever the newest one is this old, beside the
            ``n_checkpoints`` at fixed steps. It changes nothing that is learned.
        ortho_corpora: ``forget`` and ``retain`` (or only ``retain``), each a path or a mapping of
            :class:`~saelens_adaptive_ortho.text.corpora.CorpusConfig` fields. Beside both there may
            be ``forget_test`` and named retain corpora with a ``share``
            (:mod:`~saelens_adaptive_ortho.text.mixture`). If it is empty, there is one corpus,
            ``dataset_path``, and there are no domains.
        ortho_forget_fraction: share of every batch that comes from the forget corpus.
        ortho_holdout_fraction: share of the documents that are held out for evaluation.
        ortho_holdout_contexts: largest number of held-out contexts per corpus.
        ortho_log_every: steps between rows of the training history.
        ortho_sparse_products: on a CPU, compute products over the firing latents only
            (:mod:`~saelens_adaptive_ortho.maths.sparse`). Results are equal up to rounding, and
            wide top-k SAEs train several times as fast. If it is off, a baseline is bit-identical
            to SAELens's own SAE.
        ortho_cache_activations: keep the activations of the training text on disk, in the user's
            cache folder, for all runs on the same text with the same model and hook
            (:mod:`~saelens_adaptive_ortho.text.activation_cache`). Nothing
            is lost; batches are the same up to the rounding of the model.
        ortho_b_dec_init: ``zeros`` as in SAELens, or ``mean``: ``b_dec`` starts at the mean of the
            batches that also estimate the norm (``n_batches_for_norm_estimate``). Large language
            models have a few dimensions with a mean far from zero. In a short run, ``b_dec`` does
            not get there, and latents spend themselves on the mean.
        ortho_shards: number of processes that hold one SAE together, each a part of its latents.
            ``torchrun --nproc-per-node N -m saelens_adaptive_ortho train`` starts them. Results are
            equal up to rounding.
    """

    dataset_trust_remote_code: bool = False
    is_dataset_tokenized: bool = False
    n_batches_for_norm_estimate: int = 20
    verbose: bool = False
    logger: LoggingConfig = field(default_factory=lambda: LoggingConfig(log_to_wandb=False))

    checkpoint_every_minutes: PositiveFloat | None = None
    ortho_corpora: dict[str, Any] = field(default_factory=dict)
    ortho_forget_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    ortho_holdout_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    ortho_holdout_contexts: PositiveInt = 512
    ortho_log_every: PositiveInt = 50
    ortho_sparse_products: bool = True
    ortho_cache_activations: bool = False
    ortho_b_dec_init: Literal["zeros", "mean"] = "zeros"
    ortho_shards: PositiveInt = 1

    def __post_init__(self) -> None:
        checkpoint_path = self.checkpoint_path
        super().__post_init__()
        # SAELens appends a random id, and then no run could find its checkpoints again.
        self.checkpoint_path = checkpoint_path
        if self.output_path is not None and self.output_path.startswith("~"):
            self.output_path = str(user_path(self.output_path))
        self._validate()
        self.sae.ortho_forget_rows = self._forget_rows()

    def corpora(self) -> dict[str, CorpusConfig]:
        """The corpora by name: forget, retain, the named retain corpora, forget_test.

        A single corpus has the name ``corpus`` and no domain.
        """
        if not self.ortho_corpora:
            return {mixture.ONLY: single_corpus(self.dataset_path, self.is_dataset_tokenized)}
        return mixture.arrange(self.ortho_corpora, "ortho_corpora.{}".format)

    def corpus_field(self, domain: str) -> str:
        """Name of the config field that defines a corpus, for errors."""
        if not self.ortho_corpora:
            return "dataset_path"
        name = domain if domain in self.ortho_corpora else next(iter(self.ortho_corpora))
        return f"ortho_corpora.{name}"

    def _validate(self) -> None:
        ortho_fields = [f.name for f in fields(self) if f.name.startswith("ortho_")]
        ours = ["checkpoint_every_minutes", *ortho_fields]
        values = {name: getattr(self, name) for name in [*ours, *RUNNER_FIELDS]}
        check_values(values, type(self), also=RUNNER_FIELDS)
        if self.ortho_corpora and self.dataset_path:
            raise reject("dataset_path", self.dataset_path, "give it or ortho_corpora, not both.")
        if not self.ortho_corpora and not self.dataset_path:
            raise reject("dataset_path", "", "name a corpus here, or two in ortho_corpora.")
        if self.ortho_corpora and self.is_dataset_tokenized:
            rule = "name the column of token ids in `tokens_field` of each corpus instead."
            raise reject("is_dataset_tokenized", True, rule)
        self.corpora()
        if self.output_path == "":
            raise reject("output_path", "", "name a folder, or null for none.")
        for name in ("output_path", "checkpoint_path"):
            refuse_url(name, getattr(self, name) or "")
        self._validate_schedule()
        if self.training_tokens < self.train_batch_size_tokens:
            raise reject(
                "training_tokens",
                self.training_tokens,
                f"is less than one batch ({self.train_batch_size_tokens} tokens).",
            )
        check_host_fields(self)

    def _validate_schedule(self) -> None:
        """Refuse more restarts of the learning rate than there are steps for them."""
        if self.lr_scheduler_name == "constant":
            return
        steps = -(-self.training_tokens // self.train_batch_size_tokens)
        left = steps - self.lr_warm_up_steps - self.lr_decay_steps
        if left < self.n_restart_cycles:
            rule = (
                f"{self.lr_scheduler_name} needs as many steps beside lr_warm_up_steps and "
                f"lr_decay_steps; of {steps} steps, {max(left, 0)} are left."
            )
            raise reject("n_restart_cycles", self.n_restart_cycles, rule)

    def _forget_rows(self) -> int:
        if not hasattr(self.sae, "ortho_mode"):
            raise reject(
                "sae.architecture",
                self.sae.architecture(),
                f"use adaptive_ortho_{self.sae.architecture()} with ortho_mode: off for the stock "
                "architecture (it is bit-identical).",
            )
        first, *others = store.rows_per_batch(self)
        return first if others else 0

    def fingerprint(self, corpora: list[TokenisedCorpus]) -> str:
        """Digest of everything that decides what is learned: settings, seed, text, and shares.

        Corpora that are only evaluated do not count.
        """
        settings = {k: v for k, v in self.settings().items() if k != "ortho_corpora"}
        trained = [c for c in corpora if c.share > 0]
        parts: list[Any] = [settings, [c.fingerprint for c in trained]]
        if len(trained) > 2:  # so the digest is the old one without named retain corpora
            parts.append([c.share for c in trained])
        digest = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(digest.encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """The settings that decide what is learned, as plain JSON values."""
        plain = {k: v for k, v in self.to_dict().items() if k not in NOT_FINGERPRINTED}
        plain["sae"] = {k: v for k, v in plain["sae"].items() if k not in {"metadata", "device"}}
        plain["sae"] = without_defaults_added_later(plain["sae"])
        if self.ortho_b_dec_init == "zeros":  # added later; older digests do not change
            del plain["ortho_b_dec_init"]
        plain["ortho_corpora"] = {
            name: corpus.settings() for name, corpus in mixture.trained(self.corpora()).items()
        }
        return json.loads(json.dumps(plain, default=str))


def with_sae(cfg: AdaptiveOrthoRunnerConfig, changes: dict[str, Any]) -> AdaptiveOrthoRunnerConfig:
    """The same run config with other SAE settings. ``architecture`` changes the config class.

    ``ortho_settings`` belong to one penalty, so a config with another ``ortho_mode`` starts without
    them.

    Raises:
        ConfigError: a value is invalid.
    """
    changed = dict(changes)
    current = {f.name: getattr(cfg.sae, f.name) for f in fields(cfg.sae) if f.init}
    architecture = changed.pop("architecture", cfg.sae.architecture())
    config_class = get_sae_training_class(architecture)[1]
    known = {f.name for f in fields(config_class)}
    merged = {k: deepcopy(v) for k, v in current.items() if k in known and k != "metadata"}
    if changed.get("ortho_mode", merged.get("ortho_mode")) != merged.get("ortho_mode"):
        merged.pop("ortho_settings", None)
    return replace(cfg, sae=config_class(**{**merged, **changed}), logger=deepcopy(cfg.logger))
