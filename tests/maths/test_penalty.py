"""The penalties: hand-made cases, comparison with a naive double loop, and invariances."""

from __future__ import annotations

import math
import subprocess
import sys

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saelens_adaptive_ortho.maths import device
from saelens_adaptive_ortho.maths.directions import (
    _products_in_blocks,
    decoder_directions,
    max_cosines,
    pair_cosines,
)
from saelens_adaptive_ortho.maths.neighbours import top_similar
from saelens_adaptive_ortho.maths.penalties.adaptive import (
    adaptive_penalty,
    choose_pairs,
    pair_weights,
)
from saelens_adaptive_ortho.maths.penalties.fixed import chunk_permutation, fixed_penalty
from saelens_adaptive_ortho.maths.penalties.gram import gram_penalty
from saelens_adaptive_ortho.maths.penalties.pair_cost import pair_penalty

examples = settings(max_examples=15)
seeds = st.integers(0, 2**32 - 1)


def random_decoder(n: int = 12, d: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def random_weights(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a, b) / (a.norm() * b.norm())


def naive_gram(W: Tensor) -> Tensor:
    n = len(W)
    pairs = [cosine(W[i], W[j]) ** 2 for i in range(n) for j in range(n) if i != j]
    return torch.stack(pairs).mean()


def naive_fixed(W: Tensor, chunks: list[list[int]]) -> Tensor:
    means = []
    for chunk in chunks:
        terms = [
            torch.stack([cosine(W[i], W[j]) for j in chunk if j != i]).max() ** 2 for i in chunk
        ]
        means.append(torch.stack(terms).mean())
    return torch.stack(means).mean()


def naive_adaptive(
    W: Tensor,
    neighbours: Tensor,
    weights: Tensor,
    rates: Tensor | None = None,
    energies: Tensor | None = None,
) -> Tensor:
    terms = []
    for i in range(len(W)):
        pairs = []
        for slot, j in enumerate(neighbours[i].tolist()):
            d_i, d_j = W[i], W[j]
            if rates is not None and rates[i] > rates[j]:
                d_i = d_i.detach()
            if rates is not None and rates[j] > rates[i]:
                d_j = d_j.detach()
            pairs.append((weights[i, slot] * cosine(d_i, d_j).relu()) ** 2)
        strongest = torch.stack(pairs).argmax()
        share = 1.0
        if energies is not None:
            share = float(len(W) * torch.minimum(energies[i], energies[neighbours[i, strongest]]))
        terms.append(share * pairs[strongest])
    return torch.stack(terms).mean()


def dense_maxima(W: Tensor) -> Tensor:
    D = W / W.norm(dim=-1, keepdim=True)
    return (D @ D.T).fill_diagonal_(-1.0).max(dim=-1).values


def value_and_gradient(loss: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, W)
    return loss.detach(), gradient


def assert_same_loss(fast: Tensor, slow: Tensor, W: Tensor) -> None:
    fast_value, fast_gradient = value_and_gradient(fast, W)
    slow_value, slow_gradient = value_and_gradient(slow, W)
    assert slow_gradient.abs().max() > 0
    torch.testing.assert_close(fast_value, slow_value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-10, atol=1e-13)


def random_neighbours(n: int, m: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(n - 1, generator=generator)[:m] for _ in range(n)]
    return torch.stack([row + (row >= i) for i, row in enumerate(rows)])


# ------------------------------------------------------------------ by hand


def two_at_sixty_degrees_and_an_opposite() -> Tensor:
    """c_01 = 1/2, c_02 = -1, c_12 = -1/2; rows of different length."""
    return torch.tensor([[2.0, 0.0], [0.5, math.sqrt(3) / 2], [-3.0, 0.0]], dtype=torch.float64)


def test_gram_by_hand() -> None:
    W = two_at_sixty_degrees_and_an_opposite()
    assert gram_penalty(W).item() == pytest.approx((0.25 + 1 + 0.25) / 3)


def test_fixed_squares_signed_maximum() -> None:
    W = two_at_sixty_degrees_and_an_opposite()
    # maxima: row 0 -> 1/2, row 1 -> 1/2, row 2 -> -1/2
    assert fixed_penalty(W, torch.arange(3)).item() == pytest.approx(0.25)


def test_adaptive_ignores_negative_cosines() -> None:
    W = two_at_sixty_degrees_and_an_opposite()
    neighbours = torch.tensor([[1, 2], [0, 2], [0, 1]])
    weights = torch.tensor([[1.0, 1.0], [0.5, 1.0], [1.0, 1.0]], dtype=torch.float64)
    # row 0: (1 * 1/2)^2, row 1: (1/2 * 1/2)^2, row 2: no positive cosine
    assert adaptive_penalty(W, neighbours, weights).item() == pytest.approx((0.25 + 0.0625) / 3)


def test_adaptive_chooses_largest_weighted_cosine() -> None:
    a = math.radians(10)
    W = torch.tensor([[1.0, 0.0], [math.cos(a), math.sin(a)], [math.cos(-1), math.sin(-1)]])
    neighbours = torch.tensor([[1, 2], [0, 2], [0, 1]])
    weights = torch.tensor([[0.1, 1.0], [0.0, 0.0], [0.0, 0.0]])
    expected = math.cos(1) ** 2 / 3
    assert adaptive_penalty(W, neighbours, weights).item() == pytest.approx(expected)


def test_pair_weights_by_hand() -> None:
    affinity = torch.tensor([[0.0, 0.5, 1.0]])
    expected = torch.tensor([[1.0, 0.8, 0.6]])
    torch.testing.assert_close(pair_weights(affinity, 0.4), expected)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_outside_unit_interval_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
        pair_weights(torch.zeros(1, 1), alpha)


def test_directions_are_unit_rows_or_zero() -> None:
    D = decoder_directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert torch.equal(D, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_directions_are_at_least_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    D = decoder_directions(random_decoder().to(dtype))
    assert D.dtype == expected
    torch.testing.assert_close(D.norm(dim=-1), torch.ones(12, dtype=expected))


def test_zero_row_gets_zero_gradient() -> None:
    W = random_decoder()
    W[3] = 0
    neighbours = random_neighbours(12, 11)
    for penalise in (
        gram_penalty,
        lambda W: fixed_penalty(W, torch.arange(12)),
        lambda W: adaptive_penalty(W, neighbours, torch.ones(12, 11, dtype=torch.float64)),
    ):
        leaf = W.clone().requires_grad_()
        _, gradient = value_and_gradient(penalise(leaf), leaf)
        assert gradient.isfinite().all()
        assert torch.equal(gradient[3], torch.zeros(6, dtype=torch.float64))


def test_single_direction_is_refused() -> None:
    W = torch.ones(1, 1)
    index = torch.zeros(1, 1, dtype=torch.int64)
    for call in (
        lambda: gram_penalty(W),
        lambda: fixed_penalty(W, index[0]),
        lambda: adaptive_penalty(W, index, torch.ones(1, 1)),
        lambda: max_cosines(W),
    ):
        with pytest.raises(ValueError, match="at least 2 decoder directions, got 1"):
            call()


def test_chunk_size_one_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size must be at least 2 to hold a pair, got 1"):
        fixed_penalty(torch.eye(4), torch.arange(4), chunk_size=1)


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        adaptive_penalty(torch.eye(4), random_neighbours(4, 2), torch.ones(4, 3))


# ------------------------------------------------- against the double loop


def test_gram_equals_double_loop() -> None:
    W = random_decoder().requires_grad_()
    assert_same_loss(gram_penalty(W), naive_gram(W), W)


@pytest.mark.parametrize(
    ("chunk_size", "sizes"),
    [(100, [12]), (12, [12]), (6, [6, 6]), (5, [4, 4, 4]), (7, [6, 6]), (3, [3] * 4), (2, [2] * 6)],
)
def test_fixed_equals_double_loop_equal_chunks(chunk_size: int, sizes: list[int]) -> None:
    W = random_decoder().requires_grad_()
    permutation = chunk_permutation(12, seed=5, step=1)
    chunks = [chunk.tolist() for chunk in permutation.split(sizes)]
    fast = fixed_penalty(W, permutation, chunk_size)
    assert_same_loss(fast, naive_fixed(W, chunks), W)


@pytest.mark.parametrize(
    ("n", "chunk_size", "sizes"), [(11, 4, [4, 4, 3]), (7, 2, [3, 2, 2]), (5, 3, [3, 2])]
)
def test_fixed_equals_double_loop_unequal_chunks(n: int, chunk_size: int, sizes: list[int]) -> None:
    W = random_decoder(n).requires_grad_()
    permutation = chunk_permutation(n, seed=0, step=3)
    chunks = [chunk.tolist() for chunk in permutation.split(sizes)]
    fast = fixed_penalty(W, permutation, chunk_size)
    assert_same_loss(fast, naive_fixed(W, chunks), W)


@pytest.mark.parametrize("m", [1, 4, 11])
def test_adaptive_equals_double_loop_symmetric(m: int) -> None:
    W = random_decoder().requires_grad_()
    neighbours, weights = random_neighbours(12, m), random_weights((12, m))
    fast = adaptive_penalty(W, neighbours, weights)
    assert_same_loss(fast, naive_adaptive(W, neighbours, weights), W)


def test_adaptive_equals_double_loop_frequency_ordered() -> None:
    W = random_decoder().requires_grad_()
    neighbours, weights = random_neighbours(12, 5), random_weights((12, 5))
    rates = torch.tensor([0.1, 0.1, 0.1, 0.2, 0.2, 0.3, 0.0, 0.0, 0.5, 0.4, 0.3, 0.2])
    fast = adaptive_penalty(W, neighbours, weights, rates)
    assert_same_loss(fast, naive_adaptive(W, neighbours, weights, rates), W)


def test_adaptive_equals_double_loop_energy_weighted() -> None:
    W = random_decoder().requires_grad_()
    neighbours, weights = random_neighbours(12, 5), random_weights((12, 5))
    energies = random_weights((12,), seed=5)
    energies[3] = 0.0
    fast = adaptive_penalty(W, neighbours, weights, energies=energies)
    assert_same_loss(fast, naive_adaptive(W, neighbours, weights, energies=energies), W)


def test_latent_without_energy_is_not_pushed() -> None:
    W = random_decoder().requires_grad_()
    neighbours, weights = random_neighbours(12, 11), torch.ones(12, 11, dtype=torch.float64)
    energies = torch.ones(12, dtype=torch.float64)
    energies[4] = 0.0
    loss = adaptive_penalty(W, neighbours, weights, energies=energies)
    rows = value_and_gradient(loss, W)[1].norm(dim=1)
    assert rows[4] == 0
    assert rows.max() > 0


def test_adaptive_over_all_latents_is_dense_maximum() -> None:
    W = random_decoder().requires_grad_()
    neighbours, _ = top_similar(decoder_directions(W), 11)
    fast = adaptive_penalty(W, neighbours, torch.ones(12, 11))
    assert_same_loss(fast, dense_maxima(W).relu().square().mean(), W)


def test_fixed_in_one_chunk_is_dense_maximum() -> None:
    W = random_decoder().requires_grad_()
    fast = fixed_penalty(W, chunk_permutation(12, 0, 0))
    assert_same_loss(fast, dense_maxima(W).square().mean(), W)


@pytest.mark.parametrize("block_size", [1, 5, 2048])
def test_max_cosines_equal_double_loop(block_size: int) -> None:
    W = random_decoder()
    slow = [max(cosine(W[i], W[j]) for j in range(12) if j != i) for i in range(12)]
    fast = max_cosines(W, block_size)
    torch.testing.assert_close(fast, torch.stack(slow), rtol=1e-12, atol=1e-14)


# ------------------------------------------------ kept pairs, paths for a GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for a GPU, on the CPU."""
    monkeypatch.setattr(device, "on_gpu", lambda _: True)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("rates", [None, random_weights((12,), 3)], ids=["symmetric", "ordered"])
@pytest.mark.parametrize("energies", [None, random_weights((12,), 4)], ids=["uniform", "energy"])
def test_adaptive_on_gpu_path_equals_double_loop(
    rates: Tensor | None, energies: Tensor | None
) -> None:
    W = random_decoder()
    W[4] *= 1e-5  # half precision does not hold such numbers
    W[5] *= 1e6
    W.requires_grad_()
    neighbours, weights = random_neighbours(12, 5), random_weights((12, 5))
    fast = adaptive_penalty(W, neighbours, weights, rates, energies)
    assert_same_loss(fast, naive_adaptive(W, neighbours, weights, rates, energies), W)


@pytest.mark.usefixtures("gpu")
def test_zero_row_on_gpu_path_is_in_no_pair() -> None:
    W = random_decoder()
    W[3] = 0
    W.requires_grad_()
    loss = adaptive_penalty(W, random_neighbours(12, 11), torch.ones(12, 11))
    gradient = value_and_gradient(loss, W)[1]
    assert gradient.isfinite().all()
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [0, 1, 2, *range(4, 12)]


@pytest.mark.usefixtures("gpu")
def test_fixed_on_gpu_path_equals_double_loop() -> None:
    W = random_decoder().requires_grad_()
    permutation = chunk_permutation(12, seed=5, step=1)
    chunks = [chunk.tolist() for chunk in permutation.split([4, 4, 4])]
    assert_same_loss(fixed_penalty(W, permutation, 5), naive_fixed(W, chunks), W)


@pytest.mark.usefixtures("gpu")
def test_gpu_path_chooses_in_half_precision_and_measures_exactly() -> None:
    W = random_decoder(200, 64).float()
    neighbours, weights = top_similar(decoder_directions(W), 16)[0], torch.ones(200, 16)
    D = decoder_directions(W.double())
    cosines = (D @ D.T).gather(1, neighbours)
    rough = pair_cosines(W, neighbours).double()
    assert 0 < (rough - cosines).abs().max() < 1e-3
    pairs = choose_pairs(W, neighbours, weights)
    exact = (D * D[pairs.partner]).sum(1)
    assert (exact >= cosines.amax(1) - 2e-3).all()
    loss = exact.relu().square().mean().float()
    torch.testing.assert_close(pair_penalty(W, pairs), loss, rtol=1e-6, atol=0)


def test_layout_is_kept_until_the_partners_change(monkeypatch: pytest.MonkeyPatch) -> None:
    W = random_decoder().requires_grad_()
    pairs = choose_pairs(W, random_neighbours(12, 5), random_weights((12, 5)))

    def gradient(gpu: bool) -> Tensor:
        monkeypatch.setattr(device, "on_gpu", lambda _: gpu)
        return value_and_gradient(pair_penalty(W, pairs), W)[1]

    first, layout = gradient(True), pairs.partner._ortho_layout[1]
    assert torch.equal(gradient(True), first)
    assert pairs.partner._ortho_layout[1] is layout
    pairs.partner.copy_((torch.arange(12) + 5) % 12)
    torch.testing.assert_close(gradient(True), gradient(False))
    assert not torch.allclose(gradient(True), first)


# ---------------------------------------------------------- stop-gradients


def gradient_rows(rates: list[float]) -> tuple[Tensor, Tensor]:
    """Gradient of the two-latent penalty at 60 degrees, and the symmetric one's."""
    W = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2]], dtype=torch.float64)
    neighbours, weights = torch.tensor([[1], [0]]), torch.ones(2, 1, dtype=torch.float64)

    def gradient(firing_rates: Tensor | None) -> Tensor:
        leaf = W.clone().requires_grad_()
        loss = adaptive_penalty(leaf, neighbours, weights, firing_rates)
        return value_and_gradient(loss, leaf)[1]

    return gradient(torch.tensor(rates)), gradient(None)


def test_symmetric_penalty_pushes_both_latents() -> None:
    _, symmetric = gradient_rows([0.0, 0.0])
    # L = c^2 and dc/dW_0 = (d_1 - c d_0) / |W_0| = (0, sqrt(3)/2), so dL/dW_0 = 2c * that
    expected = torch.tensor([0.0, math.sqrt(3) / 2], dtype=torch.float64)
    torch.testing.assert_close(symmetric[0], expected)
    assert symmetric[1].norm() == pytest.approx(math.sqrt(3) / 2)


@pytest.mark.parametrize(("rates", "rarer", "frequent"), [([0.2, 0.1], 1, 0), ([0.1, 0.2], 0, 1)])
def test_frequency_ordering_pushes_only_rarer_latent(
    rates: list[float], rarer: int, frequent: int
) -> None:
    ordered, symmetric = gradient_rows(rates)
    assert torch.equal(ordered[frequent], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(ordered[rarer], symmetric[rarer])


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_equal_frequencies_push_both_latents(rate: float) -> None:
    ordered, symmetric = gradient_rows([rate, rate])
    assert torch.equal(ordered, symmetric)


def test_adaptive_gradient_only_on_chosen_pairs() -> None:
    W = torch.eye(6, dtype=torch.float64)
    W[1, 0] = 1.0  # latents 0 and 1 are similar, the others are orthogonal to all
    W.requires_grad_()
    loss = adaptive_penalty(W, random_neighbours(6, 5), torch.ones(6, 5))
    _, gradient = value_and_gradient(loss, W)
    assert gradient.abs().sum(-1).nonzero().flatten().tolist() == [0, 1]


# -------------------------------------------------------------- properties


def penalties(W: Tensor, order: Tensor | None = None) -> Tensor:
    """All penalties of a decoder. ``order`` relabels latents, lists and permutations together."""
    n = len(W)
    neighbours, weights = random_neighbours(n, 4), random_weights((n, 4))
    rates, permutation = random_weights((n,), seed=3), chunk_permutation(n, 1, 1)
    if order is not None:
        new_label = order.argsort()
        W, weights, rates = W[order], weights[order], rates[order]
        neighbours, permutation = new_label[neighbours[order]], new_label[permutation]
    return torch.stack(
        [
            gram_penalty(W),
            fixed_penalty(W, permutation, chunk_size=4),
            adaptive_penalty(W, neighbours, weights),
            adaptive_penalty(W, neighbours, weights, rates),
            adaptive_penalty(W, neighbours, weights, rates, rates),
        ]
    )


def random_rotation(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(random_decoder(d, d, seed)).Q


@given(seeds)
@examples
def test_orthonormal_rows_cost_nothing(seed: int) -> None:
    values = penalties(random_rotation(8, seed))
    torch.testing.assert_close(values, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-14)


@given(seeds)
@examples
def test_penalties_are_invariant_to_rotation(seed: int) -> None:
    W = random_decoder(seed=seed)
    torch.testing.assert_close(penalties(W @ random_rotation(6, seed)), penalties(W))


@given(seeds, st.floats(1e-3, 1e3))
@examples
def test_penalties_are_invariant_to_row_scale(seed: int, scale: float) -> None:
    W = random_decoder(seed=seed)
    row_scales = scale * (0.1 + random_weights((12, 1), seed))
    torch.testing.assert_close(penalties(W * row_scales), penalties(W))


@given(seeds)
@examples
def test_penalties_are_invariant_to_relabelling(seed: int) -> None:
    W = random_decoder(seed=seed)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(penalties(W, order), penalties(W))


@given(seeds, st.floats(0, 1), st.floats(0, 1))
@examples
def test_more_sharing_never_costs_more(seed: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    W = random_decoder(seed=seed)
    neighbours, affinity = random_neighbours(12, 5, seed), random_weights((12, 5), seed)
    strict = adaptive_penalty(W, neighbours, pair_weights(affinity, low))
    lenient = adaptive_penalty(W, neighbours, pair_weights(affinity, high))
    assert lenient <= strict


def test_full_sharing_at_full_affinity_is_free() -> None:
    W = random_decoder()
    neighbours, affinity = random_neighbours(12, 5), torch.ones(12, 5)
    assert adaptive_penalty(W, neighbours, pair_weights(affinity, 1.0)) == 0
    assert adaptive_penalty(W, neighbours, pair_weights(affinity, 0.0)) > 0.01


@given(st.integers(2, 40), st.integers(0, 2**40), st.integers(0, 10**7))
@examples
def test_chunk_permutation_is_pure(n: int, seed: int, step: int) -> None:
    before = torch.get_rng_state()
    permutation = chunk_permutation(n, seed, step)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(permutation, chunk_permutation(n, seed, step))
    assert torch.equal(permutation.sort().values, torch.arange(n))


def test_chunk_permutation_changes_with_seed_and_step() -> None:
    drawn = {
        tuple(chunk_permutation(64, seed, step).tolist()) for seed in (0, 1) for step in (0, 1)
    }
    assert len(drawn) == 4


@pytest.mark.parametrize("rates", [None, "ordered", "tied"])
@pytest.mark.parametrize("energies", [None, "some"])
def test_gradient_equals_finite_differences(rates: str | None, energies: str | None) -> None:
    # Finite differences fit only symmetric penalties: an ordered penalty stops a gradient.
    W = random_decoder(8, 4).requires_grad_()
    neighbours, weights = random_neighbours(8, 3), random_weights((8, 3))
    options = {
        "firing_rates": torch.full((8,), 0.5) if rates == "tied" else None,
        "energies": random_weights((8,), 3) if energies else None,
    }
    if rates == "ordered":
        fast = adaptive_penalty(W, neighbours, weights, torch.arange(8.0), options["energies"])
        slow = naive_adaptive(W, neighbours, weights, torch.arange(8.0), options["energies"])
        assert_same_loss(fast, slow, W)
        return
    assert torch.autograd.gradcheck(
        lambda w: adaptive_penalty(w, neighbours, weights, **options), W
    )


def test_directions_gradient_equals_autograd() -> None:
    W = torch.tensor([[3.0, 4.0], [3e-9, 4e-9], [0.0, 0.0]], dtype=torch.float64)
    g = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    gradients = []
    for directions in (decoder_directions, lambda w: w / w.norm(dim=-1, keepdim=True).clamp(1e-8)):
        w = W.clone().requires_grad_()
        gradients.append(torch.autograd.grad(directions(w), w, g)[0])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)


def test_gradient_below_smallest_norm_is_clamped() -> None:
    W = random_decoder(8, 4)
    W[2] *= 1e-9
    W.requires_grad_()
    neighbours, weights = random_neighbours(8, 7), random_weights((8, 7))
    D = W / W.norm(dim=1, keepdim=True).clamp(1e-8)
    cosines = torch.einsum("nd,nmd->nm", D, D[neighbours])
    held = (weights * cosines.relu()).amax(1).square().mean()
    assert_same_loss(adaptive_penalty(W, neighbours, weights), held, W)


@pytest.mark.parametrize("name", ["adaptive", "fixed"])
def test_backward_keeps_no_decoder_sized_tensor(name: str) -> None:
    W = random_decoder(64, 256).float().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        if name == "fixed":
            fixed_penalty(W, torch.arange(64))
        else:
            adaptive_penalty(W, random_neighbours(64, 4), torch.ones(64, 4))
    assert any(x is W for x in kept)
    assert max(x.numel() for x in kept if x is not W) == len(W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pair_cosines_agree_on_all_paths(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    W = random_decoder(40, 7).to(dtype)
    D, neighbours = decoder_directions(W), random_neighbours(40, 5)
    sampled = pair_cosines(W, neighbours)
    torch.testing.assert_close(sampled, (D @ D.T).gather(1, neighbours))
    for copied in (1, 16 * 5 * 7, 2**23):
        products = _products_in_blocks(D, neighbours, copied)
        torch.testing.assert_close(products, sampled)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(pair_cosines(W, neighbours), sampled)


@pytest.mark.compile
def test_penalty_compiles_without_graph_break() -> None:
    # A separate process, because the shape checks of the test run cannot be compiled.
    code = """
import torch
from saelens_adaptive_ortho.maths.penalties.adaptive import adaptive_penalty
g = torch.Generator().manual_seed(0)
W = torch.randn(12, 6, generator=g, dtype=torch.float64, requires_grad=True)
neighbours = (torch.arange(12).unsqueeze(1) + torch.arange(1, 5)) % 12
weights, rates = torch.rand(12, 4, generator=g), torch.rand(12, generator=g)
def loss(W):
    return adaptive_penalty(W, neighbours, weights, rates, rates)
compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
for a, b in zip(*((f(W), *torch.autograd.grad(f(W), W)) for f in (loss, compiled))):
    torch.testing.assert_close(a, b)
    assert a.abs().max() > 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_gradient_is_bit_equal_on_two_threads() -> None:
    # Many latents share few neighbours, so their contributions meet in the same rows.
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        generator = torch.Generator().manual_seed(0)
        W_dec = torch.randn(2048, 64, generator=generator, requires_grad=True)
        neighbours = torch.randint(0, 8, (2048, 4), generator=generator)
        weights = torch.rand(2048, 4, generator=generator)
        gradients = set()
        for _ in range(10):
            loss = adaptive_penalty(W_dec, neighbours, weights)
            (gradient,) = torch.autograd.grad(loss, W_dec)
            gradients.add(gradient.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(gradients) == 1
