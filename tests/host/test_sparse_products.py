"""Training steps with products over the firing latents equal SAELens's up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from saelens_adaptive_ortho.maths import sparse

Build = Callable[..., Any]
TAKEN = ["standard", "topk", "batchtopk", "matryoshka_batchtopk"]
SIZE = {"d_in": 16, "d_sae": 256}


def built(build_sae: Build, base: str, **fields: Any) -> Any:
    if "topk" in base:
        fields["k"] = 3
    if "matryoshka" in base:
        fields["matryoshka_widths"] = [64, 256]
    sae = build_sae(f"adaptive_ortho_{base}", **{**SIZE, "ortho_mode": "off", **fields})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(256, 1, generator=generator) + 0.5)
        sae.b_dec.copy_(torch.randn(16, generator=generator))
        if base == "standard":
            sae.b_enc.sub_(2.5 * sae.W_enc.norm(dim=0) * 1.4)
    return sae.train()


def gradients(sae: Any, dead: Tensor | None) -> tuple[dict[str, Tensor], Any]:
    x = torch.randn(48, 16, generator=torch.Generator().manual_seed(1))
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients={"l1": 0.3},
            dead_neuron_mask=dead,
            n_training_steps=1,
            is_logging_step=False,
        )
    )
    output.loss.backward()
    return {name: p.grad for name, p in sae.named_parameters()}, output


@pytest.mark.parametrize("dead", [None, torch.arange(256) % 3 == 0], ids=["alive", "some dead"])
@pytest.mark.parametrize("fields", [{}, {"rescale_acts_by_decoder_norm": False}], ids=str)
@pytest.mark.parametrize("base", TAKEN)
def test_equal_loss_and_gradients(
    build_sae: Build,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    fields: dict[str, Any],
    dead: Tensor | None,
) -> None:
    if base == "standard":
        fields = {"decoder_init_norm": 0.3} if fields else {}
    stock, own = (built(build_sae, base, **fields) for _ in range(2))
    own.ortho_sparse_products = True
    calls = []
    for name in ("matmul", "linear"):
        product = getattr(sparse, name)
        monkeypatch.setattr(
            sparse, name, lambda *a, n=name, p=product: calls.append(n) or p(*a), raising=True
        )
    (expected, outer), (found, inner) = gradients(stock, dead), gradients(own, dead)
    assert {"matmul", "linear"} <= set(calls)
    assert 0 < float((inner.feature_acts != 0).float().mean()) < sparse.DENSE_FROM
    torch.testing.assert_close(inner.loss, outer.loss)
    torch.testing.assert_close(inner.feature_acts, outer.feature_acts)
    torch.testing.assert_close(inner.hidden_pre, outer.hidden_pre)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("base", ["gated", "jumprelu"])
def test_jumprelu_and_gated_use_dense_products(build_sae: Build, base: str) -> None:
    assert not hasattr(type(build_sae(f"adaptive_ortho_{base}")), "_multiplies_sparsely")


@pytest.mark.parametrize("case", ["a hook", "autocast", "no gradient", "evaluation", "off"])
def test_other_cases_use_the_stock_class(
    build_sae: Build, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    sae = built(build_sae, "batchtopk")
    sae.ortho_sparse_products = case != "off"

    def refuse(*_: Any) -> None:
        raise AssertionError(f"multiplied sparsely with {case}")

    monkeypatch.setattr(sparse, "linear", refuse)
    x, seen = torch.randn(48, 16), []
    if case == "a hook":
        sae.hook_sae_acts_pre.add_hook(lambda t, hook: seen.append(t))
    if case == "evaluation":
        sae.eval()
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"),
        torch.set_grad_enabled(case != "no gradient"),
    ):
        sae.encode(x)
    assert len(seen) == (case == "a hook")
