"""The report: results in, statistics, tables, figures and page out."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from saelens_adaptive_ortho.files import write_text_atomic
from saelens_adaptive_ortho.report import (
    Summary,
    describe,
    markdown_table,
    render_page,
    run_figures,
    save_plots,
    summarise,
    terminal_table,
    update_tables,
    write_report,
    write_summary,
)
from saelens_adaptive_ortho.report.formatting import estimate, number, signed
from saelens_adaptive_ortho.results import (
    Result,
    ResultError,
    load_result,
    load_results,
    order_variants,
    result_path,
    write_result,
)

EV = "core/pooled/explained_variance"
CE = "core/pooled/ce_loss_score"
ANGLE = "subspace/principal_angle/mean_deg"
COSINE = "subspace/mean_max_cosine"


def result(
    eval: str, variant: str, seed: int, metrics: Mapping[str, float | None], **rest: Any
) -> Result:
    return Result(eval, variant, seed, metrics=metrics, **rest)


def core(
    variant: str, values: list[float | None], name: str = "explained_variance"
) -> list[Result]:
    return [result("core", variant, s, {f"pooled/{name}": v}) for s, v in enumerate(values)]


def put(run: Path, *results: Result) -> Path:
    for each in results:
        write_result(result_path(run, each.variant, each.seed, each.eval), each)
    return run


def full_run(run: Path) -> Path:
    for v, variant in enumerate(("baseline", "adaptive")):
        for seed in range(3):
            history = [
                {
                    "step": step,
                    "n_training_samples": 10 * step,
                    "mse_loss": 1 / (step + 1),
                    "explained_variance": 1 - 1 / (step + 2),
                    "l0": 8.0,
                    "ortho_loss": 0.1 if v else None,
                }
                for step in range(5)
            ]
            groups = [
                {"step": s, "n_groups": 4 + s, "largest": 9, "churn": 0.5 / (s + 1)}
                for s in range(3)
            ]
            put(
                run,
                result(
                    "core",
                    variant,
                    seed,
                    {
                        "pooled/explained_variance": 0.9 + 0.001 * seed - 0.01 * v,
                        "pooled/ce_loss_score": 0.95 + 0.002 * seed * (-1) ** v,
                        "pooled/l0": 8.0,
                        "forget/frac_alive": 0.7,
                    },
                    versions={"sae-lens": "6.54.12"},
                    seconds=2.0,
                ),
                result(
                    "subspace",
                    variant,
                    seed,
                    {
                        "principal_angle/mean_deg": 50.0 + seed + (10 + 0.1 * seed) * v,
                        "mean_max_cosine": 0.4 - 0.1 * v + 0.01 * seed * (1 + v),
                        "condition_number/forget+retain": None,
                    },
                    details={
                        "principal_angles_deg": [40.0 + v, 60.0][: 2 - seed % 2],
                        "cosine_histogram": {"edges": [-1, -0.5, 0, 1], "counts": [0, 9, 1]},
                        "firing_rates": {"forget": [0.1, 0.0, 0.02], "retain": [0.0, 0.2, 0.01]},
                    },
                ),
                result(
                    "training",
                    variant,
                    seed,
                    {"train_seconds": 3.0 + v, "tokens": 40},
                    details={"history": history, "groups": groups},
                ),
            )
    (run / "config.yaml").write_text("model: tiny <&>\n", encoding="utf-8")
    return run


def shown(summary: Summary, width: int = 120) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(terminal_table(summary))
    return console.export_text()


# Statistics


def test_paired_interval_equals_the_one_worked_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, t(0.975; 2) = 4.302653, half width 4.302653 / √3.
    results = [*core("baseline", [10.0, 20.0, 30.0]), *core("adaptive", [11.0, 22.0, 33.0])]
    difference = summarise(results).metrics[EV].difference("adaptive", "baseline")
    assert difference is not None
    assert difference.spread.by_seed == {0: 1.0, 1: 2.0, 2: 3.0}
    assert difference.spread.mean == pytest.approx(2.0)
    assert difference.spread.std == pytest.approx(1.0)
    assert difference.spread.ci95 == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert difference.dz == pytest.approx(2.0)
    assert difference.verdict == "no difference at 95%"


def test_spread_of_a_variant_equals_the_one_worked_by_hand() -> None:
    # 2 and 4: mean 3, deviation √2, t(0.975; 1) = 12.706205, half width 12.706205 · √2 / √2.
    spread = summarise(core("baseline", [2.0, 4.0])).metrics[EV].variants["baseline"]
    assert (spread.mean, spread.n) == (3.0, 2)
    assert spread.std == pytest.approx(math.sqrt(2))
    assert spread.ci95 == pytest.approx((3 - 12.706205, 3 + 12.706205), abs=1e-5)


def test_pairing_finds_a_difference_that_the_spread_of_seeds_would_hide() -> None:
    results = [*core("baseline", [0.1, 0.5, 0.9]), *core("adaptive", [0.14, 0.55, 0.94])]
    metric = summarise(results).metrics[EV]
    difference = metric.difference("adaptive", "baseline")
    assert difference is not None
    assert difference.verdict == "better"
    baseline, adaptive = metric.variants["baseline"].ci95, metric.variants["adaptive"].ci95
    assert baseline is not None
    assert adaptive is not None
    assert adaptive[0] < baseline[1]


@pytest.mark.parametrize(
    ("name", "shift", "verdict"),
    [
        ("explained_variance", +0.5, "better"),
        ("explained_variance", -0.5, "worse"),
        ("mse", +0.5, "worse"),
        ("mse", -0.5, "better"),
        ("explained_variance", 0.0, "no difference at 95%"),
        ("l0", +0.5, None),
        ("never_heard_of", +0.5, None),
    ],
)
def test_verdict_follows_the_direction_of_the_metric(
    name: str, shift: float, verdict: str | None
) -> None:
    base: list[float | None] = [0.1, 0.2, 0.3]
    other: list[float | None] = [0.1 + shift, 0.21 + shift, 0.29 + shift]
    results = [*core("baseline", base, name), *core("fixed", other, name)]
    difference = summarise(results).metrics[f"core/pooled/{name}"].difference("fixed", "baseline")
    assert difference is not None
    assert difference.verdict == verdict


def test_one_seed_is_too_few() -> None:
    summary = summarise([*core("baseline", [0.5]), *core("adaptive", [0.9])])
    difference = summary.metrics[EV].difference("adaptive", "baseline")
    assert difference is not None
    assert (difference.verdict, difference.spread.ci95, difference.dz) == (
        "too few seeds",
        None,
        None,
    )
    assert "too few seeds to judge the cost" in summary.verdict


def test_equal_differences_have_no_effect_size_and_rounding_counts_as_zero() -> None:
    base: list[float | None] = [0.1, 0.2, 0.3]
    rounding: list[float | None] = [0.1 + 1e-17, 0.2 + 3e-17, 0.1 + 0.2]
    difference = (
        summarise([*core("baseline", base), *core("fixed", rounding)])
        .metrics[EV]
        .difference("fixed", "baseline")
    )
    assert difference is not None
    assert difference.spread.ci95 == (0.0, 0.0)
    assert difference.verdict == "no difference at 95%"
    assert difference.dz is None


def test_only_seeds_that_both_variants_have_are_paired() -> None:
    results = [*core("baseline", [1.0, 2.0, None]), *core("adaptive", [None, 3.0, 4.0])]
    summary = summarise(results)
    difference = summary.metrics[EV].difference("adaptive", "baseline")
    assert difference is not None
    assert difference.spread.by_seed == {1: 1.0}
    assert summary.metrics[EV].variants["adaptive"].n == 2
    assert [gap.kind for gap in summary.gaps] == ["null", "null"]


def test_every_variant_is_compared_with_the_first_and_with_fixed_once() -> None:
    results = [r for v in ("odd", "adaptive", "fixed", "baseline") for r in core(v, [0.1, 0.2])]
    summary = summarise(results)
    assert summary.variants == ["baseline", "fixed", "adaptive", "odd"]
    assert summary.pairs == [
        ("fixed", "baseline"),
        ("adaptive", "baseline"),
        ("odd", "baseline"),
        ("adaptive", "fixed"),
        ("odd", "fixed"),
    ]
    assert order_variants(["b", "a", "b"]) == ["b", "a"]


def test_metric_labels_carry_corpus_group_unit_and_direction() -> None:
    assert describe("core/forget/ce_loss_score").label == "CE loss score, forget"
    assert describe("core/forget/ce_loss_score").direction == "higher"
    assert describe("subspace/condition_number/forget+retain").direction == "lower"
    assert describe("subspace/principal_angle/min_deg").unit == "°"
    assert describe("later/some_new_score").label == "some new score"
    assert describe("later/some_new_score").direction is None


# The verdict in words


def verdict_of(angles: list[float], cosines: list[float], ev: list[float]) -> str:
    results = []
    for seed in range(3):
        results += [
            result(
                "subspace",
                "baseline",
                seed,
                {"principal_angle/mean_deg": 50.0 + seed, "mean_max_cosine": 0.5},
            ),
            result(
                "subspace",
                "adaptive",
                seed,
                {
                    "principal_angle/mean_deg": 50 + angles[seed],
                    "mean_max_cosine": 0.5 + cosines[seed],
                },
            ),
            result("core", "baseline", seed, {"pooled/explained_variance": 0.9}),
            result("core", "adaptive", seed, {"pooled/explained_variance": 0.9 + ev[seed]}),
        ]
    return summarise(results).verdict


def test_verdict_says_better_and_names_the_cost() -> None:
    text = verdict_of([10, 11.1, 12], [-0.1, -0.11, -0.12], [-0.02, -0.021, -0.022])
    assert "over 3 paired seeds, adaptive separates" in text
    assert "decoder directions better: mean principal angle between forget and retain +1" in text
    assert "It costs reconstruction: explained variance −0.021" in text
    assert "do not show that the knowledge itself is separated" in text


def test_verdict_never_turns_no_difference_into_no_cost() -> None:
    text = verdict_of([10, 11.1, 12], [-0.1, -0.11, -0.12], [-0.01, 0.01, 0.0])
    # Half width 0.01 · 4.302653 / √3 = 0.0248.
    assert "leaves room for a loss of up to 0.025" in text
    assert "no cost" not in text


def test_verdict_can_be_worse_mixed_and_undecided() -> None:
    none = [0.0, 0.0, 0.0]
    assert "directions worse" in verdict_of([-10, -9, -8.5], [0.1, 0.11, 0.12], none)
    assert "mixed evidence" in verdict_of([10, 11.1, 12], [0.1, 0.11, 0.12], none)
    assert "shows no difference at 95%" in verdict_of([0, 1, 2], none, none)


def test_verdict_admits_what_was_not_measured() -> None:
    only_core = summarise([*core("baseline", [0.1, 0.2]), *core("adaptive", [0.1, 0.2])])
    assert "no subspace results" in only_core.verdict
    angles = [
        result("subspace", v, s, {"mean_max_cosine": 0.1 * s + 0.3})
        for v in ("baseline", "adaptive")
        for s in range(2)
    ]
    assert "cost in reconstruction is not known" in summarise(angles).verdict
    assert "nothing to compare" in summarise(core("baseline", [0.1])).verdict


# Files


def test_a_written_result_is_read_back_equal(tmp_path: Path) -> None:
    written = result(
        "core",
        "adaptive",
        3,
        {"pooled/mse": 0.25, "pooled/l0": None},
        details={"note": ["é", 1, {"deep": 2.5}]},
        seconds=1.5,
        fingerprint="ab",
        versions={"a": "1"},
    )
    path = result_path(tmp_path, "adaptive", 3, "core")
    assert path.name == "adaptive__seed3__core.json"
    assert load_result(write_result(path, written)) == written


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_refused_by_name(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "baseline__seed0__core.json"
    with pytest.raises(ValueError, match="pooled/mse"):
        write_result(path, result("core", "baseline", 0, {"pooled/mse": bad}))
    with pytest.raises(ValueError, match=r"details\.curve\[1\]"):
        write_result(path, result("core", "baseline", 0, {}, details={"curve": [0.0, bad]}))
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text_atomic(tmp_path / "x.json", "old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[: len(text) // 2], "not complete JSON"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), "reads 1"),
        (lambda text: text.replace("0.5", "NaN"), "not complete JSON"),
        (lambda text: text.replace("0.5", '"many"'), "pooled/mse"),
        (lambda text: text.replace('"ok"', '"fine"'), "status"),
        (lambda text: text.replace('"ok"', '"failed"'), "without a 'reason'"),
        (lambda text: text.replace('"seed": 0', '"seed": 4'), "is named for"),
        (lambda _: "[]", "JSON object"),
    ],
)
def test_an_unusable_file_is_named_with_the_remedy(
    tmp_path: Path, change: Any, problem: str
) -> None:
    path = write_result(
        result_path(tmp_path, "baseline", 0, "core"),
        result("core", "baseline", 0, {"pooled/mse": 0.5}),
    )
    path.write_text(change(path.read_text()))
    with pytest.raises(ResultError, match="delete this file and rerun compare") as caught:
        load_results(tmp_path)
    assert path.name in str(caught.value)
    assert problem in str(caught.value)


def test_loading_skips_the_summary_and_orders_variants(tmp_path: Path) -> None:
    for variant in ("adaptive", "other", "baseline", "fixed"):
        put(tmp_path, *core(variant, [0.1]))
    write_summary(tmp_path)
    assert [r.variant for r in load_results(tmp_path)] == ["baseline", "fixed", "adaptive", "other"]
    with pytest.raises(ResultError, match="run compare first"):
        load_results(tmp_path / "nothing")


def test_a_name_that_a_file_cannot_carry_is_refused(tmp_path: Path) -> None:
    for variant in ("a/b", "a__seed1__x", ""):
        with pytest.raises(ValueError, match="no file name"):
            result_path(tmp_path, variant, 0, "core")


def test_the_summary_file_is_strict_json_with_the_statistics(tmp_path: Path) -> None:
    path = write_summary(full_run(tmp_path))
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    angle = document["metrics"][ANGLE]
    assert path == tmp_path / "results" / "summary.json"
    assert angle["variants"]["baseline"]["by_seed"] == {"0": 50.0, "1": 51.0, "2": 52.0}
    assert angle["differences"][0]["verdict"] == "better"
    assert document["verdict"].startswith("Against baseline over 3 paired seeds")


# Tables, page and figures


def test_failures_and_missing_files_are_shown_everywhere(tmp_path: Path) -> None:
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


def test_the_page_is_self_contained_and_well_formed(tmp_path: Path) -> None:
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


def test_mixed_library_versions_are_pointed_out() -> None:
    results = [
        result("core", v, 0, {"pooled/mse": 0.1}, versions={"sae-lens": version})
        for v, version in (("baseline", "6.1"), ("adaptive", "6.2"))
    ]
    assert "different versions of sae-lens" in render_page(results)


def test_plots_are_written_as_svg_and_png(tmp_path: Path) -> None:
    put(tmp_path, *core("baseline", [0.1, 0.2]))
    assert [path.name for path in save_plots(tmp_path)] == ["headline.svg", "headline.png"]
    assert (tmp_path / "plots" / "headline.png").read_bytes()[:4] == b"\x89PNG"


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
def test_sparse_results_give_every_output_without_a_crash(results: list[Result]) -> None:
    summary = summarise(results)
    json.dumps(summary.to_json(), allow_nan=False)
    run_figures(summary, results)
    assert shown(summary, width=60)
    assert markdown_table(summary)
    assert "</html>" in render_page(results)


def test_markdown_shows_difference_interval_and_verdict(tmp_path: Path) -> None:
    table = markdown_table(summarise(load_results(full_run(tmp_path))), [ANGLE, "core/absent"])
    lines = table.splitlines()
    assert lines[0] == "| metric | baseline | adaptive | adaptive − baseline |"
    # Differences 10, 10.1, 10.2: half width 0.1 · 4.302653 / √3 = 0.248.
    assert lines[2] == (
        "| mean principal angle (°) ↑ | 51.0 ± 1.0 | 61.1 ± 1.1 | "
        "+10.10 [+9.85, +10.35] **better** |"
    )
    assert lines[3] == "| core/absent | – | – | – |"


def test_numbers_show_what_their_uncertainty_supports() -> None:
    assert estimate(-0.00247, (-0.00450, -0.00043)) == ("−0.0025", "[−0.0045, −0.0004]")
    # The verdict hangs on the sign of the bound, so it may not read as zero.
    assert estimate(0.050003, (0.000003, 0.100003))[1] == "[0.000, +0.100]"
    assert estimate(0.0504, (0.0004, 0.1004))[1] == "[+0.0004, +0.1004]"
    assert estimate(0.0, (0.0, 0.0)) == ("0", "[0, 0]")
    assert number(-0.001, 2) == "0.00"
    assert signed(2048000.0, 0) == "+2,048,000"
    assert number(1.234e7 + 0.5, 1) == "1.23e+07"


# Tables inside a markdown file


def test_updating_a_readme_is_idempotent_and_checkable(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: gone -->\n<!-- /results -->\n", "results folder gone does not exist"),
        ("<!-- results: run -->\n", "no <!-- /results -->"),
        ("<!-- results: run -->\n<!-- results: run -->\n<!-- /results -->\n", "marker inside"),
    ],
)
def test_a_readme_that_cannot_be_updated_is_an_error(
    tmp_path: Path, text: str, message: str
) -> None:
    put(tmp_path / "run", *core("baseline", [0.1]))
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ResultError, match=message):
        update_tables(readme, tmp_path)
    assert readme.read_text() == text


def test_the_report_works_where_torch_and_sae_lens_are_not_installed(tmp_path: Path) -> None:
    put(tmp_path, *core("baseline", [0.1]))
    code = (
        "import sys\n"
        "for name in ('torch', 'sae_lens', 'transformer_lens', 'sae_bench'):\n"
        "    sys.modules[name] = None\n"
        "from saelens_adaptive_ortho.report import write_report\n"
        "write_report(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").is_file()
