"""Triton kernels against plain sums.

They run on a GPU. Without one, ``TRITON_INTERPRET=1`` runs them on a CPU if Triton is installed.
"""

from __future__ import annotations

import os

import pytest
import torch

from saelens_adaptive_ortho.maths import kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    kernels.triton is None or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs Triton and a GPU",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
sizes = pytest.mark.parametrize(("n", "d", "m"), [(7, 5, 3), (20, 600, 5), (33, 1030, 16)])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    return torch.randn(shape, generator=generator, dtype=dtype).to(DEVICE)


def random_rows(n: int, *shape: int) -> torch.Tensor:
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(n)).to(DEVICE)


@sizes
@dtypes
def test_partner_products(n: int, d: int, m: int, dtype: torch.dtype) -> None:
    W, partner = random(n, d, dtype=dtype), random_rows(n, n)
    squares, products = kernels.partner_products(W, partner)
    torch.testing.assert_close(squares, W.square().sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(products, (W * W[partner]).sum(1), rtol=1e-5, atol=1e-4)


@sizes
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_list_products(n: int, d: int, m: int, dtype: torch.dtype) -> None:
    X, lists = random(n, d).to(dtype), random_rows(n, n, m)
    found = kernels.list_products(X, lists)
    wide = X.to(found.dtype)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.einsum("nd,nmd->nm", wide, wide[lists])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@sizes
@dtypes
def test_sparse_times(n: int, d: int, m: int, dtype: torch.dtype) -> None:
    W, S = random(n, d, dtype=dtype), random(n, n, dtype=dtype)
    S[S < 0.5] = 0
    S[1], S[-1] = 0, 0  # rows without entries, also the last one
    rows, columns = S.nonzero(as_tuple=True)
    values = S[rows, columns]
    values[0], S[rows[0], columns[0]] = 0, 0  # an entry of 0
    starts = torch.searchsorted(rows, torch.arange(n, device=DEVICE))
    found = kernels.sparse_times(starts, columns, values, W)
    torch.testing.assert_close(found, S @ W, rtol=1e-5, atol=1e-4)


def test_empty_matrices() -> None:
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert kernels.partner_products(random(0, 5), none)[0].shape == (0,)
    assert kernels.list_products(random(3, 5), none.view(3, 0)).shape == (3, 0)
    assert (kernels.sparse_times(none.new_zeros(3), none, random(0), random(4, 5)) == 0).all()
