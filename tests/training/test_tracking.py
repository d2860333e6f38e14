"""W&B: a run for each SAE in one group, with history, metrics and report. A stand-in records it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from safetensors.torch import load_file

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.files import write_text_atomic
from saelens_adaptive_ortho.report.page import run as page
from saelens_adaptive_ortho.results import load_results
from saelens_adaptive_ortho.training import lockstep

STEPS = [1, 4, 8, 12, 16, 20, 24]
VARIANTS = {"fixed": {"ortho_mode": "fixed"}, "adaptive": {}}
SEEDS = [0, 1]
NAMES = {f"{variant}-seed{seed}" for variant in VARIANTS for seed in SEEDS}


@dataclass
class Run:
    """What a W&B run got. ``step`` is the next step that W&B takes."""

    settings: dict[str, Any]
    step: int = 0
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    report: str = ""
    statuses: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://wandb.ai/{self.settings['id']}"

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        assert len(self.statuses) < self.settings["opened"], "the run is closed"
        if "report" in row:
            self.report = row["report"]
            return
        assert step is not None
        assert step >= self.step, "W&B drops rows of earlier steps"
        self.rows.setdefault(step, {}).update(row)
        self.step = step

    def finish(self, exit_code: int) -> None:
        self.statuses.append(exit_code)
        self.step += 1


class Wandb(ModuleType):
    """A stand-in for the package. A run with a known id is continued."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, Run] = {}
        self.Settings = SimpleNamespace

    def init(self, **settings: Any) -> Run:
        assert settings["reinit"] == "create_new"  # otherwise a second run closes the first
        run = self.runs.setdefault(settings["id"], Run({**settings, "opened": 0}))
        run.settings["opened"] += 1
        return run

    def Html(self, path: Path, inject: bool) -> str:
        return path.read_text()

    def named(self) -> dict[str, Run]:
        named = {run.settings["name"]: run for run in self.runs.values()}
        assert len(named) == len(self.runs)
        return named


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def config(write_config: Callable[..., Path]) -> str:
    evals = {"subspace": {"n_contexts": 8}}
    return str(write_config(variants=VARIANTS, seeds=SEEDS, evals=evals))


LOG = ["--set", "logger.log_to_wandb=true"]
NAMED = ["--set", "logger.run_name=first"]


def weights(root: Path) -> dict[str, torch.Tensor]:
    files = sorted(root.glob(f"seed*/*/{SAE_WEIGHTS_FILENAME}"))
    found = {f"{f.parent}/{name}": t for f in files for name, t in load_file(f).items()}
    return {name.removeprefix(str(root)): tensor for name, tensor in found.items()}


def test_one_run_per_sae_in_one_group(
    config: str,
    tmp_path: Path,
    wandb: Wandb,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        page, "write_report", lambda root: write_text_atomic(root / "report.html", "<p>Report")
    )
    assert main(["compare", config, *LOG, "--set", "logger.wandb_project=mine", *NAMED]) == 0
    root = tmp_path / "run"
    runs = wandb.named()
    assert set(runs) == NAMES
    url = runs["adaptive-seed1"].url
    assert f"Seed 1: W&B run of adaptive: {url}\n" in capsys.readouterr().out
    groups = {run.settings["group"] for run in runs.values()}
    assert len(groups) == 1
    assert groups.pop().startswith("first-")
    found = load_results(root)
    for name, run in runs.items():
        variant, _, seed = name.rpartition("-seed")
        assert run.statuses == [0]
        assert run.settings["project"] == "mine"
        assert Path(run.settings["dir"]) == root
        assert run.settings["config"]["sae"]["ortho_mode"] == (
            "fixed" if variant == "fixed" else "adaptive"
        )
        assert (run.settings["config"]["variant"], run.settings["config"]["seed"]) == (
            variant,
            int(seed),
        )
        assert sorted(run.rows) == STEPS
        assert all({"mse_loss", "explained_variance"} <= set(row) for row in run.rows.values())
        assert not any("step" in row for row in run.rows.values())
        of_sae = [r for r in found if (r.variant, r.seed) == (variant, int(seed))]
        assert {r.eval for r in of_sae} == {"training", "subspace"}
        assert run.summary == {
            f"{r.eval}/{metric}": value
            for r in of_sae
            for metric, value in r.metrics.items()
            if value is not None
        }
        assert run.report == "<p>Report"
    # Nothing that is learned changes, and neither do the digests.
    other = tmp_path / "other"
    assert main(["compare", config, "--set", f"output_path={other}"]) == 0
    with_log, without = weights(root), weights(other)
    assert with_log.keys() == without.keys()
    assert all(torch.equal(with_log[name], without[name]) for name in without)
    prints = [[r.fingerprint for r in load_results(folder)] for folder in (root, other)]
    assert prints[0] == prints[1]
    assert len(wandb.runs) == len(NAMES)


def test_continued_comparison_continues_its_runs(
    config: str,
    no_report: None,
    tmp_path: Path,
    wandb: Wandb,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = lockstep.LockstepTrainer._log

    def stopped(trainer: Any, *args: Any) -> None:
        log(trainer, *args)
        if trainer.state.n_training_steps == 8:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(lockstep.LockstepTrainer, "_log", stopped)
        assert main(["compare", config, *LOG]) == 128 + signal.SIGUSR1
    runs = wandb.named()
    assert set(runs) == {"fixed-seed0", "adaptive-seed0"}
    assert all(run.statuses == [128 + signal.SIGUSR1] for run in runs.values())
    assert all(sorted(run.rows) == [1, 4, 8] for run in runs.values())
    assert main(["compare", config, *LOG]) == 0
    runs = wandb.named()
    assert set(runs) == NAMES
    assert all(sorted(run.rows) == STEPS for run in runs.values())
    assert all(run.statuses[-1] == 0 for run in runs.values())
    # A finished comparison sends its metrics again, to the same runs.
    assert main(["compare", config, *LOG]) == 0
    assert wandb.named() == runs
    # Other SAEs are other runs.
    assert main(["compare", config, *LOG, "--fresh"]) == 0
    assert len(wandb.runs) == 2 * len(NAMES)


def test_logging_may_begin_after_training(
    config: str, no_report: None, tmp_path: Path, wandb: Wandb
) -> None:
    assert main(["compare", config]) == 0
    assert wandb.runs == {}
    assert not (tmp_path / "run" / "wandb.json").exists()
    (tmp_path / "run" / "results" / "fixed__seed1__training.json").unlink()
    assert main(["compare", config, *LOG]) == 0
    runs = wandb.named()
    assert set(runs) == NAMES
    assert all(sorted(run.rows) == STEPS for run in runs.values())
    assert all(run.summary["training/steps"] == 24 for run in runs.values())


@pytest.mark.parametrize("command", ["compare", "train", "check"])
def test_missing_package_is_named_before_any_work(
    config: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    at = ["--set", f"checkpoint_path={tmp_path / 'checkpoints'}"] if command == "train" else []
    assert main([command, config, *LOG, *at]) == 2
    error = capsys.readouterr().err
    assert "logger.log_to_wandb=True: needs the package wandb: pip install" in error
    assert not (tmp_path / "run" / "cache").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_one_id_for_many_runs_is_refused(
    config: str, wandb: Wandb, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", config, *LOG, "--set", "logger.wandb_id=abc"]) == 2
    assert "logger.wandb_id='abc': names one W&B run, but" in capsys.readouterr().err


def test_refused_login_is_explained_before_training(
    config: str,
    tmp_path: Path,
    wandb: Wandb,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setattr(lockstep.LockstepTrainer, "begin", lambda _: pytest.fail("training began"))
    assert main(["compare", config, *LOG]) == 2
    error = capsys.readouterr().err
    assert (
        "log_to_wandb=True: W&B does not start (No API key configured). Run `wandb login`" in error
    )
    assert "WANDB_MODE=offline" in error


def test_failing_service_does_not_stop_training(
    config: str, no_report: None, tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Run.log

    def broken(run: Run, row: dict[str, Any], step: int | None = None) -> None:
        if step == 8:
            raise ConnectionError("the service is gone")
        log(run, row, step)

    monkeypatch.setattr(Run, "log", broken)
    with pytest.warns(UserWarning, match="W&B failed and gets nothing more: the service is gone"):
        assert main(["compare", config, *LOG]) == 0
    assert all(sorted(run.rows) == [1, 4] for run in wandb.runs.values())
    assert all(r.ok for r in load_results(tmp_path / "run"))


def test_damaged_id_file_is_named(
    config: str, tmp_path: Path, wandb: Wandb, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb.json").write_text("{")
    assert main(["compare", config, *LOG]) == 2
    assert f"{tmp_path / 'run' / 'wandb.json'} is damaged. Delete it" in capsys.readouterr().err


def test_train_command_logs_one_run(
    config: str, tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ["--set", f"checkpoint_path={tmp_path / 'checkpoints'}"]
    id = ["--set", "logger.wandb_id=abc"]
    assert main(["train", config, *LOG, *at, *NAMED, *id]) == 0
    (run,) = wandb.runs.values()
    assert (run.settings["name"], run.settings["id"]) == ("first", "abc")
    assert json.loads(json.dumps(run.settings["config"]))["model_name"]
    assert sorted(run.rows) == STEPS
    assert "sae/mse_loss" in run.rows[4]
    assert run.statuses == [0]
