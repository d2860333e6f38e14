"""The page of a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from saelens_adaptive_ortho.evaluations import BUILT_IN, evaluation
from saelens_adaptive_ortho.report.figures.files import run_figures
from saelens_adaptive_ortho.report.page import run
from saelens_adaptive_ortho.report.page.run import render_page, write_report
from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.report.summary import summary_json
from saelens_adaptive_ortho.report.tables import markdown_table
from saelens_adaptive_ortho.report.verdicts import judge
from saelens_adaptive_ortho.results import (
    Result,
)
from tests.report.pages import HOSTILE, Requests, plain
from tests.report.runs import (
    ACCURACY,
    CLEAR,
    COSINE,
    DAMAGE,
    core,
    differing,
    every_result,
    full_run,
    put,
    result,
    shown,
)


def test_self_contained(tmp_path: Path) -> None:
    page = write_report(full_run(tmp_path)).read_text()
    reader = Requests()
    reader.feed(page)
    assert reader.loads == ["script"]  # it is inline
    assert "default-src 'none'" in page
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
    contents = page[page.index('<nav id="contents"') :].split("</nav>")[0]
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


def test_caption_of_one_seed_speaks_of_no_intervals() -> None:
    one, three = (plain(render_page(every_result(seeds=seeds))) for seeds in (1, 3))
    assert run.TRADEOFF_CAPTION_ONE_SEED in one
    assert run.TRADEOFF_CAPTION not in one
    assert run.TRADEOFF_CAPTION in three


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


def test_a_sentence_keeps_its_text(page: str, summary: Summary) -> None:
    """The page highlights parts of a verdict and keeps its text."""
    text = plain(page)
    for name, found in judge(summary).evaluations.items():
        for verdict in found:
            if summary.evaluations[name].finished:
                assert verdict.text in text
    mixed = differing("unlearning", {DAMAGE[0]: CLEAR, ACCURACY[0]: CLEAR})
    (verdict,) = judge(summarise(mixed)).evaluations["unlearning"]
    assert verdict.text in plain(render_page(mixed))
    assert '<span class="whole">[+0.285, +0.335]</span>' in render_page(mixed)


def test_text_is_escaped_everywhere() -> None:
    texts = {
        name: HOSTILE.format(name)
        for name in "variant reason caveat source remark metric eval library version".split()
        + ["fingerprint", "config", "run"]
    }
    details = {"caveat": texts["caveat"], "source": texts["source"], "verdict": texts["remark"]}
    results: list[Result] = []
    for seed in (0, 1):
        for variant in ("baseline", texts["variant"]):
            measured: dict[str, float | None] = {"threshold_10": 0.1, texts["metric"]: 0.2 + seed}
            versions = {texts["library"]: texts["version"]}
            results += [
                result("tpp", variant, seed, measured, details=details, versions=versions),
                result(texts["eval"], variant, seed, {"a": 0.1}, fingerprint=texts["fingerprint"]),
                Result("scr", variant, seed, "failed", texts["reason"]),
            ]
    page = render_page(results, texts["config"], texts["run"])
    reader = Requests()
    reader.feed(page)
    assert reader.loads == ["script"]
    assert reader.open == []
    assert f"eval-{texts['eval']}" in reader.ids
    assert page.count("<script") == 1
    shown = plain(page)
    # A label shows underscores as spaces and a title has a capital, so these texts have neither.
    for text in texts.values():
        assert text in shown, text


def test_package_import_loads_no_libraries() -> None:
    code = (
        "import sys\n"
        "import saelens_adaptive_ortho.report\n"
        "print([m for m in ('matplotlib', 'jinja2', 'rich', 'numpy') if m in sys.modules])\n"
    )
    code = "import sys\nsys.modules['sae_lens'] = None\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["[]"], done.stderr


def test_config_that_is_not_utf8_is_shown_with_replacement_characters(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    (run / "config.yaml").write_bytes(b"model: caf\xe9\n")
    assert "model: caf\N{REPLACEMENT CHARACTER}" in write_report(run).read_text("utf-8")
