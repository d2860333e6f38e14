"""The prior runs: every config is its base plus an idea, and the failures can be made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evals.prior_runs import note, reproduce, run
from evals.prior_runs import tables as report
from saelens_adaptive_ortho.commands.experiment import load_experiment
from saelens_adaptive_ortho.settings import parse_yaml

CONFIGS = sorted(run.CONFIGS.glob("*/*.yaml"))


def test_each_setting_has_every_run_and_next_step() -> None:
    folders = {path.parent.name for path in CONFIGS}
    assert folders == {"demo", "local_text", "gemma-2-2b_layer19"}
    for folder in folders:
        assert {p.stem for p in CONFIGS if p.parent.name == folder} == set(run.RUNS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_config_is_valid_and_adds_only_its_idea_to_the_default(path: Path) -> None:
    tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    base = load_experiment((path.parent / tree["extends"]).resolve())
    experiment = load_experiment(path)
    assert list(experiment.variants) == [path.stem.replace("_", "-")]
    named = set(tree.get("sae", {}))
    for name in vars(base.runner.sae):
        if name in {"metadata", "ortho_forget_rows"} or not hasattr(experiment.runner.sae, name):
            continue
        changed = getattr(experiment.runner.sae, name) != getattr(base.runner.sae, name)
        assert not changed or name in named, name
    assert len(named) <= 4


def test_every_setting_builds_every_experiment() -> None:
    for setting in run.SETTINGS:
        for name in run.RUNS:
            experiment = run.load(setting, name)
            assert experiment.runner.output_path == f"runs/prior_runs/{setting}/{name}"
    large = run.load("large_norm_1x", "run0").runner
    assert large.sae.d_sae == large.sae.d_in
    assert large.sae.dtype == "bfloat16"


# ---------------------------------------------------------- reproductions


def test_a_silent_sae_explains_what_run_1_explained() -> None:
    found = reproduce.silent(32, 32)
    expected = note.PRIOR_RUNS["run1"]
    assert found["explained_variance"] == pytest.approx(expected.explained_variance, abs=1e-3)
    assert found["norm_out"] == found["l0_share"] == 0
    assert found["norm_in"] == pytest.approx(note.NORM_IN, rel=0.05)


def test_an_untrained_sae_has_half_its_latents_on_and_an_unrelated_output() -> None:
    found = reproduce.untrained(256, 256)
    assert found["l0_share"] == pytest.approx(0.5, abs=0.1)
    assert abs(found["cosine"]) < 0.15
    assert found["explained_variance"] < note.PRIOR_RUNS["run1"].explained_variance
    assert found["mse"] == pytest.approx(found["mse_if_unrelated"], rel=0.15)


def test_the_notes_own_numbers_are_those_of_an_output_unrelated_to_the_input() -> None:
    silent = note.PRIOR_RUNS["run1"].mse
    assert silent is not None
    for name in ("run3", "run4", "run8"):
        found = note.PRIOR_RUNS[name]
        assert found.l0 is not None
        assert found.mse is not None
        assert found.norm_out is not None
        assert found.l0 / note.D_SAE == pytest.approx(0.5, abs=0.01)
        assert found.mse == pytest.approx(silent + found.norm_out**2 / note.D_IN, rel=0.1)


def test_a_clamped_loss_moves_no_weight_and_ends_at_the_ceiling() -> None:
    found = reproduce.clamped(32, 32)
    assert found["final_loss"] == note.CEILING
    assert found["largest_change_of_a_weight"] == 0
    assert found["explained_variance"] < 0


def test_zero_rows_without_an_epsilon_are_not_numbers_and_a_ceiling_keeps_them() -> None:
    found = reproduce.not_a_number(8, 8)
    assert found["nan_share_without_epsilon"] == 1
    assert found["nan_share_with_epsilon"] == 0
    assert found["a_ceiling_keeps_nan"]


def test_a_full_training_on_normalised_input_succeeds_where_48_steps_do_not() -> None:
    found = reproduce.too_short(32, 32, steps=1500)
    *short, full = found.values()
    assert max(short) < 0.5
    assert full > 0.8


def test_a_probe_on_constants_is_at_chance() -> None:
    assert reproduce.chance_probe()["accuracy"] == 0.5


# ----------------------------------------------------------------- report


def document(name: str, value: float) -> dict[str, Any]:
    return {"setting": "demo", "run": name, "metrics": dict.fromkeys(run.METRICS, value)}


def test_the_table_holds_the_notes_number_beside_ours_and_marks_what_is_missing() -> None:
    text = report.table([document("run4", 0.75)])
    rows = [line for line in text.splitlines() if line.startswith("| run4 ")]
    idea = note.PRIOR_RUNS["run4"].idea
    assert rows == [
        f"| run4 | {idea} | \u22121.67 | 0.750 |",
        f"| run4 | {idea} | \u22120.60 | 0.750 |",
        f"| run4 | {idea} | 1,150 | 0.8 |",
        f"| run4 | {idea} | 0.750 |",
    ]
    assert text.splitlines().count("| run2 | training loop fix | \u2013 | \u2013 |") == 2


def test_the_figure_joins_the_notes_value_to_ours() -> None:
    (axes,) = report.figure([document("run4", 0.75), document("run0", 0.5)]).axes
    joined = [list(line.get_xdata()) for line in axes.lines]
    assert [-1.671875, 0.75] in joined
    assert [0.5] in joined  # run 0 of the note has no number
    assert len(axes.get_yticks()) == len(run.RUNS)


COMMITTED = run.load_results()


@pytest.mark.parametrize("setting", list(run.SETTINGS))
def test_every_committed_run_is_an_sae_that_works(setting: str) -> None:
    found = {r["run"]: r["metrics"] for r in COMMITTED if r["setting"] == setting}
    assert set(found) == set(run.RUNS)
    for name, values in found.items():
        assert values["explained_variance"] > (0.7 if setting == "local_text" else 0), name
        assert values["ce_loss_score"] > 0, name
        assert 1 <= values["l0"] <= 64, name
        assert values["final_mse_loss"] < note.CEILING, name


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "demo" / "run0.json"
    path.parent.mkdir()
    path.write_text("{}")
    assert run.execute("demo", "run0", tmp_path) == path


# --------------------------------------------------------- larger activations


def test_scaling_the_residual_stream_keeps_every_prediction() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from evals.prior_runs.large_norm import mean_norm, scale_residual_stream
    from saelens_adaptive_ortho.errors import ConfigError

    config = GPTNeoXConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPTNeoXForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        before, norm = model(tokens).logits, mean_norm(model, tokens, 1)
        scale_residual_stream(model, 16.0)
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-3, atol=1e-3)
    assert mean_norm(model, tokens, 1) == pytest.approx(16 * norm, rel=1e-3)
    model.config.tie_word_embeddings = True
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        scale_residual_stream(model, 2.0)
