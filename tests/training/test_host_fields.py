"""Each field of SAELens's configs is used or refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.config import LoggingConfig

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.experiment import load_experiments
from saelens_adaptive_ortho.training.host_fields import IGNORED, REFUSED, USED
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, prepare
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig

MakeConfig = Callable[..., AdaptiveOrthoRunnerConfig]
RUNNER = LanguageModelSAERunnerConfig
# Read only together with another setting, or by SAELens when the config is built.
CONDITIONAL = {
    *("llm_compilation_mode", "is_dataset_tokenized", "verbose"),
    *("sae_lens_version", "sae_lens_training_version"),
}
LOOKERS = ("dataclasses", "config", "host_fields", "settings")  # ends of names of modules


@pytest.mark.parametrize("kind", [RUNNER, LoggingConfig])
def test_every_field_of_the_host_has_an_answer(kind: type) -> None:
    answers = [*USED[kind], *REFUSED[kind], *IGNORED.get(kind, ())]
    assert sorted(answers) == sorted(field.name for field in fields(kind))


class Watched(AdaptiveOrthoRunnerConfig):
    """A config that notes which fields are read, except for checks and copies."""

    read: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        reader = sys._getframe(1).f_globals["__name__"]
        if not reader.endswith(LOOKERS):
            Watched.read.add(name)
        return super().__getattribute__(name)


def test_used_fields_are_read(make_config: MakeConfig) -> None:
    cfg = make_config()
    values = {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.init}
    Watched.read = set()
    runner = AdaptiveOrthoRunner(Watched(**values))
    runner.run()
    trainer = {f.name for f in fields(runner.trainer.cfg)}  # built by SAELens in its own module
    assert USED[RUNNER] - CONDITIONAL - Watched.read - trainer == set()


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else "other"


CASES = [(kind, name) for kind, table in REFUSED.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[name for _, name in CASES])
@pytest.mark.filterwarnings("ignore:The 'hook_eval' field:DeprecationWarning")
def test_field_without_effect_is_refused(make_config: MakeConfig, kind: type, name: str) -> None:
    cfg = make_config()
    value = other(REFUSED[kind][name].only)
    if kind is LoggingConfig:
        with pytest.raises(ConfigError, match=rf"^logger\.{name}=.*has no effect here: "):
            replace(cfg, logger=replace(cfg.logger, **{name: value}))
    else:
        with pytest.raises(ConfigError, match=rf"^{name}=.*has no effect here: "):
            replace(cfg, **{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_end": 1e-6}, "lr_end=1e-06: has no effect if lr_scheduler_name is constant"),
        ({"n_restart_cycles": 3}, "n_restart_cycles=3: has no effect unless"),
        ({"llm_compilation_mode": "default"}, "llm_compilation_mode='default': has no effect"),
    ],
)
def test_field_that_needs_another_is_refused(
    make_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(**changes)
    assert str(caught.value).startswith(message)


def test_device_of_the_sae_is_that_of_the_run(make_config: MakeConfig) -> None:
    cfg = make_config()
    with pytest.raises(ConfigError, match=r"^sae\.device='cuda': has no effect"):
        replace(cfg, sae=replace(cfg.sae, device="cuda"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume_from_checkpoint": "somewhere"}, "resume_from_checkpoint='somewhere'"),
        ({"checkpoint_path": "somewhere"}, "checkpoint_path='somewhere'"),
        ({"seed": 3}, "seed=3: "),
    ],
)
def test_field_without_effect_under_compare_is_refused(
    write_config: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiments(write_config(None, **changes), compared=True)
    assert str(caught.value).startswith(message)
    assert load_experiments(write_config(None, **changes))


@pytest.mark.parametrize(
    ("hook", "head", "message"),
    [
        ("blocks.1.hook_resid_post", 0, "has no heads: leave it out."),
        ("blocks.1.attn.hook_z", 9, "has the heads 0 to 1."),
        ("blocks.1.attn.hook_z", -1, "has the heads 0 to 1."),
    ],
)
def test_head_that_is_not_there_is_refused(
    make_config: MakeConfig, model: Any, hook: str, head: int, message: str
) -> None:
    cfg = make_config({"d_in": 16}, hook_name=hook, hook_head_index=head)
    with pytest.raises(ConfigError) as caught:
        prepare(cfg, model=model)
    assert str(caught.value) == f"hook_head_index={head}: {hook} {message}"


NONSENSE = [
    *[("adam_beta1", 1.0), ("adam_beta1", -0.5), ("adam_beta2", -1.0)],
    *[("lr_scheduler_name", "nope"), ("lr_end", -1.0), ("lr_warm_up_steps", -1)],
    *[("lr_decay_steps", -1), ("n_restart_cycles", 0), ("llm_compilation_mode", "nope")],
    *[("feature_sampling_window", 0), ("feature_sampling_window", -1), ("dead_feature_window", 0)],
    *[("n_checkpoints", -3), ("sequence_separator_token", -1), ("exclude_special_tokens", [-1])],
    *[("n_batches_in_buffer", 10**9), ("store_batch_size_prompts", 10**9)],
    *[("n_batches_for_norm_estimate", 10**12), ("output_path", "")],
]


@pytest.mark.parametrize(("name", "value"), NONSENSE, ids=str)
def test_meaningless_value_is_refused(make_config: MakeConfig, name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(**{name: value})
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dtype", "nope"), ("aux_loss_coefficient", -1.0), ("decoder_init_norm", 0.0)],
)
def test_meaningless_value_of_the_sae_is_refused(
    make_config: MakeConfig, name: str, value: object
) -> None:
    architecture = "topk" if name == "aux_loss_coefficient" else "batchtopk"
    sae = {"architecture": f"adaptive_ortho_{architecture}", name: value}
    with pytest.raises(ConfigError, match=rf"^sae\.{name}="):
        make_config(sae)


def test_more_restarts_than_steps_are_refused(make_config: MakeConfig) -> None:
    name = {"lr_scheduler_name": "cosineannealingwarmrestarts"}
    make_config(n_restart_cycles=20, **name)
    with pytest.raises(ConfigError, match="of 24 steps, 4 are left"):
        make_config(n_restart_cycles=5, lr_warm_up_steps=10, lr_decay_steps=10, **name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_separator_token": 99_999}, "sequence_separator_token=99999: the tokenizer has"),
        ({"exclude_special_tokens": [99_999]}, "exclude_special_tokens=99999: the tokenizer has"),
        ({"model_kwargs": {"zz": 1}}, "model_kwargs={'zz': 1}: the model does not take them"),
    ],
)
def test_what_the_model_cannot_take_is_refused(
    make_config: MakeConfig, model: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(make_config(**changes), model=model)
    assert str(caught.value).startswith(message)
