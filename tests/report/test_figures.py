"""The figures of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saelens_adaptive_ortho.evaluations import BUILT_IN
from saelens_adaptive_ortho.report.figures.files import run_figures, save_plots
from saelens_adaptive_ortho.report.figures.frontier import frontier_figure
from saelens_adaptive_ortho.report.figures.section import Section
from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.results import (
    Result,
)
from tests.report.runs import (
    BY_HAND,
    VARIANTS,
    core,
    every_result,
    put,
)


def test_files(tmp_path: Path) -> None:
    put(tmp_path, *core("baseline", [0.1, 0.2]))
    assert [path.name for path in save_plots(tmp_path)] == ["headline.svg", "headline.png"]
    assert (tmp_path / "plots" / "headline.png").read_bytes()[:4] == b"\x89PNG"


def test_every_figure(summary: Summary) -> None:
    figures = run_figures(summary, every_result())
    others = {f.name for info in BUILT_IN if info.name not in BY_HAND for f in info.figures}
    assert set(figures) - others == {
        "tradeoff",
        "headline",
        "reconstruction",
        "unlearning",
        "unlearning_metrics",
        "sparse_probing",
        "sae_probes",
        "absorption",
        "tpp",
        "scr",
    }
    assert len(figures["unlearning"].axes) == 2
    assert len(figures["sae_probes"].axes) == 2
    axes = figures["sparse_probing"].axes[0]
    assert len(axes.lines) == len(VARIANTS) + 3
    labels = {line.get_label() for line in axes.lines}
    assert {"whole residual stream", "k raw dimensions", "k principal components"} <= labels


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("mcq", [True, False])
def test_frontier(seeds: int, mcq: bool) -> None:
    results = every_result(seeds, mcq)
    figure = frontier_figure(Section(summarise(results), results, "unlearning"))
    assert figure is not None
    assert len(figure.axes) == 1 + mcq
    # Each variant has a line for the mean and, with several seeds, one per seed. The last lines are
    # those of the reference and of equal damage.
    per_variant = 1 if seeds == 1 else 1 + seeds
    *drawn, reference, equal = figure.axes[0].lines
    assert len(drawn) == 3 * per_variant
    assert (reference.get_label(), equal.get_label()) == ("detector", "equal damage")
    found = [
        r.details["reference_frontiers"]["loss"]["detector"]["y"] for r in results if r.details
    ]
    np.testing.assert_allclose(reference.get_ydata(), np.mean(found, axis=0))
    assert figure.axes[0].get_ylim()[1] > np.max(reference.get_ydata())


def test_frontier_with_holes() -> None:
    frontiers = [
        {"x": [0.2, 0.0, 0.1], "y": [0.4, 0.0, None], "low": [0.3, 0.0, 0.1], "high": []},
        {"x": [0.0, 0.3], "y": [0.0, 1.0], "low": [0.0, 0.5], "high": [0.0, 2.0]},
        {"x": [], "y": []},
    ]
    results = [
        Result("unlearning", "adaptive", seed, details={"frontiers": {"loss": frontier}})
        for seed, frontier in enumerate(frontiers)
    ]
    figure = frontier_figure(Section(summarise(results), results, "unlearning"))
    assert figure is not None
    assert len(figure.axes[0].lines) == 4
    assert frontier_figure(Section(summarise(results), results[2:], "unlearning")) is None


def test_a_figure_that_fails_says_why_and_the_others_stay(
    summary: Summary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("no axis")

    results = every_result()
    drawn = run_figures(summary, results)
    monkeypatch.setattr("saelens_adaptive_ortho.report.figures.curves.training_figure", fail)
    with pytest.warns(UserWarning, match="Figure training of training: ZeroDivisionError: no axis"):
        figures = run_figures(summary, results)
    assert set(figures) == {*drawn, "training"}
    assert "no axis" in figures["training"].texts[0].get_text()
