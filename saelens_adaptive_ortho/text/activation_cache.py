"""Activations of a corpus on disk: a model reads each text once, for all runs of a user.

The contexts of a corpus are cut into *blocks* of consecutive contexts. The model always reads a
whole block at once, in one batch, and each block is one file. So the activations of a context do
not depend on which run computed them, nor on the order in which a run visits the contexts, not
even by rounding. The name of a file is a digest of everything that determines its content: the
weights and settings of the model, the hook, the type of the numbers, and the tokens of the block.

- Activations of a model in bfloat16 are stored in bfloat16, also if the run wants float32: every
  block is compared, and stored in the type of the run if anything would be lost.
- A file is written completely or not at all, and every context in it has a checksum. A damaged
  file is computed again, with a warning.
- Several processes may fill and read the same files. A lock for each block keeps two of them from
  computing the same block. Reading takes no lock.
- Nothing is ever deleted. :func:`cache_root` is the folder to delete if the space is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.files import StorageError, check_writable
from saelens_adaptive_ortho.text.models import digest_once

FOLDER_VARIABLE = "ADAPTIVE_ORTHO_CACHE"
FORMAT = 1  # another number makes all files of earlier versions unused
# Settings of a model that change no activation: names, places and initial weights.
NOT_DIGESTED = {
    "_name_or_path",
    "device",
    "dtype",
    "init_weights",
    "model_name",
    "n_devices",
    "seed",
    "tokenizer_name",
    "torch_dtype",
    "transformers_version",
}


def cache_root() -> Path:
    """The folder of all cached activations of a user.

    It is ``activations`` in the folder that the environment variable ``ADAPTIVE_ORTHO_CACHE``
    names. By default this folder is ``saelens_adaptive_ortho`` in the user's cache folder
    (``$XDG_CACHE_HOME``, or ``~/.cache``).
    """
    chosen = os.environ.get(FOLDER_VARIABLE)
    if not chosen:
        chosen = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "saelens_adaptive_ortho"
    return Path(chosen).expanduser().absolute() / "activations"


def check_cache_folder() -> None:
    """Refuse a cache folder that cannot be written.

    Raises:
        ConfigError: the message names the environment variable and the folder.
    """
    check_writable(FOLDER_VARIABLE, cache_root().parent)


def setup_folder(setup: dict[str, Any]) -> Path:
    """The folder of the activations that one setup of model and hook gives."""
    return cache_root() / hashlib.sha256(_stable_json([FORMAT, setup])).hexdigest()[:16]


def model_digest(model: HookedRootModule) -> str:
    """SHA-256 of a model's class, settings, parameters and buffers.

    It is computed once for each model, and again only if one of them has changed. Unlike
    :func:`.models.weights_digest` it counts everything that an activation depends on.
    """
    settings = type(model).__name__.encode(), _stable_json(_model_settings(model))
    tensors = [*model.named_parameters(), *model.named_buffers()]

    def compute() -> str:
        digest = hashlib.sha256(b"".join(settings))
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
        return digest.hexdigest()

    return digest_once(model, "activations", (t for _, t in tensors), compute, settings)


def _model_settings(model: HookedRootModule) -> list[dict[str, Any]]:
    """The plain settings of a hooked model, and of the Hugging Face model inside it, if any."""
    hooked = getattr(model, "cfg", None)
    configs = (getattr(module, "config", None) for module in model.modules())
    inner: Any = next((c for c in configs if hasattr(c, "to_dict")), None)
    trees = [vars(hooked) if hooked else {}, inner.to_dict() if inner is not None else {}]
    return [{k: v for k, v in tree.items() if k not in NOT_DIGESTED} for tree in trees]


def _stable_json(value: Any) -> bytes:
    """JSON with sorted keys. Of an object without a JSON form, only the type counts."""
    return json.dumps(value, sort_keys=True, default=lambda v: type(v).__name__).encode()


@dataclass
class CachedCorpus:
    """The activations of one corpus, computed where they are not on disk.

    Args:
        folder: folder of the files: that of :func:`setup_folder`.
        tokens: the contexts.
        block: number of contexts that the model reads at once.
        shape: shape of the activations of one context.
        dtype: type of the activations.
        compute: activations of the contexts with the given numbers, which are a whole block.
        stored: type of the numbers on disk, where it holds the activations without loss; by default
            ``dtype``.
    """

    folder: Path
    tokens: Int[Tensor, "n context"]
    block: int
    shape: tuple[int, int]
    dtype: torch.dtype
    compute: Callable[[Int[Tensor, " block"]], Float[Tensor, "block positions d_in"]]
    stored: torch.dtype | None = None

    @cached_property
    def files(self) -> list[Path]:
        """The file of each block."""
        names = (
            hashlib.sha256(str(tuple(b.shape)).encode() + bytes(_bytes(b.int()))).hexdigest()[:32]
            for b in self.tokens.split(self.block)
        )
        return [self.folder / f"{name}.safetensors" for name in names]

    def missing(self) -> list[int]:
        """The blocks that are not on disk."""
        return [number for number, file in enumerate(self.files) if not file.is_file()]

    def n_contexts(self, blocks: list[int]) -> int:
        """Number of contexts in some blocks."""
        return sum(len(self._contexts(number)) for number in blocks)

    @property
    def bytes_per_context(self) -> int:
        """Size of the activations of one context on disk."""
        return self.shape[0] * self.shape[1] * (self.stored or self.dtype).itemsize

    def make_missing(self, number: int, patient: bool) -> bool:
        """Compute a block if it is not on disk.

        Args:
            number: number of the block.
            patient: whether to wait for another process that is computing it.

        Returns:
            Whether the block is there now.

        Raises:
            StorageError: the block could not be written.
        """
        try:
            with self._lock(number, patient):
                if not self.files[number].is_file():
                    self._make(number)
        except Timeout:
            return False
        return True

    def read(self, contexts: Int[Tensor, " n"]) -> Float[Tensor, "n positions d_in"]:
        """Activations of some contexts. A block that is missing or damaged is computed.

        Raises:
            StorageError: a block that was computed could not be written.
        """
        return torch.stack([self._read(number) for number in contexts.tolist()])

    def remove_left_locks(self) -> None:
        """Remove the lock files that killed processes left beside complete blocks."""
        numbers = {file.stem: number for number, file in enumerate(self.files)}
        for lock in self.folder.glob("*.lock"):
            number = numbers.get(lock.stem)
            if number is not None and self.files[number].is_file():
                with suppress(Timeout), self._lock(number, patient=False):
                    pass

    def _read(self, context: int) -> Float[Tensor, "positions d_in"]:
        number, row = divmod(context, self.block)
        found = _read_row(self.files[number], row)
        if found is not None:
            return found.to(self.dtype)
        with self._lock(number):
            return self._make(number)[row]

    def _make(self, number: int) -> Float[Tensor, "block positions d_in"]:
        """Compute and write a block."""
        acts = self.compute(self._contexts(number)).to("cpu", self.dtype).contiguous()
        kept = self._without_loss(acts)
        sums = " ".join(str(_checksum(row)) for row in kept)
        file = self.files[number]
        temporary = file.with_suffix(".tmp")
        with _storage_failures_named(file):
            save_file({"activations": kept}, temporary, {"checksums": sums})
            temporary.replace(file)
        return acts

    def _without_loss(self, acts: Tensor) -> Tensor:
        """The activations in the type ``stored``, or as they are if anything would be lost."""
        narrow = acts if self.stored is None else acts.to(self.stored)
        return narrow if torch.equal(narrow.to(acts.dtype), acts) else acts

    def _contexts(self, number: int) -> Int[Tensor, " block"]:
        first = number * self.block
        return torch.arange(first, min(first + self.block, len(self.tokens)))

    @contextmanager
    def _lock(self, number: int, patient: bool = True) -> Iterator[None]:
        file = self.files[number].with_suffix(".lock")
        with _storage_failures_named(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(file).acquire(timeout=-1 if patient else 0)
        with lock:
            yield
        # The block is there now. So a process that still waits for this lock has nothing to do.
        with suppress(OSError):
            file.unlink(missing_ok=True)


def fill(caches: Sequence[CachedCorpus], done: Callable[[int], object]) -> None:
    """Compute the blocks that are not on disk.

    Blocks that another process is computing come last. So several processes share the work.

    Args:
        caches: the activations of one corpus, at one or more hooks. The same block is computed for
            each of them before the next block.
        done: function that is called with the number of contexts of each block that is there.

    Raises:
        StorageError: a block could not be written. The blocks before it are intact.
    """
    missing = [set(cache.missing()) for cache in caches]
    left = [
        (number, cache)
        for number in sorted(set().union(*missing))
        for cache, lacks in zip(caches, missing, strict=True)
        if number in lacks
    ]
    for patient in (False, True):
        busy = []
        for number, cache in left:
            if cache.make_missing(number, patient):
                done(cache.n_contexts([number]))
            else:
                busy.append((number, cache))
        left = busy


def _read_row(file: Path, row: int) -> Float[Tensor, "positions d_in"] | None:
    """Activations of one context of a block, or None if its file is missing or damaged."""
    try:
        with safe_open(file, framework="pt") as block:
            acts = block.get_slice("activations")[row]
            expected = (block.metadata() or {})["checksums"].split()[row]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if str(_checksum(acts)) == expected:
            return acts
        reason = f"the checksum of context {row} is wrong"
    warnings.warn(
        f"{file} is damaged ({reason}). Its activations are computed again.", stacklevel=2
    )
    return None


@contextmanager
def _storage_failures_named(file: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            file.with_suffix(".tmp").unlink(missing_ok=True)
        raise StorageError(
            f"{file} could not be written ({error}). The activations cached before are intact. "
            f"Free some space, set {FOLDER_VARIABLE} to another folder, or switch "
            "ortho_cache_activations off, and run the same command again."
        ) from error


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in memory, in row order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
