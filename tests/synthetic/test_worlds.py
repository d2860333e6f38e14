"""The worlds match their parameters. A pool is drawn once, and all runs read the same samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.maths.grouping import FORGET, RETAIN, SHARED
from saelens_adaptive_ortho.synthetic import pool as pools
from saelens_adaptive_ortho.synthetic.pool import (
    Batches,
    Pool,
    PoolSettings,
    Rows,
    draw_pool,
    load_pool,
)
from saelens_adaptive_ortho.synthetic.run import build_run
from saelens_adaptive_ortho.synthetic.worlds import (
    WORLDS,
    ClusterWorld,
    DomainsWorld,
    HierarchyWorld,
    SynthSAEBenchWorld,
)

CLUSTER = ClusterWorld(clusters=6, cluster_size=4, hidden_dim=512)
DOMAINS = DomainsWorld(forget=8, retain=8, shared=6, hidden_dim=32, pairs=4)
HIERARCHY = HierarchyWorld(
    num_features=60, hidden_dim=24, roots=3, branching_factor=3, depth=2, correlation_rank=2
)


def rates(rows: Rows, n_features: int) -> Tensor:
    return (rows.dense(n_features) > 0).double().mean(0)


def same(a: Rows, b: Rows) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_cluster_cosines_match_the_setting() -> None:
    directions = CLUSTER.build().directions
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(24))
    cosines = (directions @ directions.T).reshape(6, 4, 6, 4)
    within = torch.stack([cosines[k, :, k] for k in range(6)])
    off_diagonal = within[:, ~torch.eye(4, dtype=torch.bool)]
    assert abs(off_diagonal.mean() - CLUSTER.cosine) < 0.03
    between = torch.stack([cosines[i, :, j] for i in range(6) for j in range(6) if i != j])
    assert abs(between.mean()) < 0.03


def test_cluster_features_fire_together_at_set_rates() -> None:
    pool = draw_pool(CLUSTER, 40_000, 100)
    fires = pool.train[0].dense(24) > 0
    expected = CLUSTER.firing_probabilities()
    torch.testing.assert_close(fires.float().mean(0), expected, atol=0.01, rtol=0)
    # In an active cluster, features fire independently with probability feature_prob / j^exponent.
    both = (fires[:, 0] & fires[:, 1]).float().mean()
    assert abs(both - 0.25 * 0.6 * 0.6 / 2**0.7) < 0.01
    values = pool.train[0].values
    assert abs(values.mean() - 1) < 0.01
    assert abs(values.std() - CLUSTER.std_magnitude) < 0.01


def test_domain_cosines_and_rates_match_the_settings() -> None:
    source = DOMAINS.build()
    assert source.groups.tolist() == [FORGET] * 8 + [RETAIN] * 8 + [SHARED] * 6
    forget, retain = source.directions[:8], source.directions[8:16]
    cosines = (forget * retain).sum(1)
    at = DOMAINS.paired()
    assert at.tolist() == [0, 2, 4, 6]
    torch.testing.assert_close(cosines[at], torch.full((4,), 0.5))
    torch.testing.assert_close(source.directions.norm(dim=1), torch.ones(22))
    pool = draw_pool(DOMAINS, 40_000, 100)
    for domain in (FORGET, RETAIN):
        expected = DOMAINS.firing_probabilities(domain).double()
        torch.testing.assert_close(rates(pool.train[domain], 22), expected, atol=0.012, rtol=0)
    assert DOMAINS.firing_probabilities(RETAIN)[0] == pytest.approx(0.15 * DOMAINS.leak)


def test_partners_of_pairs_fire_at_their_rate() -> None:
    rare = dataclasses.replace(DOMAINS, partner_rate=0.25, leak=0.2)
    usual = dataclasses.replace(DOMAINS, leak=0.2)
    forget, retain = rare.pair_indices().unbind(1)
    assert torch.equal(retain, 8 + rare.paired())
    for domain in (FORGET, RETAIN):
        ratio = rare.firing_probabilities(domain) / usual.firing_probabilities(domain)
        expected = torch.ones(22)
        expected[retain] = 0.25
        torch.testing.assert_close(ratio, expected)
    directions = rare.build().directions
    cosines = (directions[forget] * directions[retain]).sum(1)
    torch.testing.assert_close(cosines, torch.full((4,), 0.5))


def test_parameter_added_later_keeps_digests() -> None:
    assert "partner_rate" not in DomainsWorld().settings()
    assert DomainsWorld(partner_rate=0.5).settings()["partner_rate"] == 0.5
    digests = {
        build_run("domains", settings={"world": {"partner_rate": r}}).digest() for r in (1, 0.5)
    }
    assert build_run("domains").digest() in digests
    assert len(digests) == 2


def test_hierarchy_child_needs_parent_excludes_siblings() -> None:
    source = HIERARCHY.build()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fires = source.draw(4096, 0) > 0
    rate = fires.float().mean(0)
    # SAELens numbers the features of the 3 trees (1 + 3 + 9 each). Find the parents in its trees.
    from sae_lens.synthetic import HierarchyConfig, generate_hierarchy

    forest = generate_hierarchy(
        60,
        HierarchyConfig(
            total_root_nodes=3,
            branching_factor=3,
            max_depth=2,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
        ),
        seed=HIERARCHY.seed + 3,
    )
    checked = 0
    stack = list(forest.roots)
    while stack:
        node = stack.pop()
        children = [c.feature_index for c in node.children if c.feature_index is not None]
        stack += node.children
        if node.feature_index is None or not children:
            continue
        assert not (fires[:, children].any(1) & ~fires[:, node.feature_index]).any()
        assert (fires[:, children].sum(1) <= 1).all()
        checked += len(children)
    assert checked == 36
    assert rate.max() < 0.6


def test_scaled_benchmark_keeps_the_published_shape() -> None:
    full, scaled = SynthSAEBenchWorld(scale=1).training, SynthSAEBenchWorld(scale=16).training
    assert (full["d_sae"], full["k"], full["lr"]) == (4096, 25, 3e-4)
    assert full["steps"] == 200_000_000 // 1024
    assert (scaled["d_sae"], scaled["k"]) == (256, 6)
    source = SynthSAEBenchWorld(scale=32).build()
    assert source.directions.shape == (512, 24)
    assert float(source.bias.norm()) == pytest.approx(0.5)


def test_pool_is_drawn_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = draw_pool

    def counting(*args: Any) -> Pool:
        drawn.append(args)
        return original(*args)

    monkeypatch.setattr(pools, "draw_pool", counting)
    first = load_pool(DOMAINS, tmp_path, PoolSettings(train_samples=500, held_out=100))
    again = load_pool(DOMAINS, tmp_path, PoolSettings(train_samples=500, held_out=100))
    assert len(drawn) == 1
    for a, b in zip(first.train + first.held_out, again.train + again.held_out, strict=True):
        assert same(a, b)
    assert torch.equal(first.directions, again.directions)
    other = DomainsWorld(forget=8, retain=8, shared=6, hidden_dim=32, pairs=3)
    load_pool(other, tmp_path, PoolSettings(train_samples=500, held_out=100))
    load_pool(DOMAINS, tmp_path, PoolSettings(train_samples=501, held_out=100))
    assert len(drawn) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_truncated_pool_is_drawn_again(tmp_path: Path) -> None:
    before = load_pool(CLUSTER, tmp_path, PoolSettings(train_samples=300, held_out=50))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    assert same(
        load_pool(CLUSTER, tmp_path, PoolSettings(train_samples=300, held_out=50)).train[0],
        before.train[0],
    )


def test_larger_pool_begins_with_the_smaller() -> None:
    small, large = draw_pool(CLUSTER, 100, 60), draw_pool(CLUSTER, 5000, 60)
    head = large.train[0].take(torch.arange(100))
    assert same(head, small.train[0])
    assert same(small.held_out[0], large.held_out[0])
    assert not torch.equal(small.train[0].dense(24)[:60], small.held_out[0].dense(24))


def test_drawing_a_pool_keeps_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw_pool(CLUSTER, 50, 10)
    assert torch.equal(torch.rand(3), expected)


def test_rows_equal_the_dense_product() -> None:
    pool = draw_pool(HIERARCHY, 200, 50)
    rows = pool.train[0].take(torch.tensor([7, 3, 3, 199]))
    dense = rows.dense(60)
    torch.testing.assert_close(pool.activations(rows), dense @ pool.directions + pool.bias)
    assert torch.equal(dense[1], dense[2])
    assert torch.equal(dense, pool.train[0].dense(60)[[7, 3, 3, 199]])


def test_epochs_visit_each_sample_once() -> None:
    pool = draw_pool(CLUSTER, 64, 10)
    batches = Batches(pool, 16, seed=3)
    epochs = [torch.cat([next(batches) for _ in range(4)]) for _ in range(2)]
    everything = pool.activations(pool.train[0])
    for epoch in epochs:
        assert torch.equal(epoch.sort(0).values, everything.sort(0).values)
    assert not torch.equal(*epochs)
    batches.seek(5)
    assert torch.equal(next(batches), epochs[1][16:32])
    assert not torch.equal(next(Batches(pool, 16, seed=4)), epochs[0][:16])


def test_batches_hold_the_forget_rows_first() -> None:
    pool = draw_pool(DomainsWorld(forget=3, retain=3, shared=1, pairs=0, leak=0.0), 40, 10)
    batch = next(Batches(pool, 10, seed=0, forget_rows=4))
    forget, retain = (pool.activations(rows) for rows in pool.train)
    assert all((row == forget).all(1).any() for row in batch[:4])
    assert all((row == retain).all(1).any() for row in batch[4:])


@pytest.mark.parametrize(
    ("world", "field", "value"),
    [
        ("cluster", "cosine", 1.2),
        ("cluster", "clusters", 0),
        ("cluster", "cluster_prob", 1.5),
        ("cluster", "std_magnitude", float("nan")),
        ("domains", "pairs", 49),
        ("domains", "leak", 2.0),
        ("domains", "partner_rate", -0.1),
        ("domains", "cosine", 1.1),
        ("hierarchy", "seed", -1),
        ("synthsaebench16k", "scale", 3),
    ],
)
def test_bad_parameter_is_refused_by_name(world: str, field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^world\.{field}={value}: "):
        build_run(world, settings={"world": {field: value}})


@pytest.mark.parametrize(
    ("world", "field", "value"),
    [("cluster", "cosine", 1.2), ("domains", "pairs", 49), ("hierarchy", "seed", -1)],
)
def test_world_built_directly_is_checked(world: str, field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}={value}: "):
        WORLDS[world](**{field: value})
