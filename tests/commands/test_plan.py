"""``plan`` measures what a run costs and trains nothing; ``doctor`` names what is wrong."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saelens_adaptive_ortho.commands import doctor
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.experiments.costs_in_words import evaluations_in_words, taken_in_words
from saelens_adaptive_ortho.experiments.experiment import build_experiment
from saelens_adaptive_ortho.report.formatting import duration
from saelens_adaptive_ortho.results import Result, result_path, write_result
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.text import hub
from saelens_adaptive_ortho.training.costs import Costs, Taken, costs_taken, measure_costs
from saelens_adaptive_ortho.training.lockstep import STATE_FILE, list_checkpoints
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, prepare

COSTS = Costs(
    steps=100,
    batch=1000,
    step_seconds={"a": 0.1, "b": 0.3},
    activation_seconds=0.6,
    parameters={"a": 10, "b": 10},
    memory=5,
    buffer=5,
    export=8,
    checkpoints=24,
    cache=0,
)


def test_time_of_all_seeds_is_that_of_steps_and_activations() -> None:
    assert COSTS.tokens_per_second == pytest.approx(1000)
    assert COSTS.seconds() == pytest.approx(100)
    assert COSTS.seconds(seeds=3) == pytest.approx(300)
    assert COSTS.seconds(seeds=3, cached=True) == pytest.approx(3 * 40 + 60)


def test_costs_are_those_of_the_config(make_config: Callable[..., Any]) -> None:
    cfg = make_config()
    variants: dict[str, dict[str, Any]] = {"baseline": {"ortho_mode": "off"}, "adaptive": {}}
    runner = AdaptiveOrthoRunner(cfg, variants, prepare(cfg))
    before = {name: sae.W_dec.detach().clone() for name, sae in runner.saes.items()}
    costs = measure_costs(runner, n_steps=2)
    assert costs.steps == -(-cfg.training_tokens // cfg.train_batch_size_tokens)
    assert costs.batch == cfg.train_batch_size_tokens
    assert set(costs.step_seconds) == set(variants)
    assert min([costs.activation_seconds, *costs.step_seconds.values()]) > 0
    saes = runner.saes.values()
    assert costs.export == sum(4 * p.numel() for sae in saes for p in sae.parameters())
    assert costs.parameters["adaptive"] == costs.export // 8
    # The steps were real ones.
    assert all(not torch.equal(before[name], sae.W_dec) for name, sae in runner.saes.items())


def test_what_came_is_said_in_the_words_of_the_plan() -> None:
    three = Taken(1000, {"activations": 1.0, "a": 3.0, "b": 4.0})
    assert taken_in_words(three) == (
        "1,000 tokens in 8.0 s, 125 tokens/s from text to 2 SAEs (the model 12%, a 38%, b 50%)"
    )
    one = Taken(1000, {"activations": 1.0, "sae": 1.0})
    assert "500 tokens/s from text to the SAE (the model 50%, sae 50%)" in taken_in_words(one)


def test_time_of_a_resumed_training_is_that_of_all_its_processes(
    make_config: Callable[..., Any], tmp_path: Path
) -> None:
    cfg = make_config(n_checkpoints=1, checkpoint_path=str(tmp_path / "checkpoints"))
    first = AdaptiveOrthoRunner(cfg)
    first.run()
    (checkpoint,) = list_checkpoints(tmp_path / "checkpoints")
    resumed = AdaptiveOrthoRunner(replace(cfg, resume_from_checkpoint=str(checkpoint)))
    resumed.run()
    whole, half = costs_taken(first.trainer), costs_taken(resumed.trainer)
    assert whole.tokens == half.tokens == first.trainer.n_steps * cfg.train_batch_size_tokens
    saved = json.loads((checkpoint / STATE_FILE).read_text())["seconds"]
    assert all(half.seconds[name] > seconds > 0 for name, seconds in saved.items())


def test_plan_prints_the_costs_and_writes_nothing(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    config = tmp_path / "experiment.yaml"
    config.write_text(dump_yaml(settings(seeds=[0, 1], output_path=str(out))))
    assert main(["plan", str(config), "--steps", "2"]) == 0
    text = capsys.readouterr().out
    for topic in ("model", "SAEs", "a step", "speed", "training", "memory", "disk", "evaluations"):
        assert f"\n{topic} " in text
    assert not list(out.glob("seed*"))


def test_time_of_evaluations_is_that_of_finished_saes(
    settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    evals = {"core": {}, "subspace": {}}
    tree = settings(seeds=[0, 1, 2], output_path=str(tmp_path), evals=evals)
    experiment = build_experiment(tree)
    assert evaluations_in_words(experiment).startswith("core, subspace not estimated (no SAE")
    for seed, seconds in enumerate((60.0, 120.0)):
        done = Result("core", "adaptive", seed, metrics={"x": 1.0}, seconds=seconds)
        write_result(result_path(tmp_path, "adaptive", seed, "core"), done)
    n = 3 * len(experiment.variants)
    said = evaluations_in_words(experiment)
    assert said.startswith(
        f"core {duration(90.0 * n)} for {n} SAEs, estimated from 2 finished SAEs"
    )
    assert "; subspace not estimated" in said
    assert evaluations_in_words(replace(experiment, evals={})) == "none"


def test_plan_refuses_no_steps(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "experiment.yaml"
    config.write_text(dump_yaml(settings(output_path=str(tmp_path / "run"))))
    assert main(["plan", str(config), "--steps", "0"]) == 2
    assert "--steps=0: must be at least 1" in capsys.readouterr().err


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "problem", lambda: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)


def states() -> dict[str, str]:
    return {finding.text: finding.state for finding in doctor.examine()}


@pytest.mark.usefixtures("healthy")
def test_doctor_finds_no_fault_on_a_healthy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "the Hugging Face hub answers" in capsys.readouterr().out


@pytest.mark.usefixtures("healthy")
def test_doctor_names_a_torchvision_of_another_build(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, package)

    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda n: n == "torchvision" or None)
    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "nms does not exist" in out
    assert "pip uninstall torchvision" in out


@pytest.mark.usefixtures("healthy")
def test_doctor_names_a_card_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cuda, words in (("12.8", "cannot use the card"), (None, "has no CUDA")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        (text,) = (text for text, state in states().items() if state == "fault")
        assert words in text


@pytest.mark.usefixtures("healthy")
def test_doctor_says_why_the_hub_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "problem", lambda: "ConnectError: no route")
    assert any("does not answer (ConnectError: no route)" in text for text in states())
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert any("HF_HUB_OFFLINE is set" in text for text in states())
