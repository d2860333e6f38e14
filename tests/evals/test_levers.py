"""Whole trainings are compared with SAELens's own runner; the tests assert no times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evals.performance import levers


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


def test_bad_setting_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert levers.main([str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml" in capsys.readouterr().err
