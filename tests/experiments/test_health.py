"""What ``train`` says of the SAE that it exported, against a loop over tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.experiments.health import CONTEXTS, health_of
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner


def test_health_is_that_of_the_exported_sae(
    make_config: Callable[..., Any], tmp_path: Path
) -> None:
    cfg = make_config(output_path=str(tmp_path))
    runner = AdaptiveOrthoRunner(cfg)
    runner.run()
    sae = SAE.load_from_disk(tmp_path / "sae")
    found = health_of(runner, sae, "sae")
    fired, rows, outputs = 0, [], []
    special = runner.model.tokenizer.all_special_ids
    for corpus in runner.corpora:
        for context in corpus.held_out[:CONTEXTS].long():
            with torch.no_grad():
                x = runner.model.run_with_cache(context[None])[1][cfg.hook_name][0]
                for token, row in zip(context.tolist(), x, strict=True):
                    if token in special:
                        continue
                    acts = sae.encode(row[None])
                    fired += int((acts > 0).sum())
                    rows.append(row)
                    outputs.append(sae.decode(acts)[0])
    X, Y = torch.stack(rows).double(), torch.stack(outputs).double()
    assert found.l0 == pytest.approx(fired / len(X), rel=0.01)
    expected = 1 - (X - Y).square().sum() / (X - X.mean(0)).square().sum()
    assert found.explained == pytest.approx(float(expected), abs=1e-3)
    last = runner.trainer.state.history["sae"][-1]
    assert found.trained_l0 == last["l0"]
    assert found.dead == last["sparsity/dead_features"] / sae.cfg.d_sae


def test_train_names_an_sae_that_explains_little(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(lr=1e-9, seed=0))
    assert main(["train", config]) == 0
    assert "Doubtful: sae (seed 0): explained variance" in capsys.readouterr().out
