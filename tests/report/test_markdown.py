"""Tables inside a markdown file."""

from __future__ import annotations

from pathlib import Path

import pytest

from saelens_adaptive_ortho.report.markdown import has_tables, update_tables
from saelens_adaptive_ortho.results import (
    ResultError,
)
from tests.report.runs import (
    core,
    full_run,
    put,
)


def test_update_is_idempotent(tmp_path: Path) -> None:
    full_run(tmp_path / "runs" / "a")
    readme = tmp_path / "README.md"
    readme.write_text(
        "# T\n\n```\n<!-- results: not/a/run -->\n```\n\n<!-- results: runs/a -->\nstale\n"
        "<!-- /results -->\n\ntail\n"
    )
    before = readme.read_text()
    assert update_tables(readme, check=True) is True
    assert readme.read_text() == before
    assert update_tables(readme) is True
    after = readme.read_text()
    assert "| mean principal angle (°) ↑ |" in after
    assert "stale" not in after
    assert after.endswith("<!-- /results -->\n\ntail\n")
    assert update_tables(readme) is False
    assert update_tables(readme, check=True) is False
    assert readme.read_text() == after


def test_short_form(tmp_path: Path) -> None:
    full_run(tmp_path / "a short run")
    readme = tmp_path / "README.md"
    text = "<!-- results: a short run short -->\n<!-- /results -->\n"
    text += "<!-- results: a short run -->\n<!-- /results -->\n"
    readme.write_text(text)
    assert update_tables(readme) is True
    short, full = readme.read_text().split("<!-- results: a short run -->")
    assert "| explained variance, pooled ↑ |" in short
    assert "**Found.** adaptive against baseline over 3 paired seeds: " in short
    # Every metric that the sentence names has a row.
    assert "| mean principal angle (°) ↑ |" in short
    assert "| L0" not in short
    assert "**Verdict.**" not in short
    assert "| L0" in full
    assert "**Verdict.**" in full
    assert update_tables(readme, check=True) is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: gone -->\n<!-- /results -->\n", "results folder gone does not exist"),
        ("<!-- results: gone short -->\n<!-- /results -->\n", "results folder gone does not"),
        ("<!-- results: run -->\n", "no <!-- /results -->"),
        ("<!-- results: run -->\n<!-- results: run -->\n<!-- /results -->\n", "marker inside"),
    ],
)
def test_bad_markers_are_refused(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path / "run", *core("baseline", [0.1]))
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ResultError, match=message):
        update_tables(readme, tmp_path)
    assert readme.read_text() == text


def test_page_without_markers_has_no_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text, expected in (
        ("words\n", False),
        ("```\n<!-- results: run -->\n```\n", False),
        ("```\ncode\n```\n<!-- results: run -->\n<!-- /results -->\n", True),
    ):
        page.write_text(text)
        assert has_tables(page) is expected
