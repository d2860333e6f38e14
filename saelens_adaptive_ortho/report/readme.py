"""Keep result tables inside a markdown file equal to the JSON they come from.

A table sits between two markers, each on a line of its own; PATH is a run's folder::

    <!-- results: PATH -->
    <!-- /results -->
"""

from __future__ import annotations

import re
from pathlib import Path

from .results import ResultError, load_results, write_text_atomic
from .summary import summarise
from .tables import markdown_table, markdown_verdicts

_OPEN = re.compile(r"^<!--[ \t]*results:[ \t]*(?P<path>.+?)[ \t]*-->[ \t]*$")
_CLOSE = re.compile(r"^<!--[ \t]*/results[ \t]*-->[ \t]*$")


def update_tables(
    markdown_path: str | Path, root: str | Path | None = None, check: bool = False
) -> bool:
    """Replace the text between the markers with table and verdicts of the results they name.

    Running it twice gives the same file. Markers inside fenced code are left alone.

    Args:
        markdown_path: the file to update.
        root: the folder PATH is relative to; by default the markdown file's own.
        check: write nothing, only report.

    Returns:
        Whether the text changed, or with ``check`` would change.

    Raises:
        ResultError: a PATH does not exist or holds no results, or a marker is not closed.
    """
    markdown_path = Path(markdown_path)
    root = markdown_path.parent if root is None else Path(root)
    old = markdown_path.read_text(encoding="utf-8")
    lines: list[str] = []
    opened: str | None = None
    fence = ""
    for count, line in enumerate(old.split("\n"), start=1):
        where = f"{markdown_path}:{count}"
        if opened is None:
            lines.append(line)
            mark = line.lstrip()[:3]
            if mark in ("```", "~~~") and fence in ("", mark):
                fence = "" if fence else mark
            begin = None if fence else _OPEN.match(line)
            if begin is not None:
                path = opened = str(begin["path"])
                lines += ["", _table(root, path, where), ""]
        elif _CLOSE.match(line):
            lines.append(line)
            opened = None
        elif _OPEN.match(line):
            raise ResultError(f"{where}: results marker inside the one for {opened}")
    if opened is not None:
        raise ResultError(f"{markdown_path}: no <!-- /results --> after results: {opened}")
    new = "\n".join(lines)
    if new == old:
        return False
    if not check:
        write_text_atomic(markdown_path, new)
    return True


def _table(root: Path, path: str, where: str) -> str:
    folder = root / path
    if not folder.is_dir():
        raise ResultError(f"{where}: results folder {path} does not exist under {root}")
    summary = summarise(load_results(folder))
    return f"{markdown_table(summary)}\n{markdown_verdicts(summary).rstrip()}"
