"""Triton kernels for a CUDA device: sums over few rows of a large matrix, each row read once.

PyTorch's own operations do the same in several passes. They are used where Triton is missing (it
comes with PyTorch's CUDA builds for Linux).
"""

# Triton compiles the bodies of its kernels: their names and types are not those of Python.
# pyright: basic, reportMissingImports=false, reportOptionalMemberAccess=false, reportIndexIssue=false

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the CPU builds of PyTorch
    triton = None

# Entries of a row that a program holds at a time.
WIDTH = 512
TILE = 4096  # of several rows together


def available(x: Tensor) -> bool:
    """Whether the kernels run on the device of ``x``."""
    return x.device.type == "cuda" and _compiles(x.device)


@cache
def _compiles(device: torch.device) -> bool:
    """Try a kernel. Triton also needs a C compiler, which a machine may lack."""
    if triton is None:
        return False
    one = torch.ones(1, 1, device=device)
    try:
        partner_products(one, torch.zeros(1, dtype=torch.int64, device=device))
    except Exception as error:  # whatever the compiler says; PyTorch's own operations do the same
        text = f"Triton does not work here; a step is slower without it: {error!r}"
        warnings.warn(text, stacklevel=2)
        return False
    return True


def partner_products(
    W: Float[Tensor, "n d"], partner: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """``||W_i||^2`` and ``<W_i, W_j>`` of each row with its one partner j."""
    W = W.contiguous()
    n, d = W.shape
    squares, products = W.new_empty(n), W.new_empty(n)
    if n:
        _partner_products[(n,)](W, partner, squares, products, d, WIDTH=_width(d), ACC=_acc(W))
    return squares, products


def list_products(X: Float[Tensor, "n d"], lists: Int[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """``<X_i, X_j>`` of each row with the rows of its list, added in float32 or wider."""
    X, lists = X.contiguous(), lists.contiguous()
    n, d = X.shape
    m = lists.shape[1]
    out = torch.empty(n, m, dtype=torch.promote_types(X.dtype, torch.float32), device=X.device)
    if n and m:
        rows = triton.next_power_of_2(m)
        width = max(16, min(TILE // rows, triton.next_power_of_2(d)))
        _list_products[(n,)](X, lists, out, m, d, ROWS=rows, WIDTH=width, ACC=_acc(X))
    return out


def sparse_times(
    starts: Int[Tensor, " n"],
    columns: Int[Tensor, " entries"],
    values: Float[Tensor, " entries"],
    W: Float[Tensor, "m d"],
) -> Float[Tensor, "n d"]:
    """``S @ W``, where row i of S has the entries from ``starts[i]`` up to the next row's.

    Entries of 0 are not read.
    """
    W, values = W.contiguous(), values.contiguous()
    n, d = len(starts), W.shape[1]
    out = W.new_empty(n, d)
    if n:
        width = _width(d)
        grid = (n, triton.cdiv(d, width))
        _sparse_times[grid](
            starts, columns, values, W, out, n, len(columns), d, WIDTH=width, ACC=_acc(W)
        )
    return out


def _width(d: int) -> int:
    return min(WIDTH, max(16, triton.next_power_of_2(d)))


def _acc(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


if triton is not None:

    @triton.jit
    def _partner_products(  # type: ignore[no-untyped-def]
        W, partner, squares, products, d, WIDTH: tl.constexpr, ACC: tl.constexpr
    ):
        i = tl.program_id(0).to(tl.int64)
        j = tl.load(partner + i).to(tl.int64)
        square = tl.zeros((WIDTH,), ACC)
        product = tl.zeros((WIDTH,), ACC)
        for start in range(0, d, WIDTH):
            at = start + tl.arange(0, WIDTH)
            inside = at < d
            x = tl.load(W + i * d + at, mask=inside, other=0).to(ACC)
            y = tl.load(W + j * d + at, mask=inside, other=0).to(ACC)
            square += x * x
            product += x * y
        tl.store(squares + i, tl.sum(square, 0))
        tl.store(products + i, tl.sum(product, 0))

    @triton.jit
    def _list_products(  # type: ignore[no-untyped-def]
        X, lists, out, m, d, ROWS: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr
    ):
        i = tl.program_id(0).to(tl.int64)
        slots = tl.arange(0, ROWS)
        listed = slots < m
        j = tl.load(lists + i * m + slots, mask=listed, other=0).to(tl.int64)
        total = tl.zeros((ROWS,), ACC)
        for start in range(0, d, WIDTH):
            at = start + tl.arange(0, WIDTH)
            inside = at < d
            x = tl.load(X + i * d + at, mask=inside, other=0).to(ACC)
            tile = listed[:, None] & inside[None, :]
            y = tl.load(X + j[:, None] * d + at[None, :], mask=tile, other=0).to(ACC)
            total += tl.sum(y * x[None, :], 1)
        tl.store(out + i * m + slots, total, mask=listed)

    @triton.jit
    def _sparse_times(  # type: ignore[no-untyped-def]
        starts, columns, values, W, out, n, entries, d, WIDTH: tl.constexpr, ACC: tl.constexpr
    ):
        i = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        inside = at < d
        start = tl.load(starts + i)
        end = tl.load(starts + i + 1, mask=i + 1 < n, other=entries)
        total = tl.zeros((WIDTH,), ACC)
        for entry in range(start, end):
            value = tl.load(values + entry)
            j = tl.load(columns + entry).to(tl.int64)
            needed = at < tl.where(value != 0, d, 0)
            total += value.to(ACC) * tl.load(W + j * d + at, mask=needed, other=0).to(ACC)
        tl.store(out + i * d + at, total, mask=inside)
