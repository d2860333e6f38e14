"""Keep result tables inside a markdown file equal to the JSON they come from.

A table sits between two markers, each on a line of its own::

    <!-- results: PATH -->
    <!-- /results -->

PATH is the folder or file the table is made of, and the word before it says what is in it:
``results`` of a comparison, ``alpha`` of an alpha study, ``costs`` of evaluations, ``prior-runs``,
a stage of the synthetic sweep (``synthetic-final``, ``synthetic-bars``, ``synthetic-ablation``,
``synthetic-transfer``), or a benchmark (``overhead``, ``scaling``, ``levers``, ``floor``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import performance, prior_runs, synthetic
from .alpha import alpha_table
from .results import Result, ResultError, load_results, write_text_atomic
from .summary import summarise
from .tables import markdown_costs, markdown_table, markdown_verdicts

_KIND = (
    r"(?P<kind>results|alpha|costs|prior-runs|synthetic-(?:final|bars|ablation|transfer)"
    r"|overhead|scaling|levers|floor)"
)
_OPEN = re.compile(rf"^<!--[ \t]*{_KIND}:[ \t]*(?P<path>.+?)[ \t]*-->[ \t]*$")
_CLOSE = re.compile(rf"^<!--[ \t]*/{_KIND}[ \t]*-->[ \t]*$")


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
    opened: re.Match[str] | None = None
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
                opened = begin
                lines += ["", _RENDER[begin["kind"]](root, begin["path"], where), ""]
        elif (close := _CLOSE.match(line)) and close["kind"] == opened["kind"]:
            lines.append(line)
            opened = None
        elif begin := _OPEN.match(line):
            raise ResultError(
                f"{where}: {begin['kind']} marker inside the one for {opened['path']}"
            )
    if opened is not None:
        kind = opened["kind"]
        raise ResultError(f"{markdown_path}: no <!-- /{kind} --> after {kind}: {opened['path']}")
    new = "\n".join(lines)
    if new == old:
        return False
    if not check:
        write_text_atomic(markdown_path, new)
    return True


def _table(root: Path, path: str, where: str) -> str:
    summary = summarise(_results(root, path, where))
    return f"{markdown_table(summary)}\n{markdown_verdicts(summary).rstrip()}"


def _alpha(root: Path, path: str, where: str) -> str:
    return alpha_table(_results(root, path, where))


def _results(root: Path, path: str, where: str) -> list[Result]:
    folder = root / path
    if not folder.is_dir():
        raise ResultError(f"{where}: results folder {path} does not exist under {root}")
    return load_results(folder)


def _costs(root: Path, path: str, where: str) -> str:
    file = root / path
    try:
        return markdown_costs(json.loads(file.read_text(encoding="utf-8"))).rstrip()
    except (OSError, ValueError, KeyError) as error:
        raise ResultError(f"{where}: {path} holds no measured costs ({error!r})") from error


def _runs(render: Callable[[Sequence[Any]], str], pattern: str = "*.json") -> Callable[..., str]:
    """What ``render`` makes of all JSON files of a folder."""

    def table(root: Path, path: str, where: str) -> str:
        try:
            runs = [
                json.loads(file.read_text(encoding="utf-8"))
                for file in sorted((root / path).glob(pattern))
            ]
            return render(runs) if runs else "No results yet."
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{where}: {path} holds no such results ({error!r})") from error

    return table


_RENDER = {
    "results": _table,
    "alpha": _alpha,
    "costs": _costs,
    "prior-runs": _runs(prior_runs.table, "*/*.json"),
    "overhead": _runs(performance.overhead_table, "overhead*.json"),
    "scaling": _runs(performance.scaling_table, "scaling.json"),
    "levers": _runs(performance.levers_table, "levers*.json"),
    "floor": _runs(performance.floor_table, "floor.json"),
    "synthetic-final": _runs(synthetic.final_table),
    "synthetic-bars": _runs(synthetic.bars_table),
    "synthetic-ablation": _runs(synthetic.ablation_table),
    "synthetic-transfer": _runs(synthetic.transfer_table),
}
