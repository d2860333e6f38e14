"""Write the corpora of the textbook study from a folder of textbooks.

All books are written in one register, so a detector of style separates nothing. The forget text is
one book without the last third of its passages, which are a second forget text (other chapters). A
neighbouring book is the named retain corpus ``near``, and all other books are the retain corpus.

Each book is a file of JSON lines (also .gz) with the field ``text``, in the order of the book.
OpenStax offers such books: https://openstax.org/subjects.

python -m evals.separation.textbooks BOOKS OUT [--forget microbiology] [--near anatomy-physiology]
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import write_text_atomic

AT_HOME = 2 / 3  # share of the forget book's passages that train and choose


def read_books(folder: Path) -> dict[str, list[str]]:
    """Return the passages of each book, by the name of its file.

    Raises:
        ConfigError: the folder holds no book, or a line is not a JSON object with a text.
    """
    files = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])
    if not files:
        raise reject("BOOKS", str(folder), "holds no .jsonl or .jsonl.gz file.")
    return {file.name.split(".")[0]: _passages(file) for file in files}


def _passages(file: Path) -> list[str]:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        found = []
        for number, line in enumerate(lines, 1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise reject("BOOKS", f"{file}:{number}", f"no text there ({error!r}).") from error
            found.append(text)
    return found


def corpora(books: dict[str, list[str]], forget: str, near: str) -> dict[str, list[str]]:
    """Return the passages of ``forget``, ``forget_test``, ``near`` and ``retain``.

    The retain corpus takes a passage from each book in turn, so that every part of it holds all
    subjects.

    Raises:
        ConfigError: a book is missing, or no book is left for the retain corpus.
    """
    for option, name in (("--forget", forget), ("--near", near)):
        if name not in books:
            raise reject(option, name, f"no such book; there are {', '.join(books)}.")
    others = [passages for name, passages in books.items() if name not in (forget, near)]
    if not others:
        raise reject("BOOKS", ", ".join(books), "no book is left for the retain corpus.")
    home = round(AT_HOME * len(books[forget]))
    in_turn: Iterable[str | None] = chain.from_iterable(zip_longest(*others))
    return {
        "forget": books[forget][:home],
        "forget_test": books[forget][home:],
        "near": books[near],
        "retain": [passage for passage in in_turn if passage is not None],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the corpora; the exit status is 2 if a setting cannot work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("books", type=Path, help="folder with one file per book")
    parser.add_argument("out", type=Path, help="folder for the corpora")
    parser.add_argument("--forget", default="microbiology", help="book to forget")
    parser.add_argument("--near", default="anatomy-physiology", help="neighbouring book")
    args = parser.parse_args(argv)
    try:
        found = corpora(read_books(args.books), args.forget, args.near)
    except ConfigError as error:
        print(f"textbooks: error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for name, passages in found.items():
        lines = (json.dumps({"text": passage}, ensure_ascii=False) for passage in passages)
        write_text_atomic(args.out / f"{name}.jsonl", "\n".join(lines) + "\n")
        print(f"{args.out / name}.jsonl: {len(passages)} passages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
