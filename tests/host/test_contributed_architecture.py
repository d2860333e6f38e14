"""The architecture of the walk-through in CONTRIBUTING.md: trained, like stock, exported."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from sae_lens import SAE
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class

from saelens_adaptive_ortho.host import architectures
from saelens_adaptive_ortho.host.architectures import ARCHITECTURES

Build = Callable[..., Any]
NAME = "adaptive_ortho_abstopk"
SIZES = {"d_in": 16, "d_sae": 32, "k": 4}


@pytest.fixture(autouse=True)
def _walk_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code of the walk-through as part of ``host/architectures.py``."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    section = text.split("## Adding an architecture")[1].split("\n## ")[0]
    (block,) = re.findall(r"^   ```python\n(.*?)^   ```", section, re.DOTALL | re.MULTILINE)
    pair = re.search(r"Add `\((\w+), (\w+)\)`", section)
    assert pair is not None
    for name in ("AbsTopKSAEConfig", "AbsTopKTrainingSAE", "AbsTopKTrainingSAEConfig"):
        monkeypatch.setattr(architectures, name, getattr(sae_lens, name), raising=False)
    scope = dict(vars(architectures))
    exec(textwrap.dedent(block), scope)
    sae, config = (scope[name] for name in pair.groups())
    monkeypatch.setitem(ARCHITECTURES, config.architecture(), (sae, config))
    monkeypatch.setitem(SAE_TRAINING_CLASS_REGISTRY, config.architecture(), (sae, config))


def build(name: str, **fields: Any) -> Any:
    sae_class, config_class = get_sae_training_class(name)
    torch.manual_seed(0)
    return sae_class(config_class(**SIZES, **fields))


def test_it_trains_and_exports_as_stock(
    make_trainer: Build, make_batches: Build, train: Build, tmp_path: Path
) -> None:
    sae = build(NAME, ortho_mode="fixed")
    outputs = train(make_trainer(sae), make_batches(4))
    assert outputs[-1].losses["ortho_loss"] > 0
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is sae_lens.AbsTopKSAE
    x = torch.randn(5, SIZES["d_in"])
    torch.testing.assert_close(loaded(x), sae(x))


def test_without_the_penalty_it_is_the_stock_architecture(
    make_trainer: Build, make_batches: Build, train: Build
) -> None:
    ours, stock = build(NAME, ortho_mode="off"), build("abstopk")
    for sae in (ours, stock):
        train(make_trainer(sae), make_batches(4))
    assert torch.equal(ours.W_dec, stock.W_dec)
    assert torch.equal(ours.W_enc, stock.W_enc)
