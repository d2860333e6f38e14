"""Training from cached activations: the same batches and SAEs, and no model on the second run."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.text.activation_cache import cache_root
from saelens_adaptive_ortho.training import store as store_module
from saelens_adaptive_ortho.training.lockstep import list_checkpoints
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared, prepare
from saelens_adaptive_ortho.training.store import (
    NonFiniteActivationsError,
    StratifiedActivationsStore,
    fill_caches,
)
from tests.tiny import Tiny

MakeConfig = Callable[..., Any]

CACHED = {"ortho_cache_activations": True}
# The tiny corpora have 49 contexts each for training; the model reads 8 at once.
BLOCKS = 2 * 7


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTIVE_ORTHO_CACHE", str(tmp_path / "user cache"))
    return tmp_path / "user cache" / "activations"


def build(prepared: Prepared, cfg: Any, seed: int = 0) -> StratifiedActivationsStore:
    return StratifiedActivationsStore.build(prepared.model, cfg, prepared.corpora, seed)


def batches(store: StratifiedActivationsStore, n: int = 60) -> list[Tensor]:
    return list(itertools.islice(store, n))


def count_model_runs(
    store: StratifiedActivationsStore, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """The sizes of the batches that the store's model reads from now on."""
    runs: list[int] = []
    compute = store.get_activations

    def counting(tokens: Tensor) -> Tensor:
        runs.append(len(tokens))
        return compute(tokens)

    monkeypatch.setattr(store, "get_activations", counting)
    return runs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16"},
        {"seqpos_slice": [4, 20], "exclude_special_tokens": [5, 40, 41, 200]},
        {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 1, "sae": {"d_in": 16}},
    ],
    ids=["plain", "bfloat16", "slice", "head"],
)
def test_batches_equal_those_of_the_model_to_the_bit(
    prepared: Prepared,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    plain = batches(build(prepared, make_config(**changes)))
    first = build(prepared, make_config(**changes, **CACHED))
    runs = count_model_runs(first, monkeypatch)
    fill_caches([first])
    assert len(runs) == BLOCKS
    assert all(torch.equal(a, b) for a, b in zip(plain, batches(first), strict=True))
    assert len(runs) == BLOCKS
    second = build(prepared, make_config(**changes, **CACHED))
    runs = count_model_runs(second, monkeypatch)
    fill_caches([second])
    assert all(torch.equal(a, b) for a, b in zip(plain, batches(second), strict=True))
    other_seed = batches(build(prepared, make_config(**changes), seed=1))
    seeded = build(prepared, make_config(**changes, **CACHED), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(other_seed, batches(seeded), strict=True))
    assert runs == []


def test_batches_do_not_depend_on_what_is_cached(
    prepared: Prepared, make_config: MakeConfig
) -> None:
    """Blocks are read in any order, without filling first, and by a model that rounds oddly."""

    def rounds_with_the_batch(store: StratifiedActivationsStore) -> StratifiedActivationsStore:
        compute = store.get_activations

        def rounding(tokens: Tensor) -> Tensor:
            return compute(tokens) + 1e-6 * tokens.float().mean()

        store.get_activations = rounding  # type: ignore[method-assign]
        return store

    first = rounds_with_the_batch(build(prepared, make_config(**CACHED), seed=1))
    batches(first, 5)
    mixed = batches(rounds_with_the_batch(build(prepared, make_config(**CACHED))))
    shutil.rmtree(cache_root())
    fresh = batches(rounds_with_the_batch(build(prepared, make_config(**CACHED))))
    assert all(torch.equal(a, b) for a, b in zip(mixed, fresh, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"hook_name": "blocks.0.hook_resid_post"},
        {"dtype": "bfloat16"},
        {"seqpos_slice": [4, 20]},
        {"autocast_lm": True},
        {"store_batch_size_prompts": 4},
    ],
)
def test_other_activations_are_computed(
    prepared: Prepared, make_config: MakeConfig, change: dict[str, Any]
) -> None:
    fill_caches([build(prepared, make_config(**CACHED))])
    size = build(prepared, make_config(**CACHED, **change)).cache_size()
    assert size.missing > 0.9 * size.total  # a short last block may be the same


def test_changed_model_is_read_again(
    prepared: Prepared, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_caches([build(prepared, make_config(**CACHED))])
    model = copy.deepcopy(prepared.model)
    with torch.no_grad():
        model.blocks[0].mlp.b_out += 0.5  # type: ignore[index, union-attr, operator]
    changed = prepared._replace(model=model)
    store = build(changed, make_config(**CACHED))
    runs = count_model_runs(store, monkeypatch)
    batch = next(store)
    assert runs
    assert torch.equal(batch, next(build(changed, make_config())))
    assert not torch.equal(batch, next(build(prepared, make_config())))


def test_changed_text_is_read_again(
    model: Any, make_config: MakeConfig, tiny: Any, tmp_path: Path
) -> None:
    def size(texts: list[str]) -> store_module.CacheSize:
        path = tiny.write_jsonl(tmp_path / "only.jsonl", texts)
        cfg = make_config(ortho_corpora={}, dataset_path=str(path), **CACHED)
        store = build(prepare(cfg, model=model), cfg)
        before = store.cache_size()
        fill_caches([store])
        assert store.cache_size() == (before.total, 0)
        return before

    texts = tiny.documents(tiny.forget_words, 5)
    first = size(texts)
    assert first.missing == first.total > 0
    assert size(texts).missing == 0
    # One changed document with the same words changes the contexts that it is in.
    words = texts[60].split()
    changed = size([*texts[:60], " ".join(reversed(words)), *texts[61:]])
    assert 0 < changed.missing < changed.total / 2


def test_training_and_resuming_are_equal_to_the_bit(
    prepared: Prepared, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runner(folder: str, **changes: Any) -> AdaptiveOrthoRunner:
        path = str(tmp_path / folder)
        cfg = make_config(checkpoint_path=path, n_checkpoints=1, **changes)
        return AdaptiveOrthoRunner(cfg, None, prepared)

    plain = runner("plain").run()
    cached = runner("cached", **CACHED)
    runs = count_model_runs(cached.activations_store, monkeypatch)
    trained = cached.run()
    assert len(runs) == BLOCKS
    # The setting is not part of what is learned, so either run can continue the other.
    checkpoint = list_checkpoints(tmp_path / "plain")[0]
    resumed = runner("resumed", resume_from_checkpoint=str(checkpoint), **CACHED)
    runs = count_model_runs(resumed.activations_store, monkeypatch)
    continued = resumed.run()
    assert runs == []
    assert resumed.trainer.state.n_training_steps > 12
    for name, value in plain.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
        assert torch.equal(value, continued.state_dict()[name]), name


def test_interrupted_fill_goes_on_where_it_stopped(
    prepared: Prepared, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(prepared, make_config(**CACHED))
    compute, left = store.get_activations, iter(range(5))

    def interrupted(tokens: Tensor) -> Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return compute(tokens)

    monkeypatch.setattr(store, "get_activations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill_caches([store])
    again = build(prepared, make_config(**CACHED))
    runs = count_model_runs(again, monkeypatch)
    fill_caches([again])
    assert len(runs) == BLOCKS - 5


def test_non_finite_activations_are_refused_and_not_kept(
    prepared: Prepared, make_config: MakeConfig, cache: Path
) -> None:
    model = copy.deepcopy(prepared.model)
    with torch.no_grad():
        model.embed.W_E[3:93] = float("nan")  # type: ignore[union-attr, operator]
    store = build(prepared._replace(model=model), make_config(**CACHED))
    with pytest.raises(NonFiniteActivationsError, match=r"forget corpus .* contexts \[0, 1, "):
        fill_caches([store])
    assert not list(cache.rglob("*.safetensors"))


# ----------------------------------------------------------------------- disk


def test_unwritable_folder_is_refused_before_training(
    prepared: Prepared, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADAPTIVE_ORTHO_CACHE", str(tmp_path / "file"))
    runner = AdaptiveOrthoRunner(make_config(**CACHED), None, prepared)
    with pytest.raises(ConfigError, match="ADAPTIVE_ORTHO_CACHE=.*cannot be written"):
        runner.run()
    assert runner.trainer.state.n_training_steps == 0


def test_small_disk_is_refused_before_training(
    prepared: Prepared, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")._replace(free=100_000)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: usage)
    store = build(prepared, make_config(**CACHED))
    runs = count_model_runs(store, monkeypatch)
    with pytest.raises(ConfigError, match="ortho_cache_activations=True: needs .* GB in .*free"):
        fill_caches([store])
    assert runs == []


def test_check_names_size_and_folder(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], cache: Path, tiny: Tiny
) -> None:
    assert main(["check", str(write_config(**CACHED))]) == 0
    out = capsys.readouterr().out
    # 98 contexts of 32 positions, 32 columns and 4 bytes.
    expected = 98 * 32 * 32 * 4 / 1e9
    assert f"cached activations at {tiny.hook}: {expected:.3g} GB in {cache}" in out
    assert f"{expected:.3g} GB are not there yet; delete the folder" in out
    assert not cache.exists()
    assert main(["check", str(write_config())]) == 0
    assert "cached activations" not in capsys.readouterr().out
