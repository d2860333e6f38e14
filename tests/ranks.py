"""Functions that run in several processes, which are the ranks of a sharded training."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from saelens_adaptive_ortho.training.sharded.ranks import PATIENCE, Ranks


def run_ranks(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Run ``work(ranks, *args)`` in ``size`` processes, and return what each of them returns.

    The processes are forks, so ``work`` may be a local function and nothing is imported again.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _rank, (size, folder, work, args), nprocs=size, join=False, start_method="fork"
        )
        assert context is not None
        while not context.join(timeout=600):
            pass
        found = [torch.load(Path(folder) / f"{i}.pt", weights_only=False) for i in range(size)]
    for rank, (result, error) in enumerate(found):
        assert error is None, f"rank {rank}: {error}"
        found[rank] = result
    return found


def _rank(rank: int, size: int, folder: str, work: Callable[..., Any], args: Any) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=PATIENCE
    )
    ranks = Ranks()
    ranks.barrier()  # otherwise a rank may be done before another one is connected to it
    try:
        result = work(ranks, *args), None
    except Exception:
        result = None, traceback.format_exc()
    torch.save(result, Path(folder) / f"{rank}.pt")
    if result[1] is not None:
        os._exit(0)  # the others wait in vain; they are stopped
    dist.destroy_process_group()
