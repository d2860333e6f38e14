"""Similar pairs, their joint firings, and the absorption candidates among them."""

from __future__ import annotations

import math

import pytest
import torch

from saelens_adaptive_ortho.maths.similar_pairs import (
    PairCounts,
    Pairs,
    absorption_candidates,
    count_pairs,
    lifts,
    similar_pairs,
)


def unit(rows: list[list[float]]) -> torch.Tensor:
    D = torch.tensor(rows)
    return D / D.norm(dim=1, keepdim=True)


def test_similar_pairs_are_distinct_and_sorted() -> None:
    D = unit([[1, 0, 0], [1, 0.1, 0], [0, 0, 1], [0, 1, 1], [0, 0, -1]])
    pairs = similar_pairs(D, min_cosine=0.5)
    assert pairs.indices.tolist() == [[0, 1], [2, 3]]
    assert pairs.cosines.tolist() == pytest.approx([1 / math.sqrt(1.01), math.sqrt(0.5)])
    assert similar_pairs(D, min_cosine=0.5, limit=1).indices.tolist() == [[0, 1]]
    assert len(similar_pairs(D, min_cosine=0.999).indices) == 0


@pytest.mark.parametrize("min_cosine", [-1.0, 0.2, 0.6])
def test_similar_pairs_equal_double_loop(min_cosine: float) -> None:
    generator = torch.Generator().manual_seed(0)
    D = unit(torch.randn(20, 5, generator=generator).tolist())
    cosines = D @ D.T
    expected = {(i, j) for i in range(20) for j in range(i + 1, 20) if cosines[i, j] >= min_cosine}
    found = similar_pairs(D, min_cosine, m=19)
    assert {tuple(p) for p in found.indices.tolist()} == expected
    for (i, j), cosine in zip(found.indices.tolist(), found.cosines.tolist(), strict=True):
        assert cosine == pytest.approx(float(cosines[i, j]), abs=1e-5)


def counted(active: list[list[int]], pairs: torch.Tensor) -> PairCounts:
    batch = torch.tensor(active).bool()
    d_sae = batch.shape[1]
    empty = PairCounts(
        0, torch.zeros(d_sae, dtype=torch.int64), torch.zeros(len(pairs), dtype=torch.int64)
    )
    half = count_pairs(empty, batch[:2], pairs)
    return count_pairs(half, batch[2:], pairs)


def test_pair_counts_and_lift() -> None:
    pairs = torch.tensor([[0, 1], [0, 2], [1, 3]])
    counts = counted([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]], pairs)
    assert counts.n_tokens == 4
    assert counts.fired.tolist() == [3, 2, 1, 0]
    assert counts.both.tolist() == [2, 0, 0]
    found = lifts(counts, pairs)
    assert found[:2].tolist() == pytest.approx([(2 / 4) / (3 / 4 * 2 / 4), 0.0])
    assert math.isnan(float(found[2]))  # latent 3 never fired


def test_candidates_need_low_lift_and_enough_chances() -> None:
    pairs = Pairs(torch.tensor([[0, 1], [0, 2], [3, 4]]), torch.tensor([0.9, 0.8, 0.7]))
    counts = PairCounts(
        1000,
        torch.tensor([100, 200, 100, 10, 10]),
        torch.tensor([2, 50, 0]),  # expected by chance: 20, 10, 0.1
    )
    (only,) = absorption_candidates(counts, pairs, max_lift=0.25, min_expected=5)
    assert (only.frequent, only.rare) == (1, 0)
    assert (only.cosine, only.lift) == pytest.approx((0.9, 0.1))
    assert (only.rate_frequent, only.rate_rare, only.expected) == pytest.approx((0.2, 0.1, 20))
    everything = absorption_candidates(counts, pairs, max_lift=0.25, min_expected=0)
    assert [(c.frequent, c.rare) for c in everything] == [(1, 0), (3, 4)]
