"""Running a model from an SAE's hook on, for both kinds of models of TransformerLens."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from saelens_adaptive_ortho.judging.unlearning import clamps
from saelens_adaptive_ortho.judging.unlearning.clamps import (
    Clamp,
    measure_clamps,
    per_context_loss,
)

WIDTH, D_SAE = 32, 48
TOKENS = torch.randint(3, 200, (7, 12), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.tensor([[0, 5, 10]]).expand(len(TOKENS), -1)
BRIDGES = ["bridge", "llama", "gpt2", "gptj"]
HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def boot(path: Path, inner: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(path)
    return TransformerBridge.boot_transformers(
        str(path), device="cpu", tokenizer=tokenizer, hf_model=inner
    )


def build_others() -> dict[str, Any]:
    """Models whose blocks are called in other ways. Those of GPT-J return tuples."""
    llama = LlamaConfig(
        vocab_size=260,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    size: dict[str, Any] = {
        "vocab_size": 260,
        "n_embd": WIDTH,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "llama": LlamaForCausalLM(llama),
            "gpt2": GPT2LMHeadModel(GPT2Config(**size)),
            "gptj": GPTJForCausalLM(GPTJConfig(**size, rotary_dim=4)),
        }


@pytest.fixture(scope="module")
def kinds(tiny: Any, model: Any) -> dict[str, Any]:
    """The GPT-NeoX of the session in both classes, and other models in the bridge."""
    return {
        "hooked": model,
        "bridge": boot(tiny.model, GPTNeoXForCausalLM.from_pretrained(tiny.model).eval()),
        **{name: boot(tiny.model, inner.eval()) for name, inner in build_others().items()},
    }


def build_sae(hook: str) -> SAE[Any]:
    rows = torch.randn(D_SAE, WIDTH, generator=torch.Generator().manual_seed(1))
    rows = torch.nn.functional.normalize(rows, dim=1)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=WIDTH, d_sae=D_SAE))
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.threshold.fill_(0.5)
    sae.cfg.metadata.hook_name = hook
    return sae


def full_run(model: Any, hook: str, edit: Any) -> Tensor:
    with torch.no_grad():
        return model.run_with_hooks(
            TOKENS, fwd_hooks=[(hook, edit)], prepend_bos=False, return_type="logits"
        )


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", ["hooked", *BRIDGES])
def test_later_blocks_alone_give_the_same_logits(
    kinds: dict[str, Any], kind: str, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kinds[kind]
    x = torch.randn(*TOKENS.shape, WIDTH, generator=torch.Generator().manual_seed(2))
    expected = full_run(model, hook, lambda _, hook: x)[:, [0, 5, 10]]
    with torch.no_grad():
        run = clamps._run_from_hook(model, build_sae(hook), TOKENS[:2], POSITIONS[:2])
        ran: list[int] = []
        for number, block in enumerate(model.blocks):
            inner = getattr(block, "original_component", block)
            forward = inner.forward

            def spy(*args: Any, n: int = number, forward: Any = forward, **kwargs: Any) -> Any:
                ran.append(n)
                return forward(*args, **kwargs)

            monkeypatch.setattr(inner, "forward", spy)
        found = run(TOKENS, x, POSITIONS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert ran == ([1] if hook == HOOKS[0] else [])
    # The model is whole again.
    monkeypatch.undo()
    assert torch.equal(full_run(model, hook, lambda _, hook: x)[:, [0, 5, 10]], expected)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", BRIDGES)
def test_losses_under_clamps_equal_a_full_run(kinds: dict[str, Any], kind: str, hook: str) -> None:
    model, sae = kinds[kind], build_sae(hook)
    clamp = Clamp(torch.tensor([1, 5, 9]), torch.tensor([-3.0, 0.0, -20.0]))
    measure = per_context_loss(TOKENS, every=3)
    plain, changed = measure_clamps(model, sae, TOKENS, [clamp], measure, 4, "")
    rows = torch.arange(len(TOKENS))
    for found, edit in (
        (plain, lambda x, hook: x),
        (changed[0], lambda x, hook: clamps.clamped(sae, x, clamp)),
    ):
        expected = measure.of(full_run(model, hook, edit), rows)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (changed[0] != plain).any()


def test_both_classes_give_the_same_losses(kinds: dict[str, Any]) -> None:
    sae, measure = build_sae(HOOKS[0]), per_context_loss(TOKENS)
    clamp = Clamp(torch.arange(10), -4 * torch.ones(10))
    hooked, bridge = (
        measure_clamps(kinds[kind], sae, TOKENS, [clamp], measure, 3, "")
        for kind in ("hooked", "bridge")
    )
    torch.testing.assert_close(hooked[0], bridge[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hooked[1], bridge[1], atol=1e-4, rtol=1e-4)


def test_blocks_that_cannot_be_skipped_run(
    kinds: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the quick way gives other logits, or fails, the whole model runs."""
    model, sae = kinds["llama"], build_sae(HOOKS[0])
    for broken in (lambda *_: nullcontext(), lambda *_: 1 / 0):
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(clamps, "_blocks_return", broken)
            run = clamps._run_from_hook(model, sae, TOKENS[:2], POSITIONS[:2])
        assert run.func is clamps._run_whole  # type: ignore[attr-defined]
    x = torch.zeros(*TOKENS.shape, WIDTH)
    expected = full_run(model, HOOKS[0], lambda _, hook: x)[:, [0, 5, 10]]
    torch.testing.assert_close(run(TOKENS, x, POSITIONS), expected)


def fail_between(blocks: list[torch.nn.Module]) -> None:
    with clamps._blocks_return(0, blocks):
        assert [block(TOKENS) for block in blocks] == [0, 0]
        raise KeyboardInterrupt


def test_blocks_keep_their_forward_after_an_error() -> None:
    def own(x: Tensor) -> Tensor:
        return x + 1

    plain, changed = torch.nn.Identity(), torch.nn.Identity()
    changed.forward = own
    with pytest.raises(KeyboardInterrupt):
        fail_between([plain, changed])
    assert changed.forward is own
    assert "forward" not in vars(plain)
