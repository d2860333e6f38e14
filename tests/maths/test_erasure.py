"""Projectors, contrastive PCA, LEACE and the detector, where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saelens_adaptive_ortho.maths.erasure import (
    Detector,
    Erasure,
    Moments,
    contrastive_directions,
    leace,
    leading_directions,
    logistic_detector,
    lowest_threshold,
    mixed_moments,
    orthonormal_basis,
    removed,
)


def random(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def moments(x: Tensor) -> Moments:
    return Moments(x.mean(0), torch.cov(x.T, correction=0))


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_basis_spans_the_first_rows_in_order(seed: int) -> None:
    rows = random(5, 8, seed=seed)
    rows[3] = 2 * rows[0] - rows[1]  # it depends on earlier rows
    basis = orthonormal_basis(rows)
    assert basis.shape == (4, 8)
    torch.testing.assert_close(basis @ basis.T, torch.eye(4).double())
    for count in range(1, 4):
        P = basis[:count].T @ basis[:count]
        torch.testing.assert_close(rows[:count] @ P, rows[:count])


def test_rows_without_direction_give_an_empty_basis() -> None:
    assert orthonormal_basis(torch.zeros(3, 5)).shape == (0, 5)


def test_erasure_removes_exactly_the_planted_direction() -> None:
    planted, x, centre = random(1, 6, seed=1)[0], random(4, 6, seed=2), random(6, seed=3)
    basis = orthonormal_basis(planted[None])
    erased = Erasure.onto(basis).apply(x, centre, 1.0)
    unit = planted / planted.norm()
    torch.testing.assert_close(erased @ unit, (centre @ unit).expand(4))
    others = orthonormal_basis(torch.cat([planted[None], random(5, 6, seed=4)]))[1:]
    torch.testing.assert_close(erased @ others.T, x @ others.T)
    half = Erasure.onto(basis).apply(x, centre, 0.5)
    torch.testing.assert_close(half, (x + erased) / 2)


def test_removed_span_is_gone_and_the_rest_stays() -> None:
    rows, basis = random(5, 7, seed=1), orthonormal_basis(random(2, 7, seed=2))
    left = removed(rows, basis)
    torch.testing.assert_close(left @ basis.T, torch.zeros(5, 2).double())
    torch.testing.assert_close(left + (rows @ basis.T) @ basis, rows)


@pytest.mark.parametrize(("share", "count"), [(0.5, 1), (0.6, 1), (0.61, 2), (0.9, 2), (0.95, 3)])
def test_leading_directions_hold_the_share(share: float, count: int) -> None:
    axes = orthonormal_basis(random(4, 4))
    covariance = axes.T @ torch.diag(torch.tensor([6.0, 3.0, 1.0, 0.0]).double()) @ axes
    found = leading_directions(covariance, share)
    assert len(found) == count
    torch.testing.assert_close(found.T @ found, axes[:count].T @ axes[:count])


def test_contrastive_directions_find_what_only_forget_varies_in() -> None:
    """Retain varies twice as much in one direction; forget alone varies in the other one."""
    forget, retain = (
        torch.diag(torch.tensor([4.0, 2.0, 1.0])),
        torch.diag(torch.tensor([8.0, 0, 1])),
    )
    found = contrastive_directions(forget, retain)
    torch.testing.assert_close(found.abs(), torch.eye(3)[[1, 2, 0]].double())


def test_mixed_moments_are_those_of_all_rows() -> None:
    first, second = random(30, 4, seed=1), 2 + random(10, 4, seed=2)
    means = torch.stack([first.mean(0), second.mean(0)])
    seconds = torch.stack([x.T @ x / len(x) for x in (first, second)])
    found = mixed_moments(means, seconds, torch.tensor([0.75, 0.25]).double())
    expected = moments(torch.cat([first, second]))
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.covariance, expected.covariance)
    centre = random(4, seed=3)
    x = torch.cat([first, second]) - centre
    torch.testing.assert_close(found.about(centre), x.T @ x / 40)


def test_leace_makes_class_means_equal() -> None:
    forget, retain = random(400, 5, seed=1) @ random(5, 5, seed=2) + 3, random(300, 5, seed=3)
    difference = forget.mean(0) - retain.mean(0)
    pooled = (moments(forget).about(retain.mean(0)) + moments(retain).covariance) / 2
    found = leace(difference, pooled)
    centre = retain.mean(0)
    means = [found.apply(x, centre, 1.0).mean(0) for x in (forget, retain)]
    torch.testing.assert_close(means[0], means[1])
    # The covariance of a class gives the same matrix as that of all activations.
    within = leace(difference, (moments(forget).covariance + moments(retain).covariance) / 2)
    torch.testing.assert_close(within.into @ within.back, found.into @ found.back)
    P = found.into @ found.back
    torch.testing.assert_close(P @ P, P)


def test_leace_changes_less_than_the_orthogonal_projector() -> None:
    """Both make the class means equal; LEACE moves x less."""
    scale = torch.diag(torch.tensor([5.0, 1.0, 0.2]).double())
    retain = random(2000, 3, seed=1) @ scale
    forget = random(2000, 3, seed=2) @ scale + torch.tensor([2.0, 0.5, 0.5]).double()
    difference, centre = forget.mean(0) - retain.mean(0), retain.mean(0)
    covariance = (moments(forget).covariance + moments(retain).covariance) / 2
    both = torch.cat([forget, retain])
    moved = {
        "leace": leace(difference, covariance).apply(both, centre, 1.0) - both,
        "plain": Erasure.onto((difference / difference.norm())[None]).apply(both, centre, 1.0)
        - both,
    }
    cost = {name: float(m.square().sum(1).mean()) for name, m in moved.items()}
    assert cost["leace"] < 0.5 * cost["plain"]


def test_detector_equals_bayes_rule_for_two_normals() -> None:
    """For two normals of one covariance, the log-odds are linear with a known weight."""
    shift = torch.tensor([1.0, -0.5, 0.0]).double()
    x = torch.cat([random(20_000, 3, seed=1) + shift, random(20_000, 3, seed=2)])
    is_forget = torch.arange(40_000) < 20_000
    found = logistic_detector(x, is_forget, torch.full((40_000,), 1 / 40_000), 1e-6)
    torch.testing.assert_close(found.weight, shift, atol=0.05, rtol=0)
    assert found.bias == pytest.approx(-float(shift @ shift) / 2, abs=0.05)


def test_weights_of_tokens_move_only_the_bias() -> None:
    """Forget tokens that count three times as much raise the log-odds by log 3."""
    x = torch.cat([random(20_000, 2, seed=1) + 1, random(20_000, 2, seed=2)])
    is_forget = torch.arange(40_000) < 20_000
    weights = torch.where(is_forget, 3.0, 1.0) / 80_000
    plain = logistic_detector(x, is_forget, torch.full((40_000,), 1 / 40_000), 1e-6)
    found = logistic_detector(x, is_forget, weights, 1e-6)
    torch.testing.assert_close(found.weight, plain.weight, atol=0.05, rtol=0)
    assert found.bias - plain.bias == pytest.approx(math.log(3), abs=0.05)


def test_detector_score_is_affine() -> None:
    detector = Detector(torch.tensor([1.0, 2.0]), 0.5)
    assert detector.score(torch.tensor([[1.0, 1.0], [0.0, -1.0]])).tolist() == [3.5, -1.5]


def test_lowest_threshold_has_the_ratio() -> None:
    """Scores are uniform on [0, 2] for forget and on [0, 1] for retain, so the answer is exact."""
    forget, retain = torch.linspace(0, 2, 4001), torch.linspace(0, 1, 2001)
    equal = torch.full((2001,), 1 / 2001)
    for ratio in (3.0, 10.0):
        # (2 - t) / 2 = ratio (1 - t)
        expected = (ratio - 1) / (ratio - 0.5)
        found = lowest_threshold(forget, retain, equal, ratio)
        assert found == pytest.approx(expected, abs=3e-3)
    assert lowest_threshold(retain, forget, torch.full((4001,), 1 / 4001), 3.0) is None


def test_lowest_threshold_weighs_retain_tokens() -> None:
    forget = torch.linspace(0, 1, 1001)
    retain = torch.cat([torch.zeros(10), torch.linspace(0, 1, 1001)])
    weights = torch.cat([torch.full((10,), 0.09), torch.full((1001,), 0.1 / 1001)])
    found = lowest_threshold(forget, retain, weights, 5.0)
    assert found == pytest.approx(0, abs=2e-3)  # nine in ten retain tokens have a score of 0


def test_erasure_without_a_direction_is_refused() -> None:
    eye = torch.eye(3)
    with pytest.raises(ValueError, match="rows must be finite"):
        orthonormal_basis(torch.tensor([[1.0, float("nan")]]))
    for difference, covariance, rule in (
        (torch.zeros(3), eye, "difference must not be zero"),
        (eye[0], torch.zeros(3, 3), "covariance must be positive"),
        (eye[0] * float("inf"), eye, "difference must be finite"),
        (eye[0], eye * float("nan"), "covariance must be finite"),
    ):
        with pytest.raises(ValueError, match=rule):
            leace(difference, covariance)
