"""Geometry of decoder groups against hand-made spectra, double loops and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from saelens_adaptive_ortho.maths import geometry
from saelens_adaptive_ortho.maths.geometry import (
    condition_number,
    cosine_histogram,
    effective_rank,
    mean_max_cosine,
    principal_angles,
    row_space,
    singular_values,
)


def orthonormal(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, n, generator=generator, dtype=torch.float64)).Q.T


def with_spectrum(sigma: list[float], n: int, d: int) -> Tensor:
    """An [n, d] matrix with exactly these singular values."""
    k = len(sigma)
    return (
        orthonormal(k, n, seed=1).T @ torch.diag(torch.tensor(sigma).double()) @ orthonormal(k, d)
    )


def scipy_angles(A: Tensor, B: Tensor) -> list[float]:
    """Degrees, smallest first."""
    return np.rad2deg(scipy.linalg.subspace_angles(A.T.numpy(), B.T.numpy()))[::-1].tolist()


def test_orthonormal_rows_have_best_values() -> None:
    D = orthonormal(5, 9)
    assert condition_number(D) == pytest.approx(1.0, abs=1e-12)
    assert effective_rank(D) == pytest.approx(5.0)


@pytest.mark.parametrize(("n", "d"), [(3, 7), (7, 3), (3, 3)])
def test_condition_number_of_known_spectrum(n: int, d: int) -> None:
    D = with_spectrum([4.0, 2.0, 0.5], n, d)
    torch.testing.assert_close(singular_values(D), torch.tensor([4.0, 2.0, 0.5]).double())
    assert condition_number(D) == pytest.approx(8.0)


def test_effective_rank_is_exp_entropy() -> None:
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert effective_rank(with_spectrum([2.0, 1.0, 1.0], 3, 6)) == pytest.approx(math.exp(entropy))
    assert effective_rank(torch.ones(4, 6)) == pytest.approx(1.0)


@pytest.mark.parametrize("n", [2, 5])
def test_dependent_rows_have_infinite_condition_number(n: int) -> None:
    assert condition_number(torch.randn(6).expand(n, 6)) == math.inf


def test_small_singular_values_are_not_dependent() -> None:
    assert condition_number(with_spectrum([1.0, 1e-12], 2, 6)) == pytest.approx(1e12, rel=1e-3)


def test_geometry_uses_float64() -> None:
    assert singular_values(torch.eye(3, dtype=torch.bfloat16)).dtype == torch.float64
    assert principal_angles(torch.eye(3)[:1], torch.eye(3)[1:]).dtype == torch.float64


@pytest.mark.parametrize(("n", "k"), [(3, 3), (2, 5), (5, 2), (1, 1)])
def test_principal_angles_agree_with_scipy(n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(n * 10 + k)
    A = torch.randn(n, 9, generator=generator, dtype=torch.float64)
    B = torch.randn(k, 9, generator=generator, dtype=torch.float64)
    assert principal_angles(A, B).tolist() == pytest.approx(scipy_angles(A, B))
    assert principal_angles(B, A).tolist() == pytest.approx(scipy_angles(A, B))


def at_angles(one: float, two: float) -> tuple[Tensor, Tensor]:
    """Two planes in eight dimensions that meet at these principal angles."""
    e = orthonormal(4, 8)
    tilted = [math.cos(a) * e[i] + math.sin(a) * e[i + 2] for i, a in enumerate((one, two))]
    return e[:2], torch.stack(tilted)


@pytest.mark.parametrize("angle", [1e-9, 1e-5, 0.3, 1.2, math.pi / 2])
def test_planted_angles_are_found_down_to_1e_9(angle: float) -> None:
    found = torch.deg2rad(principal_angles(*at_angles(angle, 1.0))).tolist()
    assert found == pytest.approx(sorted([angle, 1.0]), rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("angle", [1e-9, 1e-5, 0.2])
def test_tiny_principal_angles_agree_with_scipy(angle: float) -> None:
    # All angles are below 45 degrees: scipy 1.17 mixes up its sine and cosine branches above.
    A, B = at_angles(angle, 3 * angle)
    assert principal_angles(A, B).tolist() == pytest.approx(scipy_angles(A, B), rel=1e-6, abs=0)


def test_angles_of_equal_and_orthogonal_spans() -> None:
    basis = orthonormal(4, 8)
    mixed = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).double() @ basis[:2]
    assert principal_angles(basis[:2], mixed).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert principal_angles(basis[:2], basis[2:]).tolist() == pytest.approx([90, 90])


def test_dependent_rows_give_one_principal_angle() -> None:
    basis = orthonormal(3, 6)
    tripled = torch.stack([basis[0], 2 * basis[0], -basis[0]])
    assert principal_angles(tripled, basis).shape == (1,)


def test_energy_keeps_only_leading_directions() -> None:
    # squared singular values 9, 4, 1 with sum 14: cumulative shares .64, .93, 1
    D = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    assert [row_space(D, energy).shape[1] for energy in (0.6, 0.65, 0.92, 0.95, 1.0)] == [
        1,
        2,
        2,
        3,
        3,
    ]
    # The weak third directions coincide. Without them the groups are orthogonal.
    A = torch.diag(torch.tensor([1.0, 0.0, 0.1, 0.0]))[[0, 2]]
    B = torch.diag(torch.tensor([0.0, 1.0, 0.1, 0.0]))[[1, 2]]
    assert principal_angles(A, B).tolist() == pytest.approx([0, 90])
    assert principal_angles(A, B, energy=0.9).tolist() == pytest.approx([90])


@pytest.mark.parametrize("block_size", [4, 2048])
def test_mean_max_cosine_equals_double_loop(block_size: int) -> None:
    W = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    D = W.double() / W.double().norm(dim=-1, keepdim=True)
    slow = sum(max(float(D[i] @ D[j]) for j in range(9) if j != i) for i in range(9)) / 9
    assert mean_max_cosine(W, block_size) == pytest.approx(slow)
    assert mean_max_cosine(5 * W, block_size) == pytest.approx(slow)


@pytest.mark.parametrize("block_size", [3, 2048])
def test_histogram_counts_ordered_pairs_once(block_size: int) -> None:
    W = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    edges, counts = cosine_histogram(W, bins=20, block_size=block_size)
    assert sum(counts) == 10 * 9
    assert edges == pytest.approx(np.linspace(-1, 1, 21).tolist())
    D = W.double() / W.double().norm(dim=-1, keepdim=True)
    pairs = (D @ D.T)[~torch.eye(10, dtype=torch.bool)].numpy()
    assert counts == np.histogram(pairs, bins=edges)[0].tolist()


def test_histogram_end_bins_hold_cosines_of_one() -> None:
    W = torch.tensor([[1.0, 2.0], [3.0, 6.0], [-1.0, -2.0]])
    _, counts = cosine_histogram(W, bins=4)
    assert counts == [4, 0, 0, 2]


@pytest.mark.parametrize("energy", [0.0, -0.5, 1.5, math.nan])
def test_energy_outside_unit_interval_is_refused(energy: float) -> None:
    with pytest.raises(ValueError, match=r"energy must lie in \(0, 1\]"):
        principal_angles(torch.eye(2), torch.eye(2), energy)


def test_empty_group_is_refused() -> None:
    empty = torch.zeros(0, 4)
    for measure in (condition_number, effective_rank, singular_values, row_space):
        with pytest.raises(ValueError, match="A group without latents"):
            measure(empty)
    with pytest.raises(ValueError, match="A group without latents"):
        principal_angles(torch.eye(4), empty)


# ------------------------------------------------- many rows: from the Gram matrix


@pytest.fixture
def few_exact_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the code path of large groups from nine rows on."""
    monkeypatch.setattr(geometry, "EXACT_ROWS", 8)


@pytest.mark.usefixtures("few_exact_rows")
@pytest.mark.parametrize(("n", "d"), [(30, 6), (9, 12), (12, 12)])
def test_large_group_values_equal_exact_ones(n: int, d: int) -> None:
    D = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.linalg.svdvals(D)
    torch.testing.assert_close(singular_values(D), exact, rtol=1e-9, atol=0)
    assert condition_number(D) == pytest.approx(float(exact[0] / exact[-1]), rel=1e-8)
    p = exact / exact.sum()
    assert effective_rank(D) == pytest.approx(float((-(p * p.log()).sum()).exp()))


@pytest.mark.usefixtures("few_exact_rows")
def test_large_dependent_group_has_infinite_condition() -> None:
    D = with_spectrum([3.0, 2.0, 1.0], 12, 6)
    assert condition_number(D) == math.inf
    assert row_space(D).shape == (6, 3)


@pytest.mark.usefixtures("few_exact_rows")
@pytest.mark.parametrize("energy", [1.0, 0.8])
def test_large_group_angles_equal_exact_ones(
    monkeypatch: pytest.MonkeyPatch, energy: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(20, 30, generator=generator).double() for _ in range(2))
    by_gram = principal_angles(A, B, energy)
    monkeypatch.setattr(geometry, "EXACT_ROWS", 4096)
    torch.testing.assert_close(by_gram, principal_angles(A, B, energy), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_must_be_finite(value: float) -> None:
    rows = torch.eye(4)
    rows[1, 2] = value
    for measure in (condition_number, effective_rank, singular_values):
        with pytest.raises(ValueError, match="directions must be finite"):
            measure(rows)
    with pytest.raises(ValueError, match="W_dec must be finite"):
        mean_max_cosine(rows)


def test_zero_rows_have_no_rank() -> None:
    assert effective_rank(torch.zeros(3, 4)) == 0
    assert condition_number(torch.zeros(3, 4)) == float("inf")
