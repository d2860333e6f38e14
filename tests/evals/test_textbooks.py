"""The corpora of the textbook study."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from evals.separation.textbooks import main


def write_book(folder: Path, name: str, n: int) -> list[str]:
    passages = [f"{name} {i}" for i in range(n)]
    text = "".join(json.dumps({"text": p}) + "\n" for p in passages)
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return passages


def read(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


def test_every_passage_is_in_one_corpus(tmp_path: Path) -> None:
    forget, near = write_book(tmp_path, "germs", 9), write_book(tmp_path, "bones", 4)
    write_book(tmp_path, "kings", 3)
    write_book(tmp_path, "stars", 1)
    out = tmp_path / "out"
    assert main([str(tmp_path), str(out), "--forget", "germs", "--near", "bones"]) == 0
    assert read(out / "forget.jsonl") == forget[:6]
    assert read(out / "forget_test.jsonl") == forget[6:]
    assert read(out / "near.jsonl") == near
    assert read(out / "retain.jsonl") == ["kings 0", "stars 0", "kings 1", "kings 2"]


def test_missing_book_is_named_with_the_books_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_book(tmp_path, "germs", 2)
    assert main([str(tmp_path), str(tmp_path / "out"), "--forget", "germs"]) == 2
    message = capsys.readouterr().err
    assert "--near='anatomy-physiology': no such book; there are germs" in message
    assert not (tmp_path / "out").exists()


def test_broken_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "germs.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "germs.jsonl:2" in capsys.readouterr().err
