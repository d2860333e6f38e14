"""Missing values, caveats and remarks of a run."""

from __future__ import annotations

from pathlib import Path

from saelens_adaptive_ortho.evaluations import evaluation
from saelens_adaptive_ortho.report.page.run import render_page, write_report
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.report.tables import markdown_table, markdown_verdicts
from saelens_adaptive_ortho.report.verdicts import judge
from saelens_adaptive_ortho.results import (
    Result,
    load_results,
)
from tests.report.runs import (
    UNCLEAR,
    core,
    differing,
    every_result,
    failed,
    put,
    shown,
)


def test_gaps_are_grouped_by_reason() -> None:
    results = [r for r in failed("tpp", "a") if (r.variant, r.seed) != ("fixed", 1)]
    results.append(Result("tpp", "fixed", 1, "failed", "b"))
    assert [(g.saes, g.reason) for g in summarise(results).gap_groups] == [
        ("baseline (seeds 0, 1, 2), fixed (seeds 0, 2), adaptive (seeds 0, 1, 2)", "a"),
        ("fixed (seed 1)", "b"),
    ]


def test_unmeasured_part_is_remarked() -> None:
    summary = summarise(every_result(mcq=False))
    assert summary.evaluations["unlearning"].remarks == [
        "On text, forget damage is above retain damage at every limit.",
        "No multiple choice: the model answers no more questions than chance",
    ]
    assert "6 not measured" in judge(summary).evaluations["unlearning"][0].text


def test_texts_appear_once() -> None:
    details = {"caveat": "small model", "verdict": "No questions: none known.", "source": "demo"}
    results = [
        Result("tpp", "adaptive", 0, details=details | {"mcq_reason": "none known"}),
        Result("tpp", "adaptive", 1, details=details | {"caveat": "tiny model"}),
        Result("scr", "adaptive", 0),
    ]
    found = summarise(results).evaluations
    assert found["tpp"].caveats == [
        "adaptive (seed 0): small model",
        "adaptive (seed 1): tiny model",
    ]
    assert found["tpp"].remarks == ["Data: demo", "No questions: none known."]
    assert found["scr"].caveats == [evaluation("scr").caveat]


def test_gaps_are_shown_everywhere(tmp_path: Path) -> None:
    put(tmp_path, *core("baseline", [0.5, 0.6, None]), *core("adaptive", [0.7]))
    put(tmp_path, Result("core", "adaptive", 1, "failed", "out of <memory> | here"))
    summary = summarise(load_results(tmp_path))
    assert [(gap.kind, gap.variant, gap.seed, gap.eval) for gap in summary.gaps] == [
        ("failed", "adaptive", 1, "core"),
        ("missing", "adaptive", 2, "core"),
        ("null", "baseline", 2, "core"),
    ]
    assert "out of <memory> | here" in markdown_table(summary)
    assert "(n=2)" in markdown_table(summary)
    assert "out of <memory> | here" in shown(summary)
    page = write_report(tmp_path).read_text()
    assert "out of &lt;memory&gt; | here" in page
    assert "no result file" in page
    assert "no value for pooled/explained_variance" in page


def test_common_failure_is_one_line() -> None:
    reason = "needs a model that answers multiple choice"
    core = differing("core", {"pooled/explained_variance": UNCLEAR})
    core += [Result("core", "baseline", s, metrics=r.metrics) for s, r in enumerate(core[:3])]
    summary = summarise([*core, *failed("unlearning", reason)])
    (group,) = summary.gap_groups
    assert (group.kind, group.eval, group.saes) == ("failed", "unlearning", "every SAE (9)")
    assert len(summary.gaps) == 9
    found = judge(summary).evaluations["unlearning"]
    assert found
    assert all(v.verdict == "not measured" for v in found)
    assert all(v.text.endswith(f"not measured; {reason}") for v in found)
    assert markdown_table(summary).count(reason) == 1
    assert markdown_verdicts(summary).count(reason) == 1
    assert f"not measured, every SAE (9): {reason}" in shown(summary, 200)
    page = render_page([*core, *failed("unlearning", reason)])
    section = page[page.index('<section id="eval-unlearning">') :].split("</section>")[0]
    assert section.count(reason) == 1
    assert "<table" not in section
