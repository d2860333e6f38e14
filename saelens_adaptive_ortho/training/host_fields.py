"""What becomes of each field of SAELens's runner and logging configs: used, or refused.

A setting without an effect is an error: whoever sets it believes that it does something. A field of
a new version of SAELens is in no table, and then a test fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.config import LoggingConfig

from saelens_adaptive_ortho.errors import reject

if TYPE_CHECKING:
    from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig


class Refused(NamedTuple):
    """The one value that a field may have, and the reason or the remedy."""

    only: Any
    reason: str


USED: dict[type, frozenset[str]] = {
    LanguageModelSAERunnerConfig: frozenset(
        {
            # model and hook
            *("model_name", "model_class_name", "model_from_pretrained_kwargs", "model_kwargs"),
            *("hook_name", "hook_head_index", "autocast_lm"),
            *("compile_llm", "llm_compilation_mode"),
            # text and batches
            *("dataset_path", "is_dataset_tokenized", "context_size", "seqpos_slice"),
            *("prepend_bos", "sequence_separator_token", "disable_concat_sequences"),
            *("exclude_special_tokens", "store_batch_size_prompts", "n_batches_in_buffer"),
            *("train_batch_size_tokens", "training_tokens", "seed", "prefetch_llm_batches"),
            # SAE and optimiser
            *("sae", "dtype", "autocast", "n_batches_for_norm_estimate"),
            *("lr", "lr_end", "lr_scheduler_name", "lr_warm_up_steps", "lr_decay_steps"),
            *("n_restart_cycles", "adam_beta1", "adam_beta2"),
            *("dead_feature_window", "feature_sampling_window"),
            # devices, folders, messages
            *("device", "llm_device", "act_store_device"),
            *("output_path", "checkpoint_path", "n_checkpoints", "resume_from_checkpoint"),
            *("logger", "verbose", "sae_lens_version", "sae_lens_training_version"),
        }
    ),
    LoggingConfig: frozenset(
        {"log_to_wandb", "wandb_project", "wandb_entity", "wandb_id", "run_name"}
    ),
}

REFUSED: dict[type, dict[str, Refused]] = {
    LanguageModelSAERunnerConfig: {
        "hook_eval": Refused("NOT_IN_USE", "SAELens does not use it."),
        "dataset_trust_remote_code": Refused(False, "code of a data set is never run."),
        "streaming": Refused(True, "data sets of the hub are streamed, local files are read."),
        "use_chat_formatting": Refused(False, "the corpora are plain text."),
        "use_cached_activations": Refused(
            False, "set ortho_cache_activations to keep activations for other runs."
        ),
        "cached_activations_path": Refused(
            None, "set ortho_cache_activations; they are kept in the user's cache folder."
        ),
        "activations_mixing_fraction": Refused(
            0.5,
            "batches are shuffled within chunks of n_batches_in_buffer; raise that to mix more.",
        ),
        "compile_sae": Refused(False, "use SAELens's own runner to train a compiled SAE."),
        "sae_compilation_mode": Refused(None, "use SAELens's own runner to train a compiled SAE."),
        "from_pretrained_path": Refused(None, "continue a run by resume_from_checkpoint."),
        "save_final_checkpoint": Refused(False, "the finished SAE is exported to output_path."),
        "dead_feature_threshold": Refused(
            1e-8, "SAELens does not use it. A latent is dead after dead_feature_window steps."
        ),
        "n_eval_batches": Refused(10, "training is not interrupted; evaluate the finished SAEs."),
        "eval_batch_size_prompts": Refused(
            None, "training is not interrupted; evaluate the finished SAEs."
        ),
    },
    LoggingConfig: {
        "log_activations_store_to_wandb": Refused(False, "the store is not sent to W&B."),
        "log_optimizer_state_to_wandb": Refused(False, "it is not sent to W&B."),
        "wandb_log_frequency": Refused(10, "set ortho_log_every: each row is logged."),
        "eval_every_n_wandb_logs": Refused(
            100, "training is not interrupted; evaluate the finished SAEs."
        ),
    },
}

IGNORED = {
    # SAELens's default is True, so nobody has to have asked for it.
    LoggingConfig: {"log_weights_to_wandb": "weights are never sent to W&B."},
}

CONSTANT = "constant"
RESTARTS = "cosineannealingwarmrestarts"


def check_host_fields(cfg: AdaptiveOrthoRunnerConfig) -> None:
    """Refuse settings of SAELens that would have no effect.

    Raises:
        ConfigError: there is one. The message names the field, its value, and what to do.
    """
    for kind, holder, prefix in (
        (LanguageModelSAERunnerConfig, cfg, ""),
        (LoggingConfig, cfg.logger, "logger."),
    ):
        for name, (only, reason) in REFUSED[kind].items():
            if (value := getattr(holder, name)) != only:
                raise reject(f"{prefix}{name}", value, f"has no effect here: {reason}")
    scheduler = cfg.lr_scheduler_name
    if scheduler == CONSTANT and cfg.lr_end not in (None, cfg.lr / 10):  # SAELens's default
        rule = "has no effect if lr_scheduler_name is constant; set lr_decay_steps to end at zero."
        raise reject("lr_end", cfg.lr_end, rule)
    if scheduler != RESTARTS and cfg.n_restart_cycles != 1:
        rule = f"has no effect unless lr_scheduler_name is {RESTARTS}."
        raise reject("n_restart_cycles", cfg.n_restart_cycles, rule)
    if cfg.llm_compilation_mode is not None and not cfg.compile_llm:
        rule = "has no effect without compile_llm: true."
        raise reject("llm_compilation_mode", cfg.llm_compilation_mode, rule)
    if cfg.sae.device not in ("cpu", cfg.device):  # SAELens's default
        rule = f"has no effect: the SAE is on `device` ({cfg.device}). Set that, or leave this out."
        raise reject("sae.device", cfg.sae.device, rule)
