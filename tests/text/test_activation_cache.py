"""Files of cached activations: sharing, damage, several processes, full and read-only disks."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPTNeoXForCausalLM

from saelens_adaptive_ortho.files import StorageError
from saelens_adaptive_ortho.text import activation_cache
from saelens_adaptive_ortho.text.activation_cache import (
    CachedCorpus,
    cache_root,
    fill,
    model_digest,
    setup_folder,
)
from saelens_adaptive_ortho.text.models import load_language_model

N, CONTEXT, BLOCK, WIDTH = 22, 5, 4, 3
N_BLOCKS = 6
TOKENS = torch.arange(N * CONTEXT, dtype=torch.int32).view(N, CONTEXT)


def activations(contexts: Tensor) -> Tensor:
    """Stands in for a model: numbers that tell contexts, positions and columns apart."""
    return TOKENS[contexts][..., None].double().add(1).log() * torch.arange(1, WIDTH + 1)


class Counting:
    """A corpus in a folder, and the blocks that it computed, by their first context."""

    def __init__(self, folder: Path, tokens: Tensor = TOKENS, **changes: Any) -> None:
        self.computed: list[int] = []
        settings = {"block": BLOCK, "shape": (CONTEXT, WIDTH), "dtype": torch.float32, **changes}
        self.corpus = CachedCorpus(folder, tokens, compute=self.compute, **settings)

    def compute(self, contexts: Tensor) -> Tensor:
        self.computed.append(int(contexts[0]))
        return activations(contexts)

    def fill(self) -> int:
        """Fill the cache, and return the number of contexts that were reported as done."""
        done: list[int] = []
        fill([self.corpus], done.append)
        return sum(done)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    counting = Counting(tmp_path / "cache")
    assert counting.fill() == N
    assert counting.computed == list(range(0, N, BLOCK))
    return tmp_path / "cache"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_reading_gives_what_was_computed(tmp_path: Path, dtype: torch.dtype) -> None:
    counting = Counting(tmp_path, dtype=dtype)
    counting.fill()
    order = torch.tensor([21, 3, 0, 3, 17])
    read = counting.corpus.read(order)
    assert read.dtype == dtype
    assert torch.equal(read, activations(order).to(dtype))
    assert len(counting.computed) == N_BLOCKS
    assert counting.corpus.missing() == []
    assert sorted(f.suffix for f in tmp_path.iterdir()) == [".safetensors"] * N_BLOCKS


def test_a_narrower_type_is_stored_where_nothing_is_lost(tmp_path: Path) -> None:
    counting = Counting(tmp_path, stored=torch.bfloat16)
    exact = activations(torch.arange(N)).bfloat16().float()
    counting.corpus.compute = lambda contexts: exact[contexts] + (contexts[0] == 0) * 1e-4
    counting.fill()
    assert torch.equal(counting.corpus.read(torch.arange(BLOCK, N)), exact[BLOCK:])
    assert torch.equal(counting.corpus.read(torch.arange(BLOCK)), exact[:BLOCK] + 1e-4)
    stored = [load_file(file)["activations"].dtype for file in counting.corpus.files]
    assert stored == [torch.float32] + [torch.bfloat16] * (N_BLOCKS - 1)
    assert counting.corpus.bytes_per_context == 2 * CONTEXT * WIDTH
    # Files of an earlier version, in the type of the run, are read as they are.
    assert Counting(tmp_path).corpus.missing() == []


def test_second_run_computes_nothing(filled: Path) -> None:
    again = Counting(filled)
    assert again.fill() == 0
    assert torch.equal(again.corpus.read(torch.arange(N)), activations(torch.arange(N)).float())
    assert again.computed == []


def test_reading_without_filling_computes_whole_blocks(tmp_path: Path) -> None:
    counting = Counting(tmp_path)
    read = counting.corpus.read(torch.tensor([9, 2, 10]))
    assert torch.equal(read, activations(torch.tensor([9, 2, 10])).float())
    assert counting.computed == [8, 0]


def test_longer_corpus_shares_the_blocks_of_its_beginning(filled: Path) -> None:
    longer = torch.cat([TOKENS, TOKENS[:6] + 1000])
    counting = Counting(filled, longer)
    assert counting.corpus.missing() == [5, 6]  # the last block was not a whole one
    assert counting.corpus.n_contexts([5, 6]) == 8


def test_changed_text_or_block_size_misses(filled: Path) -> None:
    changed = TOKENS.clone()
    changed[10, 2] += 1
    assert Counting(filled, changed).corpus.missing() == [2]
    assert len(Counting(filled, block=2).corpus.missing()) == 11 - 1  # the last block is the same
    wider = Counting(filled, TOKENS.view(N * CONTEXT, 1), block=BLOCK * CONTEXT)
    assert len(wider.corpus.missing()) == N_BLOCKS  # the same numbers in another shape


# ---------------------------------------------------------------------- setup


def test_digest_depends_on_weights_and_settings(model: Any, tiny: Any) -> None:
    assert model_digest(load_language_model(str(tiny.model))) == model_digest(model)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.blocks[1].mlp.W_out[0, 0] += 1e-6
    assert model_digest(changed) != model_digest(model)
    scaled = copy.deepcopy(model)
    scaled.cfg.attn_scale *= 2
    assert model_digest(scaled) != model_digest(model)
    moved = copy.deepcopy(model)
    moved.cfg.model_name = moved.cfg.tokenizer_name = "elsewhere"
    assert model_digest(moved) == model_digest(model)


def test_digest_is_computed_once_until_something_changes(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copy.deepcopy(model)
    read = []
    taken = activation_cache._bytes
    monkeypatch.setattr(activation_cache, "_bytes", lambda t: read.append(t) or taken(t))
    first = model_digest(own)
    n = len(read)
    assert n > 0
    assert model_digest(own) == first
    assert len(read) == n
    own.cfg.attn_scale *= 2
    scaled = model_digest(own)
    with torch.no_grad():
        own.embed.W_E[3, 4] += 1e-3
    changed = model_digest(own)
    own.blocks[0].attn.rotary_sin += 1
    assert len({first, scaled, changed, model_digest(own)}) == 4
    assert len(read) == 4 * n


def test_digest_names_the_folders_of_earlier_versions() -> None:
    """Cached activations of a user are found again."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cfg = SimpleNamespace(n_layers=1, model_name="not counted")
            self.W = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
            self.register_buffer("mask", torch.ones(2, dtype=torch.bool), persistent=False)

    found = model_digest(Model())  # type: ignore[arg-type]
    assert found == "8dffac3f715db0c03866fe6aaf7a820bc490e11c1dd317bc1709d7e0cb2eda1b"


def test_digest_of_a_bridge_depends_on_the_inner_config(tiny: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)

    def load() -> Any:
        inner = GPTNeoXForCausalLM.from_pretrained(tiny.model)
        return TransformerBridge.boot_transformers(
            str(tiny.model), device="cpu", tokenizer=tokenizer, hf_model=inner
        )

    bridge, changed = load(), load()
    assert model_digest(bridge) == model_digest(changed)
    assert model_digest(bridge) != model_digest(load_language_model(str(tiny.model)))
    changed.original_model.config.layer_norm_eps *= 2
    assert model_digest(bridge) != model_digest(changed)


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAPTIVE_ORTHO_CACHE", str(tmp_path))
    folder = setup_folder({"hook_name": "a"})
    assert folder.parent == tmp_path / "activations" == cache_root()
    assert folder == setup_folder({"hook_name": "a"}) != setup_folder({"hook_name": "b"})
    monkeypatch.delenv("ADAPTIVE_ORTHO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "saelens_adaptive_ortho" / "activations"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "saelens_adaptive_ortho" / "activations"


# --------------------------------------------------------------------- damage


def flip(file: Path, where: int) -> None:
    data = bytearray(file.read_bytes())
    data[where] ^= 1
    file.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped bit": lambda file: flip(file, -CONTEXT * WIDTH * 4 * 2 - 1),  # in row 1 of 4
    "flipped header": lambda file: flip(file, 12),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-50]),
    "empty": lambda file: file.write_bytes(b""),
    "other file": lambda file: file.write_bytes(b"\xff" * 400),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_block_is_named_and_computed_again(filled: Path, damage: str) -> None:
    counting = Counting(filled)
    file = counting.corpus.files[2]
    whole = file.read_bytes()
    DAMAGE[damage](file)
    with pytest.warns(UserWarning, match=f"{file.name} is damaged .*computed again") as caught:
        read = counting.corpus.read(torch.arange(N))
    assert len(caught) == 1
    assert torch.equal(read, activations(torch.arange(N)).float())
    assert counting.computed == [8]
    assert file.read_bytes() == whole


def test_only_the_damaged_context_fails(filled: Path) -> None:
    counting = Counting(filled)
    DAMAGE["flipped bit"](counting.corpus.files[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counting.corpus.read(torch.tensor([8, 10, 11]))
    with pytest.warns(UserWarning, match="checksum of context 1 is wrong"):
        counting.corpus.read(torch.tensor([9]))


# ------------------------------------------------------------------ processes

# Children are forked. They touch no model, so no thread of the parent matters to them.
FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
needs_fork = pytest.mark.skipif(FORK is None, reason="needs fork")


LONG = 120.0  # seconds until a process that waits for another has certainly failed


class Noting(Counting):
    """Counts in a file what all processes compute; ``fatal`` is the block that kills.

    With ``together``, a process waits in its first block until every process is in its first block.
    """

    def __init__(
        self, folder: Path, notes: Path, fatal: int | None = None, together: Any = None
    ) -> None:
        super().__init__(folder)
        self.notes, self.fatal, self.together = notes, fatal, together

    def compute(self, contexts: Tensor) -> Tensor:
        if self.together is not None and not self.computed:
            self.together.wait(LONG)
        if int(contexts[0]) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.notes.open("a") as notes:
            notes.write(f"{int(contexts[0])} {os.getpid()}\n")
        return super().compute(contexts)


@needs_fork
def test_two_processes_share_the_work(tmp_path: Path) -> None:
    folder, notes = tmp_path / "cache", tmp_path / "notes"
    assert FORK is not None
    worker = Noting(folder, notes, together=FORK.Barrier(2))
    children = [FORK.Process(target=worker.fill) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(2 * LONG)
        assert child.exitcode == 0
    blocks, processes = zip(*(line.split() for line in notes.read_text().splitlines()), strict=True)
    assert sorted(map(int, blocks)) == list(range(0, N, BLOCK))
    assert len(set(processes)) == 2
    test_second_run_computes_nothing(folder)


@needs_fork
def test_killed_process_leaves_whole_blocks_and_no_lock(tmp_path: Path) -> None:
    folder, notes = tmp_path / "cache", tmp_path / "notes"
    assert FORK is not None
    child = FORK.Process(target=Noting(folder, notes, fatal=12).fill)
    child.start()
    child.join(2 * LONG)
    assert child.exitcode == -signal.SIGKILL
    again = Counting(folder)
    assert again.fill() == N - 12
    assert again.computed == [12, 16, 20]
    test_second_run_computes_nothing(folder)


def test_lock_beside_a_whole_block_is_removed(filled: Path) -> None:
    corpus = Counting(filled).corpus
    left, held = (file.with_suffix(".lock") for file in corpus.files[:2])
    left.touch()
    (filled / "other.lock").touch()
    with FileLock(held):
        corpus.remove_left_locks()
        assert held.exists()
    assert not left.exists()
    assert (filled / "other.lock").exists()
    assert Counting(filled).corpus.missing() == []


def test_torn_write_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it writes leaves a temporary file, which nothing reads."""

    def dies(*_: Any) -> None:
        counting.corpus.files[0].with_suffix(".tmp").write_bytes(b"half")
        raise KeyboardInterrupt

    counting = Counting(tmp_path)
    monkeypatch.setattr(activation_cache, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        counting.fill()
    monkeypatch.undo()
    assert counting.fill() == N
    assert not list(tmp_path.glob("*.tmp"))
    assert len(load_file(counting.corpus.files[0])["activations"]) == BLOCK


# ----------------------------------------------------------------------- disk


def test_full_disk_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full_after_two(tensors: Any, path: Path, metadata: Any) -> None:
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written.append(path)
        save(tensors, path, metadata)

    save = activation_cache.save_file
    monkeypatch.setattr(activation_cache, "save_file", full_after_two)
    with pytest.raises(StorageError, match="No space.*intact.*ADAPTIVE_ORTHO_CACHE.*off"):
        Counting(tmp_path).fill()
    assert not list(tmp_path.glob("*.tmp"))
    monkeypatch.undo()
    again = Counting(tmp_path)
    assert again.fill() == N - 2 * BLOCK


def test_whole_cache_is_read_without_writing(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(activation_cache, "FileLock", refuse)
    monkeypatch.setattr(activation_cache, "save_file", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    counting = Counting(filled)
    counting.fill()
    assert torch.equal(counting.corpus.read(torch.arange(N)), activations(torch.arange(N)).float())
    with pytest.raises(StorageError, match="Read-only"):
        Counting(filled, TOKENS + 1).fill()
