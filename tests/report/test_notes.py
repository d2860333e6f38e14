"""Missing values, caveats and remarks of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from saelens_adaptive_ortho.evaluations import evaluation
from saelens_adaptive_ortho.evaluations.core import TRAINED_L0
from saelens_adaptive_ortho.report.notes import Health, concerns, concerns_of
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


def healthy(
    l0: float = 16.0, explained: float = 0.9, alive: float = 0.8, **details: float
) -> Result:
    metrics = {"explained_variance": explained, "l0": l0, "frac_alive": alive}
    return Result(
        "core",
        "adaptive",
        0,
        metrics={f"pooled/{n}": v for n, v in metrics.items()},
        details=details,
    )


def trained(l0: float = 16.0, explained: float = 0.9) -> Result:
    history = [{"step": 9, "l0": l0, "explained_variance": explained}]
    return Result("training", "adaptive", 0, details={"history": history})


def test_doubtful_saes_are_named() -> None:
    assert concerns_of([healthy(31.0), trained()]) == []
    assert concerns_of([healthy(16.0, 0.5, 0.5), trained()]) == []
    (l0,) = concerns_of([healthy(40.4), trained()])
    assert l0.startswith("adaptive (seed 0): L0 40.4, but 16 in training. ")
    (low,) = concerns_of([healthy(7.9), trained()])
    assert "L0 7.9, but 16 in training" in low
    # The files of the SAE tell its L0 where no training is in the results.
    (other,) = concerns_of([healthy(40.0, **{TRAINED_L0: 8.0})])
    assert "L0 40, but 8 in training" in other
    assert concerns_of([healthy(40.0)]) == []
    explained, alive = concerns_of([healthy(explained=0.31, alive=0.2), trained()])
    assert explained.startswith("adaptive (seed 0): explained variance 0.31, below 0.5. ")
    assert alive.startswith("adaptive (seed 0): fraction alive 0.2, below 0.5. ")
    assert concerns_of([trained(explained=0.2)]) == [explained.replace("0.31", "0.2")]
    assert concerns_of([Result("core", "adaptive", 0, "failed", "no text")]) == []


def test_doubts_of_one_kind_are_one_line(tmp_path: Path) -> None:
    results = [
        *core("baseline", [0.9, 0.41]),
        *core("adaptive", [0.3, 0.2]),
        *core("fixed", [0.8, 0.9]),
    ]
    summary = summarise(results)
    (line,) = summary.concerns
    assert line.startswith(
        "baseline (seed 1), adaptive (seeds 0, 1): explained variance 0.2 to 0.41, below 0.5."
    )
    assert f"Doubtful: {line}" in " ".join(shown(summary, full=False).split())
    assert line in " ".join(render_page(results).split())
    assert 'id="doubtful"' not in render_page(core("fixed", [0.8]))


def test_dead_latents_of_a_training() -> None:
    assert concerns({("sae", 0): Health(explained=0.9, dead=0.5)}) == []
    (dead,) = concerns({("sae", 0): Health(explained=0.9, dead=0.75)})
    assert dead.startswith("sae (seed 0): fraction dead 0.75, above 0.5. ")


@pytest.mark.filterwarnings("ignore:Left out:UserWarning")
def test_file_that_was_left_out_is_among_the_failures(tmp_path: Path) -> None:
    put(tmp_path, *core("baseline", [0.1]))
    assert "Failed or missing" not in write_report(tmp_path).read_text()
    (tmp_path / "results" / "mine__seed0__notes.json").write_text("<mine>")
    page = write_report(tmp_path).read_text()
    assert 'id="failures"' in page
    assert "<b>mine__seed0__notes.json</b>: left out, because no SAE of this run has" in page
    assert "<mine>" not in page
    assert str(tmp_path) not in page
