"""Explained variance of an SAE on a model's activations, against the definition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saelens_adaptive_ortho.judging.reconstruction import explained_variance

D_IN, VOCABULARY, BOS = 6, 20, 0


class TableModel(nn.Module):
    """A model whose activation is a function of the token alone."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, D_IN, generator=generator) + offset)

    def run_with_cache(self, tokens: Tensor, names_filter: list[str], **_: Any) -> Any:
        return None, {names_filter[0]: self.table[tokens]}


class ScalingSAE:
    """Reconstructs ``factor * (x - centre) + centre``."""

    device, dtype = torch.device("cpu"), torch.float32
    metadata = SimpleNamespace(hook_name="blocks.0.hook_resid_post", hook_head_index=None)
    cfg = SimpleNamespace(d_in=D_IN, metadata=metadata)

    def __init__(self, factor: float, centre: Tensor) -> None:
        self.factor, self.centre = factor, centre

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * (x - self.centre) + self.centre


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("factor", [0.0, 0.9, 1.0])
def test_it_is_the_share_of_the_squared_distance_from_the_mean(
    offset: float, factor: float
) -> None:
    tokens = torch.randint(1, VOCABULARY, (7, 5), generator=torch.Generator().manual_seed(1))
    model: Any = TableModel(offset)
    tokens[:, 0] = BOS
    mean = model.table[tokens[:, 1:]].flatten(0, 1).mean(0).detach()
    found = explained_variance(ScalingSAE(factor, mean), model, tokens, {BOS}, batch_size=3)  # type: ignore[arg-type]
    assert found == pytest.approx(1 - (1 - factor) ** 2, abs=1e-4)


def test_a_silent_sae_far_from_the_origin_explains_less_than_nothing() -> None:
    model: Any = TableModel(3.0)
    tokens = torch.arange(1, VOCABULARY).unsqueeze(0)
    found = explained_variance(ScalingSAE(0.0, torch.zeros(D_IN)), model, tokens, {BOS})  # type: ignore[arg-type]
    x = model.table[1:].detach()
    variance = (x - x.mean(0)).square().sum()
    assert found == pytest.approx(float(1 - x.square().sum() / variance), rel=1e-5)
    assert found < -1
