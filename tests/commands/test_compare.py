"""``adaptive-ortho compare`` end to end on the tiny model."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from transformer_lens import HookedTransformer

from saelens_adaptive_ortho.checksums import write_sums
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.demo import MODEL_DIR, RETAIN_CORPUS
from saelens_adaptive_ortho.experiments import comparison
from saelens_adaptive_ortho.experiments.comparison import RECORD, workbench
from saelens_adaptive_ortho.experiments.experiment import load_experiment
from saelens_adaptive_ortho.judging import geometry
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.running import run_evaluation
from saelens_adaptive_ortho.report.page import run as page
from saelens_adaptive_ortho.results import load_result, load_results, result_path
from saelens_adaptive_ortho.settings import dump_yaml, parse_yaml
from saelens_adaptive_ortho.training import lockstep
from saelens_adaptive_ortho.training.runner import Prepared

pytest.importorskip("sae_bench")
# SAEBench's store warns about its own tensor copies. What we serve it must give no other warning.
pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct:UserWarning"),
    pytest.mark.filterwarnings("error:The training dataset contains fewer:UserWarning"),
    pytest.mark.filterwarnings("error:All samples in the training dataset:UserWarning"),
]

VARIANTS = {"baseline": {"ortho_mode": "off"}, "adaptive": {}}
SEEDS = [0, 1]
DOMAINS = ("forget", "retain", "pooled")
EVALUATIONS = ("training", "core", "subspace")
REWRITTEN = {"report.html", "summary.json", "config.yaml"}
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.fixture(scope="module")
def finished(
    settings: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run in ``run``, beside its ``experiment.yaml``. Tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    tree = settings(variants=VARIANTS, seeds=SEEDS, output_path=str(folder / "run"))
    (folder / "experiment.yaml").write_text(dump_yaml(tree))
    assert main(["compare", str(folder / "experiment.yaml")]) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def compare(finished: Path, run: Path) -> Callable[..., int]:
    """Run ``compare`` on the copy, with further options."""
    config = str(finished.parent / "experiment.yaml")

    def again(*options: str) -> int:
        return main(["compare", config, "--set", f"output_path={run}", *options])

    return again


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(_: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(lockstep.LockstepTrainer, "begin", fit)


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file that a rerun must not write."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file() and path.name not in REWRITTEN
    }


# -------------------------------------------------------------------- what it leaves


def test_result_per_variant_seed_and_evaluation(finished: Path) -> None:
    found = {(r.variant, r.seed, r.eval): r for r in load_results(finished)}
    assert set(found) == {(v, s, e) for v in VARIANTS for s in SEEDS for e in EVALUATIONS}
    assert all(r.ok and r.metrics and r.fingerprint and r.versions for r in found.values())
    steps = {r.metrics["steps"] for r in found.values() if r.eval == "training"}
    assert steps == {24.0}


def test_core_metrics_per_corpus_and_pooled(finished: Path) -> None:
    for variant in VARIANTS:
        metrics = load_result(result_path(finished, variant, 0, "core")).metrics
        for domain in DOMAINS:
            for name in ("explained_variance", "ce_loss_score", "l0", "cossim"):
                assert metrics[f"{domain}/{name}"] is not None
            exact = metrics[f"{domain}/explained_variance"]
            published = metrics[f"{domain}/explained_variance_sae_bench"]
            assert exact is not None
            assert published is not None
            assert exact < 1
            assert exact != published  # SAEBench uses another formula
            l0 = metrics[f"{domain}/l0"]
            assert l0 is not None
            assert 0 < l0 < 64
        l0s = [metrics[f"{domain}/l0"] for domain in DOMAINS]
        assert min(l0s) < max(l0s)  # type: ignore[type-var]


def test_same_seed_same_start_but_different_saes(finished: Path) -> None:
    """Variants of a seed start from the same weights and the same batch."""
    weights = {
        (variant, seed): SAE.load_from_disk(finished / f"seed{seed}" / variant).W_dec
        for variant in VARIANTS
        for seed in SEEDS
    }
    keys = list(weights)
    for i, first in enumerate(keys):
        assert not any(torch.equal(weights[first], weights[k]) for k in keys[i + 1 :])
    # The first step has the same weights and the same batch.
    first_rows = [
        load_result(result_path(finished, v, 0, "training")).details["history"][0] for v in VARIANTS
    ]
    assert first_rows[0]["mse_loss"] == first_rows[1]["mse_loss"]


def test_plain_saelens_loads_exported_saes(finished: Path) -> None:
    for variant in VARIANTS:
        sae = SAE.load_from_disk(finished / "seed0" / variant)
        assert type(sae).__module__.startswith("sae_lens.")
        assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
        assert sae.cfg.metadata.context_size == 32
        assert not any(name.startswith("ortho_") for name in sae.state_dict())
        assert sae(torch.randn(3, 32)).isfinite().all()


def test_report_is_self_contained(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert all(variant in page for variant in VARIANTS)
    assert "<svg" in page
    assert page.count("<script") == 1  # it is inline
    assert "@import" not in page
    for reference in re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)["']""", page):
        assert reference.startswith(("#", "data:")), reference
    for reference in re.findall(r"""url\(["']?([^"')]*)""", page):
        assert reference.startswith(("#", "data:")), reference


def test_saved_config_can_be_run_again(finished: Path) -> None:
    tree = parse_yaml((finished / "config.yaml").read_text(), "config.yaml")
    assert tree["variants"] == VARIANTS
    assert tree["seeds"] == SEEDS
    assert tree["sae"]["d_sae"] == 64
    assert not (finished / "seed0" / "checkpoints").exists()


# ------------------------------------------------------------------------- reruns


@pytest.mark.usefixtures("no_training", "no_report")
def test_rerun_changes_nothing(run: Path, compare: Callable[..., int]) -> None:
    before = snapshot(run)
    assert len(before) > 20
    assert compare() == 0
    assert snapshot(run) == before


@pytest.mark.usefixtures("no_training", "no_report")
def test_rerun_removes_what_a_killed_one_left(run: Path, compare: Callable[..., int]) -> None:
    before = snapshot(run)
    step = run / "seed0" / "checkpoints" / "step_000000008"
    (step / "adaptive").mkdir(parents=True)  # its other files are deleted already
    hexadecimal = "0123456789abcdef" * 2
    for name in ("config.yaml", "results/x.json", "seed0/adaptive/ortho_run.json"):
        path = run / name
        path.with_name(f".{path.name}.{hexadecimal}.tmp").write_text("half")
    (run / "seed0" / ".adaptive.lock").touch()
    assert compare() == 0
    assert snapshot(run) == before
    assert not (run / "seed0" / "checkpoints").exists()
    other = run / "seed0" / "checkpoints" / "step_000000008" / "not_a_variant_of_this_run"
    other.mkdir(parents=True)
    assert compare() == 0
    assert other.is_dir()


@pytest.mark.usefixtures("no_training", "no_report")
def test_deleted_result_is_made_again_alone(run: Path, compare: Callable[..., int]) -> None:
    """The new result has the same metrics."""
    path = result_path(run, "adaptive", 1, "core")
    metrics = load_result(path).metrics
    path.unlink()
    before = snapshot(run)
    assert compare() == 0
    after = snapshot(run)
    new = {name for name in after if after[name] != before.get(name)}
    assert str(path.relative_to(run)) in new
    assert all("adaptive__seed1" in name and "core" in name for name in new)
    assert load_result(path).metrics == metrics


@pytest.mark.usefixtures("no_training", "no_report")
def test_changed_evaluation_settings_rerun_it(run: Path, compare: Callable[..., int]) -> None:
    before = snapshot(run)
    assert compare("--set", "evals.subspace.domain_ratio=2.0") == 0
    after = snapshot(run)
    new = {name for name in after if after[name] != before.get(name)}
    assert new == {f"results/{v}__seed{s}__subspace.json" for v in VARIANTS for s in SEEDS}


@pytest.mark.usefixtures("no_report")
def test_new_variant_is_trained_beside_finished_ones(
    run: Path, compare: Callable[..., int]
) -> None:
    before = snapshot(run)
    assert compare("--set", "variants.fixed={ortho_mode: fixed}", "--set", "evals=[]") == 0
    after = snapshot(run)
    assert before.items() <= after.items()
    new = set(after) - set(before)
    assert new
    assert all("fixed" in name for name in new)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("lr=0.005", "lr was 0.01, is 0.005"),
        ("sae.ortho_alpha=0.25", "sae.ortho_alpha was 1.0, is 0.25"),
        (
            "variants.adaptive.ortho_affinity=overlap",
            "ortho_affinity was 'unsuppressed', is 'overlap'",
        ),
        ("ortho_forget_fraction=0.25", "ortho_forget_fraction was 0.5, is 0.25"),
    ],
)
def test_other_settings_in_the_folder_are_refused(
    run: Path,
    compare: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    override: str,
    difference: str,
) -> None:
    """The message names the difference."""
    before = snapshot(run)
    assert compare("--set", override) == 2
    message = capsys.readouterr().err
    assert f"output_path='{run}'" in message
    assert difference in message
    assert "--fresh" in message
    after = snapshot(run)
    assert before.items() <= after.items()
    assert all(name.startswith("cache/") for name in set(after) - set(before))


@pytest.mark.usefixtures("no_training")
def test_changed_text_at_the_same_path_is_refused(
    tiny: Any,
    run: Path,
    compare: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    # Make the record of the run name this path.
    other = tiny.write_jsonl(tmp_path / "other.jsonl", tiny.documents(tiny.retain_words, 9))
    for record in run.glob(f"*/*/{RECORD}"):
        record.write_text(record.read_text().replace(str(tiny.retain), str(other)))
        write_sums(record.parent)
    assert compare("--set", f"ortho_corpora.retain={other}") == 2
    assert "(the text)" in capsys.readouterr().err


DAMAGES = {
    "torn weights": ("sae_weights.safetensors", lambda old: old[: len(old) // 2]),
    "no weights": ("sae_weights.safetensors", None),
    "torn config": ("cfg.json", lambda old: old[:20]),
    "torn record": (RECORD, lambda old: old[:20]),
    "record of another kind": (RECORD, lambda _: b"[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_sae_is_trained_again_and_its_results_stay(
    run: Path, compare: Callable[..., int], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = run / "seed0" / "adaptive"
    weights = (folder / "sae_weights.safetensors").read_bytes()
    results = {p: p.read_bytes() for p in (run / "results").glob("*__core.json")}
    (folder / "mine.txt").write_text("mine")
    name, change = DAMAGES[damage]
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
    assert compare() == 0
    assert f"{folder} is damaged and is trained again" in " ".join(capsys.readouterr().out.split())
    assert (folder / "sae_weights.safetensors").read_bytes() == weights
    assert (folder / "mine.txt").read_text() == "mine"
    assert {p: p.read_bytes() for p in results} == results


@pytest.mark.usefixtures("no_report")
def test_fresh_run_trains_all_and_keeps_other_files(run: Path, compare: Callable[..., int]) -> None:
    (run / "notes.txt").write_text("mine")
    assert compare("--fresh", "--set", "lr=0.005", "--set", "evals=[]", "--set", "seeds=[1]") == 0
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "seed0").exists()
    for variant in VARIANTS:
        record = json.loads((run / "seed1" / variant / RECORD).read_text())
        assert record["settings"]["lr"] == 0.005
    assert {r.eval for r in load_results(run)} == {"training"}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("ortho_corpora.forget.path=/nope.jsonl", "ortho_corpora.forget.path"),
        ("sae.d_in=33", "sae.d_in"),
        ("hook_name=blocks.9.hook_resid_post", "hook_name"),
        ("model_name=/nope", "model_name"),
    ],
)
def test_fresh_run_deletes_nothing_if_a_setting_cannot_work(
    run: Path,
    compare: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    override: str,
    field: str,
) -> None:
    before = snapshot(run)
    assert compare("--fresh", "--set", override) == 2
    assert field in capsys.readouterr().err
    assert before.items() <= snapshot(run).items()


@pytest.mark.usefixtures("no_report")
def test_fresh_run_deletes_only_what_comparisons_made(
    run: Path, compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = [
        run / "seed1_notes" / "mine",
        run / "seed7" / "mine",
        run / "seed0" / "mine" / "weights",
        run / "results" / "mine.json",
        run / "cache" / "mine",
        run / "seed8" / "checkpoints" / "mine",
        run / "seed0" / "adaptive" / "mine.txt",
        run / "results" / "sae_bench" / "mine",
        run / "results" / "my__seed0__notes.json",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    elsewhere = shutil.move(run / "seed1", tmp_path / "seed1")
    (run / "seed1").symlink_to(elsewhere)
    kept = snapshot(Path(elsewhere))
    assert compare("--fresh", "--set", "evals=[]", "--set", "seeds=[3]") == 0
    assert "deleting 2 folders" in capsys.readouterr().out
    assert all(path.read_text() == "mine" for path in mine)
    assert sorted(p.name for p in (run / "seed0").iterdir()) == ["adaptive", "mine"]
    assert [p.name for p in (run / "seed0" / "adaptive").iterdir()] == ["mine.txt"]
    assert snapshot(Path(elsewhere)) == kept


@pytest.mark.usefixtures("no_report")
def test_fresh_run_keeps_files_of_the_user_among_checkpoints(
    run: Path,
    compare: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoints = run / "seed0" / "checkpoints"
    with monkeypatch.context() as patch:  # a run that was killed before it deleted them
        patch.setattr(comparison.Comparison, "_delete_checkpoints", lambda *_: None)
        few = ("--set", "n_checkpoints=2", "--set", "seeds=[0]", "--set", "evals=[]")
        assert compare("--fresh", *few) == 0
    first, second = lockstep.list_checkpoints(checkpoints)
    mine = [first / "mine.txt", first / "adaptive" / "mine.txt", checkpoints / "mine.txt"]
    for path in mine:
        path.write_text("mine")
    sums = first / "SHA256SUMS"
    sums.write_bytes(sums.read_bytes().replace(b"sae_weights", b"sae_veights"))  # damaged
    (second / "SHA256SUMS").unlink()  # of a version without sums
    unfinished = checkpoints / ".step_000000009.tmp" / "adaptive"
    unfinished.mkdir(parents=True)
    (unfinished / "half").write_text("half")
    capsys.readouterr()
    assert compare("--fresh", "--set", "evals=[]", "--set", "seeds=[3]") == 0
    assert f"{checkpoints}: files that no comparison made stay" in capsys.readouterr().out
    assert sorted(path for path in checkpoints.rglob("*") if path.is_file()) == sorted(mine)
    assert all(path.read_text() == "mine" for path in mine)
    # Nothing is there to be deleted any more, and another training keeps them, too.
    assert compare("--fresh", "--set", "evals=[]", "--set", "seeds=[0]") == 0
    assert "deleting 2 folders" in capsys.readouterr().out
    assert compare("--fresh", *few) == 0
    assert f"{checkpoints}: files that no comparison made stay" in capsys.readouterr().out
    assert sorted(path for path in checkpoints.rglob("*") if path.is_file()) == sorted(mine)


@pytest.mark.usefixtures("no_training")
def test_failed_evaluation_is_explained_and_retried(
    run: Path,
    compare: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other evaluations have results, the page shows the reason, and a rerun tries again."""
    for seed in SEEDS:
        for variant in VARIANTS:
            result_path(run, variant, seed, "subspace").unlink()
    others = snapshot(run)
    whole = geometry.run

    def fails_for_the_baseline(context: EvalContext, settings: Any) -> Any:
        if context.variant == "baseline":
            raise ZeroDivisionError("the angle was lost")
        return whole(context, settings)

    with monkeypatch.context() as patch:
        patch.setattr(geometry, "run", fails_for_the_baseline)
        assert compare() == 1
    assert "failed: ZeroDivisionError('the angle was lost')" in capsys.readouterr().out
    assert others.items() <= snapshot(run).items()
    results = {(r.variant, r.seed): r for r in load_results(run) if r.eval == "subspace"}
    assert [results["baseline", s].status for s in SEEDS] == ["failed", "failed"]
    assert [results["adaptive", s].status for s in SEEDS] == ["ok", "ok"]
    assert "the angle was lost" in (run / "report.html").read_text()
    monkeypatch.setattr(page, "write_report", lambda root: root)
    assert compare() == 0
    assert all(r.ok for r in load_results(run))


def test_report_command_writes_the_page_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_text() == page
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "run compare first" in capsys.readouterr().err


# --------------------------------------------------------------------- other shapes


@pytest.mark.usefixtures("no_report")
def test_single_corpus_is_compared_without_domains(
    write_config: Callable[..., Path], tiny: Any, tmp_path: Path
) -> None:
    config = write_config(
        ortho_corpora={}, dataset_path=str(tiny.retain), variants={"adaptive": {}}
    )
    assert main(["compare", str(config)]) == 0
    root = tmp_path / "run"
    core = load_result(result_path(root, "adaptive", 0, "core"))
    assert {name.split("/")[0] for name in core.metrics} == {"pooled"}
    subspace = load_result(result_path(root, "adaptive", 0, "subspace"))
    assert subspace.metrics["mean_max_cosine"] is not None
    assert not any("forget" in name for name in subspace.metrics)


def test_named_corpora_are_trained_on_and_judged(
    write_config: Callable[..., Path], tiny: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    near = tiny.write_jsonl(tmp_path / "near.jsonl", tiny.documents(tiny.shared_words, 5))
    corpora = {
        "forget": str(tiny.forget),
        "retain": str(tiny.retain),
        "near": {"path": str(near), "share": 0.25},
        "unseen": {"path": str(near), "share": 0, "max_documents": 200},
        "forget_test": {"path": str(tiny.forget), "max_documents": 200},
    }
    evals = {"core": {"n_contexts": 4, "batch_size_prompts": 4}, "subspace": {"n_contexts": 4}}
    config = str(write_config(variants={"adaptive": {}}, ortho_corpora=corpora, evals=evals))
    run = tmp_path / "run"
    assert main(["compare", config]) == 0
    judged = load_result(result_path(run, "adaptive", 0, "core"))
    assert judged.reason is None
    assert {key.partition("/")[0] for key in judged.metrics} == {*corpora, "pooled"}
    assert set(judged.details["firing_rates"]) == set(corpora)
    training = load_result(result_path(run, "adaptive", 0, "training"))
    assert set(training.details["epochs"]) == {"forget", "retain", "near"}
    report = (run / "report.html").read_text()
    for name in ("near", "unseen", "forget_test"):
        assert f"explained variance, {name}" in report.lower()
        file = f"adaptive__seed0__{name}_custom_sae_eval_results.json"
        assert (run / "results" / "sae_bench" / "core" / file).is_file()
    request.getfixturevalue("no_report")
    # Text that is only evaluated changes results, and trains nothing again.
    before = snapshot(run / "seed0")
    groups = load_result(result_path(run, "adaptive", 0, "subspace"))
    evals = ["--set", "evals={subspace: {n_contexts: 4}}"]
    changed = ["--set", "ortho_corpora.unseen.max_documents=150"]
    assert main(["compare", config, *evals, *changed]) == 0
    assert snapshot(run / "seed0") == before
    again = load_result(result_path(run, "adaptive", 0, "subspace"))
    assert again.fingerprint != groups.fingerprint
    assert again.metrics == groups.metrics
    # The share of a corpus that is trained on is a setting of the training.
    assert main(["compare", config, "--set", "ortho_corpora.near.share=0.5"]) == 2
    # A finished SAE is judged on other corpora.
    out = str(tmp_path / "judged")
    few = ["--set", "core.n_contexts=4", "--set", "core.batch_size_prompts=4"]
    options = ["--forget", str(tiny.forget), "--retain", str(tiny.retain), *few, "--out", out]
    sae = str(run / "seed0" / "adaptive")
    assert main(["eval", sae, "--retain", f"far={near}", "--forget-test", str(near), *options]) == 0
    names = {key.partition("/")[0] for key in load_results(out)[0].metrics}
    assert names == {"forget", "retain", "far", "forget_test", "pooled"}


@pytest.mark.skipif(
    not (DEMO.is_file() and (MODEL_DIR / "config.json").is_file() and RETAIN_CORPUS.is_file()),
    reason="the demo is not built",
)
@pytest.mark.usefixtures("no_report")
def test_demo_runs_at_a_tiny_setting(tmp_path: Path) -> None:
    overrides = {
        "output_path": tmp_path / "demo",
        "training_tokens": 2048,
        "train_batch_size_tokens": 256,
        "context_size": 32,
        "store_batch_size_prompts": 8,
        "n_batches_in_buffer": 2,
        "n_batches_for_norm_estimate": 2,
        "lr_warm_up_steps": 0,
        "lr_decay_steps": 0,
        "sae.d_sae": 64,
        "sae.k": 4,
        "seeds": [0],
        "evals": "{core: {n_contexts: 4, batch_size_prompts: 4}, subspace: {n_contexts: 8}}",
    }
    options = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    assert main(["compare", str(DEMO), *options]) == 0
    results = load_results(tmp_path / "demo")
    assert {r.variant for r in results} == set(load_experiment(DEMO).variants)
    assert all(r.ok for r in results)


# ----------------------------------------------------------------------- evaluation


@pytest.fixture
def context(finished: Path, prepared: Prepared, tmp_path: Path) -> EvalContext:
    experiment = load_experiment(finished.parent / "experiment.yaml")
    sae_dir = finished / "seed0" / "adaptive"
    return EvalContext(
        bench=workbench(experiment.runner, prepared, tmp_path / "work"),
        load=lambda: SAE.load_from_disk(sae_dir),
        variant="adaptive",
        seed=0,
        raw_dir=tmp_path / "raw",
    )


def process_state() -> list[Any]:
    from sae_bench.evals.core import main as core

    numpy_state = np.random.get_state()
    return [
        vars(HookedTransformer)["from_pretrained_no_processing"],
        vars(core)["ActivationsStore"],
        list(core.logger.handlers),
        torch.is_grad_enabled(),
        os.getcwd(),
        random.getstate(),
        (numpy_state[1].tolist(), *numpy_state[2:]),  # type: ignore[index, union-attr]
        torch.get_rng_state().tolist(),
    ]


CORE_SETTINGS = {"n_contexts": 8, "batch_size_prompts": 4}


@pytest.mark.parametrize("grad", [True, False])
def test_evaluation_restores_the_process_state(context: EvalContext, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        before = process_state()
        run_evaluation("core", context, CORE_SETTINGS)
        assert process_state() == before


def test_failed_evaluation_restores_the_process_state(
    context: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        random.seed(1)
        torch.manual_seed(1)
        torch.set_grad_enabled(False)
        raise RuntimeError("the forward pass was lost")

    before = process_state()
    monkeypatch.setitem(vars(context.model), "forward", fail)  # the model is shared
    with pytest.raises((EvaluationError, RuntimeError), match="the forward pass was lost"):
        run_evaluation("core", context, CORE_SETTINGS)
    assert process_state() == before


@pytest.mark.parametrize("name", ["core", "subspace"])
def test_evaluating_twice_gives_equal_metrics(context: EvalContext, name: str) -> None:
    settings = CORE_SETTINGS if name == "core" else {"n_contexts": 8}
    torch.manual_seed(1)
    first = run_evaluation(name, context, settings)
    torch.manual_seed(2)
    second = run_evaluation(name, context, settings)
    assert first.metrics == second.metrics
    assert first.details == second.details


def test_too_few_held_out_contexts_are_explained(
    context: EvalContext,
) -> None:
    with pytest.raises(EvaluationError, match=r"16 held-out contexts, fewer than.*=64; lower that"):
        run_evaluation("core", context, {"n_contexts": 64, "batch_size_prompts": 64})


def test_bf16_sae_is_judged_in_float32(context: EvalContext) -> None:
    stored = context.load().to(torch.bfloat16)
    half, full = (
        run_evaluation("core", replace(context, load=load), CORE_SETTINGS).metrics
        for load in (lambda: deepcopy(stored), lambda: deepcopy(stored).to(torch.float32))
    )
    assert stored.dtype == torch.bfloat16
    assert half == full


def test_the_time_of_the_other_evaluations_is_said_after_the_first(
    write_config: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "SHORT", 0.0)
    config = write_config(variants=VARIANTS, seeds=[0, 1], evals={"subspace": {"n_contexts": 8}})
    assert main(["compare", str(config)]) == 0
    said = re.findall(r"Evaluations left: (\d) SAEs?, about ([\d.]+) s", capsys.readouterr().out)
    assert [int(n) for n, _ in said] == [3, 2, 1]
    results = load_results(tmp_path / "run", list(VARIANTS))
    took = [r.seconds or 0.0 for r in results if r.eval == "subspace"]
    assert 3 * min(took) - 0.1 <= float(said[0][1]) <= 3 * max(took) + 0.1  # one decimal is shown
