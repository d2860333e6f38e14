"""Typed wrappers of PyTorch functions that declare no types, and a check for NaN."""

# pyright's strict mode cannot check these functions, so all such ignores are in this file.

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor


def check_finite(name: str, x: Tensor) -> None:
    """Refuse a tensor with NaN or infinity.

    Raises:
        ValueError: the message names the argument.
    """
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} must be finite; it holds NaN or infinity.")


def norms(x: Tensor, keepdim: bool = False) -> Tensor:
    """``||x||`` over the last axis."""
    return cast(Tensor, x.norm(dim=-1, keepdim=keepdim))  # pyright: ignore[reportUnknownMemberType]  # untyped in torch


def distinct(x: Tensor) -> Tensor:
    """The distinct values of ``x`` in rising order."""
    return cast(Tensor, x.unique())  # pyright: ignore[reportUnknownMemberType]  # untyped in torch


def value_counts(x: Tensor) -> Tensor:
    """How often each of :func:`distinct` occurs."""
    found = cast(
        tuple[Tensor, Tensor],
        x.unique(return_counts=True),  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
    )
    return found[1]


def distinct_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of ``x``, and for each row of ``x`` its index among them."""
    return cast(
        tuple[Tensor, Tensor],
        x.unique(dim=0, return_inverse=True),  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
    )


def indices(x: Tensor) -> list[int]:
    """A vector of integers as a list."""
    return cast(list[int], x.tolist())  # pyright: ignore[reportUnknownMemberType]  # a bare `list` in torch


def svdvals(A: Tensor) -> Tensor:
    """Singular values, largest first."""
    return cast(Tensor, torch.linalg.svdvals(A))  # pyright: ignore[reportUnknownMemberType]  # untyped in torch


def thin_svd(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``U, S, Vt`` with ``U @ diag(S) @ Vt == A``; U has ``min(A.shape)`` columns."""
    return cast(
        tuple[Tensor, Tensor, Tensor],
        torch.linalg.svd(A, full_matrices=False),  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
    )


def eigvalsh(A: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, smallest first."""
    return cast(Tensor, torch.linalg.eigvalsh(A))  # pyright: ignore[reportUnknownMemberType]  # untyped in torch


def eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix, smallest first, and its eigenvectors as columns."""
    return cast(
        tuple[Tensor, Tensor],
        torch.linalg.eigh(A),  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
    )


def pseudo_inverse(A: Tensor) -> Tensor:
    """The Moore-Penrose inverse of a symmetric matrix."""
    return cast(
        Tensor,
        torch.linalg.pinv(A, hermitian=True),  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
    )


def qr(A: Tensor) -> tuple[Tensor, Tensor]:
    """``Q, R`` with orthonormal columns of Q and ``Q @ R == A``."""
    return cast(
        tuple[Tensor, Tensor],
        torch.linalg.qr(A),  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
    )


def csr_matrix(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse CSR matrix. It is not checked, so the columns of a row may be in any order."""
    return torch.sparse_csr_tensor(  # pyright: ignore[reportUnknownMemberType]  # a bare `list` in torch
        starts, columns, values, shape, check_invariants=False
    )


def coo_matrix(places: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """A sparse COO matrix from distinct ``places`` [2, k] in row-major order. Not checked."""
    return torch.sparse_coo_tensor(  # pyright: ignore[reportUnknownMemberType]  # a bare `list` in torch
        places, values, tuple(shape), is_coalesced=True, check_invariants=False
    )


def blocks(x: Tensor, rows: int) -> tuple[Tensor, ...]:
    """``x`` in blocks of this many rows; the last may have fewer."""
    return cast(tuple[Tensor, ...], x.split(rows))  # pyright: ignore[reportUnknownMemberType]  # untyped in torch


def sampled_product(places: Tensor, X: Tensor, Y: Tensor) -> Tensor:
    """The entries of ``X @ Y`` at the positions of the sparse matrix ``places``."""
    product = cast(
        Tensor,
        torch.sparse.sampled_addmm(places, X, Y, beta=0),  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
    )
    return product.values()


def row_products(X: Tensor, rows: Tensor, columns: Tensor, others: Tensor | None = None) -> Tensor:
    """``<X_i, X_j>`` for each i of ``rows`` and j of ``columns``, in one kernel without copies.

    Products are added in float32 or wider. With ``others``, ``X_j`` is a row of that matrix.
    """
    Y = X if others is None else others
    # The operation behind embedding_bag's gradient for its per-sample weights. Its offsets are not
    # used if the bag of each sample is given; mode 0 is the sum, and -1 means no padding.
    product = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return cast(Tensor, product(X, Y, columns, rows, rows, 0, -1))
