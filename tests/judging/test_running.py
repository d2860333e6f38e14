"""Running evaluations: one that fails stops only itself; bad files are found before training."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.evaluations import runnable
from saelens_adaptive_ortho.judging import running
from saelens_adaptive_ortho.judging.contract import EvaluationError, Outcome
from saelens_adaptive_ortho.judging.running import check_evals_runnable
from saelens_adaptive_ortho.results import ResultError, load_result, load_results, result_path

GOOD = Outcome({"m": 1.0}, {})


def raises(error: BaseException) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail


def no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


OUTCOMES: dict[str, tuple[Callable[[], Any], str]] = {
    "nan": (lambda: Outcome({"loss": math.nan}, {}), "metric 'loss' is nan"),
    "infinity": (lambda: Outcome({"loss": -math.inf}, {}), "metric 'loss' is -inf"),
    "curve": (lambda: Outcome({}, {"curve": [0.0, math.inf]}), r"details.curve\[1\] is inf"),
    "details": (lambda: Outcome({}, [1]), "'details' that is not an object"),  # type: ignore
    "surrogate": (lambda: Outcome({}, {"text": "\ud83d"}), "surrogates not allowed"),
    "nothing": (lambda: None, "run returned a NoneType"),
    "zero": (lambda: 1 / 0, r"ZeroDivisionError"),
    "no_reason": (raises(EvaluationError()), r"EvaluationError\(\)"),
    "odd_reason": (raises(EvaluationError("\ud83d")), r"\\ud83d"),
    "setting": (raises(reject("questions", "x", "bad.")), "^questions='x': bad.$"),
    "exits": (raises(SystemExit(3)), r"SystemExit\(3\)"),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that runs named evaluations and returns what was said."""
    context = SimpleNamespace(variant="a", seed=0)

    def missing(evals: dict[str, Callable[[], Any]]) -> list[str]:
        said: list[str] = []
        monkeypatch.setattr(running, "run_evaluation", lambda name, *_: evals[name]())
        monkeypatch.setattr(running, "_fingerprint", lambda name, *_: name)
        running.run_missing(context, dict.fromkeys(evals, {}), tmp_path, said.append)  # type: ignore
        return said

    return missing


def test_failure_stops_only_itself(run: Callable[..., list[str]], tmp_path: Path) -> None:
    run({name: outcome for name, (outcome, _) in OUTCOMES.items()} | {"last": lambda: GOOD})
    results = {r.eval: r for r in load_results(tmp_path)}
    assert results["last"].metrics == {"m": 1.0}
    for name, (_, reason) in OUTCOMES.items():
        assert results[name].status == "failed"
        assert re.search(reason, results[name].reason or "")
    for file in (tmp_path / "results").iterdir():
        json.loads(file.read_text(), parse_constant=no_constant)
    assert run({"last": lambda: GOOD}) == []
    assert run({"nan": lambda: GOOD})
    assert run({"nan": lambda: GOOD}) == []


def test_named_folder_counts_with_its_content(tmp_path: Path) -> None:
    bench = SimpleNamespace(corpora=[], model_digest="m", context_size=8, dtype="float32")
    context: Any = SimpleNamespace(bench=bench, sae_digest="s")
    model, weights = tmp_path / "model", tmp_path / "model" / "weights"
    settings = {"model_name": str(model)}
    found = set()
    for content in (None, b"first", b"other"):
        if content is not None:
            model.mkdir(exist_ok=True)
            weights.write_bytes(content)
        found.add(running._fingerprint("unlearning", settings, context))
    weights.rename(model / "renamed")
    found.add(running._fingerprint("unlearning", settings, context))
    assert len(found) == 4


def test_version_of_a_needed_package_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = SimpleNamespace(corpora=[], model_digest="m", context_size=8, dtype="float32")
    context: Any = SimpleNamespace(bench=bench, sae_digest="s")
    found = []
    for name in ("core", "subspace"):
        assert runnable()[name].needs == (("sae_bench",) if name == "core" else ())
        for version in ("1", "2"):
            monkeypatch.setattr("saelens_adaptive_ortho.results.version", lambda _, v=version: v)
            found.append(running._fingerprint(name, {}, context))
    assert found[0] != found[1]
    assert found[2] == found[3]


def test_fingerprint_that_fails_stops_only_its_evaluation(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run({})

    def fingerprint(name: str, *_: object) -> str:
        return name if name == "good" else str(1 / 0)

    monkeypatch.setattr(running, "_fingerprint", fingerprint)
    monkeypatch.setattr(running, "run_evaluation", lambda *_: GOOD)
    context: Any = SimpleNamespace(variant="a", seed=0)
    running.run_missing(context, {"bad": {}, "good": {}}, tmp_path, lambda _: None)
    assert {r.eval: r.status for r in load_results(tmp_path)} == {"bad": "failed", "good": "ok"}


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"schema_version": 1}', "\0" * 9])
def test_damaged_result_is_made_again(
    run: Callable[..., list[str]], tmp_path: Path, damage: str
) -> None:
    run({"core": lambda: GOOD})
    path = result_path(tmp_path, "a", 0, "core")
    whole = path.read_text()
    path.write_text(damage)
    said = run({"core": lambda: GOOD})
    assert path.name in said[0]
    assert "is made again" in said[0]
    assert json.loads(path.read_text())["metrics"] == json.loads(whole)["metrics"]


def test_flipped_bit_of_a_result_is_found(run: Callable[..., list[str]], tmp_path: Path) -> None:
    run({"core": lambda: GOOD})
    path = result_path(tmp_path, "a", 0, "core")
    whole = path.read_bytes()
    assert load_result(path).metrics == {"m": 1.0}
    for bit in range(0, 8 * len(whole), 13):  # each position in a byte
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(ResultError):
            load_result(path)
    assert "is made again" in run({"core": lambda: GOOD})[0]
    document = json.loads(path.read_text())
    del document["sha256"]  # as results of earlier versions
    path.write_text(json.dumps(document))
    assert run({"core": lambda: GOOD}) == []


# ------------------------------------------------------------------------- before training

QUESTION = {"domain": "forget", "question": "?", "choices": ["a", "b", "c", "d"], "answer": 0}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_questions_are_read_completely(tmp_path: Path) -> None:
    good = write(tmp_path / "a b [0].jsonl", [QUESTION] * 3)
    for source in (good, "auto", "none", "published", "demo:questions"):
        check_evals_runnable({"unlearning": {"questions": source}, "subspace": {}})
    bad = write(tmp_path / "bad.jsonl", [QUESTION, QUESTION, QUESTION | {"answer": "A"}])
    with pytest.raises(ConfigError, match=r"^evals.unlearning.questions='line 3 of .*answer is"):
        check_evals_runnable({"unlearning": {"questions": bad}})
    empty = write(tmp_path / "empty.jsonl", [None])
    with pytest.raises(ConfigError, match=r"^evals.unlearning.questions=.*holds no question"):
        check_evals_runnable({"unlearning": {"questions": empty}})
    with pytest.raises(ConfigError, match="absent.jsonl cannot be read"):
        check_evals_runnable({"unlearning": {"questions": "absent.jsonl"}})


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("sparse_probing", [{"text": "x"}], "line 1 of .* has no field label"),
        ("sparse_probing", [{"text": f"{i}", "label": 1} for i in range(9)], "needs two classes"),
        ("tpp", [{"text": f"{i}", "label": i % 2} for i in range(9)], "2 classes and TPP needs"),
        ("tpp", [{"text": f"{i}", "label": i % 3} for i in range(6)], "has 2 texts, fewer than"),
        ("scr", [{"text": "x", "a": 1}], "line 1 of .* has no field b"),
        ("scr", [{"text": f"{i}", "a": i, "b": 1} for i in range(9)], "a must have two values"),
    ],
)
def test_labelled_texts_are_read(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], message: str
) -> None:
    pytest.importorskip("sae_bench")
    columns = {"columns": ["a", "b"]} if name == "scr" else {}
    settings = {"source": write(tmp_path / "labels.jsonl", rows), "train_size": 2, "test_size": 1}
    with pytest.raises(ConfigError, match=rf"^evals.{name}: .*{message}"):
        check_evals_runnable({name: settings | columns})


def test_facts_are_read(tmp_path: Path) -> None:
    pytest.importorskip("sae_bench")
    settings: dict[str, Any] = {"source": str(tmp_path), "attributes": {"city": ["a", "b"]}}
    with pytest.raises(ConfigError, match=r"^evals.ravel: .*ravel_city_attribute_to_prompts.json"):
        check_evals_runnable({"ravel": settings})
    (tmp_path / "ravel_city_attribute_to_prompts.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds no object"):
        check_evals_runnable({"ravel": settings})


def test_module_that_cannot_be_imported_is_left_to_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> NoReturn:
        raise ImportError(name)

    monkeypatch.setattr(running.importlib, "import_module", fail)
    assert "subspace" in runnable()
    check_evals_runnable({"subspace": {}})


def test_result_is_kept_if_the_sae_cannot_be_read(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run({"good": lambda: GOOD})
    file = result_path(tmp_path, "a", 0, "good")
    before = file.read_bytes()
    said: list[str] = []
    context = SimpleNamespace(variant="a", seed=0)
    monkeypatch.setattr(running, "_fingerprint", lambda *_: raises(OSError("no weights"))())
    running.run_missing(context, {"good": {}}, tmp_path, said.append)  # type: ignore
    assert "no weights" in said[0]
    assert f"{file.name} of before is kept" in said[1]
    assert file.read_bytes() == before
