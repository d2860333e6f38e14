"""Models that are trained to forget, as references of the frontiers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from saelens_adaptive_ortho.evaluations.contract import determining
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.judging.contract import EvalContext
from saelens_adaptive_ortho.judging.unlearning import evaluation, retraining
from saelens_adaptive_ortho.judging.unlearning.clamps import measure_clamps, per_context_loss
from tests.judging.unlearning.conftest import QUICK

BOTH = [retraining.RMU, retraining.ASCENT]
NAMES = [f"blocks.{layer}.mlp.W_out" for layer in range(3)]


@pytest.fixture(scope="module")
def model(demo_model: Any) -> Any:
    return demo_model


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retraining, "STEPS", dict.fromkeys(BOTH, 12))
    monkeypatch.setattr(retraining, "BETAS", (4.0,))
    monkeypatch.setattr(retraining, "ALPHAS", (1.0,))
    monkeypatch.setattr(retraining, "GAMMAS", (1.0,))


def mean_losses(model: Any, contexts: Tensor) -> Tensor:
    """The model's own loss on each context."""
    logits = model(contexts.long(), prepend_bos=False, return_type="logits")[:, :-1]
    targets = contexts[:, 1:].long()
    wanted = logits.log_softmax(-1).gather(2, targets[..., None])[..., 0]
    return -wanted.mean(1)


def test_last_matrices_of_the_last_blocks_are_trained(model: Any) -> None:
    assert retraining.trainable(model, "blocks.2.hook_resid_post") == NAMES
    assert retraining.trainable(model, "blocks.0.hook_resid_post") == NAMES[:1]
    assert retraining.trainable(model, "blocks.2.mlp.hook_post") == []
    assert retraining.trainable(torch.nn.Linear(2, 2), "blocks.2.hook_resid_post") == []


@pytest.mark.parametrize("share", [1, 1.0])
def test_single_retain_corpus_may_have_the_share_of_a_whole_number(
    context: EvalContext, share: float
) -> None:
    corpora = [dataclasses.replace(c, share=share) for c in context.trained]
    whole = dataclasses.replace(context, bench=dataclasses.replace(context.bench, corpora=corpora))
    (batch,) = retraining._batches(whole, 1)
    assert [len(tokens) for tokens in batch] == [retraining.BATCH] * 2


@pytest.mark.usefixtures("short")
def test_model_is_the_same_afterwards(context: EvalContext, model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    needed = [w.requires_grad for w in model.parameters()]
    found = retraining.families(context, model, context.load(), BOTH)
    found[retraining.RMU].at(0, 1.0).intervention.on(context.load())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [w.requires_grad for w in model.parameters()] == needed


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_frontier_measures_the_changed_model(
    context: EvalContext,
    model: Any,
    strength: float,
) -> None:
    """The loss with the intervention is that of the model with the changed weights."""
    sae = context.load()
    (family,) = retraining.families(context, model, sae, [retraining.RMU]).values()
    own: Any = family.at(0, strength).intervention
    assert sorted(own.change) == NAMES
    texts = context.forget.held_out[:6]
    _, after = measure_clamps(model, sae, texts, [own], per_context_loss(texts), 4, "x")
    weights = dict(model.named_parameters())
    with torch.no_grad():
        values = {n: weights[n] + strength * d for n, d in own.change.items()}
        with retraining.holding(model, values):
            expected = mean_losses(model, texts)
    torch.testing.assert_close(after[0], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, mean_losses(model, texts), atol=1e-2)


@pytest.mark.usefixtures("short")
def test_losses_are_those_of_the_papers(context: EvalContext, model: Any) -> None:
    """At the start, RMU's first term is |h - c u|^2 and its second one is zero."""
    sae = context.load()
    forget, retain = next(retraining._batches(context, 1))
    hook = sae.cfg.metadata.hook_name
    cached = model.run_with_cache(forget, names_filter=hook, prepend_bos=False)[1][hook]
    norm, power = cached.norm(dim=-1).mean(), cached.square().sum(-1).mean()
    rmu, ascent = retraining._losses(context, model, sae, NAMES, BOTH)
    u = torch.randn(cached.shape[-1], generator=torch.Generator().manual_seed(42))
    target = 4.0 * norm * u / u.norm()
    expected = (cached - target).square().sum(-1).mean() / power
    torch.testing.assert_close(rmu.of(forget, retain), expected, rtol=1e-4, atol=0)
    difference = mean_losses(model, retain).mean() - mean_losses(model, forget).mean()
    torch.testing.assert_close(ascent.of(forget, retain), difference, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("method", BOTH)
def test_training_forgets(context: EvalContext, model: Any, method: str) -> None:
    (family,) = retraining.families(context, model, context.load(), [method]).values()
    own: Any = family.at(0, 1.0).intervention
    rise = {}
    with torch.no_grad():
        for corpus in context.corpora:
            texts = corpus.held_out[:8]
            before = mean_losses(model, texts).mean()
            weights = dict(model.named_parameters())
            values = {n: weights[n] + d for n, d in own.change.items()}
            with retraining.holding(model, values):
                rise[corpus.domain] = float(mean_losses(model, texts).mean() - before)
    assert rise["forget"] > max(0.1, rise["retain"])


@pytest.mark.usefixtures("short")
def test_references_hold_the_retrained_models(context: EvalContext) -> None:
    plain = Settings(questions="none", **QUICK)
    asked = dataclasses.replace(plain, retrained=["rmu", "gradient_ascent"])
    assert determining(plain).keys() == determining(asked).keys() - {"retrained"}
    details = evaluation.run(context, asked).details
    for name in BOTH:
        assert details["references"][name]["token/forget_damage_at_0.10"] >= 0
        assert {"loss", "token"} <= {
            part for part, curves in details["reference_frontiers"].items() if name in curves
        }
