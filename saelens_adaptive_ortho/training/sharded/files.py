"""Checkpoints of which each rank writes a part, and one file with the weights of all ranks.

A checkpoint has a safetensors file for each rank, so no rank holds more than its own part. A rank
of a resumed run reads the rows that it needs from whichever files have them. The number of ranks
may therefore be another one. The format of ``torch.distributed.checkpoint`` is not used, because
its metadata are a pickle: reading one runs what is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import StorageError, atomic_directory
from saelens_adaptive_ortho.training.lockstep import SHARDS
from saelens_adaptive_ortho.training.sharded.layout import AXES, Layout
from saelens_adaptive_ortho.training.sharded.ranks import Ranks

_SHARD = re.compile(r"shard_(\d{5})_of_(\d{5})\.safetensors")
MOMENT = "optimizer."  # beginning of the names of Adam's tensors: optimizer.NAME.PARAMETER
# Bytes of a tensor that rank 0 gathers and writes at a time.
WRITTEN = 2**28
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def axis_of(name: str) -> int | None:
    """The axis of the latents of a tensor of a checkpoint; None if every rank has all of it."""
    return AXES[name.rpartition(".")[2]]


@contextmanager
def shared_folder(
    ranks: Ranks, target: Path, survives: str, keep_others: bool = False
) -> Iterator[Path]:
    """:func:`~saelens_adaptive_ortho.files.atomic_directory` into which every rank writes.

    The folder replaces ``target`` when every rank has left the block without an error.

    Raises:
        StorageError: some rank could not write its part.
    """
    with ExitStack() as stack:
        folder, failed = None, None
        if ranks.rank == 0:
            try:
                folder = stack.enter_context(
                    atomic_directory(target, survives, sums=True, keep_others=keep_others)
                )
            except StorageError as error:
                failed = error
        path = ranks.share((None if folder is None else str(folder), failed and str(failed)))
        if path[0] is None:
            raise failed or StorageError(path[1])
        try:
            yield Path(path[0])
        except Exception as error:
            ranks.all_say(str(error) or type(error).__name__)
            raise
        if any(wrong := [text for text in ranks.all_say(None) if text]):
            raise StorageError(f"{target} could not be written ({wrong[0]}). {survives}")
    ranks.barrier()  # the folder has its name


def save_shard(tensors: Mapping[str, Tensor], folder: Path, layout: Layout) -> None:
    """Write the tensors of this rank. Those that every rank has are in the file of rank 0."""
    ranks = layout.ranks
    mine = {
        name: x.detach().cpu().contiguous().clone()
        for name, x in tensors.items()
        if axis_of(name) is not None or ranks.rank == 0
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(mine, folder / f"shard_{ranks.rank:05d}_of_{ranks.size:05d}.safetensors")


def load_shard(like: Mapping[str, Tensor], folder: Path, layout: Layout) -> dict[str, Tensor]:
    """The tensors of this rank from a checkpoint of any number of ranks.

    Args:
        like: tensors of the shapes that this rank needs.
        folder: the folder of the checkpoint.
        layout: which latents this rank has.

    Raises:
        ConfigError: files of the checkpoint are missing.
    """
    files = shard_files(folder)
    width = layout.total // len(files)  # latents of a file
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        for name, x in like.items():
            axis = axis_of(name)
            if axis is None:
                found[name] = opened[0].get_tensor(name)
                continue
            pieces = []
            for number, file in enumerate(opened):
                start = max(layout.first - number * width, 0)
                end = min(layout.first + layout.n - number * width, width)
                if start < end:
                    piece = file.get_slice(name)
                    pieces.append(piece[start:end] if axis == 0 else piece[:, start:end])
            found[name] = torch.cat(pieces, dim=axis)
            if found[name].shape != x.shape:
                raise ValueError(f"{name} has the shape {list(found[name].shape)}")
    return found


def shard_files(folder: Path) -> list[Path]:
    """The files of a checkpoint, in the order of the latents.

    Raises:
        ConfigError: there is none, or one is missing.
    """
    files = sorted(folder.glob(SHARDS))
    if not files:
        rule = "was made without ortho_shards. Leave ortho_shards out, and start one process."
        raise reject("resume_from_checkpoint", str(folder.parent), rule)
    names = [_SHARD.fullmatch(file.name) for file in files]
    numbers = [(int(name[1]), int(name[2])) for name in names if name]
    if numbers != [(i, len(files)) for i in range(len(files))]:
        rule = f"lacks files: {', '.join(file.name for file in files)} are there. Use another one."
        raise reject("resume_from_checkpoint", str(folder.parent), rule)
    return files


def write_gathered(tensors: Mapping[str, Tensor], file: Path, layout: Layout) -> None:
    """Write the tensors of all ranks as one safetensors file, as SAELens reads it.

    Rank 0 gathers and writes some rows at a time, so it never holds a whole tensor. Every rank
    calls this; only rank 0 opens the file.

    Args:
        tensors: the tensors of this rank.
        file: the file.
        layout: which latents this rank has.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, x in sorted(tensors.items()):
        shape = list(x.shape)
        if (axis := axis_of(name)) is not None:
            shape[axis] = layout.total
        start, end = end, end + torch.Size(shape).numel() * x.dtype.itemsize
        header[name] = {"dtype": DTYPES[x.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with ExitStack() as stack:
        out = stack.enter_context(file.open("wb")) if layout.ranks.rank == 0 else None
        if out is not None:
            out.write(len(text).to_bytes(8, "little") + text)
        for name, x in sorted(tensors.items()):
            for block in _gathered(x, axis_of(name), layout):
                if out is not None and block is not None:
                    out.write(block.contiguous().flatten().view(torch.uint8).numpy().data)


def _gathered(x: Tensor, axis: int | None, layout: Layout) -> Iterator[Tensor | None]:
    """Blocks of a tensor of all ranks, in the order of a file. Only rank 0 gets them."""
    ranks = layout.ranks
    if axis is None:
        yield x.detach().cpu() if ranks.rank == 0 else None
        return
    row = x[0].numel() * x.dtype.itemsize * ranks.size
    blocks = x.split(max(1, WRITTEN // row))
    if axis == 1:
        for block in blocks:
            parts = ranks.collect(block)
            yield None if parts is None else torch.cat(parts, dim=1)
        return
    # The rows of rank 0 come first, then those of rank 1. All ranks send a block each time.
    for owner in range(ranks.size):
        for block in blocks:
            parts = ranks.collect(block)
            yield None if parts is None else parts[owner]
