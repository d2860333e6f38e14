"""Nothing that a run folder holds is unpickled, and published files do not tell who made them."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import saelens_adaptive_ortho
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.experiments.comparison import Comparison
from saelens_adaptive_ortho.report.page.run import write_report
from saelens_adaptive_ortho.results import Result, result_path, write_result
from saelens_adaptive_ortho.text.models import local_model_dir
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared
from tests.tiny import Tiny

PACKAGE = Path(saelens_adaptive_ortho.__file__).parent
UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load"}
UNSAFE |= {"pd.read_pickle", "eval", "exec", "yaml.load", "os.system"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_no_code_of_a_file_is_run(path: Path) -> None:
    for name, call in calls(ast.parse(path.read_text())):
        assert name not in UNSAFE
        options = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name == "torch.load":
            assert options.get("weights_only") == "True"
        assert "allow_pickle" not in options
        assert options.get("trust_remote_code", "False") == "False"


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.saebench
def test_probes_of_scr_and_tpp_come_back_without_pickle(tmp_path: Path) -> None:
    pytest.importorskip("sae_bench")
    from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
    from sae_bench.evals.sparse_probing.probe_training import Probe

    from saelens_adaptive_ortho.judging.saebench.scr_and_tpp import PROBES, _no_pickle

    probes = {name: Probe(5, torch.float32) for name in ("b / c", "a")}
    content = {"llm_probes": probes, "llm_test_accuracies": {"b / c": 0.9, "a": 0.8}}
    path = str(tmp_path / "data_probes.pkl")
    with _no_pickle("cpu"):
        with scr_and_tpp.open(path, "wb") as file:  # type: ignore[attr-defined]
            scr_and_tpp.pickle.dump(content, file)
        with scr_and_tpp.open(path, "rb") as file:  # type: ignore[attr-defined]
            found = scr_and_tpp.pickle.load(file)
    assert [p.name for p in tmp_path.iterdir()] == [f"data{PROBES}"]
    assert list(found["llm_probes"]) == ["b / c", "a"]
    assert found["llm_test_accuracies"] == content["llm_test_accuracies"]
    for name, probe in probes.items():
        assert torch.equal(found["llm_probes"][name].net.weight, probe.net.weight)
        assert torch.equal(found["llm_probes"][name].net.bias, probe.net.bias)
    assert scr_and_tpp.pickle is pickle
    assert not hasattr(scr_and_tpp, "open")


@pytest.mark.saebench
def test_saebench_reads_tensors_only(tmp_path: Path) -> None:
    pytest.importorskip("sae_bench")
    from saelens_adaptive_ortho.judging.saebench.session import _tensors_only

    file = io.BytesIO()
    torch.save(Evil(tmp_path / "evil"), file)
    file.seek(0)
    load = _tensors_only(torch.load)
    with pytest.raises(pickle.UnpicklingError):
        load(file, weights_only=False)
    assert not (tmp_path / "evil").exists()


def test_export_does_not_tell_the_home_folder(
    prepared: Prepared,
    make_config: Callable[..., Any],
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = make_config(output_path=str(tiny.model.parent / "run"))
    before = cfg.fingerprint(prepared.corpora)
    monkeypatch.setenv("HOME", str(tiny.model.parent))
    runner = AdaptiveOrthoRunner(cfg, {"sae": {}}, prepared)
    folder = runner.export("sae", tmp_path / "sae")
    for name in ("cfg.json", "runner_cfg.json"):
        assert str(tiny.model.parent) not in (folder / name).read_text()
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == "~/model"
    assert metadata["dataset_path"]["forget"] == "~/forget.jsonl"
    assert local_model_dir(metadata["model_name"]) == tiny.model
    assert cfg.fingerprint(prepared.corpora) == before
    monkeypatch.setenv("HOME", "/nowhere")
    untouched = runner.export("sae", tmp_path / "other")
    assert json.loads((untouched / "cfg.json").read_text())["metadata"]["model_name"] == str(
        tiny.model
    )


def test_page_and_config_do_not_tell_the_home_folder(
    settings: Callable[..., dict[str, Any]],
    make_config: Callable[..., Any],
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from saelens_adaptive_ortho.experiments.experiment import build_experiment

    home = tiny.model.parent
    monkeypatch.setenv("HOME", str(home))
    run = tmp_path / "run"
    run.mkdir()
    Comparison(build_experiment(settings(output_path=str(run)))).write_config()
    reason = f"{home}/x.jsonl cannot be read"
    write_result(result_path(run, "a", 0, "core"), Result("core", "a", 0, "failed", reason))
    page = write_report(run).read_text()
    for text in (page, (run / "config.yaml").read_text()):
        assert str(home) not in text
        assert "~/forget.jsonl" in text
    assert make_config(output_path="~/run").output_path == str(home / "run")


def test_check_reads_the_questions(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.jsonl").write_text('{"domain": "forget"}\n')
    config = write_config(evals={"unlearning": {"questions": str(tmp_path / "q.jsonl")}})
    assert main(["check", str(config)]) == 2
    assert "evals.unlearning.questions='line 1 of" in capsys.readouterr().err
