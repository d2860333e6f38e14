"""A bounded projection in a checkpoint: exact at the embedding, refused elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from saelens_adaptive_ortho.commands import cli
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.judging.unlearning.merging import merge
from saelens_adaptive_ortho.judging.unlearning.saved import UnlearningSelection, weights_digest
from saelens_adaptive_ortho.judging.unlearning.use import unlearn
from saelens_adaptive_ortho.text.models import load_plain_model

WIDTH, VOCABULARY = 32, 50
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def build_sae(hook: str, width: int = WIDTH) -> JumpReLUSAE:
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=width, d_sae=8))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.fill_(0.1)
    sae.cfg.metadata.hook_name = hook
    return sae


def build_selection(
    hook: str = "blocks.0.hook_resid_pre", width: int = WIDTH, **changes: Any
) -> UnlearningSelection:
    basis = torch.linalg.qr(torch.randn(width, 3, generator=torch.Generator().manual_seed(1)))[0].T
    fields: dict[str, Any] = {
        "kind": "bounded",
        "latents": [0, 1, 2],
        "strength": 0.7,
        "basis": basis.double().tolist(),
        "centre": [0.2] * width,
        "ignored_tokens": [0, 1],
        "model_name": "demo:model",
        "hook_name": hook,
        "sae_digest": weights_digest(build_sae(hook, width)),
        "d_in": width,
    }
    return UnlearningSelection(**(fields | changes))


def build(name: str) -> Any:
    """A random model whose unembedding shares the weights of the embedding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "llama":
            return LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=True)).eval()
        if name == "gemma":  # multiplies the embedding with the root of the width
            return Gemma2ForCausalLM(Gemma2Config(**SIZE, head_dim=8, sliding_window=16)).eval()
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4)
        return GPT2LMHeadModel(config).eval()


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_merged_checkpoint_equals_the_hooked_model(name: str, tmp_path: Path) -> None:
    model, selection = build(name), build_selection()
    tokens = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(2))
    tokens[:, 0], tokens[1, 5] = 0, 1  # BOS, and another token that never counts
    plain = logits(model, tokens)
    with unlearn(model, build_sae(selection.hook_name), selection):
        expected = logits(model, tokens)
    assert (expected - plain).abs().max() > 0.1
    unembedding = model.get_output_embeddings().weight.clone()
    merge(model, selection)
    assert torch.equal(model.get_output_embeddings().weight, unembedding)
    assert not torch.equal(model.get_input_embeddings().weight, unembedding)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert not loaded._forward_hooks
    torch.testing.assert_close(logits(loaded, tokens), expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_merged_exactly_is_refused() -> None:
    clamp = {"kind": "clamp", "values": [-1.0, -1.0, -1.0], "basis": [], "centre": []}
    for model, selection, rule in (
        ("llama", build_selection(**clamp), "a clamp acts where latents fire"),
        ("llama", build_selection("blocks.0.hook_resid_post"), "through a norm"),
        ("llama", build_selection("blocks.1.hook_resid_pre"), "through a norm"),
        ("llama", build_selection(width=16), "the embedding has the width 32"),
        ("llama", build_selection(ignored_tokens=[]), "without a BOS token"),
        ("gpt2", build_selection(), "such as learned positions"),
    ):
        with pytest.raises(ConfigError, match=rule):
            merge(build(model), selection)


def test_model_that_reads_the_embedding_elsewhere_is_refused() -> None:
    """The merged model is compared with the hooked one before anything is written."""
    model = build("llama")
    embedding, head = model.get_input_embeddings(), model.lm_head
    head.register_forward_hook(lambda module, args, output: output + embedding.weight[5].sum())
    with pytest.raises(ConfigError, match="differs by"):
        merge(model, build_selection())


def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, target = tmp_path / "selection.json", tmp_path / "model"
    selection = build_selection(width=96)
    selection.save(file)
    assert cli.main(["export-merged", str(file), str(target)]) == 0
    model, tokenizer = load_plain_model(str(target))
    tokens = torch.tensor([[0, *tokenizer("The colour of the bilok is black.")["input_ids"]]])
    original, _ = load_plain_model("demo:model")
    with unlearn(original, build_sae(selection.hook_name, 96), selection):
        expected = logits(original, tokens)
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=1e-4)
    capsys.readouterr()
    assert cli.main(["export-merged", str(file), str(target)]) == 2
    assert "is not empty. Name a new folder" in capsys.readouterr().err
    monkeypatch.setattr("saelens_adaptive_ortho.text.models.load_plain_model", None)  # not called
    for arguments, message in (
        ([str(file / "below")], f"DIR='{file}/below': cannot be written"),
        ([str(tmp_path / "new"), "--dtype", "int8"], "bfloat16, float16, float64."),
    ):
        assert cli.main(["export-merged", str(file), *arguments]) == 2
        assert message in capsys.readouterr().err
    build_selection("blocks.1.hook_resid_post", 96).save(file)
    assert cli.main(["export-merged", str(file), str(tmp_path / "other")]) == 2
    assert "through a norm" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
