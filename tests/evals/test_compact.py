"""Files with one run per line: a driver that is killed while it writes loses no finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.compact import append_run, read_runs, write_runs
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.files import StorageError

RUNS = [{"name": "a", "value": 1 / 3}, {"name": "b\n\u2028é", "value": None}, {"name": "c"}]


def test_runs_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "runs.jsonl"
    assert read_runs(path) == []
    for count, run in enumerate(RUNS, start=1):
        append_run(path, run)
        assert path.read_text(encoding="utf-8").count("\n") == count
    assert read_runs(path) == RUNS
    assert read_runs(write_runs(tmp_path / "again.jsonl", RUNS)) == RUNS
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_incomplete_last_line_is_replaced(tmp_path: Path) -> None:
    whole = write_runs(tmp_path / "runs.jsonl", RUNS[:2])
    content = whole.read_bytes()
    start = content.index(b"\n") + 1
    for end in range(start + 1, len(content)):
        path = tmp_path / "incomplete.jsonl"
        path.write_bytes(content[:end])
        found = read_runs(path)
        assert found == (RUNS[:1] if end < len(content) - 1 else RUNS[:2])
        append_run(path, RUNS[2])
        assert read_runs(path) == [*found, RUNS[2]]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"a": 1} {"b": 2}'])
def test_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"b": 2}}\n')
    with pytest.raises(ConfigError, match=r"runs\.jsonl:2.*is not a result"):
        read_runs(path)


def test_non_finite_number_is_not_appended(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "runs.jsonl", RUNS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_run(path, {"value": float("nan")})
    assert read_runs(path) == RUNS


def test_unwritable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"runs\.jsonl could not be written"):
        append_run(tmp_path / "file" / "runs.jsonl", RUNS[0])
