"""Figure, table and configs of the alpha study."""

from collections.abc import Callable
from pathlib import Path

import pytest

from evals.alpha.figures import alpha_figure
from evals.alpha.tables import alpha_table, is_alpha_study
from saelens_adaptive_ortho.experiments.experiment import load_experiment
from saelens_adaptive_ortho.results import Result, ResultError

CONFIGS = Path(__file__).parents[2] / "evals" / "alpha" / "configs"


def result(variant: str, seed: int, value: float | None) -> Result:
    metrics = {"pooled/explained_variance": value, "unknown": 1.0}
    return Result("core", variant, seed, metrics=metrics)


def test_figure_alphas_points_references_lines() -> None:
    results = [result(v, s, x + s) for v, x in (("alpha=1", 4), ("alpha=0.1", 2)) for s in (0, 1)]
    results += [result("baseline", s, 3.0) for s in (0, 1)]
    (axes,) = alpha_figure(results).axes
    assert axes.get_title(loc="left") == "explained variance, pooled"
    line, curve = axes.get_lines()[0], axes.get_lines()[1]
    assert list(line.get_ydata()) == [3.0, 3.0]  # type: ignore[arg-type]
    assert list(curve.get_xdata()) == [0.1, 1.0]  # type: ignore[arg-type]
    assert list(curve.get_ydata()) == [2.5, 4.5]  # type: ignore[arg-type]


def test_figure_leaves_out_missing_values() -> None:
    results = [result("alpha=0", 0, 1.0), result("alpha=0", 1, None), result("alpha=1", 0, None)]
    (axes,) = alpha_figure(results).axes
    assert list(axes.get_lines()[0].get_xdata()) == [0.0]  # type: ignore[arg-type]


def test_table_ends_with_paired_alpha_effect() -> None:
    values = {"alpha=0": (0.5, 0.7), "alpha=0.5": (0.6, 0.8), "alpha=1": (0.6, 0.82)}
    results = [result(v, s, x) for v, xs in values.items() for s, x in enumerate(xs)]
    head, _, row = alpha_table(results).splitlines()
    assert head.startswith("| metric | baseline | fixed | alpha=0 | alpha=0.5 | alpha=1 |")
    assert head.endswith("| alpha 1 \u2212 0 |")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:5] == ["\u2013", "\u2013", "0.60 \u00b1 0.14", "0.70 \u00b1 0.14"]
    # Differences .10 and .12: mean .11, half width t(1) * .0141 / sqrt 2.
    assert cells[6] == "+0.11 [\u22120.02, +0.24]"


@pytest.mark.parametrize("make", [alpha_figure, alpha_table])
def test_run_without_alphas_is_refused(make: Callable[..., object]) -> None:
    with pytest.raises(ResultError, match="evals/alpha/configs"):
        make([result("baseline", 0, 1.0)])


@pytest.mark.parametrize("name", ["demo", "local_text"])
def test_study_config_changes_only_alpha(name: str) -> None:
    study = load_experiment(CONFIGS / f"{name}.yaml")
    alphas = {v: c for v, c in study.variants.items() if v.startswith("alpha=")}
    assert set(study.variants) == {*alphas, "baseline", "fixed"}
    assert all(c == {"ortho_alpha": float(v.removeprefix("alpha="))} for v, c in alphas.items())
    assert sorted(c["ortho_alpha"] for c in alphas.values()) == [0, 0.25, 0.5, 0.75, 1]
    assert len(study.seeds) == 3


def test_study_with_other_variants_is_no_alpha_study() -> None:
    alphas = [result(v, 0, 1.0) for v in ("baseline", "fixed", "alpha=0", "alpha=1")]
    assert is_alpha_study(alphas)
    assert not is_alpha_study([*alphas, result("groups", 0, 1.0)])
    assert not is_alpha_study(alphas[:2])
