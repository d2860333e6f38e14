"""Training steps with products over the firing latents equal SAELens's up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from saelens_adaptive_ortho.host.trainer import build_trainer
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


@pytest.mark.parametrize("base", TAKEN)
def test_training_equals_that_of_the_stock_trainer(build_sae: Build, base: str) -> None:
    """Counts of firings are equal, weights up to rounding; Adam has one kernel."""
    trainers = []
    for fast in (False, True):
        sae = built(build_sae, base)
        sae.ortho_sparse_products = fast
        cfg = SAETrainerConfig(
            total_training_samples=48 * 100,
            train_batch_size_samples=48,
            lr=1e-3,
            lr_end=1e-4,
            dead_feature_window=2,
            device="cpu",
            logger=LoggingConfig(log_to_wandb=False),
        )
        trainers.append(build_trainer(cfg, sae, data_provider=iter(())))
    stock, own = trainers
    assert type(stock) is SAETrainer
    assert [bool(t.optimizer.param_groups[0]["fused"]) for t in trainers] == [False, True]
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        x = torch.randn(48, 16, generator=generator)
        for trainer in trainers:
            trainer.n_training_steps = step
            trainer.step(x)
    for name in ("act_freq_scores", "n_forward_passes_since_fired", "n_frac_active_samples"):
        expected, found = (torch.as_tensor(getattr(t, name)) for t in trainers)
        assert torch.equal(expected, found), name
    assert 0 < int(own.dead_neurons.sum()) < 256
    for (name, a), b in zip(stock.sae.named_parameters(), own.sae.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5, msg=name)


def test_decoder_norms_are_computed_once_in_a_step(
    build_sae: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = built(build_sae, "batchtopk")
    sae.ortho_sparse_products = True
    calls = []
    norm = Tensor.norm
    monkeypatch.setattr(Tensor, "norm", lambda *a, **k: calls.append(0) or norm(*a, **k))
    gradients(sae, None)
    assert len(calls) == 1
    sae.encode(torch.randn(8, 16))
    sae.encode(torch.randn(8, 16))
    assert len(calls) == 3  # outside a step the weights may have changed between two calls
