"""Result files: they are read as written, and errors name broken files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.report.markdown import update_tables
from saelens_adaptive_ortho.report.summary import write_summary
from saelens_adaptive_ortho.results import (
    Result,
    ResultError,
    left_out,
    load_result,
    load_results,
    order_variants,
    read_results_file,
    result_path,
    write_result,
    write_results_file,
)
from tests.report.runs import (
    core,
    put,
    result,
)

RESULTS = [
    Result("core", "fixed", 0, metrics={"pooled/l0": 1 / 3, "pooled/mse": None}, seconds=1.5),
    Result("core", "baseline", 0, metrics={"pooled/l0": 0.1 + 0.2}, fingerprint="abc"),
    Result("core", "baseline", 1, "failed", "out of\nmemory: \u2028 é", versions={"torch": "2"}),
]


def test_results_file_has_one_exact_result_per_line(tmp_path: Path) -> None:
    path = write_results_file(tmp_path / "results.jsonl", RESULTS)
    assert path.read_text(encoding="utf-8").count("\n") == len(RESULTS)
    assert read_results_file(path) == RESULTS


def test_results_file_replaces_the_run_folder(tmp_path: Path) -> None:
    for each in RESULTS:
        run = tmp_path / "run"
        write_result(result_path(run, each.variant, each.seed, each.eval), each)
    path = write_results_file(tmp_path / "compact" / "results.jsonl", RESULTS)
    assert load_results(path) == load_results(path.parent) == load_results(tmp_path / "run")
    elsewhere = write_results_file(tmp_path / "of_another_name.jsonl", RESULTS)
    assert load_results(elsewhere) == load_results(path)


def test_table_is_the_same_from_file_and_folder(tmp_path: Path) -> None:
    for each in RESULTS:
        write_result(result_path(tmp_path, each.variant, each.seed, each.eval), each)
    write_results_file(tmp_path / "compact.jsonl", RESULTS)
    tables = []
    for source in ("results", "compact.jsonl"):
        page = tmp_path / f"{source}.md"
        page.write_text(f"<!-- results: {source} -->\n<!-- /results -->\n")
        assert update_tables(page)
        tables.append(page.read_text(encoding="utf-8").split("\n", 1)[1])
    assert "| L0, pooled" in tables[0]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"eval": "core"', "not valid JSON"),
        ('{"eval": NaN}', "not valid JSON"),
        ("[]", "JSON object"),
        (json.dumps({**RESULTS[0].to_json(), "schema_version": 9}), "reads 1"),
        (json.dumps({**RESULTS[0].to_json(), "metrics": {"x": "many"}}), "metric 'x'"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = write_results_file(tmp_path / "results.jsonl", RESULTS[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ResultError, match=problem) as error:
        load_results(tmp_path)
    assert f"{path}:2" in str(error.value)


def test_file_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="cannot be read"):
        read_results_file(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ResultError, match="holds no results"):
        load_results(tmp_path / "empty.jsonl")


def test_non_finite_number_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match="pooled/l0"):
        write_results_file(path, [RESULTS[0], Result("core", "x", 0, metrics={"pooled/l0": 1e999})])
    assert not path.exists()


def test_round_trip(tmp_path: Path) -> None:
    written = result(
        "core",
        "adaptive",
        3,
        {"pooled/mse": 0.25, "pooled/l0": None},
        details={"note": ["é", 1, {"deep": 2.5}]},
        seconds=1.5,
        fingerprint="ab",
        versions={"a": "1"},
    )
    path = result_path(tmp_path, "adaptive", 3, "core")
    assert path.name == "adaptive__seed3__core.json"
    assert load_result(write_result(path, written)) == written


def test_home_folder_is_in_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    held = {"source": "/home/me/sae", "metrics": {"x": 1.0}}
    path = result_path(tmp_path, "a", 0, "core")
    write_result(path, Result("core", "a", 0, "failed", "no /home/me/x", details=held))
    assert "/home/me" not in path.read_text()
    assert load_result(path).reason == "no ~/x"
    assert load_result(path).details == {"source": "~/sae", "metrics": {"x": 1.0}}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "baseline__seed0__core.json"
    with pytest.raises(ValueError, match="pooled/mse"):
        write_result(path, result("core", "baseline", 0, {"pooled/mse": bad}))
    with pytest.raises(ValueError, match=r"details\.curve\[1\]"):
        write_result(path, result("core", "baseline", 0, {}, details={"curve": [0.0, bad]}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), "reads 1"),
        (lambda text: text.replace("0.5", "NaN"), "not valid JSON"),
        (lambda text: text.replace("0.5", '"many"'), "pooled/mse"),
        (lambda text: text.replace('"ok"', '"fine"'), "status"),
        (lambda text: text.replace('"ok"', '"failed"'), "without a 'reason'"),
        (lambda text: text.replace('"seed": 0', '"seed": 4'), "is named for"),
        (lambda _: "[]", "JSON object"),
    ],
)
def test_unusable_file(tmp_path: Path, change: Any, problem: str) -> None:
    path = write_result(
        result_path(tmp_path, "baseline", 0, "core"),
        result("core", "baseline", 0, {"pooled/mse": 0.5}),
    )
    path.write_text(change(path.read_text()))
    with pytest.raises(ResultError, match="delete this file and rerun compare") as caught:
        load_results(tmp_path)
    assert path.name in str(caught.value)
    assert problem in str(caught.value)


def test_order(tmp_path: Path) -> None:
    for variant in ("adaptive", "other", "baseline", "fixed"):
        put(tmp_path, *core(variant, [0.1]))
    write_summary(tmp_path)
    assert [r.variant for r in load_results(tmp_path)] == ["baseline", "fixed", "adaptive", "other"]
    with pytest.raises(ResultError, match="run compare first"):
        load_results(tmp_path / "nothing")


def test_file_name(tmp_path: Path) -> None:
    for variant in ("a/b", "a__seed1__x", ""):
        with pytest.raises(ValueError, match="no file name"):
            result_path(tmp_path, variant, 0, "core")


def test_two_results_of_one_sae_name_the_file(tmp_path: Path) -> None:
    result = Result("core", "baseline", 0, metrics={"x": 1.0})
    file = write_results_file(tmp_path / "results.jsonl", [result])
    file.write_text(file.read_text() * 2)
    with pytest.raises(ResultError, match=r"results\.jsonl: holds 2 results of \('baseline', 0"):
        load_results(tmp_path)


def test_a_file_that_no_run_wrote_is_not_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# text")
    with pytest.raises(ResultError, match="README.md:1: is not valid JSON") as caught:
        load_results(tmp_path / "README.md")
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"seconds": 1' + "0" * 400 + "}"])
def test_too_deep_or_too_large_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a__seed0__core.json"
    path.write_text(text)
    with pytest.raises(ResultError, match="delete this file and rerun compare"):
        load_result(path)


def test_unusable_file_of_no_sae_of_the_run_is_left_out_with_a_warning(tmp_path: Path) -> None:
    for each in RESULTS:
        write_result(result_path(tmp_path, each.variant, each.seed, each.eval), each)
    expected = load_results(tmp_path)
    foreign = result_path(tmp_path, "x", 0, "subspace")
    foreign.write_text("[]")
    with pytest.warns(UserWarning, match="Left out.*x__seed0__subspace.json.*a JSON object$"):
        assert load_results(tmp_path) == expected
    assert left_out(tmp_path) == {foreign.name: "does not hold a JSON object"}
    (tmp_path / "seed0" / "x").mkdir(parents=True)
    with pytest.raises(ResultError, match=foreign.name):
        load_results(tmp_path)


def test_series_of_the_leading_names_lead_without_the_baseline_itself() -> None:
    names = ["adaptive=40", "adaptive=20", "baseline=100", "baseline=20", "fixed", "topk=1"]
    assert order_variants(names) == [
        *("baseline=20", "baseline=100", "fixed", "adaptive=20", "adaptive=40", "topk=1"),
    ]
    assert order_variants(["adaptive=2", "fixed=2"]) == ["fixed=2", "adaptive=2"]
    with_baseline = ["alpha=1", "groups=3", "baseline", "groups=1"]
    assert order_variants(with_baseline) == ["baseline", "alpha=1", "groups=1", "groups=3"]
