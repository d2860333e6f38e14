"""Matrix products over the firing latents only: a training step without the zeros.

Only some tenths of a percent of the ``batch * d_sae`` activations are not zero. The gradient of a
zero activation is also zero. A training step has six matrix products: encoder and decoder, each
once forward and twice backward. Five of them need only the firing latents. On a CPU these products
take a twentieth of the time. The results equal those of the dense products up to rounding, because
the sums run in another order.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from saelens_adaptive_ortho.maths import typed

# The dense product is faster above this share of non-zeros.
DENSE_FROM = 0.04
# Attribute of a tensor: its version and its non-zeros.
_REMEMBERED = "_ortho_nonzeros"


def estimated_nonzeros(x: Float[Tensor, "n m"], sample: int = 64) -> int:
    """Number of non-zero entries, estimated from about ``sample`` rows."""
    step = -(-x.shape[0] // sample)
    return int(x[::step].count_nonzero()) * step


class Nonzeros(NamedTuple):
    """The non-zero entries of a matrix, row by row."""

    rows: Int[Tensor, " k"]
    columns: Int[Tensor, " k"]
    values: Float[Tensor, " k"]
    shape: Sequence[int]

    @classmethod
    @torch.no_grad()
    def of(cls, x: Float[Tensor, "n m"]) -> Nonzeros | None:
        """The non-zeros of ``x``; None if a sample shows that a dense product is faster.

        The tensor remembers them until it changes, see :meth:`known`.
        """
        found = cls.known(x)
        if found is None and estimated_nonzeros(x) <= DENSE_FROM * x.numel():
            rows, columns = x.nonzero(as_tuple=True)
            found = cls(rows, columns, x[rows, columns], x.shape)
            setattr(x, _REMEMBERED, (x._version, found))
        return found

    @classmethod
    def known(cls, x: Float[Tensor, "n m"]) -> Nonzeros | None:
        """What :meth:`of` found for this very tensor; None if it was not called or x changed."""
        version, found = getattr(x, _REMEMBERED, (None, None))
        return found if version == x._version else None

    @classmethod
    def of_entries(
        cls,
        rows: Int[Tensor, " k"],
        columns: Int[Tensor, " k"],
        values: Float[Tensor, " k"],
        shape: Sequence[int],
    ) -> Nonzeros:
        """A matrix from entries in any order. Entries at the same position are added."""
        if rows.device.type == "cpu" and not torch.compiler.is_compiling():
            kept = values.nonzero().squeeze(1)  # not on a GPU, where this would wait for the device
            rows, columns, values = rows[kept], columns[kept], values[kept]
        order = rows.argsort(stable=True)
        return cls(rows[order], columns[order], values[order], shape)

    def transposed(self) -> Nonzeros:
        """The non-zeros of ``x.T``."""
        order = self.columns.argsort(stable=True)
        n, m = self.shape
        return Nonzeros(self.columns[order], self.rows[order], self.values[order], (m, n))

    def starts(self) -> Int[Tensor, " n+1"]:
        """Index of the first entry of each row, and the number of entries at the end."""
        return torch.searchsorted(
            self.rows, torch.arange(self.shape[0] + 1, device=self.rows.device)
        )

    def column_sums(self) -> Float[Tensor, " m"]:
        """``x.sum(0)``."""
        return self.values.new_zeros(self.shape[1]).index_add_(0, self.columns, self.values)

    def times(self, Y: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
        """``x @ Y``."""
        starts = self.starts()[:-1]
        return embedding_bag(self.columns, Y, starts, mode="sum", per_sample_weights=self.values)

    def of_product(self, X: Float[Tensor, "n d"], Y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """``X @ Y.T`` at the positions of the non-zeros, zero elsewhere."""
        out = X.new_zeros(self.shape)
        values = sampled_product(X, Y, self.starts(), self.columns)
        return out.index_put_((self.rows, self.columns), values)


def sampled_product(
    X: Float[Tensor, "n d"],
    Y: Float[Tensor, "m d"],
    starts: Int[Tensor, " n+1"],
    columns: Int[Tensor, " k"],
) -> Float[Tensor, " k"]:
    """``<X_i, Y_j>`` at the positions (i, j) of the CSR matrix ``starts, columns``. CPU only."""
    _silence_csr_warning()
    places = typed.csr_matrix(starts, columns, X.new_zeros(len(columns)), (len(X), len(Y)))
    return typed.sampled_product(places, X, Y.T)


def matmul(acts: Float[Tensor, "batch n"], W: Float[Tensor, "n d"]) -> Float[Tensor, "batch d"]:
    """``acts @ W`` for mostly-zero ``acts``; their gradient is computed only at the non-zeros.

    Nothing is lost behind an activation function that is flat where it is zero (ReLU, TopK,
    BatchTopK), because such a function passes no other gradient on.
    """
    return _Matmul.apply(acts, W, Nonzeros.of(acts))  # type: ignore[no-any-return]


def linear(
    x: Float[Tensor, "batch d"], W: Float[Tensor, "d n"], b: Float[Tensor, " n"]
) -> Float[Tensor, "batch n"]:
    """``x @ W + b``. Its backward pass is cheap if the incoming gradient is mostly zero."""
    return _Linear.apply(x, W, b)  # type: ignore[no-any-return]


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acts: Tensor, W: Tensor, found: Nonzeros | None) -> Tensor:
        ctx.shape = acts.shape
        if found is None:
            ctx.save_for_backward(acts, W)
            return acts @ W
        ctx.save_for_backward(found.rows, found.columns, found.values, W)
        return found.times(W)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        need_acts, need_W, _ = ctx.needs_input_grad
        g = g.contiguous()
        *saved, W = ctx.saved_tensors
        if len(saved) == 1:
            (acts,) = saved
            return (
                (g @ W.T).mul_(acts != 0) if need_acts else None,
                acts.T @ g if need_W else None,
                None,
            )
        rows, columns, values = saved
        found = Nonzeros(rows, columns, values, ctx.shape)
        return (
            found.of_product(g, W) if need_acts else None,
            found.transposed().times(g) if need_W else None,
            None,
        )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, W)
        return torch.addmm(b, x, W)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W = ctx.saved_tensors
        need_x, need_W, need_b = ctx.needs_input_grad
        found = Nonzeros.of(g)
        if found is None:
            return (
                g @ W.T if need_x else None,
                x.T @ g if need_W else None,
                g.sum(0) if need_b else None,
            )
        return (
            found.times(W.T.contiguous()) if need_x else None,
            found.transposed().times(x.contiguous()).T if need_W else None,
            found.column_sums() if need_b else None,
        )


@cache
def _silence_csr_warning() -> None:
    """Trigger and hide PyTorch's once-per-process warning that CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        typed.csr_matrix(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))
