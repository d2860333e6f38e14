"""W&B's own package in its offline mode, which needs no account and no network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saelens_adaptive_ortho.commands.cli import main

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No account and no files of the user are used, and no hook of W&B's is left behind."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))


@pytest.mark.slow
def test_offline_runs_of_a_comparison(write_config: Callable[..., Path], tmp_path: Path) -> None:
    root = tmp_path / "run"
    variants = {"fixed": {"ortho_mode": "fixed"}, "adaptive": {}}
    config = str(write_config(variants=variants, evals={"subspace": {"n_contexts": 8}}))
    assert main(["compare", config, "--set", "logger.log_to_wandb=true"]) == 0
    wandb.teardown()  # W&B's process writes what is left, and ends
    files = sorted((root / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == len(variants)
    # W&B's log is binary; its texts stand in it as they are.
    logs = [file.read_bytes() for file in files]
    by_name = {name: log for name in variants for log in logs if f"{name}-seed0".encode() in log}
    assert by_name.keys() == variants.keys()
    for log in by_name.values():
        assert log.count(b"explained_variance") >= 7  # a row each at 1, 4, 8, ..., 24
        assert b"training/train_seconds" in log
        assert b"subspace/mean_max_cosine" in log
    for file in files:
        (page,) = file.parent.glob("files/media/html/report_*.html")
        assert page.read_text() == (root / "report.html").read_text()
