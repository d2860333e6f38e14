"""What the ranks of a divided SAE compute together equals what one process computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.batchtopk_sae import BatchTopK
from sae_lens.saes.topk_sae import TopK
from safetensors import safe_open
from torch import Tensor

from saelens_adaptive_ortho.maths import coactivation, neighbours
from saelens_adaptive_ortho.maths.directions import decoder_directions, pair_cosines
from saelens_adaptive_ortho.maths.penalties import ChosenPairs
from saelens_adaptive_ortho.maths.penalties.pair_cost import pair_penalty
from saelens_adaptive_ortho.maths.sparse import Nonzeros
from saelens_adaptive_ortho.training.sharded import files, pairs, similar
from saelens_adaptive_ortho.training.sharded.layout import Layout
from saelens_adaptive_ortho.training.sharded.ranks import Ranks
from saelens_adaptive_ortho.training.sharded.selection import (
    ShardedBatchTopK,
    ShardedTopK,
    chosen_of,
    kth_largest,
)
from tests.ranks import run_ranks

D, N, M = 12, 48, 5


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -------------------------------------------------------------------- collectives


def test_collectives() -> None:
    def work(ranks: Ranks) -> dict[str, Any]:
        x = torch.arange(3.0) + 10 * ranks.rank
        leaf = x.clone().requires_grad_()
        (2 * ranks.total(leaf)).sum().backward()
        rows = torch.full((ranks.rank, 2), ranks.rank)
        sends = [1, 2, 3]
        return {
            "sum": ranks.sum(x),
            "largest": ranks.largest(x),
            "gradient": leaf.grad,
            "gather": ranks.gather(x[:2, None], axis=1),
            "lists": ranks.gather_lists(rows),
            "ring": [(owner, int(block)) for owner, block in ranks.around(x[0])],
            "spread": ranks.spread(x, 1),
            "exchange": ranks.exchange(torch.full((6,), ranks.rank), sends, [ranks.rank + 1] * 3),
            "share": ranks.share({"a": ranks.rank}),
            "any": ranks.any(ranks.rank == 1),
            "said": ranks.all_say(str(ranks.rank)),
        }

    for rank, found in enumerate(run_ranks(3, work)):
        assert found["sum"].tolist() == [30, 33, 36]
        assert found["largest"].tolist() == [20, 21, 22]
        assert found["gradient"].tolist() == [2, 2, 2]
        assert found["gather"].tolist() == [[0, 10, 20], [1, 11, 21]]
        assert found["lists"].tolist() == [[1, 1], [2, 2], [2, 2]]
        order = [rank, (rank - 1) % 3, (rank - 2) % 3]
        assert found["ring"] == [(owner, 10 * owner) for owner in order]
        assert found["spread"].tolist() == [10, 11, 12]
        assert found["exchange"].tolist() == sorted([0, 1, 2] * (rank + 1))
        assert found["share"] == {"a": 0}
        assert found["any"]
        assert found["said"] == ["0", "1", "2"]


# ---------------------------------------------------------------------- selection


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 7, N])
def test_kth_largest(dtype: torch.dtype, k: int) -> None:
    x = random(6, N, dtype=dtype)
    x[0], x[1], x[2, ::2] = 0.0, -x[1].abs(), -0.0

    def work(ranks: Ranks) -> Tensor:
        return kth_largest(x[:, Layout(ranks, N).mine], k, ranks)

    for found in run_ranks(2, work):
        assert torch.equal(found, x.topk(k, dim=1).values[:, -1])


def test_selection_equals_that_of_one_process() -> None:
    x, g = random(16, N, seed=1), random(16, N, seed=2)

    def outcome(function: Callable[[Tensor], Tensor], mine: slice) -> tuple[Tensor, Tensor]:
        leaf = x[:, mine].clone().requires_grad_()
        out = function(leaf)
        (out * g[:, mine]).sum().backward()
        assert leaf.grad is not None
        return out.detach(), leaf.grad

    def work(ranks: Ranks) -> list[tuple[Tensor, Tensor]]:
        mine = Layout(ranks, N).mine
        functions = ShardedBatchTopK(3.5, ranks), ShardedTopK(4, ranks), ShardedBatchTopK(47, ranks)
        return [outcome(function, mine) for function in functions]

    found = run_ranks(3, work)
    for i, stock in enumerate([BatchTopK(3.5), TopK(4), BatchTopK(47)]):
        for part, expected in enumerate(outcome(stock, slice(None))):
            assert torch.equal(torch.cat([of_rank[i][part] for of_rank in found], 1), expected)


def test_equal_values_at_the_threshold() -> None:
    """Just as many are kept, and which ones does not depend on the number of ranks."""
    x = random(8, N, seed=3).mul(2).round().abs() + 1

    def work(ranks: Ranks) -> tuple[Tensor, Tensor]:
        mine = x[:, Layout(ranks, N).mine]
        return ShardedBatchTopK(5, ranks)(mine), chosen_of(mine, 5, ranks)

    batch, rows = (
        [torch.cat(parts, 1) for parts in zip(*run_ranks(size, work), strict=True)]
        for size in (2, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(batch, rows, strict=True))
    kept, chosen = batch
    assert int(kept.count_nonzero()) == 40
    assert torch.equal(kept.flatten().sort().values[-40:], x.flatten().sort().values[-40:])
    assert chosen.sum(1).tolist() == [5] * 8
    for row, mask in zip(x, chosen, strict=True):
        assert torch.equal(
            mask.nonzero().squeeze(1),
            row.sort(stable=True, descending=True).indices[:5].sort().values,
        )


def test_nan_reaches_the_activations() -> None:
    x = random(4, N)
    x[1, 2] = float("nan")
    found = run_ranks(2, lambda ranks: ShardedBatchTopK(2, ranks)(x[:, Layout(ranks, N).mine]))
    assert bool(found[0].isnan().any())


# ---------------------------------------------------------------- neighbours, pairs


def test_neighbours_equal_those_of_one_process() -> None:
    W = random(N, D, seed=4)
    directions = decoder_directions(W)
    lists, values = neighbours.top_similar(directions, M)
    worse = torch.where(torch.arange(N)[:, None] % 3 == 0, lists, lists.roll(1, 0))
    worse = torch.where(worse == torch.arange(N)[:, None], (worse + 1) % N, worse)
    rows = neighbours.sampled_rows(N, 20, 1)

    def work(ranks: Ranks) -> tuple[Tensor, ...]:
        layout = Layout(ranks, N)
        mine = directions[layout.mine]
        return (
            *similar.ring_top_similar(mine, M, layout),
            similar.ring_cosines(mine, lists[layout.mine], layout),
            similar.sampled_captured_share(mine, worse[layout.mine], rows, layout),
        )

    found = [
        torch.cat(parts) if parts[0].ndim else parts[0]
        for parts in zip(*run_ranks(3, work), strict=True)
    ]
    assert torch.equal(found[0], lists)
    torch.testing.assert_close(found[1], values)
    torch.testing.assert_close(found[2], pair_cosines(W, lists))
    share = neighbours.captured_share(directions, worse, rows)
    assert 0 < float(share) < 1
    assert torch.equal(found[3], share)


@pytest.mark.parametrize("floor", [-1.0, 0.3])
def test_lists_in_small_blocks(floor: float) -> None:
    x = decoder_directions(random(N, D, seed=5))
    indices, values = neighbours.top_similar(x, M, floor=torch.full((N,), floor))
    found, where = torch.full((N, M), float("-inf")), torch.zeros(N, M, dtype=torch.long)
    for first in (0, 16, 32):
        itself = 0 if first == 0 else None
        other = x[first : first + 16]
        neighbours.improve_lists(found[:16], where[:16], x[:16], other, first, floor, itself, 7)
    torch.testing.assert_close(found[:16], values[:16])
    listed = values[:16] > float("-inf")
    assert torch.equal(where[:16][listed], indices[:16][listed])


def test_pair_penalty_equals_that_of_one_process() -> None:
    W = random(N, D, seed=6, dtype=torch.float64)
    W[3] = 0
    lists, _ = neighbours.top_similar(decoder_directions(W), 1)
    partner = lists[:, 0].clone()
    partner[10:20] = 40  # of another rank, shared by several latents
    push = random(2, N, seed=7).abs()
    push[:, ::5] = 0  # no cost
    push[1, ::2] = 0
    chosen = ChosenPairs(partner, push)
    leaf = W.clone().requires_grad_()
    expected = pair_penalty(leaf, chosen)
    expected.backward()
    assert leaf.grad is not None

    def work(ranks: Ranks) -> tuple[Tensor, Tensor]:
        layout = Layout(ranks, N)
        mine = ChosenPairs(partner[layout.mine], push[:, layout.mine])
        exchange = pairs.plan_exchange(mine, layout)
        return pairs.pair_penalty_and_gradient(W[layout.mine], mine, exchange, layout)

    for size in (2, 4):
        losses, gradients = zip(*run_ranks(size, work), strict=True)
        for loss in losses:
            torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(torch.cat(gradients), leaf.grad, rtol=1e-12, atol=1e-14)


def test_joint_firings_equal_those_of_one_process() -> None:
    acts = random(40, N, seed=8).sub(1).relu()
    lists, _ = neighbours.top_similar(decoder_directions(random(N, D)), M)
    signs = coactivation.random_signs(40, 8, 0, 0)
    empty = coactivation.empty_state(N, M, 8)
    expected = coactivation.update(empty, acts, lists, signs, 0.9)

    def work(ranks: Ranks) -> Tensor:
        layout = Layout(ranks, N)
        mine = Nonzeros.of_entries(*_entries(acts[:, layout.mine]), (40, layout.n))
        return pairs.joint_sums(mine, lists[layout.mine], layout)

    found = torch.cat(run_ranks(3, work), dim=1)
    for sums, name in zip(found, ("joint", "joint_own", "joint_other"), strict=True):
        torch.testing.assert_close(sums, getattr(expected, name))
    silent = run_ranks(
        2,
        lambda ranks: pairs.joint_sums(
            Nonzeros.of_entries(*_entries(torch.zeros(4, 24)), (4, 24)),
            lists[Layout(ranks, N).mine],
            Layout(ranks, N),
        ),
    )
    assert all(int(sums.count_nonzero()) == 0 for sums in silent)


def _entries(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = x.nonzero(as_tuple=True)
    return rows, columns, x[rows, columns]


# -------------------------------------------------------------------------- files


def weights(layout: Layout) -> dict[str, Tensor]:
    """The part of a rank of tensors that every test knows as a whole."""
    mine = layout.mine
    return {
        "W_dec": random(N, D)[mine],
        "W_enc": random(D, N, seed=1)[:, mine],
        "b_enc": random(N, seed=2, dtype=torch.float64)[mine],
        "threshold": random(N, seed=4)[mine].bfloat16(),
        "b_dec": random(D, seed=3),
    }


def test_gathered_file_has_the_whole_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WRITTEN", 400)  # several blocks a tensor
    file = tmp_path / "sae_weights.safetensors"

    def work(ranks: Ranks) -> None:
        layout = Layout(ranks, N)
        files.write_gathered(weights(layout), file, layout)

    run_ranks(3, work)
    with safe_open(file, "pt") as found:
        assert set(found.keys()) == {"W_dec", "W_enc", "b_enc", "threshold", "b_dec"}
        assert torch.equal(found.get_tensor("W_dec"), random(N, D))
        assert torch.equal(found.get_tensor("W_enc"), random(D, N, seed=1))
        assert torch.equal(found.get_tensor("b_enc"), random(N, seed=2, dtype=torch.float64))
        assert torch.equal(found.get_tensor("threshold"), random(N, seed=4).bfloat16())
        assert torch.equal(found.get_tensor("b_dec"), random(D, seed=3))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_parts_are_read_by_another_number_of_ranks(tmp_path: Path, size: int) -> None:
    def save(ranks: Ranks) -> None:
        layout = Layout(ranks, N)
        files.save_shard(weights(layout), tmp_path, layout)

    def load(ranks: Ranks) -> bool:
        layout = Layout(ranks, N)
        found, expected = files.load_shard(weights(layout), tmp_path, layout), weights(layout)
        return all(torch.equal(found[name], x) for name, x in expected.items())

    run_ranks(3, save)
    assert run_ranks(size, load) == [True] * size
