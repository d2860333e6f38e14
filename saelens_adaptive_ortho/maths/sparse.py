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
            found = cls(rows, columns, x[rows, columns], x.shape).kept_by(x)
        return found

    def kept_by(self, x: Float[Tensor, "n m"]) -> Nonzeros:
        """Let ``x`` remember that these are its non-zeros, for :meth:`known`; returns itself."""
        setattr(x, _REMEMBERED, (x._version, self))
        return self

    @classmethod
    def known(cls, x: Float[Tensor, "n m"]) -> Nonzeros | None:
        """What this very tensor remembers; None if it remembers nothing, or has changed since."""
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

    def of_columns(self, start: int, end: int) -> Nonzeros:
        """The non-zeros of ``x[:, start:end]``."""
        inside = (self.columns >= start) & (self.columns < end)
        shape = (self.shape[0], end - start)
        return Nonzeros(self.rows[inside], self.columns[inside] - start, self.values[inside], shape)

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

    def of_product(self, X: Float[Tensor, "n d"], Y: Float[Tensor, "m d"]) -> Nonzeros:
        """``X @ Y.T`` at the positions of the non-zeros."""
        return self._replace(values=sampled_product(X, Y, self.starts(), self.columns))

    def dense(self) -> Float[Tensor, "n m"]:
        """The matrix, which remembers its non-zeros."""
        out = self.values.new_zeros(self.shape)
        out.view(-1)[self.rows * self.shape[1] + self.columns] = self.values
        self.kept_by(out)
        return out


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


def matmul(
    acts: Float[Tensor, "batch n"],
    W: Float[Tensor, "n d"],
    norms: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "batch d"]:
    """``acts @ W`` for mostly-zero ``acts``; their gradient is computed only at the non-zeros.

    Nothing is lost behind an activation function that is flat where it is zero (ReLU, TopK,
    BatchTopK), because such a function passes no other gradient on. The gradient remembers its
    non-zeros.

    Args:
        acts: activations.
        W: decoder.
        norms: divides the rows of ``W``, as in ``acts @ (W / norms[:, None])``. Activations are
            divided instead, so no other matrix of the size of ``W`` is made.
    """
    found = Nonzeros.of(acts)
    if found is None and norms is not None:
        return _Matmul.apply(acts, W / norms.unsqueeze(1), None, None)  # type: ignore[no-any-return]
    return _Matmul.apply(acts, W, norms, found)  # type: ignore[no-any-return]


def linear(
    x: Float[Tensor, "batch d"],
    W: Float[Tensor, "d n"],
    b: Float[Tensor, " n"],
    norms: Float[Tensor, " n"] | None = None,
    centre: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "batch n"]:
    """``x @ W + b``. Its backward pass is cheap if the incoming gradient is mostly zero.

    Args:
        x: input.
        W: encoder.
        b: its bias.
        norms: multiplies the columns, as in ``(x @ W + b) * norms``.
        centre: the vector that was subtracted from some data to get ``x``, if the data have no
            gradient. The centre gets its gradient from here, ``-sum_b dL/dx_b``, without a
            gradient of every row of ``x``.
    """
    if centre is not None:
        x = x.detach()
    return _Linear.apply(x, W, b, norms, centre)  # type: ignore[no-any-return]


def keep(x: Float[Tensor, "n m"], places: Int[Tensor, " k"]) -> Float[Tensor, "n m"]:
    """``x`` at some positions, zero elsewhere; the result and its gradient remember non-zeros.

    Args:
        x: a matrix.
        places: different positions of positive values in ``x.flatten()``, in ascending order.
    """
    out = _kept(x, places)
    _at_places(x.detach(), places).kept_by(out)
    return out


def _kept(x: Tensor, places: Tensor) -> Tensor:
    return _Keep.apply(x, places)  # type: ignore[no-any-return]


def _at_places(x: Float[Tensor, "n m"], places: Int[Tensor, " k"]) -> Nonzeros:
    rows = places // x.shape[1]
    return Nonzeros(rows, places - rows * x.shape[1], x.reshape(-1)[places], x.shape)


class _Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        out = torch.zeros_like(x)
        out.view(-1)[places] = x.reshape(-1)[places]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (places,) = ctx.saved_tensors
        if Nonzeros.known(g) is not None:  # of a product with the kept values: zero elsewhere
            return g, None
        return _at_places(g, places).dense(), None


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, acts: Tensor, W: Tensor, norms: Tensor | None, found: Nonzeros | None
    ) -> Tensor:
        ctx.shape = acts.shape
        if found is None:
            ctx.save_for_backward(acts, W)
            return acts @ W
        if norms is not None:
            found = found._replace(values=found.values / norms[found.columns])
        ctx.save_for_backward(found.rows, found.columns, found.values, W, norms)
        return found.times(W)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        need_acts, need_W, need_norms, _ = ctx.needs_input_grad
        g = g.contiguous()
        if len(ctx.saved_tensors) == 2:
            acts, decoder = ctx.saved_tensors
            return (
                (g @ decoder.T).mul_(acts != 0) if need_acts else None,
                acts.T @ g if need_W else None,
                None,
                None,
            )
        rows, columns, values, W, norms = ctx.saved_tensors
        found = Nonzeros(rows, columns, values, ctx.shape)
        of_acts = of_norms = None
        if need_acts or need_norms:
            gradient = found.of_product(g, W)
            if norms is not None:
                gradient = gradient._replace(values=gradient.values / norms[columns])
            if need_norms:
                products = gradient._replace(values=-gradient.values * values)
                of_norms = products.column_sums()
            of_acts = gradient.dense() if need_acts else None
        return of_acts, found.transposed().times(g) if need_W else None, of_norms, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor, norms: Tensor | None, centre: Tensor | None
    ) -> Tensor:
        out = torch.addmm(b, x, W) if norms is None else torch.addmm(b * norms, x, W * norms)
        ctx.save_for_backward(x, W, b, norms, None if norms is None else out)
        ctx.centred = centre is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W, b, norms, out = ctx.saved_tensors
        need_x, need_W, need_b, need_norms, need_centre = ctx.needs_input_grad
        found = Nonzeros.of(g)
        of_norms = None
        if found is None:
            sums = g.sum(0)
            of_W = x.T @ g if need_W or need_norms else None
            if need_norms:
                of_norms = (of_W * W).sum(0) + sums * b
            scaled = g if norms is None or not need_x else g * norms
            of_x = scaled @ W.T if need_x else None
        else:
            sums = found.column_sums()
            by_latent = found.transposed()
            of_W = by_latent.times(x.contiguous()).T if need_W else None
            if need_norms:
                reached = out[found.rows, found.columns] / norms[found.columns]
                of_norms = found._replace(values=found.values * reached).column_sums()
            of_x = None
            if need_x:
                values = found.values if norms is None else found.values * norms[found.columns]
                of_x = found._replace(values=values).times(W.T.contiguous())
        if norms is not None:
            sums = sums * norms
            of_W = of_W * norms if of_W is not None else None
        return (
            of_x,
            of_W if need_W else None,
            sums if need_b else None,
            of_norms,
            -(W @ sums) if need_centre else None,
        )


@cache
def _silence_csr_warning() -> None:
    """Trigger and hide PyTorch's once-per-process warning that CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        typed.csr_matrix(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))
