"""The report of a sweep: settings over seeds, paired bands, the best setting, what is missing."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.manifests import Manifest, Point, Unit, unit_folder, write_manifest
from saelens_adaptive_ortho.report.figures.facets import facet_figure
from saelens_adaptive_ortho.report.page.sweep import (
    best_table,
    front_table,
    write_sweep_report,
)
from saelens_adaptive_ortho.report.sweeps import (
    COST,
    SweepResults,
    best_settings,
    collect,
    gain_key,
    glance_keys,
    lines,
    paired_half_widths,
)
from saelens_adaptive_ortho.results import Result, result_path, write_result

HOOKS = ("blocks.3.hook_resid_post", "blocks.9.hook_resid_post")
ALPHAS, SEEDS = (0, 0.5, 1), (0, 1, 2)
GAIN = "unlearning/loss/forget_damage_at_0.10"


def explained(hook: str, alpha: float, seed: int) -> float:
    """Falls with alpha; a seed adds the same to all values of a line."""
    return 0.9 - 0.015 * alpha - 0.1 * (hook == HOOKS[1]) + 0.01 * seed


def damage(hook: str, alpha: float, seed: int) -> float:
    """Rises with alpha; at the second hook alpha costs too much to be used."""
    return 1 + alpha + 0.1 * seed


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return the folder of a finished sweep over hooks, alphas and seeds, with a baseline."""
    units = []
    for hook, seed in product(HOOKS, SEEDS):
        shared = {"hook_name": hook, "seed": seed}
        points = [Point(f"{hook}{seed}", "baseline", "baseline", seed, shared)]
        points += [
            Point(
                f"{hook}{seed}{alpha}",
                f"adaptive-alpha={alpha}",
                "adaptive",
                seed,
                {"sae.ortho_alpha": alpha, **shared},
            )
            for alpha in ALPHAS
        ]
        name = f"unit{len(units)}"
        settings = {"evals": {"core": {}, "unlearning": {}}}
        units.append(Unit(name, f"{hook}, seed {seed}, 4 SAEs", points, settings, 0, 1.0))
        for point in points:
            alpha = point.values.get("sae.ortho_alpha", -1)
            core = {"pooled/explained_variance": explained(hook, alpha, seed)}
            gain = {"loss/forget_damage_at_0.10": damage(hook, alpha, seed)}
            for eval_name, metrics in (("core", core), ("unlearning", gain)):
                result = Result(eval_name, point.variant, seed, metrics=metrics)
                root = unit_folder(tmp_path, name)
                write_result(result_path(root, point.variant, seed, eval_name), result)
    axes: dict[str, Any] = {"hook_name": list(HOOKS), "sae.ortho_alpha": list(ALPHAS)}
    write_manifest(
        tmp_path, Manifest("layers", {**axes, "seed": list(SEEDS)}, units, ".", "sweep: {}\n")
    )
    return tmp_path


def found(sweep: Path) -> SweepResults:
    from saelens_adaptive_ortho.manifests import read_manifest

    return collect(sweep, read_manifest(sweep), {})


def test_settings_are_over_the_seeds(sweep: Path) -> None:
    results = found(sweep)
    assert results.facets == list(HOOKS)
    assert results.finished == len(results.manifest.points) == 24
    assert not results.missing
    assert len(results.settings) == 8
    one = next(s for s in results.of_facet(HOOKS[1]) if s.label == "adaptive, alpha 0.5")
    assert one.values == {"sae.ortho_alpha": 0.5}
    assert one.metrics[COST].by_seed == {
        seed: pytest.approx(explained(HOOKS[1], 0.5, seed)) for seed in SEEDS
    }
    assert results.numeric_axes() == ["sae.ortho_alpha"]


def test_line_along_an_axis(sweep: Path) -> None:
    line, level = lines(found(sweep), HOOKS[0], "sae.ortho_alpha", COST)
    assert (line.label, list(line.x)) == ("adaptive", [0, 0.5, 1])
    assert line.mean == pytest.approx([explained(HOOKS[0], alpha, 1) for alpha in ALPHAS])
    # All seeds agree on the differences: the band has no width, although the seeds differ.
    assert line.half == pytest.approx([0, 0, 0], abs=1e-12)
    assert level.label == "baseline"
    assert level.level == pytest.approx(explained(HOOKS[0], -1, 1))


def test_paired_band_is_the_formula() -> None:
    values = [{0: 1.0, 1: 2.0, 2: 4.0}, {0: 1.5, 1: 2.0, 2: 5.0, 3: 9.0}, {0: 0.0, 1: 2.5, 2: 4.0}]
    halves = paired_half_widths(values)
    assert halves is not None
    grand = statistics.mean(one[seed] for one in values for seed in SEEDS)
    for one, half in zip(values, halves, strict=True):
        adjusted = [
            one[seed] - statistics.mean(other[seed] for other in values) + grand for seed in SEEDS
        ]
        spread = statistics.stdev(adjusted) * math.sqrt(3 / 2)
        assert half == pytest.approx(t.ppf(0.975, 2) * spread / math.sqrt(3))
    assert paired_half_widths(values[:1]) is None
    assert paired_half_widths([{0: 1.0}, {0: 2.0}]) is None
    assert paired_half_widths([{0: 1.0, 1: 2.0}, {1: 2.0, 2: 1.0}]) is None
    assert paired_half_widths([]) is None


def test_best_setting_follows_the_rule(sweep: Path) -> None:
    results = found(sweep)
    assert gain_key(results) == GAIN
    for best in best_settings(results, GAIN):
        # The baseline has the best explained variance: 0.015 above alpha 0, 0.03 above alpha 1.
        assert best.setting.label == "adaptive, alpha 0"
        assert (best.among, best.of) == (2, 4)
        assert len(best.front) == 4  # each step of alpha costs something and gains something
        assert best.front[0].label == "baseline"
    for best in best_settings(results, GAIN, within=1.0):
        assert best.setting.label == "adaptive, alpha 1"
    assert [row[:2] for row in best_table(results).rows] == [
        [hook, "adaptive, alpha 0"] for hook in HOOKS
    ]
    assert len(front_table(results).rows) == 8


def test_lower_may_be_better(sweep: Path) -> None:
    results = found(sweep)
    key = "unlearning/mcq/forget_accuracy_at_0.95"
    settings = [replace(s, metrics={**s.metrics, key: s.metrics[GAIN]}) for s in results.settings]
    results = replace(results, settings=settings)
    assert gain_key(results) == key
    assert best_settings(results, key)[0].setting.label == "baseline"
    assert len(best_settings(results, key)[0].front) == 1


def test_figure_has_a_panel_per_facet(sweep: Path) -> None:
    results = found(sweep)
    assert COST in glance_keys(results)
    figure = facet_figure(results, "sae.ortho_alpha", COST)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(HOOKS)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert facet_figure(results, "sae.ortho_alpha", "core/pooled/l0") is None


def test_page_has_all_of_it(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = unit_folder(sweep, "unit0") / "report.html"
    report.write_text("")
    assert main(["report", str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "adaptive, alpha 0" in out
    assert str(sweep / "report.html") in out.replace("\n", "")
    page = (sweep / "report.html").read_text()
    for words in ("24 of 24 SAEs", "within 0.02", "Core", "Unlearning", "sweep: {}"):
        assert words.lower() in page.lower()
    assert 'href="units/unit0/report.html"' in page
    assert 'href="units/unit1/report.html"' not in page
    assert "Failed or missing" not in page
    summary = json.loads((sweep / "summary.json").read_text())
    assert summary["best"][0] == {"facet": HOOKS[0], "setting": "adaptive, alpha 0"}
    assert len(summary["settings"]) == 8


def test_partial_sweep_says_what_is_missing(sweep: Path) -> None:
    result_path(unit_folder(sweep, "unit1"), "adaptive-alpha=1", 1, "unlearning").unlink()
    damaged = result_path(unit_folder(sweep, "unit2"), "baseline", 2, "core")
    damaged.write_text("{")
    page = write_sweep_report(sweep, {"unit1": "failed: <the disk> is full"}).read_text()
    assert "22 of 24 SAEs finished" in page
    assert "1 of 4 SAEs without Unlearning" in page
    assert "failed: &lt;the disk&gt; is full" in page
    assert "(2 of 3 seeds)" in page
    summary = json.loads((sweep / "summary.json").read_text())
    assert [one["unit"] for one in summary["missing"]] == ["unit1", "unit2"]


def test_sweep_without_results_has_a_page(sweep: Path) -> None:
    for file in (sweep / "units").rglob("*.json"):
        file.unlink()
    page = write_sweep_report(sweep).read_text()
    assert "0 of 24 SAEs finished" in page
    assert "Best settings" not in page
