"""Result files that SAEBench wrote: read, grouped, compared only with the same model and hook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.evaluations import BUILT_IN
from saelens_adaptive_ortho.report.figures.sparsity import sparsity_figure
from saelens_adaptive_ortho.report.metrics import describe
from saelens_adaptive_ortho.report.page.run import write_report
from saelens_adaptive_ortho.report.published import (
    group,
    load,
    own_sites,
    read_file,
    read_folder,
    store,
)
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.results import load_results
from tests.report.pages import plain
from tests.report.published_files import (
    HOOK,
    KINDS,
    MODEL,
    core,
    document,
    metrics_of,
    sweep,
    write,
)
from tests.report.runs import put, result

LINE = {20.0: 0.70, 40.0: 0.80, 80.0: 0.85}
EV = "core/pooled/explained_variance"


def silent(_: str) -> None:
    pass


def own_run(run: Path, model: str = MODEL, hook: str = HOOK) -> Path:
    """A run with two SAEs of the method topk, and SAEBench's files about them."""
    for number, l0 in ((20, 21.0), (60, 62.0)):
        values = {"explained_variance": 0.75, "ce_loss_score": 0.9, "l0": l0}
        metrics = {f"pooled/{name}": value for name, value in values.items()}
        metrics["pooled/explained_variance_sae_bench"] = 0.76
        put(run, result("core", f"topk={number}", 0, metrics))
        release = f"topk={number}__seed0__pooled"
        found = document("core", core(l0, 0.76), release, model_name=model, hook_name=hook)
        write(run / "results" / "sae_bench", found)
    return run


@pytest.mark.saebench
@pytest.mark.parametrize("kind", KINDS)
def test_files_have_the_form_of_saebench(kind: str) -> None:
    pytest.importorskip("sae_bench")
    from pydantic import TypeAdapter
    from sae_bench.evals.absorption.eval_output import AbsorptionEvalOutput
    from sae_bench.evals.core.eval_output import CoreEvalOutput
    from sae_bench.evals.ravel.eval_output import RAVELEvalOutput
    from sae_bench.evals.scr_and_tpp.eval_output import ScrEvalOutput, TppEvalOutput
    from sae_bench.evals.sparse_probing.eval_output import SparseProbingEvalOutput
    from sae_bench.evals.sparse_probing_sae_probes.eval_output import (
        SparseProbingSaeProbesEvalOutput,
    )
    from sae_bench.evals.unlearning.eval_output import UnlearningEvalOutput

    schema = {
        "core": CoreEvalOutput,
        "sparse_probing": SparseProbingEvalOutput,
        "sparse_probing_sae_probes": SparseProbingSaeProbesEvalOutput,
        "absorption_first_letter": AbsorptionEvalOutput,
        "scr": ScrEvalOutput,
        "tpp": TppEvalOutput,
        "ravel": RAVELEvalOutput,
        "unlearning": UnlearningEvalOutput,
    }[kind]
    found = document(kind, metrics_of(kind))
    if kind == "core":
        found["eval_config"] |= {"batch_size_prompts": 16, "context_size": 128}
    checked = TypeAdapter(schema).validate_json(json.dumps(found))
    assert checked.eval_type_id == kind


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    assert {e.published.eval_type: e.name for e in BUILT_IN if e.published} == KINDS
    for kind in KINDS:
        write(tmp_path, document(kind, metrics_of(kind)))
    (sae,) = read_folder(tmp_path, silent)
    expected = {
        "core/pooled/l0": 40.0,
        "core/pooled/explained_variance_sae_bench": 0.8,
        "core/pooled/explained_variance_legacy": 0.7,
        "core/pooled/ce_loss_score": 0.97,
        "sparse_probing/sae_top_5_accuracy": 0.005,
        "sparse_probing/llm_accuracy": 0.95,
        "sae_probes/sae_top_20_auc": 0.02,
        "absorption/full_absorption": 0.1,
        "absorption/n_split_features": 0.2,
        "scr/threshold_10": 0.01,
        "tpp/threshold_50": 0.05,
        "tpp/threshold_50_intended": 0.1,
        "tpp/threshold_50_unintended": pytest.approx(0.15),
        "ravel/disentanglement": 0.6,
        "unlearning/score": 0.05,
    }
    assert {key: sae.metrics.get(key) for key in expected} == expected
    # SAEBench's explained variance is not ours, and its missing values are no values.
    assert EV not in sae.metrics
    assert "sparse_probing/sae_accuracy" not in sae.metrics
    directed = [key for key in sae.metrics if describe(key).direction]
    for evaluation in BUILT_IN:
        glance = set(evaluation.keys(evaluation.glance))
        if evaluation.published and evaluation.name != "unlearning":
            assert glance & set(directed), evaluation.name


def test_model_and_hook_of_old_and_new_files(tmp_path: Path) -> None:
    old = write(tmp_path, document("ravel", metrics_of("ravel"), "old"))
    new = document("ravel", metrics_of("ravel"), "new")
    new["sae_cfg_dict"] = {
        "d_sae": 16384,
        "architecture": "jumprelu",
        "metadata": {"model_name": "google/gemma-2-2b", "hook_name": "blocks.12.hook_resid_post"},
    }
    found = [read_file(path).sae for path in (old, write(tmp_path, new))]
    assert [(s.model, s.hook, s.d_sae, s.architecture) for s in found] == [
        (MODEL, HOOK, 4096, "topk"),
        ("gemma-2-2b", "blocks.12.hook_resid_post", 16384, "jumprelu"),
    ]


def test_explained_variance_of_files_from_before_its_new_definition(tmp_path: Path) -> None:
    found = core(40.0, 0.8)
    del found["reconstruction_quality"]["explained_variance_legacy"]
    sae = read_file(write(tmp_path, document("core", found))).sae
    assert sae.metrics["core/pooled/explained_variance_legacy"] == 0.8
    assert "core/pooled/explained_variance_sae_bench" not in sae.metrics


def _cut(text: str) -> str:
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_cut, "is damaged, or no JSON"),
        (lambda _: "[" * 100_000, "is damaged, or no JSON"),
        (lambda _: "[1]", "is no result of SAEBench"),
        (lambda _: '{"eval_type_id": "core"}', "is no result of SAEBench"),
        (lambda text: text.replace('"core"', '"autointerp"'), "'autointerp', which is not among"),
        (lambda text: text.replace('"sparsity": {', '"sparsity": 3, "x": {'), "not have the form"),
    ],
)
def test_a_bad_file_is_named_and_the_others_remain(
    tmp_path: Path, change: Any, problem: str
) -> None:
    sweep(tmp_path, "topk", LINE)
    bad = write(tmp_path, document("core", core(10.0, 0.5), "bad"))
    bad.write_text(change(bad.read_text()), encoding="utf-8")
    (tmp_path / "notes.json").write_text("{", encoding="utf-8")
    said: list[str] = []
    saes = read_folder(tmp_path, said.append)
    assert len(saes) == len(LINE)
    assert len(said) == 2
    assert str(bad) in said[0]
    assert problem in said[0]
    assert said[1].startswith("Published results: 3 SAEs from 6 files")


def test_a_folder_without_usable_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        read_folder(tmp_path / "nowhere", silent)
    with pytest.raises(ConfigError, match="holds no file"):
        read_folder(tmp_path, silent)
    path = write(tmp_path, document("core", core(40.0, 0.8)))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no file in it can be used.*core.*is damaged"):
        read_folder(tmp_path, silent)


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    found = document("ravel", {"ravel": {"cause_score": float("nan"), "isolation_score": 10**400}})
    found["eval_result_metrics"]["ravel"] |= {"disentanglement_score": 0.5}
    assert list(read_file(write(tmp_path, found)).sae.metrics.values()) == [0.5]
    found["eval_result_metrics"]["ravel"] |= {"disentanglement_score": True}
    with pytest.raises(ConfigError, match="holds no number"):
        read_file(write(tmp_path, found))


def test_the_newer_of_two_files_counts(tmp_path: Path) -> None:
    write(tmp_path / "a", document("unlearning", {"unlearning": {"unlearning_score": 0.2}}, made=2))
    write(tmp_path / "b", document("unlearning", {"unlearning": {"unlearning_score": 0.1}}, made=1))
    (sae,) = read_folder(tmp_path, silent)
    assert sae.metrics == {"unlearning/score": 0.2}


def test_saes_of_one_method_make_one_curve(tmp_path: Path) -> None:
    sweep(tmp_path, "topk", dict(reversed(LINE.items())))
    sweep(tmp_path / "wide", "topk", {30.0: 0.9}, d_sae=16384)
    sweep(tmp_path, "standard", {100.0: 0.6, 50.0: 0.5})
    wide = {m.label: m for m in group(read_folder(tmp_path / "wide", silent))}
    assert wide["topk, 16,384 latents"].points("core/pooled/ce_loss_score") == [(30.0, 1.0)]
    found = {m.label: m for m in group(read_folder(tmp_path, silent))}
    assert set(found) == {"topk, 4,096 latents", "topk, 16,384 latents", "standard, 4,096 latents"}
    points = found["standard, 4,096 latents"].points("sparse_probing/sae_top_5_accuracy")
    assert points == [(50.0, 0.45), (100.0, pytest.approx(0.55))]


def test_methods_with_equal_labels_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, document("core", core(10.0, 0.5), "first_trainer_1"))
    write(tmp_path, document("core", core(10.0, 0.5), "second_trainer_1"))
    labels = [m.label for m in group(read_folder(tmp_path, silent))]
    assert labels == ["topk, 4,096 latents (first)", "topk, 4,096 latents (second)"]


def test_only_methods_of_the_same_model_and_hook_are_drawn(tmp_path: Path) -> None:
    run, theirs = own_run(tmp_path / "run"), tmp_path / "theirs"
    assert own_sites(run / "results") == {(MODEL, HOOK)}
    sweep(theirs, "topk", LINE, model_name=f"someone/{MODEL.upper()}")
    sweep(theirs, "gated", LINE, model_name="other")
    sweep(theirs, "standard", LINE, hook_name="blocks.3.hook_resid_post")
    write(theirs, document("ravel", metrics_of("ravel"), "alone", "panneal"))
    store(run, read_folder(theirs, silent))
    reasons = {m.label.partition(",")[0]: m.reason for m in load(run)}
    assert reasons == {
        "topk": "",
        "gated": "another model than in this run",
        "standard": "another hook than in this run",
        "panneal": "no core file tells the L0",
    }
    figure = sparsity_figure(summarise(load_results(run)), load(run))
    assert figure is not None
    dashed = {
        axes.get_title("left").replace("\n", " "): [line for line in axes.lines if line.is_dashed()]
        for axes in figure.axes
    }
    # Their explained variance has another formula, so it has a panel of its own.
    assert {title: len(lines) for title, lines in dashed.items()} == {
        "Explained variance, pooled": 0,
        "CE loss score, pooled": 1,
        "Explained variance (SAEBench's formula), pooled": 1,
    }
    x, y = dashed["CE loss score, pooled"][0].get_data()
    assert list(x) == list(LINE)
    assert list(y) == pytest.approx([value + 0.1 for value in LINE.values()])


def test_without_own_files_of_saebench_everything_counts_as_comparable(tmp_path: Path) -> None:
    run = put(tmp_path / "run", result("core", "topk", 0, {"pooled/l0": 30.0}))
    sweep(tmp_path / "theirs", "topk", LINE)
    store(run, read_folder(tmp_path / "theirs", silent))
    assert [m.reason for m in load(run)] == [""]


def test_files_of_this_package_are_read_without_single_corpora(tmp_path: Path) -> None:
    for corpus, value in (("forget", 0.1), ("pooled", 0.2)):
        release = f"adaptive=20__seed1__{corpus}"
        write(tmp_path, document("core", core(20.0, value), release))
    write(tmp_path, document("ravel", metrics_of("ravel"), "adaptive=20__seed1"))
    write(tmp_path, document("core", core(40.0, 0.3), "adaptive=40__seed1__pooled"))
    (method,) = group(read_folder(tmp_path, silent))
    key = "core/pooled/explained_variance_sae_bench"
    assert method.points(key) == [(20.0, 0.2), (40.0, 0.3)]
    assert method.points("ravel/cause") == [(20.0, 0.5)]


def test_the_report_keeps_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, theirs = own_run(tmp_path / "run"), tmp_path / "theirs"
    assert "published" not in plain(write_report(run).read_text())
    sweep(theirs, "topk", LINE)
    sweep(theirs, "gated", LINE, model_name="other")
    bad = theirs / "core" / "bad_eval_results.json"
    bad.write_text("{", encoding="utf-8")
    assert main(["report", str(run), "--published", str(theirs)]) == 0
    assert str(bad) in capsys.readouterr().out.replace("\n", "")
    for path in sorted(theirs.rglob("*.json")):
        path.unlink()
    page = plain(write_report(run).read_text())
    assert "topk, 4,096 latents" in page
    assert f"20 to 80{MODEL}{HOOK}drawn" in page
    assert "not drawn: another model than in this run" in page
    assert main(["report", str(run), "--published", str(tmp_path / "nowhere")]) == 2
    assert "--published=" in capsys.readouterr().err


def test_names_of_others_cannot_break_the_page(tmp_path: Path) -> None:
    run, theirs = own_run(tmp_path / "run"), tmp_path / "theirs"
    hostile = "<script>$\\bad{$ \ud800"
    for number, l0 in enumerate((20.0, 40.0)):
        release = f"{hostile}_trainer_{number}"
        path = write(theirs, document("core", core(l0, 0.5), "plain", hostile))
        found = json.loads(path.read_text()) | {"sae_lens_release_id": release}
        path.rename(path.with_name(f"{number}_eval_results.json")).write_text(json.dumps(found))
    store(run, read_folder(theirs, silent))
    page = write_report(run).read_text()
    assert "<script>$" not in page
    assert "&lt;script&gt;$" in page


def test_a_stored_file_of_another_form_is_refused(tmp_path: Path) -> None:
    run = own_run(tmp_path / "run")
    (run / "results" / "published.json").write_text('{"saes": [{"release": 3}]}')
    with pytest.raises(ConfigError, match="was not written by this package"):
        load(run)
