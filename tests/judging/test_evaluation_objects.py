"""The objects of all built-in evaluations are complete and consistent."""

from __future__ import annotations

import dataclasses
import pkgutil
from collections import Counter

import pytest

from saelens_adaptive_ortho.commands.options import field_help
from saelens_adaptive_ortho.evaluations import BUILT_IN, Evaluation
from saelens_adaptive_ortho.report.metrics import describe
from saelens_adaptive_ortho.settings import check_fields

every_evaluation = pytest.mark.parametrize("evaluation", BUILT_IN, ids=lambda e: e.name)


@every_evaluation
def test_modules_and_figure_functions_exist(evaluation: Evaluation) -> None:
    if evaluation.module:
        assert callable(pkgutil.resolve_name(f"{evaluation.module}:run"))
    for figure in evaluation.figures:
        assert callable(pkgutil.resolve_name(figure.draw)), figure.draw


@every_evaluation
def test_settings_have_help_and_valid_defaults(evaluation: Evaluation) -> None:
    if evaluation.settings is None:
        assert not evaluation.module
        return
    described = field_help(evaluation.settings)
    assert list(described) == [f.name for f in dataclasses.fields(evaluation.settings)]
    assert all(described.values())
    check_fields(evaluation.settings())


@every_evaluation
def test_chosen_metrics_exist(evaluation: Evaluation) -> None:
    labels = {metric.label for metric in evaluation.metrics.values()}
    assert evaluation.metrics
    for name in (*evaluation.primary, *evaluation.headline, *evaluation.glance):
        found = describe(f"{evaluation.name}/{name}")
        assert (found.template or found.name) in labels, name
    for name in evaluation.primary:
        assert describe(f"{evaluation.name}/{name}").direction is not None, name


@every_evaluation
def test_texts_are_complete(evaluation: Evaluation) -> None:
    assert evaluation.title
    assert evaluation.description.endswith(".")
    assert all(f.heading and f.caption.endswith(".") for f in evaluation.figures)


def test_names_of_evaluations_and_figures_are_unique() -> None:
    names = Counter(e.name for e in BUILT_IN)
    figures = Counter(f.name for e in BUILT_IN for f in e.figures)
    assert max(names.values()) == 1
    assert max(figures.values()) == 1
    assert "headline" not in figures  # the report's own
