"""Curves over sparsity: which SAEs are one method, and values at equal L0, from known curves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelens_adaptive_ortho.report.figures.sparsity import sparsity_figure
from saelens_adaptive_ortho.report.page.run import render_page, write_report
from saelens_adaptive_ortho.report.published import group, read_folder
from saelens_adaptive_ortho.report.sparsity import (
    MOST_LEVELS,
    at_equal_l0,
    common_l0s,
    interpolate,
    main_keys,
    methods,
)
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.report.summary import summary_json
from saelens_adaptive_ortho.report.tables import short_table
from saelens_adaptive_ortho.results import Result, load_results
from tests.report.pages import plain
from tests.report.published_files import sweep
from tests.report.runs import EV, put

#: Number in the name -> L0 of seed 0. Seed s measures 2% more per seed.
BASELINE = {20: 20.0, 40: 41.0, 80: 85.0}
ADAPTIVE = {20: 24.0, 40: 50.0, 80: 100.0}
#: The adaptive curve is above the baseline's by this much at every L0; per seed by a little more.
GAIN = 0.05

Curve = Callable[[float, int], float]


def baseline_curve(l0: float, seed: int) -> float:
    return 0.3 + 0.1 * math.log(l0) + 0.01 * seed


def adaptive_curve(l0: float, seed: int) -> float:
    return baseline_curve(l0, seed) + GAIN + 0.001 * seed


def saes(name: str, numbers: Mapping[int, float], curve: Curve, seeds: int = 3) -> list[Result]:
    found: list[Result] = []
    for number, base in numbers.items():
        for seed in range(seeds):
            l0 = base * 1.02**seed
            values = {"pooled/l0": l0, "pooled/explained_variance": curve(l0, seed)}
            found.append(Result("core", f"{name}={number}", seed, metrics=values))
    return found


def two_methods(seeds: int = 3) -> list[Result]:
    first = saes("baseline", BASELINE, baseline_curve, seeds)
    return [*first, *saes("adaptive", ADAPTIVE, adaptive_curve, seeds)]


@given(
    st.lists(st.floats(0.1, 1e4), min_size=2, max_size=6, unique=True),
    st.floats(-5, 5),
    st.floats(-5, 5),
    st.floats(0, 1),
)
def test_a_line_in_log_l0_is_interpolated_exactly(
    l0s: list[float], start: float, slope: float, share: float
) -> None:
    points = [(l0, start + slope * math.log(l0)) for l0 in sorted(l0s)]
    low, high = points[0][0], points[-1][0]
    wanted = min(max(low * (high / low) ** share, low), high)
    found = interpolate(points, wanted)
    assert found == pytest.approx(start + slope * math.log(wanted), abs=1e-6)
    assert interpolate(points, low * 0.999) is None
    assert interpolate(points, high * 1.001) is None


def test_values_at_measured_points_are_the_measured_ones() -> None:
    points = [(10.0, 3.0), (20.0, -1.0), (20.0, 5.0), (40.0, 7.0)]
    assert interpolate(points, 10.0) == 3.0
    assert interpolate(points, 20.0) == 2.0  # the mean of both
    assert interpolate(points, 20.0 * math.sqrt(2)) == pytest.approx((2.0 + 7.0) / 2)
    assert interpolate(points, 10.0 * math.sqrt(2)) == pytest.approx((3.0 + 2.0) / 2)
    assert interpolate([], 10.0) is None
    assert interpolate([(10.0, 3.0)], 10.5) is None


def test_a_series_of_different_sparsities_is_a_method_with_a_curve() -> None:
    results = [*two_methods(), *saes("groups", {1: 20.0, 3: 20.5}, baseline_curve)]
    results += [Result("core", "fixed", 0, metrics={"pooled/l0": 33.0})]
    results += [Result("subspace", "alone", 0, metrics={"mean_max_cosine": 0.1})]
    found = {m.name: (list(m.variants), m.has_curve) for m in methods(summarise(results))}
    assert found == {
        "baseline": (["baseline=20", "baseline=40", "baseline=80"], True),
        "adaptive": (["adaptive=20", "adaptive=40", "adaptive=80"], True),
        "groups": (["groups=1", "groups=3"], False),
        "fixed": (["fixed"], False),
    }


def test_methods_at_equal_l0_differ_by_the_known_gain() -> None:
    found = at_equal_l0(summarise(two_methods()))
    assert [one.key for one in found] == [EV] * len(found)
    # The range that all curves cover: from the largest first L0 (adaptive, the last seed) to the
    # smallest last L0 (baseline, seed 0).
    low, high = 24.0 * 1.02**2, 85.0
    l0s = [one.l0 for one in found]
    assert len(l0s) == 3
    assert low <= l0s[0] < low + 0.1
    assert high - 0.1 < l0s[-1] <= high
    assert l0s[1] == pytest.approx(math.sqrt(l0s[0] * l0s[2]), rel=0.01)
    for one in found:
        for name, curve in (("baseline", baseline_curve), ("adaptive", adaptive_curve)):
            expected = {seed: pytest.approx(curve(one.l0, seed)) for seed in range(3)}
            assert one.values[name].by_seed == expected
        assert list(one.differences) == ["adaptive"]
        difference = one.differences["adaptive"]
        assert difference.by_seed == {s: pytest.approx(GAIN + 0.001 * s) for s in range(3)}
        assert difference.ci95 is not None
        # t(0.975; 2) = 4.3027; the standard deviation of 0, 0.001, 0.002 is 0.001.
        half = 4.302653 * 0.001 / math.sqrt(3)
        expected_ci = (GAIN + 0.001 - half, GAIN + 0.001 + half)
        assert difference.ci95 == pytest.approx(expected_ci, rel=1e-5)


def test_nothing_is_extrapolated() -> None:
    results = two_methods()
    results += saes("wide", {1: 300.0, 2: 900.0}, baseline_curve)
    found = at_equal_l0(summarise(results))
    assert found
    # There is no common range, so it is the one of the first method.
    assert 20.0 * 1.02**2 <= found[0].l0 < found[-1].l0 <= 85.0
    for one in found:
        assert one.values["wide"].n == 0
        assert one.values["baseline"].n == 3
        covered = [s for s in range(3) if 24.0 * 1.02**s <= one.l0 <= 100.0 * 1.02**s]
        assert sorted(one.values["adaptive"].by_seed) == covered
    assert "outside" in plain(render_page(results))


def test_a_seed_with_missing_saes_counts_only_where_it_was_measured() -> None:
    results = [r for r in two_methods() if (r.variant, r.seed) != ("adaptive=80", 1)]
    found = at_equal_l0(summarise(results))
    assert max(one.l0 for one in found) <= 50.0 * 1.02
    single = [r for r in results if r.seed != 1 or r.variant in ("adaptive=20", "baseline=20")]
    kept = at_equal_l0(summarise(single))
    assert kept[-1].l0 == 85.0
    assert sorted(kept[-1].values["adaptive"].by_seed) == [0, 2]


@given(
    st.lists(st.lists(st.floats(0.5, 5000), min_size=2, max_size=8), min_size=1, max_size=4),
)
def test_common_l0s_are_within_the_covered_range(lists: list[list[float]]) -> None:
    curves = [{0: [(l0, 0.0) for l0 in sorted(l0s)]} for l0s in lists]
    levels = common_l0s(curves)
    low, high = max(min(l0s) for l0s in lists), min(max(l0s) for l0s in lists)
    if low > high:
        low, high = min(lists[0]), max(lists[0])
    assert 1 <= len(levels) <= MOST_LEVELS
    assert levels == sorted(levels)
    tiny = 1e-9 * high
    assert all(low - tiny <= level <= high + tiny for level in levels)


def test_without_different_sparsities_there_is_nothing_to_compare() -> None:
    results = saes("groups", {1: 20.0, 3: 20.5}, baseline_curve)
    summary = summarise(results)
    assert at_equal_l0(summary) == []
    assert sparsity_figure(summary) is None
    assert "at_equal_l0" not in summary_json(summary)
    assert "Over sparsity" not in plain(render_page(results))
    no_l0 = summarise([Result("core", "a=1", 0, metrics={"pooled/explained_variance": 0.5})])
    assert methods(no_l0) == []


def test_main_metrics_are_those_of_the_headline_figure_without_l0() -> None:
    measured = {f"pooled/{n}": 0.5 for n in ("explained_variance", "mse", "l0", "frac_alive")}
    results = [
        Result("core", "a=1", 0, metrics=measured),
        Result("unlearning", "a=1", 0, metrics={"score": 0.1, "mcq/forget_accuracy_at_0.95": 0.4}),
        Result("sparse_probing", "a=1", 0, metrics={"sae_top_5_accuracy": None}),
    ]
    keys = [EV, "core/pooled/frac_alive", "unlearning/mcq/forget_accuracy_at_0.95"]
    summary = summarise(results)
    assert main_keys(summary) == keys
    assert main_keys(summary, ["unlearning/score", "tpp/threshold_10"]) == [
        *keys,
        "unlearning/score",
    ]


def test_the_figure_has_a_line_per_method_and_a_dot_per_sae(tmp_path: Path) -> None:
    sweep(tmp_path, "topk", {30.0: 0.5, 60.0: 0.6})
    results = [*two_methods(), Result("core", "fixed", 0, metrics={"pooled/l0": 33.0})]
    figure = sparsity_figure(summarise(results), group(read_folder(tmp_path, lambda _: None)))
    assert figure is not None
    (axes,) = figure.axes
    lines = {tuple(line.get_xdata()): line for line in axes.lines}
    means = [l0 * (1 + 1.02 + 1.02**2) / 3 for l0 in BASELINE.values()]
    (baseline,) = (line for x, line in lines.items() if x == pytest.approx(tuple(means)))
    values = [
        sum(baseline_curve(l0 * 1.02**s, s) for s in range(3)) / 3 for l0 in BASELINE.values()
    ]
    assert list(baseline.get_ydata()) == pytest.approx(values)
    dots = [tuple(p) for c in axes.collections for p in c.get_offsets().tolist()]
    assert len(dots) == 2 * 3 * 3
    assert (20.0, pytest.approx(baseline_curve(20.0, 0))) in dots
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "baseline",
        "fixed",
        "adaptive",
        "published, other settings: topk, 4,096 latents",
    ]
    assert axes.get_xscale() == "log"


def test_published_curves_are_read_at_the_same_l0(tmp_path: Path) -> None:
    """A published line through (l0, 0.1 log l0) has 0.1 log(l0) + 0.1 as its CE loss score."""
    line = {l0: 0.1 * math.log(l0) for l0 in (10.0, 30.0, 60.0)}
    sweep(tmp_path, "topk", line)
    results = two_methods()
    for r in list(results):
        score = {"pooled/l0": r.metrics["pooled/l0"], "pooled/ce_loss_score": 0.9}
        results[results.index(r)] = Result("core", r.variant, r.seed, metrics=score)
    published = group(read_folder(tmp_path, lambda _: None))
    page = plain(render_page(results, published=published))
    l0s = [one.l0 for one in at_equal_l0(summarise(results))]
    rows = {l0: 0.1 * math.log(l0) + 0.1 for l0 in l0s if l0 <= 60}
    assert 0 < len(rows) < len(l0s)
    for l0, value in rows.items():
        assert f"↑ at L0\N{NO-BREAK SPACE}{l0:g}{value:.4f}" in page.replace("\n", "")
    assert f"at L0\N{NO-BREAK SPACE}{l0s[-1]:g}outside" in page.replace("\n", "")


def test_page_and_summary_have_the_numbers_at_equal_l0(tmp_path: Path) -> None:
    run = put(tmp_path, *two_methods())
    page = plain(write_report(run).read_text())
    assert "At equal L0" in page
    assert "adaptive − baseline" in page
    found = summary_json(summarise(load_results(run)))["at_equal_l0"]
    json.dumps(found, allow_nan=False)
    assert [one["differences"]["adaptive"]["n"] for one in found] == [3, 3, 3]
    assert found[0]["differences"]["adaptive"]["mean"] == pytest.approx(GAIN + 0.001)


def test_variants_of_two_methods_are_compared_at_the_same_number(tmp_path: Path) -> None:
    summary = summarise(load_results(put(tmp_path, *two_methods())))
    assert summary.variants == [
        *("baseline=20", "baseline=40", "baseline=80"),
        *("adaptive=20", "adaptive=40", "adaptive=80"),
    ]
    assert summary.pairs == [
        ("baseline=40", "baseline=20"),
        ("baseline=80", "baseline=20"),
        ("adaptive=20", "baseline=20"),
        ("adaptive=40", "baseline=40"),
        ("adaptive=80", "baseline=80"),
    ]
    difference = summary.metrics[EV].difference("adaptive=40", "baseline=40")
    assert difference is not None
    expected = adaptive_curve(50.0, 0) - baseline_curve(41.0, 0)
    assert difference.spread.by_seed[0] == pytest.approx(expected)
    assert summary.reference("adaptive=80") == "baseline=80"
    assert "from the one of baseline with the same number" in short_table(summary)
    assert "adaptive=80 against baseline=80" in plain(render_page(two_methods()))
