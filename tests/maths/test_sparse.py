"""Products over the firing latents only equal the dense products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saelens_adaptive_ortho.maths import sparse


def mostly_zero(n: int, m: int, share: float, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, m, generator=generator, dtype=dtype) + 0.1
    return x * (torch.rand(n, m, generator=generator) < share)


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# No, one, few non-zeros, and so many that the dense product is used.
SHARES = [0.0, 0.002, 0.02, 0.5]


@pytest.mark.parametrize("share", SHARES)
def test_matmul_equals_dense_product(share: float) -> None:
    acts, W, weight = mostly_zero(40, 60, share), rows(60, 7), rows(40, 7, 1)
    assert (sparse.Nonzeros.of(acts) is None) == (share == 0.5)
    found, expected = [], []
    for product, results in ((sparse.matmul, found), (torch.matmul, expected)):
        a, w = acts.clone().requires_grad_(), W.clone().requires_grad_()
        out = product(a, w)
        (out * weight).sum().backward()
        assert a.grad is not None
        # A ReLU passes no gradient on where its output is zero.
        results += [out.detach(), a.grad * (acts > 0), w.grad]
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)
    a = acts.clone().requires_grad_()
    sparse.matmul(a, W).sum().backward()
    assert a.grad is not None
    assert (a.grad[acts == 0] == 0).all()


@pytest.mark.parametrize("share", SHARES)
def test_linear_backward_equals_dense_product(share: float) -> None:
    x, W, b = rows(40, 7), rows(7, 60, 1), rows(1, 60, 2)[0]
    weight = mostly_zero(40, 60, share) - mostly_zero(40, 60, share / 4)
    found, expected = [], []
    for product, results in ((sparse.linear, found), (lambda x, W, b: x @ W + b, expected)):
        leaves = [t.clone().requires_grad_() for t in (x, W, b)]
        out = product(*leaves)
        (out * weight).sum().backward()
        results += [out.detach(), *(leaf.grad for leaf in leaves)]
    for y, z in zip(found, expected, strict=True):
        torch.testing.assert_close(y, z)


def test_gradients_equal_finite_differences() -> None:
    x, W, b, U = rows(12, 3), rows(3, 50, 1), rows(1, 50, 2)[0], rows(50, 3, 3)

    def step(x: Tensor, W: Tensor, b: Tensor, U: Tensor) -> Tensor:
        hidden = sparse.linear(x, W, b)
        return sparse.matmul(torch.where(hidden > 4.2, hidden, 0.0), U)

    assert 0 < int((x @ W + b > 4.2).sum()) < sparse.DENSE_FROM * 600
    leaves = [t.requires_grad_() for t in (x, W, b, U)]
    torch.autograd.gradcheck(step, leaves)


def test_frozen_inputs_get_no_gradient() -> None:
    W = rows(60, 7).requires_grad_()
    sparse.matmul(mostly_zero(40, 60, 0.02), W).sum().backward()
    b = rows(1, 60)[0].requires_grad_()
    sparse.linear(rows(40, 7), rows(7, 60), b).sum().backward()
    assert W.grad is not None
    assert torch.equal(b.grad, torch.full_like(b, 40))


def test_sampled_product_keeps_column_order() -> None:
    X, Y = rows(3, 5), rows(4, 5, 1)
    starts, columns = torch.tensor([0, 2, 2, 5]), torch.tensor([3, 1, 0, 2, 1])
    expected = (X @ Y.T)[torch.tensor([0, 0, 2, 2, 2]), columns]
    torch.testing.assert_close(sparse.sampled_product(X, Y, starts, columns), expected)


def test_a_tensor_remembers_its_nonzeros_until_it_changes() -> None:
    x = torch.zeros(30, 40)
    x[3, 5] = 2.0
    assert sparse.Nonzeros.known(x) is None
    assert sparse.Nonzeros.of(x) is not None
    assert sparse.Nonzeros.known(x) is sparse.Nonzeros.of(x)
    assert sparse.Nonzeros.known(x.clone()) is None
    x[4, 6] = 1.0
    assert sparse.Nonzeros.known(x) is None
    found = sparse.Nonzeros.of(x)
    assert found is not None
    assert found.values.tolist() == [2.0, 1.0]
