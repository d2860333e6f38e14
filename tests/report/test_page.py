"""The page of a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from saelens_adaptive_ortho.evaluations import BUILT_IN, evaluation
from saelens_adaptive_ortho.report.figures.files import run_figures
from saelens_adaptive_ortho.report.page.run import render_page, write_report
from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.report.summary import summary_json
from saelens_adaptive_ortho.report.tables import markdown_table
from saelens_adaptive_ortho.report.verdicts import judge
from saelens_adaptive_ortho.results import (
    Result,
)
from tests.report.runs import (
    COSINE,
    core,
    full_run,
    put,
    result,
    shown,
)


class Requests(HTMLParser):
    """Collects everything in a page that would load something, and the tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "hr", "img"):
            self.open.append(tag)
        self._look(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            inside = (value or "").startswith(("#", "data:"))
            if name in ("src", "href", "xlink:href", "srcset", "data") and not inside:
                self.loads.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value or "")
        if tag in ("script", "link", "iframe", "object"):
            self.loads.append(tag)


def test_self_contained(tmp_path: Path) -> None:
    page = write_report(full_run(tmp_path)).read_text()
    reader = Requests()
    reader.feed(page)
    assert reader.loads == []
    assert reader.open == []
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(reader.ids) == len(set(reader.ids))
    assert page.count("<svg") == 6
    assert "model: tiny &lt;&amp;&gt;" in page
    assert "6.54.12" in page
    assert "Against baseline over 3 paired seeds" in page


def test_sections_in_order(page: str) -> None:
    names = [info.name for info in BUILT_IN] + ["later_probe"]
    assert re.findall(r'<section id="eval-([a-z_]+)">', page) == names
    contents = page[page.index('<nav id="contents"') : page.index("</nav>")]
    assert re.findall(r'href="#eval-([a-z_]+)"', contents) == names
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'<a href="#([^"]+)"', page):
        assert target in ids
    assert "arXiv 2605.18229" in page
    assert "Took 61 s per SAE (mean of 9)" in page
    assert "dz " in page
    assert "On text, forget damage is above retain damage at every limit." in page
    assert "needs a model that answers multiple choice: 26% right of 4 options" in page


def test_unknown_evaluation(summary: Summary, page: str) -> None:
    found = summary.evaluations["later_probe"]
    assert (found.info.title, found.info.primary) == ("Later probe", ())
    assert judge(summary).of("later_probe", ("adaptive", "baseline")) is None
    section = page[page.index('<section id="eval-later_probe">') :].split("</section>")[0]
    assert "some score" in section
    assert "other score" in section
    assert evaluation("later_probe").short == ""


def test_mixed_versions() -> None:
    results = [
        result("core", v, 0, {"pooled/mse": 0.1}, versions={"sae-lens": version})
        for v, version in (("baseline", "6.1"), ("adaptive", "6.2"))
    ]
    assert "different versions of sae-lens" in render_page(results)


@pytest.mark.parametrize(
    "results",
    [
        core("baseline", [0.5]),
        core("baseline", [None, None]),
        [*core("baseline", [0.5, None]), *core("adaptive", [None, None])],
        [Result("core", "adaptive", 0, "failed", "why")],
        [result("training", "x", 0, {}, details={"history": []})],
        [result("subspace", "x", 0, {COSINE[9:]: 1e9}, details={"principal_angles_deg": []})],
        [result("later", "x", 0, {"score": 3.0}), result("core", "y", 1, {"pooled/l0": 0.0})],
    ],
    ids=["one seed", "all null", "null variant", "all failed", "empty", "huge", "apart"],
)
def test_sparse_results(results: list[Result]) -> None:
    summary = summarise(results)
    json.dumps(summary_json(summary), allow_nan=False)
    run_figures(summary, results)
    assert shown(summary, width=60)
    assert markdown_table(summary)
    assert "</html>" in render_page(results)


def test_without_torch(tmp_path: Path) -> None:
    put(tmp_path, *core("baseline", [0.1]))
    code = (
        "import sys\n"
        "for name in ('torch', 'sae_lens', 'transformer_lens', 'sae_bench'):\n"
        "    sys.modules[name] = None\n"
        "from saelens_adaptive_ortho.report.page.run import write_report\n"
        "write_report(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").is_file()
