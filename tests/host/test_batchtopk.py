"""BatchTopK by sampling is bit-identical to SAELens's BatchTopK."""

import pytest
import torch
from sae_lens.saes.batchtopk_sae import BatchTopK

from saelens_adaptive_ortho.host import batchtopk
from saelens_adaptive_ortho.host.batchtopk import SampledBatchTopK
from saelens_adaptive_ortho.maths import separation, sparse
from saelens_adaptive_ortho.maths.sparse import Nonzeros


def both(x, k):
    outputs, gradients = [], []
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    for fn in (BatchTopK(k), SampledBatchTopK(k)):
        leaf = x.clone().requires_grad_()
        out = fn(leaf)
        (out * weight).sum().backward()
        outputs.append(out.detach())
        gradients.append(leaf.grad)
    return outputs, gradients


def batch(n=300, d=512, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("k", [0.5, 3, 7.3, 40, 200])
@pytest.mark.parametrize(
    "x",
    [
        batch(),
        batch(dtype=torch.float64),
        batch(4, 100),
        batch() * torch.linspace(0, 3, 512),
        # The sample holds only one latent and none of the large values.
        batch(306, 17 * 20) * (torch.arange(340) % 17 == 0),
        batch(306, 17 * 20) * (1 + 9 * (torch.arange(340) % 17 == 3)),
        batch() - 2.5,
        torch.ones(300, 512),
        batch().view(20, 15, 512),
    ],
    ids="normal double small scaled aliased hidden sparse equal three-dimensional".split(),
)
def test_equals_stock(x, k):
    k = min(k, x.shape[-1])
    outputs, gradients = both(x, k)
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("loud", [2, 3, 5, 7])
def test_shortcut_is_taken_whichever_latents_fire(monkeypatch, loud):
    def refuse(*_args, **_kwargs):
        raise AssertionError("sorted the batch")

    # Every n-th latent is larger. A sample of every n-th value would see only one kind.
    x = batch(300, 2 * 3 * 5 * 7 * 4) * (1 + 9 * (torch.arange(840) % loud == 0))
    expected = BatchTopK(6)(x)
    monkeypatch.setattr(torch, "topk", refuse)
    assert torch.equal(SampledBatchTopK(6)(x), expected)


def test_ties_use_the_stock_selection():
    x = batch(dtype=torch.bfloat16)
    least = x.flatten().topk(6 * 300).values[-1]
    assert int((x >= least).sum()) > 6 * 300, "the case is to have ties"
    assert batchtopk._places_of_largest(x, 6 * 300) is None
    outputs, gradients = both(x, 6)
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)


def test_nan_is_not_hidden():
    x = batch()
    x[3, 5] = float("nan")
    assert torch.equal(*(f(6)(x).isnan() for f in (BatchTopK, SampledBatchTopK)))


def test_result_and_gradient_remember_what_fires():
    x = batch().requires_grad_()
    out = SampledBatchTopK(6)(x)
    found = Nonzeros.known(out)
    assert found is not None
    assert torch.equal(torch.stack(found[:2]), out.nonzero().T)
    assert torch.equal(found.values, out.detach()[found.rows, found.columns])
    W = torch.randn(512, 8, generator=torch.Generator().manual_seed(2))
    seen = []
    x.register_hook(seen.append)
    (sparse.matmul(out, W) ** 2).sum().backward()
    known = Nonzeros.known(seen[0])
    assert known is not None
    assert torch.equal(known.dense(), seen[0])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_second_gradient_is_not_lost(kind):
    # Autograd may add the gradient of a second use in place, to a tensor that remembers the first.
    gradients = []
    W = torch.randn(512, 8, generator=torch.Generator().manual_seed(2))
    for fn, product in ((BatchTopK(6), torch.matmul), (SampledBatchTopK(6), sparse.matmul)):
        leaf = batch().requires_grad_()
        out = fn(leaf)
        if kind == "sparse":
            loss = separation.separation_penalty(out, torch.linspace(-1, 1, 512), 100)
        else:
            loss = out.sin().sum()
        (loss + (product(out, W) ** 2).sum() / 100).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
