"""Comparisons at several hooks: one reading of the model, the SAEs of separate runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.comparison import Comparison, run_together
from saelens_adaptive_ortho.experiments.experiment import load_experiment, load_experiments
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.text.shared_reads import SharedReads
from saelens_adaptive_ortho.training.lockstep import LockstepTrainer

FIRST, SECOND = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
HOOKS = [SECOND, FIRST]
VARIANTS = {"baseline": {"ortho_mode": "off"}, "adaptive": {}}
WriteConfig = Callable[..., Path]


@pytest.fixture
def write(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> WriteConfig:
    def written(folder: str, **changes: Any) -> Path:
        tree = settings(variants=VARIANTS, seeds=[0], evals={}, **changes)
        tree["output_path"] = str(tmp_path / folder)
        path = tmp_path / f"{folder}.yaml"
        path.write_text(dump_yaml(tree))
        return path

    return written


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: load_file(folder / "seed0" / name / "sae_weights.safetensors") for name in VARIANTS
    }


def assert_equal(one: Path, other: Path) -> None:
    for name, expected in weights(other).items():
        found = weights(one)[name]
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


def count_contexts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], int]]:
    """The hooks and the number of contexts of each reading of the model."""
    read: list[tuple[tuple[str, ...], int]] = []
    original = HookedTransformer.run_with_cache

    def counted(self: Any, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        if tokens.shape[1] > 2:  # not the check of the width
            read.append((tuple(kwargs["names_filter"]), len(tokens)))
        return original(self, tokens, *args, **kwargs)

    monkeypatch.setattr(HookedTransformer, "run_with_cache", counted)
    return read


@pytest.mark.parametrize("cached", [False, True], ids=["streamed", "cached"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_saes_are_those_of_separate_runs_and_the_model_reads_once(
    write: WriteConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cached: bool,
    prefetch: int,
) -> None:
    monkeypatch.setenv("ADAPTIVE_ORTHO_CACHE", str(tmp_path / "own"))
    changes = {"ortho_cache_activations": cached, "prefetch_llm_batches": prefetch}
    read = count_contexts(monkeypatch)
    assert main(["compare", str(write("single", hook_name=SECOND, **changes))]) == 0
    alone = sum(n for _, n in read)
    read.clear()
    monkeypatch.setenv("ADAPTIVE_ORTHO_CACHE", str(tmp_path / "together"))
    assert main(["compare", str(write("both", hook_names=HOOKS, **changes))]) == 0
    assert_equal(tmp_path / "both" / SECOND, tmp_path / "single")
    assert {hooks for hooks, _ in read} == {tuple(HOOKS)}
    assert sum(n for _, n in read) == alone
    assert main(["compare", str(write("other", hook_name=FIRST, **changes))]) == 0
    assert_equal(tmp_path / "both" / FIRST, tmp_path / "other")


def test_a_hook_that_is_trained_already_is_left_alone(
    write: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(write(f"both/{FIRST}".replace("/", "_"), hook_name=FIRST))]) == 0
    (tmp_path / "both").mkdir()
    (tmp_path / f"both_{FIRST}").rename(tmp_path / "both" / FIRST)
    config = write("both", hook_names=HOOKS)
    assert main(["compare", str(config)]) == 0
    assert f"{FIRST}. Seed 0: every variant is trained already." in capsys.readouterr().out
    assert (tmp_path / "both" / SECOND / "report.html").is_file()


def test_a_stopped_run_continues_at_every_hook(
    write: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = write("whole", hook_names=HOOKS), write("stopped", hook_names=HOOKS)
    assert main(["compare", str(whole)]) == 0
    original = LockstepTrainer._step

    def stop_soon(self: LockstepTrainer, batches: Any) -> Any:
        if self.state.n_training_steps == 3 and self.store.hook_name == HOOKS[0]:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(LockstepTrainer, "_step", stop_soon)
        assert main(["compare", str(stopped)]) == 128 + signal.SIGTERM
    for hook in HOOKS:
        steps = sorted((tmp_path / "stopped" / hook / "seed0" / "checkpoints").iterdir())
        assert [s.name for s in steps][-1] == "step_000000004"
    assert main(["compare", str(stopped)]) == 0
    for hook in HOOKS:
        assert_equal(tmp_path / "stopped" / hook, tmp_path / "whole" / hook)


def test_each_hook_has_a_folder_config_and_width_of_its_own(
    write: WriteConfig, tmp_path: Path
) -> None:
    config = write("out", hook_names=[FIRST, "blocks.1.attn.hook_z", "blocks.0.mlp.hook_post"])
    experiments = load_experiments(config)
    assert [Path(e.runner.output_path or "").name for e in experiments] == [
        FIRST,
        "blocks.1.attn.hook_z",
        "blocks.0.mlp.hook_post",
    ]
    assert len({e.runner.sae.d_in for e in experiments}) == 2
    run_together([Comparison(e, say=lambda _: None) for e in experiments])
    saved = (tmp_path / "out" / FIRST / "config.yaml").read_text()
    assert f"hook_name: {FIRST}" in saved
    assert "hook_names" not in saved
    record = tmp_path / "out" / "blocks.0.mlp.hook_post" / "seed0" / "adaptive" / "ortho_run.json"
    assert json.loads(record.read_text())["settings"]["hook_name"] == "blocks.0.mlp.hook_post"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_names": []}, "hook_names"),
        ({"hook_names": "blocks.0.hook_resid_post"}, "hook_names"),
        ({"hook_names": [FIRST, FIRST]}, f"names {FIRST} twice"),
        ({"hook_names": [FIRST, "blocks.7.hook_resid_post"]}, "no such hook point"),
        ({"hook_names": HOOKS, "compile_llm": True}, "compile_llm"),
    ],
)
def test_bad_hook_names_are_refused_before_training(
    write: WriteConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    assert main(["compare", str(write("bad", **changes))]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("checkpoints"))


def test_commands_for_one_hook_say_so(write: WriteConfig) -> None:
    with pytest.raises(ConfigError, match="hook_names.*set hook_name"):
        load_experiment(write("several", hook_names=HOOKS))


def test_check_and_plan_take_several_hooks(
    write: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write("planned", hook_names=HOOKS))
    assert main(["check", config]) == 0
    assert main(["plan", config, "--steps", "1"]) == 0
    out = capsys.readouterr().out
    assert all(f", {hook}, width" in out for hook in HOOKS)
    assert "all hooks" in out


def test_forgotten_activations_are_read_again(model: HookedTransformer) -> None:
    reads = SharedReads(model, HOOKS, keep=2)
    texts = torch.arange(24).view(3, 2, 4)  # three batches of two contexts
    expected = [model.run_with_cache(text, names_filter=[FIRST])[1][FIRST] for text in texts]
    for text in texts:
        reads.run_with_cache(text, names_filter=[SECOND])
    for text, acts in zip(texts, expected, strict=True):
        found = reads.run_with_cache(text, names_filter=[FIRST])[1][FIRST]
        assert torch.equal(found, acts)
