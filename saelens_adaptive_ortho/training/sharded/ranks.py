"""The processes that hold one SAE together, and what they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

# A rank may wait while another one tokenises text or writes files. If a process dies, torchrun
# stops the others, so nobody waits for this long in vain.
PATIENCE = timedelta(hours=12)


class Ranks:
    """The ranks of the default process group, and their collectives.

    Every rank must call the same collectives in the same order. None of them is called in a
    backward pass, where the order is autograd's.

    Args:
        staged: whether tensors of a card are sent through the memory of the host. Several
            processes on one card need it, because NCCL wants a card for each.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, staged: bool = False) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._staged = staged

    # --------------------------------------------------------------- tensors

    def sum(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over all ranks, the same to the bit on each of them. No gradient."""
        return self._reduced(x, dist.ReduceOp.SUM)

    def largest(self, x: Tensor) -> Tensor:
        """The largest of the entries of all ranks. No gradient."""
        return self._reduced(x, dist.ReduceOp.MAX)

    def total(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over all ranks; its gradient is that of each part.

        Every rank goes on with the same sum to the same loss. So the gradient of the sum is there
        on every rank, and nothing is exchanged in the backward pass.
        """
        return _Total.apply(x, self)  # type: ignore[no-any-return]

    def gather(self, x: Tensor, axis: int = 0) -> Tensor:
        """The parts of all ranks, which have one shape, joined along an axis."""
        if self.size == 1:
            return x
        sent = self._sent(x.detach().contiguous())
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent)
        return torch.cat(parts, dim=axis).to(x.device)

    def gather_lists(self, x: Tensor) -> Tensor:
        """The rows of all ranks, which may have different numbers of them."""
        counts = self.gather(torch.tensor([len(x)])).tolist()
        padded = x.new_zeros((max(counts), *x.shape[1:]))
        padded[: len(x)] = x
        parts = self.gather(padded).split(max(counts) or 1)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=False)])

    def exchange(self, x: Tensor, sends: list[int], receives: list[int]) -> Tensor:
        """Send some rows to each rank, and receive some from each.

        Args:
            x: the rows, those for rank 0 first.
            sends: how many of them go to each rank.
            receives: how many rows come from each rank.
        """
        if self.size == 1:
            return x
        sent = self._sent(x.contiguous())
        out = sent.new_empty((sum(receives), *x.shape[1:]))
        dist.all_to_all_single(out, sent, receives, sends)
        return out.to(x.device)

    def around(self, block: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The block of every rank in turn, with the number of its owner; the own block first.

        The blocks have one shape. They travel in a ring, so a rank holds two at a time. The next
        block arrives while the caller computes.
        """
        owner, after, before = self.rank, (self.rank + 1) % self.size, (self.rank - 1) % self.size
        here = self._sent(block.contiguous())
        for hop in range(self.size):
            coming, works = here, []
            if hop + 1 < self.size:
                coming = torch.empty_like(here)
                sent = dist.P2POp(dist.isend, here, after)
                works = dist.batch_isend_irecv([sent, dist.P2POp(dist.irecv, coming, before)])
            yield owner, here.to(block.device)
            for work in works:
                work.wait()
            here, owner = coming, (owner - 1) % self.size

    def spread(self, x: Tensor, source: int) -> Tensor:
        """The tensor of one rank on every rank; the others give one of its shape."""
        if self.size == 1:
            return x
        sent = self._sent(x.contiguous())
        dist.broadcast(sent, source)
        return sent.to(x.device)

    def collect(self, x: Tensor) -> list[Tensor] | None:
        """The parts of all ranks, in the memory of the host of rank 0; None elsewhere."""
        part = x.detach().cpu().contiguous()
        if self.size == 1:
            return [part]
        parts = [torch.empty_like(part) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(part, parts)
        return parts

    def _reduced(self, x: Tensor, how: Any) -> Tensor:
        if self.size == 1:
            return x.detach()
        out = self._sent(x.detach()).clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, how)
        return out.to(x.device)

    def _sent(self, x: Tensor) -> Tensor:
        return x.cpu() if self._staged else x

    # --------------------------------------------------------------- objects

    def share(self, value: Any = None) -> Any:
        """The plain value of rank 0 on every rank."""
        box = [value if self.rank == 0 else None]
        if self.size > 1:
            dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]

    def any(self, flag: bool) -> bool:
        """Whether a flag is set on some rank."""
        return bool(self.largest(torch.tensor(int(flag))))

    def all_say(self, text: str | None) -> list[str | None]:
        """What every rank says."""
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, text)
        return cast("list[str | None]", said)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 runs the block before the others do, who then find what it has written."""
        if self.rank > 0:
            self.barrier()
        yield
        if self.rank == 0:
            self.barrier()


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:  # noqa: ARG004
        return ranks.sum(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None


def world_size() -> int:
    """Number of processes that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharing(device: str) -> int:
    """How many processes of this machine, at most, use the same device: ``cpu`` or a card."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cards = torch.cuda.device_count() if torch.device(device).type == "cuda" else 1
    return -(-local // max(cards, 1))


@contextmanager
def connected(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun has started, connected inside the block.

    Args:
        device: ``cpu`` or ``cuda``. With ``cuda``, each rank of a machine uses a card of its own,
            or all share them if there are fewer.
    """
    on_card = torch.device(device).type == "cuda"
    staged = False
    if on_card:
        local, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        staged = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > cards
        torch.cuda.set_device(local % cards)
    # What decides how a run goes on is in the memory of the host, and gloo sends it.
    backend = "cpu:gloo,cuda:nccl" if on_card and not staged else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(staged)
    finally:
        dist.destroy_process_group()
