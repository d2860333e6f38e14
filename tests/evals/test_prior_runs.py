"""The prior runs: an experiment is a setting plus an idea, and the failures are reproduced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evals.prior_runs import figures, note, reproduce, run
from evals.prior_runs import tables as report
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.experiment import load_experiment
from saelens_adaptive_ortho.results import Result
from saelens_adaptive_ortho.settings import parse_yaml

CONFIGS = Path(__file__).parents[2] / "configs"

IDEAS = sorted((run.CONFIGS / "ideas").glob("*.yaml"))
BASES = ("demo", "local_text", "gemma-2-2b_layer19")


def test_one_file_per_idea_and_setting() -> None:
    assert {path.stem for path in IDEAS} == set(run.RUNS)
    files = {path.stem for path in (run.CONFIGS / "settings").glob("*.yaml")}
    assert files == set(BASES) == {file for file, _ in run.SETTINGS.values()}
    assert "gemma-2-2b_layer19" not in run.DEFAULT_SETTINGS


@pytest.mark.parametrize("path", IDEAS, ids=lambda p: p.stem)
@pytest.mark.parametrize("base", BASES)
def test_experiment_adds_only_its_idea(base: str, path: Path) -> None:
    default = load_experiment(CONFIGS / f"{base}.yaml")
    experiment = run.load(base, path.stem)
    assert list(experiment.variants) == [path.stem.replace("_", "-")]
    assert (experiment.name, experiment.seeds) == (path.stem, [0])
    assert set(experiment.evals) == {"core", "subspace"}
    assert experiment.runner.output_path == f"runs/prior_runs/{base}/{path.stem}"
    file = run.CONFIGS / "settings" / f"{base}.yaml"
    setting = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    of_idea = setting["ideas"].get(path.stem, {})
    tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    assert set(tree) == {"sae"}  # the file of the setting holds all that depends on the setting
    named = {*tree["sae"], *of_idea.get("sae", {})}
    for name in vars(default.runner.sae):
        if name in {"metadata", "ortho_forget_rows"} or not hasattr(experiment.runner.sae, name):
            continue
        changed = getattr(experiment.runner.sae, name) != getattr(default.runner.sae, name)
        assert not changed or name in named, name
    assert len(named) <= 4
    ours, theirs = experiment.runner.settings(), default.runner.settings()
    changed = {name for name in theirs if ours[name] != theirs[name]}
    assert changed - {"sae", "lr_end"} == set(of_idea) - {"sae"}  # lr_end follows lr


@pytest.mark.parametrize(
    ("base", "name", "expected"),
    [
        ("demo", "run0", {"sae.ortho_mode": "off", "lr": 1e-3, "train_batch_size_tokens": 1024}),
        ("local_text", "run1", {"sae.ortho_mode": "gram", "sae.ortho_coefficient": 0.1}),
        ("gemma-2-2b_layer19", "run2", {"sae.ortho_mode": "adaptive", "lr": 2e-4}),
        ("demo", "run4", {"lr": 4e-4, "sae.ortho_unit_norm": True, "sae.decoder_init_norm": 1.0}),
        ("local_text", "run4", {"lr": 1e-3}),
        ("gemma-2-2b_layer19", "run4", {"lr": 1e-4, "sae.ortho_unit_norm": True}),
        ("demo", "run5", {"train_batch_size_tokens": 256, "sae.ortho_accumulation": 4}),
        ("local_text", "run5", {"train_batch_size_tokens": 512, "lr_decay_steps": 400}),
        (
            "gemma-2-2b_layer19",
            "run5",
            {"train_batch_size_tokens": 1024, "lr_warm_up_steps": 4000, "lr_decay_steps": 32000},
        ),
        ("demo", "run6", {"sae.ortho_skip_rank": 4, "sae.ortho_dropout": 0.3}),
        ("gemma-2-2b_layer19", "run6", {"sae.ortho_skip_rank": 64, "sae.ortho_dropout": 0.3}),
        ("local_text", "run7", {"sae.ortho_curriculum_start": 0.01, "sae.ortho_coefficient": 0.1}),
        ("local_text", "run7", {"sae.ortho_curriculum_steps": 250}),
        ("demo", "run8", {"sae.ortho_warm_up_steps": 100}),
        ("gemma-2-2b_layer19", "run8", {"sae.normalize_activations": "layer_norm"}),
        ("local_text", "run9", {"sae.ortho_unlock_every": 40, "sae.ortho_unlock_start": 0.25}),
        ("demo", "next_latent_norm", {"sae.ortho_latent_norm": True}),
    ],
)
def test_idea_has_numbers_of_its_setting(base: str, name: str, expected: dict[str, Any]) -> None:
    runner = run.load(base, name).runner
    for key, value in expected.items():
        target: Any = runner
        for part in key.split("."):
            target = getattr(target, part)
        assert target == value, key


def test_unknown_idea_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "demo.yaml").write_text("ideas: {run99: {lr: 1}}\n")
    monkeypatch.setattr(run, "CONFIGS", tmp_path)
    with pytest.raises(ConfigError, match="ideas='run99': must be among run0"):
        run.load("demo", "run0")


def test_every_setting_builds_every_experiment() -> None:
    for setting in run.SETTINGS:
        for name in run.RUNS:
            experiment = run.load(setting, name)
            assert experiment.runner.output_path == f"runs/prior_runs/{setting}/{name}"
    large = run.load("large_norm_1x", "run0", ["lr=1"]).runner
    assert large.sae.d_sae == large.sae.d_in
    assert large.sae.dtype == "bfloat16"
    assert large.lr == 1


# ---------------------------------------------------------- reproductions


def test_silent_sae_matches_run_1() -> None:
    found = reproduce.silent(32, 32)
    expected = note.PRIOR_RUNS["run1"]
    assert found["explained_variance"] == pytest.approx(expected.explained_variance, abs=1e-3)
    assert found["norm_out"] == found["l0_share"] == 0
    assert found["norm_in"] == pytest.approx(note.NORM_IN, rel=0.05)


def test_untrained_sae_fires_half_and_is_unrelated() -> None:
    found = reproduce.untrained(256, 256)
    assert found["l0_share"] == pytest.approx(0.5, abs=0.1)
    assert abs(found["cosine"]) < 0.15
    assert found["explained_variance"] < note.PRIOR_RUNS["run1"].explained_variance
    assert found["mse"] == pytest.approx(found["mse_if_unrelated"], rel=0.15)


def test_note_numbers_match_unrelated_output() -> None:
    silent = note.PRIOR_RUNS["run1"].mse
    assert silent is not None
    for name in ("run3", "run4", "run8"):
        found = note.PRIOR_RUNS[name]
        assert found.l0 is not None
        assert found.mse is not None
        assert found.norm_out is not None
        assert found.l0 / note.D_SAE == pytest.approx(0.5, abs=0.01)
        assert found.mse == pytest.approx(silent + found.norm_out**2 / note.D_IN, rel=0.1)


def test_clamped_loss_moves_no_weight() -> None:
    found = reproduce.clamped(32, 32)
    assert found["final_loss"] == note.CEILING
    assert found["largest_change_of_a_weight"] == 0
    assert found["explained_variance"] < 0


def test_zero_rows_without_epsilon_give_nan() -> None:
    found = reproduce.not_a_number(8, 8)
    assert found["nan_share_without_epsilon"] == 1
    assert found["nan_share_with_epsilon"] == 0
    assert found["a_ceiling_keeps_nan"]


def test_full_training_succeeds_48_steps_fail() -> None:
    found = reproduce.too_short(32, 32, steps=1500)
    *short, full = found.values()
    assert max(short) < 0.5
    assert full > 0.8


def test_probe_on_constants_is_at_chance() -> None:
    assert reproduce.chance_probe()["accuracy"] == 0.5


# ----------------------------------------------------------------- report


def document(name: str, value: float) -> dict[str, Any]:
    return {"setting": "demo", "run": name, "metrics": dict.fromkeys(run.METRICS, value)}


def test_table_shows_note_and_ours_and_gaps() -> None:
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


def test_figure_joins_note_and_ours() -> None:
    (axes,) = figures.figure([document("run4", 0.75), document("run0", 0.5)]).axes
    joined = [list(line.get_xdata()) for line in axes.lines]
    assert [-1.671875, 0.75] in joined
    assert [0.5] in joined  # run 0 of the note has no number
    assert len(axes.get_yticks()) == len(run.RUNS)


COMMITTED = run.load_results()


@pytest.mark.parametrize("setting", run.DEFAULT_SETTINGS)
def test_every_committed_run_works(setting: str) -> None:
    found = {r["run"]: r["metrics"] for r in COMMITTED if r["setting"] == setting}
    assert set(found) == set(run.RUNS)
    for name, values in found.items():
        assert values["explained_variance"] > (0.7 if setting == "local_text" else 0), name
        assert values["ce_loss_score"] > 0, name
        assert 1 <= values["l0"] <= 64, name
        assert values["final_mse_loss"] < note.CEILING, name


class Judged:
    """A stand-in for a comparison: it returns one result and counts its runs."""

    made = 0

    def __init__(self, experiment: Any) -> None:
        self.experiment = experiment

    def run(self) -> list[Result]:
        Judged.made += 1
        metrics = {"pooled/explained_variance": 0.5}
        return [Result("core", self.experiment.name, 0, metrics=metrics, versions={"torch": "2"})]


def test_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "Comparison", Judged)
    monkeypatch.setattr(Judged, "made", 0)
    path = tmp_path / "results.jsonl"
    for name in ("run1", "run0"):
        found = run.execute("demo", name, path)
        assert found["metrics"]["explained_variance"] == 0.5
        assert found["metrics"]["l0"] is None
    path.write_text(path.read_text() + '{"setting": "demo", "run": "ru')  # killed while writing
    assert run.execute("demo", "run1", path)["run"] == "run1"
    assert Judged.made == 2
    run.execute("demo", "run2", path)
    assert [r["run"] for r in run.load_results(path)] == ["run0", "run1", "run2"]
    assert Judged.made == 3


# --------------------------------------------------------- larger activations


def test_scaled_residual_keeps_predictions() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from evals.prior_runs.large_norm import mean_norm, scale_residual_stream

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
