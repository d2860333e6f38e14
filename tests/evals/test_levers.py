"""Whole trainings are compared with SAELens's own runner; the tests assert no times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evals.performance import levers
from saelens_adaptive_ortho.experiments.experiment import load_experiment
from saelens_adaptive_ortho.text.activation_cache import FOLDER_VARIABLE

pytestmark = pytest.mark.usefixtures("handlers_restored")


def test_every_training_has_a_row_and_ours_agree(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    target = tmp_path / "levers.json"
    config = write_config(seeds=[0])
    arguments = "--set training_tokens=256 --set n_batches_in_buffer=16 --rounds 1".split()
    assert levers.main([str(config), *arguments, "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    rows = {row["training"]: row for row in found["rows"]}
    assert list(rows) == [levers.HOST, *levers.TRAININGS]
    assert rows[levers.HOST]["to_saelens"]["median"] == 1
    assert rows["sparse products (default)"]["to_one"]["median"] == 1
    # Neither other variants nor prefetching change the SAE: the batches are the same.
    assert rows["three variants, no lever"]["deviation"] == 0
    assert rows["prefetching"]["deviation"] == 0
    assert rows["sparse products (default)"]["deviation"] == pytest.approx(0, abs=1e-4)
    assert rows["bf16 autocast of the SAE"]["deviation"] > 0
    assert found["full_forward_ratio"]["median"] > 0
    assert rows["three variants, activations in the cache"]["to_one"]["median"] > 0
    predicted = {name for name, row in rows.items() if row["predicted_tokens_per_second"]}
    assert predicted == {levers.DEFAULT, levers.DEFAULT_THREE}


def test_trainings_can_be_chosen_and_the_cache_is_not_the_users(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    target, cached = tmp_path / "levers.json", "three variants, activations in the cache"
    config = str(write_config(seeds=[0]))
    sizes = "--set training_tokens=256 --set n_batches_in_buffer=16 --rounds 1".split()
    assert levers.main([config, *sizes, "--json", str(target), "--trainings", cached]) == 0
    rows = json.loads(target.read_text())["rows"]
    assert [row["training"] for row in rows] == [levers.HOST, levers.DEFAULT, cached]
    assert all(row["deviation"] is None for row in rows)  # the reference was not chosen
    assert not (tmp_path / "cache").exists()


def test_gpu_is_refused_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        levers.main(["--gpu"])
    assert "PyTorch finds no CUDA device" in capsys.readouterr().err


@pytest.mark.slow  # a model of 100 M weights is made
def test_model_for_the_gpu_can_be_trained_on(tmp_path: Path) -> None:
    settings = levers.gpu_settings(tmp_path / "model") | {
        "device": "cpu",
        "sae.d_sae": 1024,
        "store_batch_size_prompts": 4,
        "train_batch_size_tokens": 256,
        "training_tokens": 512,
        "n_batches_for_norm_estimate": 1,
        "n_batches_in_buffer": 4,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    experiment = load_experiment("configs/demo.yaml", overrides)
    found = levers.measure(experiment, 1, [levers.DEFAULT])
    assert [row["training"] for row in found["rows"]] == [levers.HOST, levers.DEFAULT]
    assert found["d_in"] == 576


def test_bad_setting_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert levers.main([str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml" in capsys.readouterr().err
