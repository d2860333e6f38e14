"""``adaptive-ortho tables``: regenerate the tables of a markdown file from the results it names."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from saelens_adaptive_ortho.commands.options import Command

MARKERS = "<!-- results: PATH --> and <!-- /results -->"


@dataclass(frozen=True, kw_only=True)
class TablesOptions:
    """The markdown file.

    Args:
        markdown: a markdown file, e.g. README.md.
        check: only check whether the tables are up to date; write nothing.
    """

    markdown: Path = field(metadata={"positional": "MARKDOWN"})
    check: bool = False


def run(options: TablesOptions) -> int:
    """Write the tables, or check whether they match the results."""
    from saelens_adaptive_ortho.report.markdown import has_tables, update_tables

    path = options.markdown
    changed = update_tables(path, path.parent, check=options.check)
    if options.check and changed:
        print(f"{path}: tables are not those of the results; run without --check", file=sys.stderr)
        return 1
    if not has_tables(path):
        print(f"{path}: has no table, which is a pair of markers: {MARKERS}", file=sys.stderr)
    return 0


COMMAND = Command(
    name="tables",
    help="Regenerate the tables of a markdown file from the results it names.",
    options=TablesOptions,
    run=run,
    needs_sae_lens=False,
)
