"""Local language models compute what transformers computes, or are refused with a reason."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.text import models
from saelens_adaptive_ortho.text.models import (
    check_d_in,
    check_hook,
    check_model,
    load_language_model,
    local_model_dir,
    model_bytes,
)
from saelens_adaptive_ortho.training.runner import prepare
from tests.tiny import save_model

HOOK, WIDTH = "blocks.1.hook_resid_post", 32
WEIGHTS = "model.safetensors"


@pytest.fixture
def copied(tiny: Any, tmp_path: Path) -> Path:
    """A copy of a model directory, for tests that damage it."""
    return shutil.copytree(tiny.model, tmp_path / "model")


def test_local_model_equals_transformers(tiny: Any, model: Any) -> None:
    tokens = torch.randint(3, 200, (3, 20), generator=torch.Generator().manual_seed(0))
    reference = AutoModelForCausalLM.from_pretrained(tiny.model, local_files_only=True)
    with torch.no_grad():
        theirs = reference(tokens).logits
        ours = model(tokens)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_tokenizer_comes_from_the_directory(model: Any) -> None:
    assert model.tokenizer.bos_token_id == model.tokenizer.eos_token_id == 0
    assert model.tokenizer.pad_token_id == 1
    assert model.tokenizer("virus0 virus1", add_special_tokens=False)["input_ids"] == [3, 4]


@pytest.mark.parametrize("name", ["bert-and-t5", "gemma-2-2b", "llama 7b", "model"])
def test_directory_name_does_not_matter(tiny: Any, model: Any, tmp_path: Path, name: str) -> None:
    path = shutil.copytree(tiny.model, tmp_path / "t5" / name)
    loaded = load_language_model(str(path))
    assert loaded.cfg.model_name == name  # type: ignore[union-attr]
    tokens = torch.arange(3, 23)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model(tokens))


def test_relative_path_and_dtype_are_used(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied.parent)
    for name in ("model", "./model"):
        assert local_model_dir(name) is not None
    loaded = load_language_model("./model", model_from_pretrained_kwargs={"dtype": "bfloat16"})
    assert next(loaded.parameters()).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"model_from_pretrained_kwargs=\['fold_ln'\]"):
        load_language_model("./model", model_from_pretrained_kwargs={"fold_ln": True})


def test_hub_name_is_not_a_directory() -> None:
    assert local_model_dir("EleutherAI/pythia-70m-deduped") is None


def lose(path: Path, *names: str) -> None:
    for name in names:
        (path / name).unlink()


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ([WEIGHTS], r"no \*\.safetensors weights.*save_pretrained"),
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer.*save_pretrained"),
        (["config.json"], r"no config\.json"),
    ],
)
def test_incomplete_model_directory_is_refused_early(
    copied: Path, monkeypatch: pytest.MonkeyPatch, lost: list[str], message: str
) -> None:
    lose(copied, *lost)
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", None)
    for attempt in (check_model, load_language_model):
        with pytest.raises(ConfigError, match=message) as error:
            attempt(str(copied))
        assert str(error.value).startswith(f"model_name='{copied}'")


def test_missing_model_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model_name=.*no such directory"):
        check_model(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="model_name='demo:nope'.*known: demo:model"):
        check_model("demo:nope")


@pytest.mark.parametrize("keep", [0, 4, 1000, -100])
def test_truncated_weights_are_refused(copied: Path, keep: int) -> None:
    whole = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(whole[:keep])
    with pytest.raises(ConfigError, match="model_name=.*cannot be read.*truncated"):
        load_language_model(str(copied))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_broken_config_or_tokenizer_is_refused(copied: Path, file: str) -> None:
    (copied / file).write_text('{"half": ')
    with pytest.raises(ConfigError, match=r"model_name=.*cannot be read"):
        load_language_model(str(copied))


def test_pickled_weights_are_not_loaded(copied: Path) -> None:
    lose(copied, WEIGHTS)
    torch.save({}, copied / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="writes safetensors"):
        load_language_model(str(copied))


def test_code_in_model_directory_is_not_run(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (copied / "config.json").write_text(json.dumps(config))
    marker = copied / "ran"
    (copied / "mine.py").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(ConfigError, match="model_name="):
        load_language_model(str(copied))
    assert not marker.exists()


def test_unknown_hook_is_refused_with_nearest(model: Any) -> None:
    check_hook(model, HOOK)
    with pytest.raises(ConfigError, match=r"hook_name='blocks\.1\.hook_resid_pots'") as error:
        check_hook(model, "blocks.1.hook_resid_pots")
    assert f"Nearest: {HOOK}" in str(error.value)
    with pytest.raises(ConfigError, match="no such hook point"):
        check_hook(model, "blocks.7.hook_resid_post")


def test_wrong_d_in_is_refused_with_right_width(model: Any) -> None:
    check_d_in(model, HOOK, None, WIDTH)
    with pytest.raises(ConfigError, match=r"sae\.d_in=48: .*hook_resid_post has width 32"):
        check_d_in(model, HOOK, None, 48)
    check_d_in(model, "blocks.0.attn.hook_z", None, WIDTH)
    check_d_in(model, "blocks.0.attn.hook_z", 1, WIDTH // 2)
    with pytest.raises(ConfigError, match="has width 16"):
        check_d_in(model, "blocks.0.attn.hook_z", 1, WIDTH)


def test_too_long_context_is_refused(make_config: Callable[..., Any], model: Any) -> None:
    with pytest.raises(ConfigError, match="context_size=65: the model sees 64 tokens at most"):
        prepare(make_config(context_size=65), model=model)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        ("401 Client Error: you must be authenticated", "access to the model is refused.*log in"),
        ("Cannot access gated repo for url", "access to the model is refused"),
        ("Failed to establish a new connection", "hub cannot be reached.*demo:model"),
        ("something else", "cannot be loaded .*something else"),
    ],
)
def test_failed_hub_model_is_refused_with_remedy(
    monkeypatch: pytest.MonkeyPatch, raised: str, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(raised)

    monkeypatch.setattr(models, "load_model", fail)
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)
    for name in ("somebody/model", "pythia-70m-deduped"):  # the second one is listed
        with pytest.raises(ConfigError, match=f"model_name='{name}': .*{message}"):
            load_language_model(name)


SMALL = {"vocab_size": 260, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
LIKE_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **SMALL,
}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, LIKE_LLAMA),
    "mistral": (transformers.MistralConfig, LIKE_LLAMA),
    "qwen3": (transformers.Qwen3Config, {**LIKE_LLAMA, "head_dim": 8}),
    "gemma2": (transformers.Gemma2Config, {**LIKE_LLAMA, "head_dim": 8}),
    "gpt2": (
        transformers.GPT2Config,
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **SMALL},
    ),
    "gpt_neox": (transformers.GPTNeoXConfig, LIKE_LLAMA),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny model of a family, as ``save_pretrained`` writes it."""
    config_class, settings = FAMILIES[request.param]
    return save_model(config_class(**settings), tmp_path_factory.mktemp("family") / request.param)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_is_on_the_device_and_in_the_dtype_of_the_config(
    family: Path, dtype: str
) -> None:
    # "meta" stands for a GPU: parameters can move there on every machine.
    loaded = load_language_model(str(family), "meta", model_from_pretrained_kwargs={"dtype": dtype})
    assert {p.device.type for p in loaded.parameters()} == {"meta"}
    assert {p.dtype for p in loaded.parameters()} == {getattr(torch, dtype)}


def test_every_family_gives_the_logits_of_transformers(family: Path) -> None:
    tokens = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    reference = AutoModelForCausalLM.from_pretrained(family, local_files_only=True)
    loaded = load_language_model(str(family))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), reference(tokens).logits, rtol=0, atol=1e-4)


def test_model_on_another_device_is_refused_before_the_corpora_are_read(
    tiny: Any, make_config: Callable[..., Any]
) -> None:
    elsewhere = load_language_model(str(tiny.model), "meta")
    with pytest.raises(ConfigError, match=r"llm_device='cpu': the language model: .* is on meta"):
        prepare(make_config(), model=elsewhere)


def test_unusable_device_is_named_before_the_model_is_loaded(
    make_config: Callable[..., Any],
) -> None:
    with pytest.raises(ConfigError, match=r"^device='gpu': torch cannot use it"):
        prepare(make_config(device="gpu"))


def test_digest_of_weights_is_computed_once_until_they_change(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copy.deepcopy(model)
    before = models.weights_digest(own)
    assert before == models.weights_digest(model) == models.tensors_digest(model.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(models, "tensors_digest", lambda _: 1 / 0)
        assert models.weights_digest(own) == before
    with torch.no_grad():
        own.embed.W_E[3, 4] += 1e-3
    changed = models.weights_digest(own)
    assert changed != before
    own.embed.W_E = torch.nn.Parameter(own.embed.W_E + 1)
    assert models.weights_digest(own) not in (before, changed)


def test_bytes_of_a_model_come_from_its_config(tiny: Any, copied: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny.model, local_files_only=True)
    n = sum(p.numel() for p in reference.parameters())
    assert model_bytes(str(tiny.model)) == 4 * n
    assert model_bytes(str(tiny.model), {"dtype": "bfloat16"}) == 2 * n
    assert model_bytes(str(tiny.model), {"torch_dtype": torch.float64}) == 8 * n
    # With one embedding for input and output, TransformerLens still holds two.
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert model_bytes(str(copied)) == 4 * n
    with pytest.raises(ConfigError, match="no such directory"):
        model_bytes("./nowhere")
