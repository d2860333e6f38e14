"""Local files of text, read row by row: JSON Lines, JSON, Parquet and plain text, also gzipped.

Corpora, questions and labelled texts are all read here. No type is guessed: a value is what the
file says. Only the fields that are asked for are read. A path is never a pattern.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

KINDS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}
TEXT = "text"  # the field of a paragraph of a .txt file
LONGEST = 1 << 30  # bytes of one line, of one paragraph, or of a file that is one JSON array
PARQUET_ROWS = 256  # rows in memory at a time
MAX_DIGITS = 4000  # Python reads no longer whole numbers; one in another field does no harm
DECODER = json.JSONDecoder(parse_int=lambda text: int(text) if len(text) < MAX_DIGITS else text)
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, which begins with the same bytes
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class ReadError(ValueError):
    """A file cannot be read. The message names the file, the line and the remedy."""


class Row(NamedTuple):
    """A row of a file: a JSON object, a row of a table, or a paragraph.

    Attributes:
        place: where it is, such as ``line 3 of notes.jsonl``.
        values: those of the fields asked for that it has.
        names: the names of all its fields.
    """

    place: str
    values: dict[str, Any]
    names: list[str]


def kind_of(path: Path) -> str | None:
    """``json``, ``text`` or ``parquet``, by the end of the name; None for any other file."""
    return KINDS.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)


def files_in(folder: Path) -> list[Path]:
    """The files of a known kind in a folder and the folders in it, sorted by name.

    Files that programs put beside the user's are left out: those in ``__MACOSX`` and those whose
    name, or folder, begins with a dot.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if kind_of(path)
        and path.is_file()
        and not any(p.startswith(".") or p == "__MACOSX" for p in path.relative_to(folder).parts)
    )


def read_rows(path: Path, fields: Sequence[str], kind: str | None = None) -> Iterator[Row]:
    """Stream the rows of a file.

    UTF-8 is read with and without a byte-order mark, UTF-16 and UTF-32 with one. Only ``\\n`` and
    ``\\r\\n`` end a line of JSON. Blank lines and ``null`` are no rows. A file may also hold an
    array of objects; those of a ``.json`` file may have any layout. A ``.txt`` file is read by
    paragraphs; its field is ``text``.

    Args:
        path: the file.
        fields: the fields to read.
        kind: as :func:`kind_of` gives it, which is the default.

    Raises:
        ReadError: the file is missing, truncated, not text, or not of its kind; or a line cannot be
            read.
    """
    kind = kind or kind_of(path)
    assert kind is not None
    read = {"json": _json_rows, "text": _paragraphs, "parquet": _table_rows}[kind]
    with _opened(path) as file:
        yield from read(file, path, fields)


def read_lines(path: Path) -> Iterator[str]:
    """Stream the lines of a text, without their ends. Only ``\\n`` and ``\\r\\n`` end a line.

    Raises:
        ReadError: as for :func:`read_rows`.
    """
    with _opened(path) as file:
        for _, line in _lines(file, path):
            yield line.removesuffix("\n").removesuffix("\r")


def read_json(path: Path) -> Any:
    """The single JSON value that a file holds.

    Raises:
        ReadError: as for :func:`read_rows`.
    """
    with _opened(path) as file:
        text = _rest(_lines(file, path), path)
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise _no_json(error, _line_of(error, path)) from error


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """The file, unpacked if its first bytes are those of gzip; failures inside are explained."""
    try:
        if not path.is_file() and (path.exists() or "\0" in str(path)):
            raise ReadError(f"{str(path)!r} is no regular file. Give the path of a file.")
        with path.open("rb") as file:
            head = file.peek(2)
            if head.startswith(b"\x1f\x8b"):
                yield io.BufferedReader(gzip.GzipFile(fileobj=file))  # type: ignore[type-var]
            else:
                with _gzip_missed(path):
                    yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ReadError(f"{path} is no whole gzip file ({error}). Is it truncated?") from error
    except OSError as error:
        raise ReadError(f"{path} cannot be read ({error.strerror or error}).") from error


@contextmanager
def _gzip_missed(path: Path) -> Iterator[None]:
    """Errors inside say so if the name of the file promises gzip."""
    try:
        yield
    except ReadError as error:
        if path.suffix != ".gz":
            raise
        raise ReadError(f"{error} Its name ends with .gz, but it is no gzip file.") from error


# ----------------------------------------------------------------------------------- lines of text


def _lines(file: io.BufferedReader, path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line, with its ``\\n``."""
    text = _utf_8(file, path)
    for number, raw in enumerate(iter(lambda: text.readline(LONGEST + 1), b""), 1):
        if len(raw) > LONGEST:
            raise _too_long(f"line {number} of {path}")
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            byte = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
            raise ReadError(
                f"line {number} of {path} is not UTF-8 text ({byte}). Save the file as UTF-8, or "
                "remove the line."
            ) from error
        yield number, line


def _utf_8(file: io.BufferedReader, path: Path) -> BinaryIO:
    """The text of a file as UTF-8, without a byte-order mark."""
    head = file.peek(4096)[:4096]
    mark = next((m for m in BYTE_ORDER_MARKS if head.startswith(m)), b"")
    if not mark and b"\0" in head:
        raise ReadError(
            f"{path} is not UTF-8 text: it holds NUL bytes. Is it binary, or UTF-16 without a "
            "byte-order mark? Save it as UTF-8."
        )
    file.read(len(mark))
    encoding = BYTE_ORDER_MARKS.get(mark, "utf-8")
    if encoding == "utf-8":
        return file
    raw = _all_of(file)
    if len(raw) > LONGEST:
        rule = f"is {encoding} and longer than {LONGEST:,} bytes. Save it as UTF-8."
        raise ReadError(f"{path} {rule}")
    try:
        return io.BytesIO(raw.decode(encoding).encode())
    except UnicodeDecodeError as error:
        raise ReadError(
            f"{path} is not {encoding} text, as its byte-order mark says ({error.reason} at byte "
            f"{error.start + len(mark)}). Is it truncated? Save it as UTF-8."
        ) from error


def _all_of(file: BinaryIO) -> bytes:
    """The bytes of a file, up to more than ``LONGEST``. A gzip file reserves what it is asked."""
    raw = bytearray()
    while len(raw) <= LONGEST and (piece := file.read(1 << 20)):
        raw += piece
    return bytes(raw)


def _too_long(place: str) -> ReadError:
    return ReadError(f"{place} is longer than {LONGEST:,} bytes. Split it into shorter rows.")


# -------------------------------------------------------------------------------------- .txt files


def _paragraphs(file: io.BufferedReader, path: Path, fields: Sequence[str]) -> Iterator[Row]:
    """The pieces between two ends of lines in a row; ``\\r`` and ``\\r\\n`` end a line, too."""

    def row(text: str, number: int) -> Row:
        values = {TEXT: text} if TEXT in fields else {}
        return Row(f"the paragraph at line {number} of {path}", values, [TEXT])

    parts: list[str] = []
    first, length = 1, 0
    for number, line in _lines(file, path):
        line = line.replace("\r\n", "\n").replace("\r", "\n")
        parts.append(line)
        length += len(line)
        if length > LONGEST:
            raise _too_long(f"the paragraph at line {first} of {path}")
        if line.startswith("\n") or "\n\n" in line:
            *whole, rest = "".join(parts).split("\n\n")
            for text in whole:
                if text:
                    yield row(text, first)
            parts, first, length = [rest], number + 1, len(rest)
    if rest := "".join(parts):
        yield row(rest, first)


# -------------------------------------------------------------------------------- .jsonl and .json


def _json_rows(file: io.BufferedReader, path: Path, fields: Sequence[str]) -> Iterator[Row]:
    """A row for each line; or for each object of an array, or of a ``.json`` file of any layout."""
    lines = _lines(file, path)
    begun = False
    for number, line in lines:
        if not line.strip():
            continue
        if not begun and (line.lstrip().startswith("[") or (_is_json(path) and not _whole(line))):
            blank = "\n" * (number - 1)  # so that errors count the lines of the file
            yield from _layout_rows(blank + line + _rest(lines, path), path, fields)
            return
        begun = True
        place = f"line {number} of {path}"
        try:
            value = DECODER.decode(line.rstrip("\r\n"))
        except (ValueError, RecursionError) as error:
            raise _no_json(error, place) from error
        yield from _object(value, place, fields)


def _is_json(path: Path) -> bool:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix == ".json"


def _whole(line: str) -> bool:
    try:
        DECODER.decode(line)
    except (ValueError, RecursionError):
        return False
    return True


def _rest(lines: Iterator[tuple[int, str]], path: Path) -> str:
    parts: list[str] = []
    length = 0
    for _, line in lines:
        parts.append(line)
        length += len(line)
        if length > LONGEST:
            raise ReadError(f"{path} is longer than {LONGEST:,} bytes. Write one object per line.")
    return "".join(parts)


def _layout_rows(text: str, path: Path, fields: Sequence[str]) -> Iterator[Row]:
    """The objects of a text of any layout: one after another, or in arrays."""
    at = _past_space(text, 0)
    number = 0
    while at < len(text):
        try:
            value, at = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _no_json(error, _line_of(error, path)) from error
        at = _past_space(text, at)
        if isinstance(value, list) and (number or at < len(text)):
            raise ReadError(f"{path} holds more than one JSON array. Write one object per line.")
        for item in value if isinstance(value, list) else [value]:
            number += 1
            # A text without a field counts as the field ``text``.
            item = {TEXT: item} if isinstance(item, str) else item
            yield from _object(item, f"item {number} of {path}", fields)


def _past_space(text: str, at: int) -> int:
    found = re.compile(r"[^ \t\r\n]").search(text, at)
    return found.start() if found else len(text)


def _line_of(error: Exception, path: Path) -> str:
    lineno = getattr(error, "lineno", None)
    return f"line {lineno} of {path}" if lineno is not None else str(path)


def _no_json(error: Exception, place: str) -> ReadError:
    if isinstance(error, RecursionError):
        return ReadError(f"{place} is nested too deeply. Write flat objects.")
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return ReadError(
        f"{place} is not JSON ({reason}). Each line must hold one JSON object. Is the file "
        "truncated?"
    )


def _object(value: Any, place: str, fields: Sequence[str]) -> Iterator[Row]:
    """The row of a JSON value; none if the value is null.

    Raises:
        ReadError: the value is no object, or a text asked for is not Unicode.
    """
    if value is None:
        return
    if not isinstance(value, dict):
        raise ReadError(
            f"{place} holds {type(value).__name__}, not an object such as "
            f'{{"{fields[0]}": ...}}. Write one object per line.'
        )
    values = {name: value[name] for name in fields if name in value}
    for name, found in values.items():
        _check_unicode(found, f"{name} in {place}")
    yield Row(place, values, [str(name) for name in value])


def _check_unicode(value: Any, place: str) -> None:
    """Refuse half of a surrogate pair, which JSON can escape and no tokenizer can read."""
    try:
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, list):
            for item in value:
                if not isinstance(item, int):
                    _check_unicode(item, place)
    except UnicodeEncodeError as error:
        raise ReadError(
            f"{place} holds {value[error.start]!a}, half of a character. Remove it."
        ) from error


# --------------------------------------------------------------------------------------- .parquet


def _table_rows(file: io.BufferedReader, path: Path, fields: Sequence[str]) -> Iterator[Row]:
    number = 0
    try:
        # pyarrow needs to seek, which is slow in a packed file.
        packed = isinstance(file.raw, gzip.GzipFile)
        table = pq.ParquetFile(io.BytesIO(file.read()) if packed else file)
        names = list(table.schema_arrow.names)
        wanted = [name for name in fields if name in names]
        if not wanted and table.metadata.num_rows:
            yield Row(f"row 1 of {path}", {}, names)
        for batch in table.iter_batches(PARQUET_ROWS, columns=wanted) if wanted else ():
            columns = [batch.column(name).to_pylist() for name in wanted]
            for values in zip(*columns, strict=True):
                number += 1
                row = dict(zip(wanted, values, strict=True))
                yield Row(f"row {number} of {path}", row, names)
    except (pa.ArrowException, ValueError, LookupError) as error:
        reason = str(error).split("\n")[0]
        place = f"{path}, after row {number}," if number else str(path)
        raise ReadError(f"{place} is no whole Parquet file ({reason}). Is it truncated?") from error
