"""Update the result tables inside a markdown file from the JSON results.

A table stands between two markers, each on a line of its own::

    <!-- results: PATH -->
    <!-- /results -->

PATH is the folder or file with the results. The word before it names the renderer: ``results``
makes the table and the verdicts of a comparison. ``<!-- results: PATH short -->`` makes the short
table and one sentence of what was found. A study can add renderers of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from saelens_adaptive_ortho.files import read_text, write_text_atomic
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.report.tables import markdown_table, markdown_verdicts, short_table
from saelens_adaptive_ortho.results import Result, ResultError, load_results

#: Makes the text between two markers from (root, PATH, position of the marker).
Renderer = Callable[[Path, str, str], str]

#: After the PATH of ``results``, this word asks for the short table.
SHORT = " short"


def update_tables(
    markdown_path: str | Path,
    root: str | Path | None = None,
    check: bool = False,
    renderers: Mapping[str, Renderer] | None = None,
) -> bool:
    """Replace the text between each pair of markers with the text of its renderer.

    A second run changes nothing. Markers inside fenced code are ignored.

    Args:
        markdown_path: file to update.
        root: folder that PATH is relative to; by default the folder of the markdown file.
        check: whether to write nothing and only report.
        renderers: renderers by kind; by default :data:`RENDERERS`.

    Returns:
        Whether the text changed, or with ``check`` would change.

    Raises:
        ConfigError: the file cannot be read.
        ResultError: a PATH does not exist or holds no results; a marker is not closed or stands
            inside another pair of markers.
    """
    markdown_path = Path(markdown_path)
    root = markdown_path.parent if root is None else Path(root)
    renderers = RENDERERS if renderers is None else renderers
    kinds = "|".join(map(re.escape, renderers))
    opening = re.compile(rf"^<!--[ \t]*(?P<kind>{kinds}):[ \t]*(?P<path>.+?)[ \t]*-->[ \t]*$")
    closing = re.compile(rf"^<!--[ \t]*/(?P<kind>{kinds})[ \t]*-->[ \t]*$")
    old = read_text("MARKDOWN", markdown_path)
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
            begin = None if fence else opening.match(line)
            if begin is not None:
                opened = begin
                lines += ["", renderers[begin["kind"]](root, begin["path"], where), ""]
        elif (close := closing.match(line)) and close["kind"] == opened["kind"]:
            lines.append(line)
            opened = None
        elif begin := opening.match(line):
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


def has_tables(markdown_path: str | Path, renderers: Mapping[str, Renderer] | None = None) -> bool:
    """Whether a page has markers outside fenced code."""
    kinds = "|".join(map(re.escape, RENDERERS if renderers is None else renderers))
    text = Path(markdown_path).read_text(encoding="utf-8")
    text = re.sub(r"^[ \t]*(```|~~~).*?^[ \t]*\1", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.search(rf"^<!--[ \t]*(?:{kinds}):", text, re.MULTILINE) is not None


def comparison(root: Path, path: str, where: str) -> str:
    """Return the table and the verdicts of a comparison; after ``PATH short`` the short table."""
    summary = summarise(results_of(root, path.removesuffix(SHORT).rstrip(), where))
    if path.endswith(SHORT):
        return short_table(summary).rstrip()
    return f"{markdown_table(summary)}\n{markdown_verdicts(summary).rstrip()}"


def results_of(root: Path, path: str, where: str) -> Sequence[Result]:
    """Load the results of the folder or file that a marker names.

    Raises:
        ResultError: the path does not exist or holds no results.
    """
    if not (root / path).exists():
        raise ResultError(f"{where}: results folder {path} does not exist under {root}")
    return load_results(root / path)


RENDERERS: dict[str, Renderer] = {"results": comparison}
