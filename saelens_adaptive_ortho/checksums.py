"""SHA-256 sums of the files of a folder, in a file that ``sha256sum -c`` reads.

A folder without this file (of an earlier version, or of another program) counts as whole. Files
that were added later do not matter.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_sums(folder: Path) -> None:
    """Write the sums of all files in a folder, also of those in its subfolders."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / SUMS)
    lines = [f"{_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
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
            if _sha256(folder / name) != expected:
                return folder / name
        except (OSError, ValueError):
            return folder / name
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
