"""The width at a hook comes from the model's config, so no one has to type it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, Qwen3Config

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.experiment import build_experiment, load_experiment
from saelens_adaptive_ortho.text.models import hook_width, load_language_model
from tests.tiny import save_model

CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=260),
    "qwen3": Qwen3Config(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=260,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("width") / request.param
    return str(save_model(CONFIGS[request.param], path))


def test_width_is_that_of_the_activations(directory: str) -> None:
    model = load_language_model(directory)
    with torch.no_grad():
        cache = model.run_with_cache(torch.arange(3, 9)[None])[1]
    hooks = [f"blocks.0.{h}" for h in ("hook_resid_post", "hook_mlp_out", "mlp.hook_post")]
    for hook in hooks:
        assert hook_width(directory, hook) == cache[hook].shape[-1], hook
    z = cache["blocks.0.attn.hook_z"]
    by_head = z.unflatten(-1, (2, -1)) if z.ndim == 3 else z
    assert hook_width(directory, "blocks.0.attn.hook_z") == by_head[0, 0].numel()
    assert hook_width(directory, "blocks.0.attn.hook_z", 0) == by_head.shape[-1]
    assert hook_width(directory, "blocks.0.attn.hook_pattern") is None


def tree(model: str, hook: str) -> dict[str, Any]:
    return {
        "model_name": model,
        "hook_name": hook,
        "dataset_path": "demo:retain",
        "sae": {"architecture": "adaptive_ortho_topk", "d_sae": 64, "k": 4},
    }


def test_an_experiment_finds_d_in_by_itself(tiny: Any) -> None:
    found = build_experiment(tree(str(tiny.model), "blocks.1.hook_resid_post"))
    assert found.runner.sae.d_in == tiny.width


def test_d_in_of_a_config_is_that_of_its_own_model_only(tiny: Any) -> None:
    config = Path(__file__).parents[2] / "configs" / "demo.yaml"
    assert load_experiment(config).runner.sae.d_in == 96
    model = f"model_name={tiny.model}"
    assert load_experiment(config, [model]).runner.sae.d_in == tiny.width
    assert load_experiment(config, [model, "sae.d_in=7"]).runner.sae.d_in == 7
    other_layer = load_experiment(config, ["hook_name=blocks.0.hook_resid_post"])
    assert other_layer.runner.sae.d_in == 96


def test_d_in_must_be_given_if_the_hook_does_not_tell_it(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"hook_name='.*hook_pattern': .*set sae\.d_in"):
        build_experiment(tree(str(tiny.model), "blocks.1.attn.hook_pattern"))


def test_missing_model_is_named_before_d_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model_name=.*no such directory"):
        build_experiment(tree(str(tmp_path / "none"), "blocks.1.hook_resid_post"))
