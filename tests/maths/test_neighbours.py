"""Neighbour lists: exact results in blocks, and values that move to a refreshed list."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saelens_adaptive_ortho.maths import device
from saelens_adaptive_ortho.maths.neighbours import (
    _largest,
    captured_share,
    carry_over,
    sampled_rows,
    top_similar,
)


def random_rows(n: int, d: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=dtype)


@pytest.mark.parametrize("m", [1, 4, 8])
@pytest.mark.parametrize("block_size", [1, 4, 9, 2048])
def test_top_similar_equals_double_loop(m: int, block_size: int) -> None:
    X = random_rows(9)
    indices, values = top_similar(X, m, block_size)
    for i in range(9):
        ranked = sorted((-(X[i] @ X[j]).item(), j) for j in range(9) if j != i)[:m]
        assert indices[i].tolist() == [j for _, j in ranked]
        assert values[i].tolist() == pytest.approx([-c for c, _ in ranked])


@pytest.mark.parametrize("m", [3, 16])
@pytest.mark.parametrize("block_size", [300, 512, 2048])
def test_top_similar_equals_gram_matrix_topk(m: int, block_size: int) -> None:
    X = random_rows(1100)
    gram = (X @ X.T).fill_diagonal_(float("-inf"))
    indices, values = top_similar(X, m, block_size)
    expected = gram.topk(m, dim=1)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(values, expected.values)


@pytest.fixture(params=["cpu", "gpu"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for each kind of device, on the CPU."""
    monkeypatch.setattr(device, "on_gpu", lambda _: request.param == "gpu")


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("block_size", [7, 2048])
def test_floor_below_the_list_changes_nothing(block_size: int) -> None:
    X = random_rows(60)
    indices, values = top_similar(X, 5, block_size)
    floor = values[:, -1] - torch.rand(60, generator=torch.Generator().manual_seed(0)) - 1e-9
    found = top_similar(X, 5, block_size, floor)
    assert torch.equal(found[0], indices)
    assert torch.equal(found[1], values)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("block_size", [7, 2048])
def test_floor_inside_the_list_ends_it(block_size: int) -> None:
    X = random_rows(60)
    indices, values = top_similar(X, 5, block_size)
    floor = values[:, 2].clone()
    floor[0] = float("inf")
    found, similarity = top_similar(X, 5, block_size, floor)
    assert torch.equal(found[1:, :2], indices[1:, :2])
    assert torch.equal(similarity[1:, :2], values[1:, :2])
    assert (similarity[1:, 2:] == float("-inf")).all()
    assert (similarity[0] == float("-inf")).all()


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("rows", [60, 300])
def test_floor_below_nearly_everything_changes_nothing(rows: int) -> None:
    # 300 rows have too many similarities for the short way of a GPU, 60 have not.
    X = random_rows(rows)
    indices, values = top_similar(X, 5, 64)
    found = top_similar(X, 5, 64, torch.full((rows,), -1e9, dtype=X.dtype))
    assert torch.equal(found[0], indices)
    torch.testing.assert_close(found[1], values)


def test_half_precision_loses_only_rounding() -> None:
    X = torch.nn.functional.normalize(random_rows(300, d=64), dim=1)
    gram = (X @ X.T).fill_diagonal_(float("-inf"))
    indices, _ = top_similar(X.half(), 16, block_size=64)
    assert all(len(row.unique()) == 16 for row in indices)
    lost = gram.topk(16, dim=1).values[:, -1] - gram.gather(1, indices).amin(1)
    assert lost.max() < 1e-3
    share = captured_share(X.half(), indices, torch.arange(300))
    assert share.dtype == torch.float32
    assert share.item() == 1.0


def test_many_similar_latents_in_one_block() -> None:
    # The last block holds the 30 best neighbours of the first latents, too many for the short path.
    X = torch.cat([random_rows(40), torch.ones(30, 5, dtype=torch.float64)])
    X[:20] = 1.0
    indices, values = top_similar(X, 4, block_size=10)
    gram = (X @ X.T).fill_diagonal_(float("-inf"))
    torch.testing.assert_close(values, gram.topk(4, dim=1).values)
    torch.testing.assert_close(gram.gather(1, indices), values)
    assert all(len(row.unique()) == 4 for row in indices)


def test_top_similar_by_hand() -> None:
    X = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    indices, values = top_similar(X, 2)
    assert indices.tolist() == [[1, 2], [0, 2], [1, 0]]
    torch.testing.assert_close(values, torch.tensor([[0.8, 0.0], [0.8, 0.6], [0.6, 0.0]]))


def test_latent_is_never_its_own_neighbour() -> None:
    indices, values = top_similar(torch.ones(6, 3), 5, block_size=4)
    assert (indices != torch.arange(6).unsqueeze(1)).all()
    assert torch.equal(values, torch.full((6, 5), 3.0))


def test_top_similar_has_no_gradient() -> None:
    X = random_rows(6).requires_grad_()
    _, values = top_similar(X, 2)
    assert not values.requires_grad


@pytest.mark.parametrize("m", [0, 4, -1])
def test_list_length_out_of_range_is_refused(m: int) -> None:
    with pytest.raises(ValueError, match=rf"m must lie in \[1, 3\] for 4 directions, got {m}"):
        top_similar(torch.eye(4), m)


def test_carry_over_moves_values_with_pairs() -> None:
    old = torch.tensor([[1, 2, 3], [0, 2, 3]])
    new = torch.tensor([[3, 4, 1], [5, 6, 7]])
    values = torch.tensor([[10.0, 20.0, 30.0], [1.0, 2.0, 3.0]])
    expected = torch.tensor([[30.0, 0.0, 10.0], [0.0, 0.0, 0.0]])
    assert torch.equal(carry_over(values, old, new), expected)


def test_carry_over_from_unset_list_is_zero() -> None:
    unset, new = torch.full((3, 2), -1), torch.tensor([[1, 2], [0, 2], [0, 1]])
    assert torch.equal(carry_over(torch.ones(3, 2), unset, new), torch.zeros(3, 2))


def test_carry_over_round_trip_restores_values() -> None:
    order = torch.tensor([2, 0, 1])
    old = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    values = random_rows(4, 3)
    there = carry_over(values, old, old[:, order])
    assert torch.equal(there, values[:, order])
    assert torch.equal(carry_over(there, old[:, order], old), values)


def test_captured_share_by_hand() -> None:
    angle = torch.tensor([0.0, 0.5, 0.51, 1.5], dtype=torch.float64)
    X = torch.stack([angle.cos(), angle.sin()], dim=1)
    lists = torch.tensor([[2], [3], [1], [0]])  # nearly nearest, wrong, nearest, wrong
    assert captured_share(X, lists, torch.arange(4)).item() == 0.5
    assert captured_share(X, lists, torch.tensor([0, 2])).item() == 1.0
    assert captured_share(X, lists, torch.tensor([0]), tolerance=0.004).item() == 0.0
    assert captured_share(X, lists, torch.arange(4), tolerance=2.0).item() == 1.0


def test_fresh_list_captures_all() -> None:
    X = random_rows(50)
    lists, _ = top_similar(X, 1)
    assert captured_share(X, lists, torch.arange(50)).item() == 1.0


def test_sampled_rows_cover_all_rows_equally() -> None:
    seen = torch.cat([sampled_rows(70, 16, turn) for turn in range(8)])
    assert torch.equal(seen.bincount(), torch.full((70,), 2))
    assert all(len(sampled_rows(70, 16, turn)) >= 16 for turn in range(8))
    assert torch.equal(sampled_rows(5, 16, 3), torch.arange(5))


@pytest.mark.parametrize("n", [2048, 2100])
def test_largest_of_long_rows_equals_topk(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(7, n, generator=generator)
    x[0] = x[0].sort().values  # all largest values are in one group at the end
    x[1, 5] = float("-inf")
    values, columns = _largest(x, 5)
    expected = x.topk(5)
    assert torch.equal(values, expected.values)
    assert torch.equal(columns, expected.indices)
