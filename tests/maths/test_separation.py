"""The group half of controlled sharing, against sums written out and exact gradients."""

from __future__ import annotations

import pytest
import torch

from saelens_adaptive_ortho.maths import sparse
from saelens_adaptive_ortho.maths.separation import (
    CorpusRates,
    corpus_sharing,
    leanings,
    separation_penalty,
    update_rates,
)

# Rates on the forget and the retain corpus: of forget alone, 6 : 1, 2 : 1, equal, 1 : 4, of retain
# alone, and silent.
RATES = torch.tensor([[0.3, 0.6, 0.2, 0.1, 0.1, 0.0, 0.0], [0.0, 0.1, 0.1, 0.1, 0.4, 0.5, 0.0]])


def batch(n: int = 12, d_sae: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_sae, generator=generator, dtype=torch.float64).relu()


def test_sharing_is_the_evenness_of_the_rates_up_to_the_ratio() -> None:
    assert corpus_sharing(RATES, 3.0).tolist() == pytest.approx([0, 0.5, 1, 1, 0.75, 0, 1])
    assert corpus_sharing(RATES, 1.0).tolist() == pytest.approx([0, 1 / 6, 0.5, 1, 0.25, 0, 1])


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.0, [1, 1, 1, 0, -1, -1, 0]),  # every latent that leans to one side
        (0.5, [1, 0.75, 0.5, 0, -0.625, -1, 0]),
        (1.0, [1, 0.5, 0, 0, -0.25, -1, 0]),  # only the clearest
    ],
)
def test_alpha_says_how_far_a_latent_may_serve_both_corpora(
    alpha: float, expected: list[float]
) -> None:
    assert leanings(RATES, alpha, 3.0).tolist() == pytest.approx(expected)


def test_swapping_the_corpora_turns_the_leanings_round() -> None:
    assert torch.equal(leanings(RATES.flip(0), 0.7, 3.0), -leanings(RATES, 0.7, 3.0))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_outside_its_bounds_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
        leanings(RATES, alpha)


@pytest.mark.parametrize("ratio", [0.5, float("nan")])
def test_ratio_below_one_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"ratio must be at least 1, got {ratio}"):
        corpus_sharing(RATES, ratio)


def test_rate_that_is_nan_gives_nan() -> None:
    rates = RATES.clone()
    rates[1, 2] = float("nan")
    for found in (corpus_sharing(rates), leanings(rates, 0.0), leanings(rates, 1.0)):
        assert found.isnan().nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("forget_rows", [-1, 13])
def test_forget_rows_outside_the_batch_are_refused(forget_rows: int) -> None:
    counts = CorpusRates(torch.zeros(2), torch.zeros(2, 7))
    rule = rf"forget_rows must lie in \[0, 12\], got {forget_rows}"
    with pytest.raises(ValueError, match=rule):
        separation_penalty(batch(), leanings(RATES, 0.5), forget_rows)
    with pytest.raises(ValueError, match=rule):
        update_rates(counts, batch(), forget_rows, 0.9)


def test_empty_batch_costs_nothing() -> None:
    acts = batch()[:0].requires_grad_()
    loss = separation_penalty(acts, leanings(RATES, 0.5).double(), 0, both_sides=True)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("forget_rows", [1, 5, 11])
def test_penalty_equals_the_written_sum(forget_rows: int, both_sides: bool) -> None:
    acts, leaning = batch(), leanings(RATES, 0.5, 3.0)
    expected = 0.0
    for b in range(len(acts)):
        for i in range(acts.shape[1]):
            lean = float(leaning[i])
            weight = max(0.0, -lean) * both_sides if b < forget_rows else max(0.0, lean)
            expected += weight * float(acts[b, i]) ** 2 / len(acts)
    assert float(separation_penalty(acts, leaning, forget_rows, both_sides)) == pytest.approx(
        expected
    )


def test_gradient_is_exact_and_reaches_only_latents_that_fire() -> None:
    acts, leaning = batch().requires_grad_(), leanings(RATES, 0.5, 3.0).double()
    assert torch.autograd.gradcheck(lambda a: separation_penalty(a, leaning, 5, True), (acts,))
    (2.5 * separation_penalty(acts, leaning, 5, True)).backward()
    weight = torch.cat([(-leaning).clamp(min=0).expand(5, -1), leaning.clamp(min=0).expand(7, -1)])
    assert torch.allclose(acts.grad, 2.5 * 2 * weight * acts.detach() / 12)
    assert (acts.grad[acts == 0] == 0).all()


def test_latents_that_keep_to_their_corpus_pay_nothing() -> None:
    acts = batch()
    acts[:5, [4, 5]] = 0  # the latents that lean to retain are silent on forget rows
    acts[5:, [0, 1, 2]] = 0
    assert float(separation_penalty(acts, leanings(RATES, 0.0), 5, both_sides=True)) == 0


def test_half_precision_keeps_the_sum_in_float32() -> None:
    acts = batch(256).bfloat16()
    found = separation_penalty(acts, leanings(RATES, 0.5, 3.0), 100)
    exact = separation_penalty(acts.double(), leanings(RATES, 0.5, 3.0).double(), 100)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(exact), rel=1e-5)


def test_rates_are_decayed_counts_of_each_corpus() -> None:
    first, second = batch(seed=1), batch(n=8, seed=2)
    counts = CorpusRates(torch.zeros(2), torch.zeros(2, 7))
    assert (counts.rates() == 0).all()
    counts = update_rates(counts, first, 4, 0.5)
    assert torch.equal(counts.rates()[0], (first[:4] > 0).float().mean(0))
    counts = update_rates(counts, second, 2, 0.5)
    fired = 0.5 * (first[4:] > 0).sum(0) + (second[2:] > 0).sum(0)
    assert torch.allclose(counts.rates()[1], fired / (0.5 * 8 + 6))


def test_known_nonzeros_give_the_same_counts_loss_and_gradient() -> None:
    dense = torch.where(torch.rand(40, 300, generator=torch.manual_seed(3)) < 0.02, 1.5, 0.0)
    rates = torch.rand(2, 300, generator=torch.manual_seed(4))
    W = torch.randn(300, 6, generator=torch.manual_seed(5))

    def step(remember: bool) -> tuple[torch.Tensor, ...]:
        acts = dense.clone().requires_grad_()
        out = sparse.matmul(acts, W) if remember else acts @ W
        assert (sparse.Nonzeros.known(acts) is not None) == remember
        counts = update_rates(CorpusRates(torch.zeros(2), torch.zeros(2, 300)), acts, 15, 0.9)
        loss = separation_penalty(acts, leanings(rates, 0.3), 15, both_sides=True)
        (out.square().sum() + 2.5 * loss).backward()
        gradient = acts.grad
        assert gradient is not None
        assert not gradient.is_sparse
        return counts.fired, loss.detach(), torch.where(dense > 0, gradient, 0)

    for found, expected in zip(step(True), step(False), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
