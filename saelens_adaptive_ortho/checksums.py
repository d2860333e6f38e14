"""SHA-256 sums of what is written and read again: of the files of a folder, and of one JSON file.

The sums of a folder are in a file that ``sha256sum -c`` reads. A folder without this file (of an
earlier version, or of another program) counts as whole. Files that were added later do not matter.

A JSON file holds its own sum as its last field: the *seal*. JSON without a seal counts as whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
SEAL = "sha256"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_SEALED = re.compile(rf'(.*),\n  "{SEAL}": "([0-9a-f]{{64}})"\n\}}\n', re.DOTALL)


def write_sums(folder: Path) -> None:
    """Write the sums of all files in a folder, also of those in its subfolders."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / SUMS)
    lines = [f"{sha256_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="")


def find_damage(folder: Path) -> Path | None:
    """The first file that is missing or is not as it was written; None if there is none."""
    sums = folder / SUMS
    try:
        text = sums.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        return sums
    lines = [_LINE.fullmatch(line) for line in text.removesuffix("\n").split("\n")]
    if not text.endswith("\n") or not all(lines):
        return sums
    for expected, name in (line.groups() for line in lines if line):
        try:
            if sha256_of(folder / name) != expected:
                return folder / name
        except (OSError, ValueError):
            return folder / name
    return None


def files_named(folder: Path) -> set[str]:
    """The names of the files in the sums of a folder; none if the sums are missing or damaged."""
    try:
        lines = (folder / SUMS).read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError):
        return set()
    return {found[2] for line in lines if (found := _LINE.fullmatch(line))}


def sealed(document: Mapping[str, Any]) -> str:
    """The JSON text of an object with one more field: the SHA-256 of what stands before it.

    Args:
        document: the object, with at least one field.

    Raises:
        ValueError: a number is NaN or infinite, or a text is not valid Unicode.
    """
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    before = text.removesuffix("\n}")
    return f'{before},\n  "{SEAL}": "{_sha256(before)}"\n}}\n'


def breaks_seal(text: str, document: object) -> bool:
    """Whether a JSON text is not as :func:`sealed` wrote it.

    Args:
        text: the text.
        document: what it holds. It had a seal if its last field has the name of a seal, or a value
            like that of a seal; one flipped bit cannot change both.
    """
    if not isinstance(document, dict) or not document:
        return False
    name, value = list(document.items())[-1]
    if name != SEAL and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        return False
    found = _SEALED.fullmatch(text)
    return found is None or _sha256(found[1]) != found[2]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
