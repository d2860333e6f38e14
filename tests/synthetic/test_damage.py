"""Damaged and unfinished files of a synthetic run: named, not used, and made again to the bit."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelens_adaptive_ortho.checksums import SUMS
from saelens_adaptive_ortho.locks import lock_file, write_lock
from saelens_adaptive_ortho.synthetic import pool as pools
from saelens_adaptive_ortho.synthetic import run as runs
from saelens_adaptive_ortho.synthetic.pool import Batches, Pool, load_pool
from saelens_adaptive_ortho.synthetic.run import CHECKPOINT_FILE, Run, build_run
from tests.damages import damages

STEPS, EVERY, KILLED_AT = 12, 4, 8
TINY: dict[str, Any] = {
    "d_sae": 12,
    "k": 2,
    "ortho_neighbours": 4,
    "world": {"clusters": 4, "cluster_size": 3, "hidden_dim": 16},
    "train": {"steps": STEPS, "batch_size": 32},
    "pool": {"train_samples": 300, "held_out": 200},
}


@pytest.fixture
def run() -> Run:
    return build_run("cluster", settings=TINY)


@pytest.fixture
def pool(run: Run, tmp_path: Path) -> Pool:
    return load_pool(run.world, tmp_path / "pools", run.pool)


@pytest.fixture
def pool_file(pool: Pool, tmp_path: Path) -> Path:
    (file,) = (tmp_path / "pools").iterdir()
    return file


@pytest.fixture
def checkpoint(run: Run, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a run that was killed."""
    following = Batches.__next__

    def killed(self: Batches) -> torch.Tensor:
        if self.position == KILLED_AT:
            raise KeyboardInterrupt
        return following(self)

    folder = tmp_path / "checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__next__", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.train_sae(run, pool, folder, EVERY)
    return folder


def weights(run: Run, pool: Pool, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
    return runs.train_sae(run, pool, checkpoint, EVERY)[0].state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def first_step(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of the batches that are read from now on."""
    following, seen = Batches.__next__, []

    def counted(self: Batches) -> torch.Tensor:
        seen.append(self.position)
        return following(self)

    monkeypatch.setattr(Batches, "__next__", counted)
    return seen


# -------------------------------------------------------------------------------- pools


def test_damaged_pool_is_drawn_again(run: Run, pool_file: Path) -> None:
    whole = pool_file.read_bytes()
    for name, damage in damages(pool_file).items():
        damage()
        with pytest.warns(UserWarning, match=f"{pool_file.name} is damaged .* drawn again"):
            load_pool(run.world, pool_file.parent, run.pool)
        assert pool_file.read_bytes() == whole, name
    assert list(pool_file.parent.iterdir()) == [pool_file]


def test_pool_of_an_earlier_version_is_read(
    run: Run, pool: Pool, pool_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pools, "_sums", lambda key, _: {"key": key})
        pool_file.unlink()
        load_pool(run.world, pool_file.parent, run.pool)
    monkeypatch.setattr(pools, "draw_pool", lambda *_: pytest.fail("drawn again"))
    found = load_pool(run.world, pool_file.parent, run.pool)
    assert torch.equal(found.train[0].values, pool.train[0].values)


def test_pool_with_a_whole_sum_but_other_settings_is_not_used(run: Run, pool_file: Path) -> None:
    """The sum of another pool, whose file got this name, does not help."""
    whole = pool_file.read_bytes()
    save_file(load_file(pool_file), pool_file, pools._sums("other", load_file(pool_file)))
    with pytest.warns(UserWarning, match="its checksum is wrong"):
        load_pool(run.world, pool_file.parent, run.pool)
    assert pool_file.read_bytes() == whole


def test_litter_of_a_killed_pool_is_removed_unless_a_process_draws(
    run: Run, pool_file: Path
) -> None:
    left = pool_file.with_name(f".{pool_file.name}.tmp")
    lock = lock_file(pool_file)
    with write_lock(pool_file):  # another reader draws it
        left.write_bytes(b"half")
        load_pool(run.world, pool_file.parent, run.pool)
        assert left.exists()
        assert lock.exists()
    lock.touch()  # of a killed process
    load_pool(run.world, pool_file.parent, run.pool)
    assert list(pool_file.parent.iterdir()) == [pool_file]


# -------------------------------------------------------------------------- checkpoints


def test_damaged_checkpoint_is_named_and_training_starts_over(
    run: Run, pool: Pool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(run, pool)
    names = sorted(file.name for file in checkpoint.iterdir())
    assert {SUMS, CHECKPOINT_FILE, "sae_weights.safetensors"} < set(names)
    seen = first_step(monkeypatch)
    for number, name in enumerate(names):
        copy = shutil.copytree(checkpoint, tmp_path / f"copy {number}")
        ways = list(damages(copy / name).values())
        ways[number % len(ways)]()
        seen.clear()
        with pytest.warns(UserWarning, match=f"{name} is damaged: .* Training starts at step 0"):
            assert equal(weights(run, pool, copy), whole)
        assert seen[0] == 0


@pytest.mark.parametrize("state", ["as written", "without sums", "killed in the swap"])
def test_whole_checkpoint_is_continued(
    run: Run, pool: Pool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    whole = weights(run, pool)
    if state == "without sums":  # of an earlier version
        (checkpoint / SUMS).unlink()
    elif state == "killed in the swap":
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old"))
    seen = first_step(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(weights(run, pool, checkpoint), whole)
    assert seen[0] > 0


def test_half_deleted_checkpoint_is_none(run: Run, pool: Pool, checkpoint: Path) -> None:
    whole = weights(run, pool)
    (checkpoint / CHECKPOINT_FILE).unlink()
    assert equal(weights(run, pool, checkpoint), whole)
