"""The reader of local files: nothing guessed, no patterns, and errors that name file and line."""

from __future__ import annotations

import codecs
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.text import reader
from saelens_adaptive_ortho.text.corpora import (
    CorpusConfig,
    Tokenisation,
    read_documents,
    read_to_the_end,
    read_tokens,
    tokenise_corpus,
)
from saelens_adaptive_ortho.text.reader import ReadError, read_json, read_rows

TEXTS = ["first café", "2020-01-31", "007", "1e5", "true", "a\u2028b\u0085c\x0bd", "  spaced "]


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a file and returns its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def lines(texts: list[Any], end: str = "\n") -> str:
    return "".join(json.dumps({"text": t}, ensure_ascii=False) + end for t in texts)


def documents(path: Path, **options: Any) -> list[str]:
    return list(read_documents(CorpusConfig(path=str(path), **options), "dataset_path"))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        documents(path, **options)
    return str(error.value)


# ------------------------------------------------------------------ encodings and line ends


ENCODED = {
    "UTF-8": lines(TEXTS).encode(),
    "UTF-8 with BOM": codecs.BOM_UTF8 + lines(TEXTS).encode(),
    "UTF-16": codecs.BOM_UTF16_LE + lines(TEXTS).encode("utf-16-le"),
    "UTF-16 big endian": codecs.BOM_UTF16_BE + lines(TEXTS).encode("utf-16-be"),
    "UTF-32": codecs.BOM_UTF32_LE + lines(TEXTS).encode("utf-32-le"),
    "CRLF": lines(TEXTS, "\r\n").encode(),
    "blank lines": ("\n \n" + lines(TEXTS, "\n\n\t\n") + "\n\n").encode(),
    "null lines": ("null\n" + lines(TEXTS, "\nnull\n")).encode(),
    "no last end": lines(TEXTS).encode()[:-1],
    "array": json.dumps([{"text": t} for t in TEXTS]).encode(),
    "array over lines": ("\n" + json.dumps([{"text": t} for t in TEXTS], indent=2)).encode(),
    "array of texts": json.dumps(TEXTS).encode(),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ENCODED)
def test_texts_come_back_as_they_were_written(
    put: Callable[..., Path], kind: str, packed: bool
) -> None:
    content = gzip.compress(ENCODED[kind]) if packed else ENCODED[kind]
    assert documents(put("a.jsonl.gz" if packed else "a.jsonl", content)) == TEXTS


def test_packed_file_is_known_by_its_bytes(put: Callable[..., Path]) -> None:
    assert documents(put("a.jsonl", gzip.compress(ENCODED["UTF-8"]))) == TEXTS
    assert documents(put("b.jsonl.gz", ENCODED["UTF-8"])) == TEXTS


def test_name_that_promises_gzip_is_explained(put: Callable[..., Path]) -> None:
    message = refused(put("b.jsonl.gz", b"\x80\x81\n"))
    assert "is not UTF-8 text" in message
    assert "Its name ends with .gz, but it is no gzip file." in message


def test_local_corpus_is_read_to_its_end(put: Callable[..., Path]) -> None:
    many = lines(["text"] * 500)
    read_to_the_end(CorpusConfig(path=str(put("a.jsonl", many))), "x")
    read_to_the_end(CorpusConfig(path="owner/name"), "x")  # of the hub: not read
    for name, end in (("b.jsonl", '{"text": "te'), ("c.jsonl", '{"text": "\xe9"}')):
        path = str(put(name, many.encode() + end.encode("latin-1")))
        with pytest.raises(ConfigError, match=r"x\.path=.*line 501 of "):
            read_to_the_end(CorpusConfig(path=path), "x")
        read_to_the_end(CorpusConfig(path=path, max_documents=500), "x")
    with pytest.raises(ConfigError, match=r"x\.path=.*no such file"):
        read_to_the_end(CorpusConfig(path="nowhere.jsonl"), "x")


def test_corpus_without_text_is_not_one_document(put: Callable[..., Path]) -> None:
    how = Tokenisation(context_size=8)
    with pytest.raises(ConfigError, match="It holds no text. Give another file"):
        tokenise_corpus(CorpusConfig(path=str(put("a.jsonl", ""))), "forget", _Tokenizer(), how, 4)


class _Tokenizer:
    """Nothing is tokenised."""

    bos_token_id = 0

    def get_vocab(self) -> dict[str, int]:
        return {}


def test_objects_of_a_json_file_may_have_any_layout(put: Callable[..., Path]) -> None:
    pretty = "\n".join(json.dumps({"text": t}, indent=1) for t in TEXTS)
    assert documents(put("a.json", pretty)) == TEXTS
    assert documents(put("b.json", lines(TEXTS))) == TEXTS
    assert "line 1 of " in refused(put("c.jsonl", pretty))


@given(
    st.lists(st.sampled_from(["a", "é\n", "\n", "\n\n", "\r\n", "\r", " ", "\u2028"]), max_size=30)
)
def test_paragraphs_are_those_of_a_split(tmp_path_factory: Any, pieces: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "split.txt"
    path.write_bytes("".join(pieces).encode())
    whole = "".join(pieces).replace("\r\n", "\n").replace("\r", "\n")
    found = [row.values["text"] for row in read_rows(path, ["text"])]
    assert found == [piece for piece in whole.split("\n\n") if piece]


def test_paragraphs_lose_their_byte_order_mark(put: Callable[..., Path]) -> None:
    assert documents(put("a.txt", codecs.BOM_UTF8 + b"one\r\n\r\ntwo")) == ["one", "two"]
    assert documents(put("b.txt", "one\n\ntwo".encode("utf-16"))) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_other_encodings_are_refused_with_the_line(put: Callable[..., Path], name: str) -> None:
    latin = (lines(["ok", "café"]) if "json" in name else "ok\ncafé").encode("latin-1")
    message = refused(put(name, latin))
    assert f"line 2 of {put(name, latin)} is not UTF-8 text (byte 0xe9 at position" in message
    assert "Save the file as UTF-8" in message
    assert "NUL bytes" in refused(put(name, lines(TEXTS).encode("utf-16-le")))
    assert "byte-order mark says" in refused(put(name, "abc".encode("utf-16")[:-1]))


# ------------------------------------------------------------------------- types and fields


def test_only_the_field_asked_for_is_read(put: Callable[..., Path]) -> None:
    others: list[Any] = [{"a": 1}, "text", 3, None, [1, {}], float("nan"), 10**400]
    rows = [{"meta": other, "text": t} for other, t in zip(others, TEXTS, strict=True)]
    del rows[3]["meta"]
    path = put("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert documents(path) == TEXTS
    huge = '{"n": ' + "9" * 5000 + ', "text": "x"}\n'
    assert documents(put("b.jsonl", huge)) == ["x"]


def test_other_columns_of_a_table_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": TEXTS, "meta": [{"a": 1}] * 7, "text.x": list(range(7))})
    pq.write_table(table, path, row_group_size=3, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    assert documents(path) == TEXTS
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    path.write_bytes(whole[:start] + b"\xff" * 20 + whole[start + 20 :])  # damages meta.a
    assert documents(path) == TEXTS
    assert "no such field in row 1" in refused(path, text_field="body")


def test_null_and_blank_texts_are_left_out(put: Callable[..., Path], tmp_path: Path) -> None:
    texts = ["one", None, "  ", "two", None]
    assert documents(put("a.jsonl", lines(texts))) == ["one", "two"]
    assert documents(put("a.jsonl", lines(texts)), max_documents=3) == ["one"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == ["one", "two"]
    pq.write_table(pa.table({"ids": [[1, 2], None, [3]]}), tmp_path / "b.parquet")
    corpus = CorpusConfig(path=str(tmp_path / "b.parquet"), tokens_field="ids")
    assert [ids.tolist() for ids in read_tokens(corpus, "dataset_path")] == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 3}', "has int there, not text; it has the fields ['text']"),
        ('{"text": ["a"]}', "has list there, not text"),
        ('{"body": "a"}', "no such field in line 2"),
        ('{"text": "a"', "is not JSON (Expecting ',' delimiter). Each line must hold one"),
        ('{"text": "a"} {"text": "b"}', "is not JSON (Extra data)"),
        ('{"text": "a"}\r{"text": "b"}', "is not JSON (Extra data)"),
        ('"a"', "holds str, not an object such as"),
        ('["a"]', "holds list, not an object"),
        ('{"text": "\\ud83d"}', "holds '\\ud83d', half of a character"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_bad_line_is_named(put: Callable[..., Path], line: str, message: str) -> None:
    found = refused(put("a.jsonl", f'{{"text": "fine"}}\n{line}\n'))
    assert found.startswith("dataset_path.")
    assert f"line 2 of {put('a.jsonl', '')}" in found
    assert message in found


def test_bad_item_of_an_array_is_named(put: Callable[..., Path]) -> None:
    assert "item 2 of " in refused(put("a.json", '[{"text": "a"},\n 3]'))
    assert "line 3 of " in refused(put("b.json", '\n[{"text": "a"},\n {"text": ]'))
    assert "nested too deeply" in refused(put("c.json", "[" * 100_000))
    assert "more than one JSON array" in refused(put("d.jsonl", '["a", "b"]\n["c", "d"]\n'))


def test_too_long_lines_are_refused(
    put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LONGEST", 40)
    long = "x" * 60
    assert "line 2 of" in refused(put("a.jsonl", lines(["a", long])))
    assert "line 1 of" in refused(put("a.txt", long))
    assert "the paragraph at line 1" in refused(put("b.txt", "a few words\n" * 9))
    assert "Write one object per line" in refused(put("a.json", "[\n" + "1,\n" * 60))
    assert "Save it as UTF-8" in refused(put("c.txt", long.encode("utf-16")))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.parquet", "a.parquet.gz"])
def test_truncated_file_is_named(put: Callable[..., Path], tmp_path: Path, name: str) -> None:
    texts = [f"text {i} {os.urandom(40).hex()}" for i in range(200)]
    if "parquet" in name:
        pq.write_table(pa.table({"text": texts}), tmp_path / "whole")
        content = (tmp_path / "whole").read_bytes()
    else:
        content = lines(texts).encode() if "json" in name else "\n\n".join(texts).encode()
    content = gzip.compress(content) if name.endswith("gz") else content
    assert documents(put(name, content)) == texts
    message = refused(put(name, content[: len(content) // 2]))
    assert str(tmp_path / name) in message
    assert "truncated" in message


# ------------------------------------------------------------------------------ names and folders

NAMES = [
    "with space.jsonl",
    "a=b.jsonl",
    "run[0].jsonl",
    "*.jsonl",
    "what?.jsonl",
    "{a,b}.jsonl",
    "~tilde.jsonl",
    "~nobody-such.jsonl",
    "größe 数.jsonl",
    "hf:x#y%20z.jsonl",
    "train-00000-of-00001.jsonl",
    "test.jsonl",
]


@pytest.mark.parametrize("name", NAMES)
def test_named_file_is_the_file_read(
    put: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in ("a.jsonl", "run0.jsonl", "whatx.jsonl", "b.jsonl"):
        put(other, lines(["wrong"]))
    put(f"folder {name}/{name}", lines(["right"]))
    put(name, lines(["right"]))
    assert documents(tmp_path / name) == ["right"]
    assert documents(tmp_path / f"folder {name}") == ["right"]
    monkeypatch.chdir(tmp_path)
    assert documents(Path(name)) == ["right"]


def test_home_folder_is_found(
    put: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("texts/a.jsonl", lines(["right"]))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert documents(Path("~/texts/a.jsonl")) == ["right"]
    assert documents(Path("~/texts")) == ["right"]


def test_files_of_programs_are_no_part_of_a_corpus(
    put: Callable[..., Path], tmp_path: Path
) -> None:
    for name in (
        ".hidden.jsonl",
        "._a.jsonl",
        ".ipynb_checkpoints/a-checkpoint.jsonl",
        "__MACOSX/._a.jsonl",
        "inner/.git/x.jsonl",
        ".cache/y.txt",
    ):
        put(f".config/corpus/{name}", lines(["wrong"]))
    put(".config/corpus/inner/b.jsonl", lines(["two"]))
    put(".config/corpus/a.jsonl", lines(["one"]))
    put(".config/corpus/__init__.jsonl", lines(["zero"]))
    assert documents(tmp_path / ".config/corpus") == ["zero", "one", "two"]
    assert documents(tmp_path / ".config/corpus/.hidden.jsonl") == ["wrong"]


def test_what_is_no_file_is_refused(put: Callable[..., Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "no regular file" in refused(tmp_path / "pipe.jsonl")
    assert "no regular file" in refused(Path("/dev/null"))
    assert "cannot be read" in refused(tmp_path / ("x" * 300 + ".jsonl"))
    with pytest.raises(ReadError, match="no regular file"):
        list(read_rows(tmp_path, ["text"], "json"))
    with pytest.raises(ReadError, match=r"absent.jsonl cannot be read \(No such file"):
        list(read_rows(tmp_path / "absent.jsonl", ["text"]))
    with pytest.raises(ReadError, match="no regular file"):
        list(read_rows(Path("a\0.jsonl"), ["text"]))


def test_unreadable_file_of_a_folder_is_named(
    put: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a.jsonl", lines(["one"]))
    bad, opened = put("b.jsonl", lines(["two"])), Path.open

    def denied(path: Path, *args: Any, **options: Any) -> Any:
        if path == bad:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", denied)
    assert f"{bad} cannot be read (Permission denied)" in refused(tmp_path)
    corpus, how = CorpusConfig(path=str(tmp_path)), Tokenisation(8)
    for where, message in ((corpus, rf"^W.path=.*{bad} cannot"), (CorpusConfig(path="./x"), "^W.")):
        with pytest.raises(ConfigError, match=message):
            tokenise_corpus(where, "retain", SimpleNamespace(get_vocab=dict), how, 9, where="W")


def test_single_value_is_read(put: Callable[..., Path]) -> None:
    assert read_json(put("a.json", '\ufeff{"a":\n 1}')) == {"a": 1}
    with pytest.raises(ReadError, match=r"line 2 of .*a.json is not JSON"):
        read_json(put("a.json", '{"a":\n x}'))
