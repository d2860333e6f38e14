"""Explained variance of an SAE on a model's activations, compared with its definition."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor, nn

from saelens_adaptive_ortho.judging.firing import accumulate, passes
from saelens_adaptive_ortho.judging.reconstruction import ExplainedVariance

D_IN, VOCABULARY, BOS = 6, 20, 0


class TableModel(nn.Module):
    """A model whose activation depends only on the token."""

    tokenizer = SimpleNamespace(bos_token_id=BOS, eos_token_id=BOS, pad_token_id=None)

    def __init__(self, offset: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, D_IN, generator=generator) + offset)

    def run_with_cache(self, tokens: Tensor, names_filter: list[str], **_: Any) -> Any:
        return None, {names_filter[0]: self.table[tokens]}


class ScalingSAE:
    """An SAE that reconstructs ``factor * (x - centre) + centre``; its latents are ``x``."""

    device, dtype = torch.device("cpu"), torch.float32
    cfg = SimpleNamespace(d_in=D_IN, metadata=SAEMetadata(hook_name="blocks.0.hook_resid_post"))

    def __init__(self, factor: float, centre: Tensor) -> None:
        self.factor, self.centre = factor, centre

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, x: Tensor) -> Tensor:
        return self.factor * (x - self.centre) + self.centre


def explained_variance(sae: Any, model: Any, corpora: list[Tensor]) -> list[ExplainedVariance]:
    found = [ExplainedVariance(sae) for _ in corpora]
    for batch in passes(sae, model, corpora, batch_size=3, reconstruct=True):
        found[batch.corpus].update(batch)
    return found


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("factor", [0.0, 0.9, 1.0])
def test_is_the_explained_share_of_the_variance(offset: float, factor: float) -> None:
    tokens = torch.randint(1, VOCABULARY, (7, 5), generator=torch.Generator().manual_seed(1))
    model: Any = TableModel(offset)
    tokens[:, 0] = BOS
    mean = model.table[tokens[:, 1:]].flatten(0, 1).mean(0).detach()
    (found,) = explained_variance(ScalingSAE(factor, mean), model, [tokens])
    assert found.result() == pytest.approx(1 - (1 - factor) ** 2, abs=1e-4)


def test_silent_sae_far_from_origin_is_negative() -> None:
    model: Any = TableModel(3.0)
    tokens = torch.arange(1, VOCABULARY).unsqueeze(0)
    (measured,) = explained_variance(ScalingSAE(0.0, torch.zeros(D_IN)), model, [tokens])
    found = measured.result()
    x = model.table[1:].detach()
    variance = (x - x.mean(0)).square().sum()
    assert found == pytest.approx(float(1 - x.square().sum() / variance), rel=1e-5)
    assert found < -1


@pytest.mark.parametrize("factor", [0.3, 0.95])
def test_sum_of_two_texts_is_that_of_both(factor: float) -> None:
    generator = torch.Generator().manual_seed(2)
    first = torch.randint(0, VOCABULARY // 2, (5, 6), generator=generator)
    second = torch.randint(VOCABULARY // 2, VOCABULARY, (4, 6), generator=generator)
    model: Any = TableModel(1.0)
    sae = ScalingSAE(factor, torch.ones(D_IN))
    one, other = explained_variance(sae, model, [first, second])
    (both,) = explained_variance(sae, model, [torch.cat([first, second])])
    assert (one + other).result() == pytest.approx(both.result(), abs=1e-12)
    # The mean of both is not the mean of each: neither number nor their average is the pooled one.
    assert abs((one.result() + other.result()) / 2 - both.result()) > 1e-5
    x = model.table[torch.cat([first, second])].detach().double().flatten(0, 1)
    x = x[(torch.cat([first, second]) != BOS).flatten()]
    error = ((1 - factor) * (x - 1)).square().sum()
    expected = 1 - error / (x - x.mean(0)).square().sum()
    assert both.result() == pytest.approx(float(expected), abs=1e-6)


def test_no_counted_token_gives_nan() -> None:
    sae, model = ScalingSAE(1.0, torch.zeros(D_IN)), TableModel(0.0)
    found = ExplainedVariance(sae)  # type: ignore[arg-type]
    accumulate(passes(sae, model, [torch.full((2, 3), BOS)], reconstruct=True), found)  # type: ignore[arg-type]
    assert math.isnan(found.result())
