"""The SAEs that are judged, and the records beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.judging.contract import Workbench
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.subjects import Subject, chosen_corpora, workbench_for
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig
from tests.tiny import BOS

MakeConfig = Callable[..., AdaptiveOrthoRunnerConfig]


@pytest.mark.parametrize("text", ['{"model_na', "[]"])
def test_damaged_runner_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    file = tmp_path / "runner_cfg.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"SAE=.*runner_cfg\.json.*is damaged\. Delete it"):
        Subject.parse(str(tmp_path)).record()


@pytest.fixture
def exported(
    make_config: MakeConfig, prepared: Prepared, tmp_path: Path
) -> Callable[..., list[Subject]]:
    """Return a function that exports SAEs without training, with changes of metadata and record."""

    def export(**changes: dict[str, Any]) -> list[Subject]:
        runner = AdaptiveOrthoRunner(make_config(), prepared=prepared)
        subjects = []
        for name, changed in changes.items():
            folder = runner.export("sae", tmp_path / name)
            (folder / "SHA256SUMS").unlink()
            for file in ("cfg.json", "runner_cfg.json"):
                tree = json.loads((folder / file).read_text())
                part = tree["metadata"] if file == "cfg.json" else tree
                part |= {k: v for k, v in changed.items() if k in part}
                (folder / file).write_text(json.dumps(tree))
            subjects.append(Subject.parse(str(folder)))
        return subjects

    return export


def bench_of(subjects: list[Subject], folder: Path) -> Workbench:
    options = JudgingOptions(saes=[], out=folder)
    return workbench_for(subjects, options)


def test_text_does_not_depend_on_the_order(
    exported: Callable[..., list[Subject]], tmp_path: Path
) -> None:
    subjects = exported(with_bos={"prepend_bos": True}, without={"prepend_bos": False})
    benches = [bench_of(order, tmp_path / "out") for order in (subjects, subjects[::-1])]
    for bench in benches:
        assert bench.prepend_bos
        assert bool((bench.corpora[0].held_out[:, 0] == BOS).all())
    assert not bench_of(subjects[1:], tmp_path / "out").prepend_bos


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_separator_token", "eos"),
        ("disable_concat_sequences", True),
        ("ortho_holdout_fraction", 0.2),
        ("ortho_holdout_contexts", 7),
    ],
)
def test_saes_of_differently_packed_text_are_refused(
    exported: Callable[..., list[Subject]], tmp_path: Path, name: str, value: object
) -> None:
    subjects = exported(usual={}, other={name: value})
    for order in (subjects, subjects[::-1]):
        with pytest.raises(ConfigError, match=rf"^{name}=.*was trained with it.*two commands"):
            bench_of(order, tmp_path / "out")
    (tmp_path / "other" / "runner_cfg.json").unlink()
    if name.startswith("ortho_"):  # then nothing says how text was held out
        bench_of(subjects, tmp_path / "out")
    else:  # SAELens's metadata still says how text was packed
        with pytest.raises(ConfigError, match=rf"^{name}="):
            bench_of(subjects, tmp_path / "out")


def test_saes_of_a_differently_loaded_model_are_refused(
    exported: Callable[..., list[Subject]], tmp_path: Path
) -> None:
    changed = {"model_from_pretrained_kwargs": {"fold_ln": True}}
    subjects = exported(usual={}, other=changed)
    with pytest.raises(ConfigError, match=r"^model_from_pretrained_kwargs=\{'fold_ln': True\}: "):
        bench_of(subjects, tmp_path / "out")


def test_path_may_hold_an_equals_sign(
    exported: Callable[..., list[Subject]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(adaptive={})
    (tmp_path / "lr=0.001").mkdir()
    (tmp_path / "adaptive").rename(tmp_path / "lr=0.001" / "adaptive")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").symlink_to(tmp_path / "lr=0.001" / "adaptive")
    for text, name in (("lr=0.001/adaptive", "adaptive"), ("x=lr=0.001/adaptive", "x")):
        subject = Subject.parse(text)
        assert (subject.variant, subject.path) == (name, tmp_path / "lr=0.001" / "adaptive")
    assert Subject.parse("a=b").path == tmp_path / "lr=0.001" / "adaptive"


def test_name_may_say_which_sparsity_of_a_method_it_is(
    exported: Callable[..., list[Subject]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(adaptive={})
    folder = tmp_path / "adaptive"
    for name in ("topk=20", "topk=0.5", "topk=2e-3"):
        subject = Subject.parse(f"{name}={folder}")
        assert (subject.variant, subject.path) == (name, folder)
    assert Subject.parse("topk=20=release:id").variant == "topk=20"
    assert Subject.parse("topk=20=release:id").release == "release"
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "20=x")  # a folder that exists is a folder
    subject = Subject.parse("topk=20=x")
    assert (subject.variant, subject.path) == ("topk", tmp_path / "20=x")


def test_single_corpus_of_the_training_is_found(tiny: Any) -> None:
    options = JudgingOptions(saes=[], out=Path("x"))
    record = {"ortho_corpora": {}, "dataset_path": str(tiny.retain)}
    (corpus,) = chosen_corpora(options, {"a": record}).values()
    assert (corpus.path, corpus.tokens_field) == (str(tiny.retain), None)
    (tokens,) = chosen_corpora(options, {"a": record | {"is_dataset_tokenized": True}}).values()
    assert tokens.tokens_field == "tokens"
    assert chosen_corpora(options, {"a": {"dataset_path": ""}}) == {}
