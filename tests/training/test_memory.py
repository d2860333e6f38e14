"""SAEs that cannot fit into memory are refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.training import memory


def test_least_memory_counts_weights_and_a_batch(make_config: Callable[..., Any]) -> None:
    cfg = make_config(train_batch_size_tokens=128)
    d_in, d_sae = cfg.sae.d_in, cfg.sae.d_sae
    weights = 4 * 4 * 2 * d_in * d_sae
    batch = 2 * 4 * 128 * d_sae
    assert memory.least_memory([cfg]) == weights + batch
    assert memory.least_memory([cfg, cfg]) == 2 * weights + batch


def test_what_does_not_fit_is_refused(
    make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_config()
    needed = memory.least_memory([cfg])
    monkeypatch.setattr(memory, "memory_of", lambda device: needed)
    memory.check_memory([cfg])
    with pytest.raises(ConfigError, match="2 SAEs need at least .* on cpu"):
        memory.check_memory([cfg, cfg])
    monkeypatch.setattr(memory, "memory_of", lambda device: None)
    memory.check_memory([cfg, cfg])


def test_limit_of_the_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory.memory_of("cpu")
    assert whole is not None
    assert whole > 1e8
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMIT", limit)
    limit.write_text("1000\n")
    assert memory.memory_of("cpu") == 1000
    limit.write_text("max\n")
    assert memory.memory_of("cpu") >= whole


@pytest.mark.parametrize("command", ["check", "plan", "compare", "train"])
def test_every_command_refuses_it(
    command: str,
    write_config: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda device: 1000)
    config = write_config(seeds=[0], output_path=str(tmp_path / "run"))
    assert main([command, str(config)]) == 2
    error = capsys.readouterr().err
    assert "sae.d_sae=" in error
    assert "train fewer variants or hooks together" in error
    assert not list(tmp_path.glob("run/seed*"))


@pytest.mark.parametrize("device", ["cuda:97", "gpu"])
def test_memory_of_a_device_that_is_not_there_is_unknown(device: str) -> None:
    assert memory.memory_of(device) is None
