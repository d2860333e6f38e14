"""The trade-off figure: means, series, references, labels that can be read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from saelens_adaptive_ortho.report.figures.files import run_figures, save_plots
from saelens_adaptive_ortho.report.figures.tradeoff import (
    COST,
    GAIN,
    tradeoff_figure,
)
from saelens_adaptive_ortho.report.page.run import render_page
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.results import Result
from tests.report.runs import core, put

NAME = GAIN.removeprefix("unlearning/")
FIVE = {
    "baseline": (0.926, 2.9),
    "fixed": (0.923, 3.0),
    "directions": (0.9258, 2.8),
    "groups": (0.9199, 7.3),
    "adaptive": (0.9197, 7.6),
}
SERIES = {"groups=10": (0.915, 8.3), "groups=0.3": (0.923, 3.6), "groups=3": (0.92, 7.4)}
REFERENCES = {"detector": 8.9, "contrastive PCA": 1.66, "means": 1.5}


def results_of(
    variants: Mapping[str, tuple[float, float]],
    seeds: int = 4,
    references: Mapping[str, float] | None = None,
) -> list[Result]:
    found = []
    noise = np.random.default_rng(0)
    for variant, (x, y) in variants.items():
        for seed in range(seeds):
            x_, y_ = x + 5e-4 * noise.normal(), y + 0.2 * noise.normal()
            # The references of a seed scatter around their mean by 0.1 in both directions.
            scatter = 0.1 * (-1) ** seed
            details = {
                "references": {n: {NAME: v + scatter} for n, v in (references or {}).items()}
            }
            found.append(Result("core", variant, seed, metrics={COST.removeprefix("core/"): x_}))
            found.append(Result("unlearning", variant, seed, metrics={NAME: y_}, details=details))
    return found


def draw(results: Sequence[Result]) -> Figure:
    figure = tradeoff_figure(summarise(results))
    assert figure is not None
    return figure


def labels_of(figure: Figure) -> dict[str, tuple[float, float, float, float]]:
    figure.draw_without_rendering()
    assert isinstance(figure.canvas, FigureCanvasAgg)
    renderer = figure.canvas.get_renderer()
    # The first text is the note below the title.
    boxes = {t.get_text(): t.get_window_extent(renderer) for t in figure.axes[0].texts[1:]}
    return {text: (box.x0, box.y0, box.x1, box.y1) for text, box in boxes.items()}


def test_a_point_is_the_mean_of_a_variant() -> None:
    results = results_of(FIVE)
    summary, figure = summarise(results), draw(results)
    markers = [line for line in figure.axes[0].lines if line.get_marker() not in ("", "None")]
    assert len(markers) == len(FIVE)
    for line, variant in zip(markers, FIVE, strict=True):
        x, y = line.get_data()
        assert x[0] == pytest.approx(summary.metrics[COST].variants[variant].mean)
        assert y[0] == pytest.approx(summary.metrics[GAIN].variants[variant].mean)
    bars = [line.get_data() for line in figure.axes[0].lines if line.get_linewidth() == 2.2]
    drawn = [tuple(x) for x, y in bars if y[0] == y[1]]
    for variant, bar in zip(FIVE, drawn, strict=True):
        assert bar == pytest.approx(summary.metrics[COST].variants[variant].ci95)
    assert sum(len(dots.get_offsets()) for dots in figure.axes[0].collections) == 4 * len(FIVE)


def test_a_series_is_joined_in_the_order_of_its_numbers() -> None:
    results = results_of({"baseline": FIVE["baseline"], **SERIES})
    figure = draw(results)
    (line,) = (line for line in figure.axes[0].lines if len(line.get_xdata()) == 3)
    summary = summarise(results)
    order = ("groups=0.3", "groups=3", "groups=10")
    means = [summary.metrics[COST].variants[v].mean for v in order]
    assert list(line.get_xdata()) == pytest.approx(means)
    # One name per series; the other points have only their number.
    assert {"baseline", "0.3", "3", "groups=10"} <= set(labels_of(figure))


def test_a_single_setting_is_no_series() -> None:
    figure = draw(results_of({"baseline": (0.9, 1.0), "alpha=x": (0.9, 2.0), "alpha=1": (0.8, 3)}))
    assert all(len(line.get_xdata()) == 2 or line.get_marker() for line in figure.axes[0].lines)
    assert {"baseline", "alpha=x", "alpha=1"} <= set(labels_of(figure))


def test_references_are_means_over_the_saes() -> None:
    results = results_of(FIVE, references=REFERENCES)
    means = {name: by_key[GAIN] for name, by_key in summarise(results).without_sae.items()}
    assert means == pytest.approx(REFERENCES)
    figure = draw(results)
    dashed = [line.get_data() for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    heights = [y[0] for x, y in dashed if tuple(x) == (0, 1)]
    assert heights == pytest.approx(list(REFERENCES.values()))
    assert set(REFERENCES) <= set(labels_of(figure))
    low, high = figure.axes[0].get_ylim()
    assert low < 1.5 < 8.9 < high
    nothing = [Result("unlearning", "x", 0, details={"references": {"a": {NAME: None}}})]
    assert summarise(nothing).without_sae == {"a": {}}
    assert summarise(results_of(FIVE)).without_sae == {}


@pytest.mark.parametrize("variants", [FIVE, FIVE | SERIES], ids=["five", "series"])
def test_labels_neither_touch_nor_leave_the_axes(
    variants: Mapping[str, tuple[float, float]],
) -> None:
    figure = draw(results_of(variants, references=REFERENCES))
    boxes = labels_of(figure)
    inside = figure.axes[0].bbox
    for text, (x0, y0, x1, y1) in boxes.items():
        assert inside.x0 <= x0 < x1 <= inside.x1, text
        assert inside.y0 <= y0 < y1 <= inside.y1, text
    for (a, one), (b, other) in combinations(boxes.items(), 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (a, b)
    assert any("baseline − 0.004" in text for text in boxes)


def test_wide_intervals_do_not_set_the_axes() -> None:
    values = {"baseline": (1.0, 1.2), "adaptive": (1.3, 1.4)}
    results = [
        Result(eval, variant, seed, metrics={name: value})
        for variant, found in values.items()
        for seed, value in enumerate(found)
        for eval, name in (("core", COST.removeprefix("core/")), ("unlearning", NAME))
    ]
    # 1.1 ± 12.7 · 0.1: far beyond the values, which span 0.4.
    assert summarise(results).metrics[GAIN].variants["baseline"].ci95 == pytest.approx(
        (1.1 - 1.270620, 1.1 + 1.270620), abs=1e-5
    )
    for low, high in (draw(results).axes[0].get_xlim(), draw(results).axes[0].get_ylim()):
        assert low < 1.0 < 1.4 < high
        assert high - low < 3 * 0.4


def test_without_both_metrics_there_is_no_figure() -> None:
    results = core("baseline", [0.5, 0.6])
    assert tradeoff_figure(summarise(results)) is None
    apart = [*core("baseline", [0.5]), Result("unlearning", "adaptive", 0, metrics={NAME: 1.0})]
    assert tradeoff_figure(summarise(apart)) is None
    one = results_of({"baseline": (0.9, 1.0)}, seeds=1)
    assert list(labels_of(draw(one))) == ["baseline"]


def test_other_metrics_can_be_drawn() -> None:
    results = [
        Result("core", v, s, metrics={"pooled/l0": 20.0 + s, "pooled/mse": 0.1 * s + 0.1})
        for v in ("baseline", "adaptive")
        for s in range(3)
    ]
    figure = tradeoff_figure(summarise(results), "core/pooled/mse", "core/pooled/l0")
    assert figure is not None
    assert figure.axes[0].get_xlabel() == "reconstruction MSE, pooled (left is better)"


def test_it_is_the_first_figure_of_a_run(tmp_path: Path) -> None:
    results = results_of({"baseline": (0.9, 1.0), "adaptive": (0.9, 2.0)}, references=REFERENCES)
    assert next(iter(run_figures(summarise(results), results))) == "tradeoff"
    page = render_page(results)
    figures = re.findall(
        r'<div class="drawing[^"]*" role="(?:img|group)" aria-label="([^"]+)"', page
    )
    assert figures[:2] == ["Gain and cost", "At a glance"]
    assert 'href="#tradeoff"' in page
    paths = save_plots(put(tmp_path, *results), tmp_path / "plots")
    assert {"tradeoff.png", "tradeoff.svg"} <= {path.name for path in paths}
