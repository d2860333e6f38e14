"""The report on each evaluation: verdicts from constructed differences, sections, figures."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from saelens_adaptive_ortho.evaluations import BUILT_IN, evaluation, headline_keys
from saelens_adaptive_ortho.report import (
    EvaluationVerdict,
    Summary,
    describe,
    frontier_figure,
    markdown_table,
    markdown_verdicts,
    render_page,
    run_figures,
    summarise,
    terminal_table,
    write_report,
)
from saelens_adaptive_ortho.report.plots import Section
from saelens_adaptive_ortho.results import Result, load_results, result_path, write_result

VARIANTS = ("baseline", "fixed", "adaptive")
KS = (1, 2, 5, 10, 20, 50)
DAMAGE = [f"loss/forget_damage_at_{limit}" for limit in ("0.05", "0.10", "0.20")]
ACCURACY = [f"mcq/forget_accuracy_at_{limit}" for limit in ("0.99", "0.95", "0.90")]
#: Differences of three seeds whose 95% interval leaves out, or holds, zero.
CLEAR, UNCLEAR = (0.30, 0.31, 0.32), (-0.1, 0.0, 0.1)


def differing(
    eval: str, shifts: Mapping[str, Sequence[float]], reference: str = "fixed"
) -> list[Result]:
    """Adaptive and a reference whose metrics differ by the given amounts, seed by seed."""
    seeds = range(len(next(iter(shifts.values()))))
    return [
        Result(
            eval,
            variant,
            seed,
            metrics={
                name: 0.5 + 0.01 * seed + (shift[seed] if variant == "adaptive" else 0.0)
                for name, shift in shifts.items()
            },
        )
        for variant in (reference, "adaptive")
        for seed in seeds
    ]


def verdict(results: Sequence[Result]) -> EvaluationVerdict:
    (found,) = summarise(results).evaluations[results[0].eval].verdicts
    return found


def failed(eval: str, reason: str) -> list[Result]:
    return [Result(eval, v, seed, "failed", reason) for v in VARIANTS for seed in range(3)]


def unlearning(gain: float, noise: np.random.Generator, mcq: bool = True) -> tuple[Any, Any]:
    """Metrics and details of one SAE with smooth frontiers."""
    metrics: dict[str, float | None] = {}
    x = np.linspace(0, 0.3, 31)
    y = (1.2 + gain + 0.08 * noise.normal()) * np.sqrt(x) + 0.4 * x
    details: dict[str, Any] = {
        "frontiers": {"loss": {"x": x, "y": y, "low": 0.9 * y, "high": 1.1 * y}},
        "points": {"loss": [[a, b * noise.random()] for a, b in zip(x, y, strict=True)]},
        "verdict": "On text, forget damage is above retain damage at every limit.",
    }
    for limit, name in zip((0.05, 0.1, 0.2), DAMAGE, strict=True):
        metrics[name] = float(np.interp(limit, x, y))
        metrics[f"{name}_halfwidth"] = 0.1 * float(np.interp(limit, x, y))
    metrics["loss/area"] = float(y.mean())
    metrics["score"] = 0.03 + 0.02 * noise.random()
    if not mcq:
        details["mcq_reason"] = "the model answers no more questions than chance"
        return metrics, details
    x = np.linspace(1, 0, 101)
    y = np.maximum(0.2, 1 - (1 + 0.4 * gain + 0.1 * noise.normal()) * np.sqrt(1 - x))
    details["frontiers"]["mcq"] = {"x": x, "y": y, "low": y - 0.05, "high": y + 0.05}
    details["points"]["mcq"] = [[a, b + 0.2 * noise.random()] for a, b in zip(x, y, strict=True)]
    for limit, name in zip((0.99, 0.95, 0.90), ACCURACY, strict=True):
        metrics[name] = float(np.interp(limit, x[::-1], y[::-1]))
        metrics[f"{name}_halfwidth"] = 0.05
    metrics |= {
        "mcq/area": float(y.mean()),
        "mcq/original_forget_accuracy": 1.0,
        "mcq/original_retain_accuracy": 1.0,
        "mcq/chance": 0.25,
        "mcq/n_forget_questions": 512.0,
        "mcq/n_retain_questions": 384.0,
    }
    return metrics, details


def probing(measure: str, gain: float, noise: np.random.Generator) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {f"llm_{measure}": 0.94, f"sae_{measure}": 0.93}
    for k in KS:
        rise = 0.06 * np.log(k)
        metrics[f"sae_top_{k}_{measure}"] = 0.68 + gain + rise + 0.008 * noise.normal()
        metrics[f"llm_top_{k}_{measure}"] = 0.62 + rise
        metrics[f"pca_top_{k}_{measure}"] = 0.60 + 1.1 * rise
    return metrics


def every_result(seeds: int = 3, mcq: bool = True) -> list[Result]:
    """A run with every evaluation, an unknown one, and one that failed for every SAE."""
    results = []
    for v, variant in enumerate(VARIANTS):
        for seed in range(seeds):
            noise = np.random.default_rng(100 * v + seed)
            metrics, details = unlearning(0.3 * v, noise, mcq)
            found: dict[str, Any] = {
                "core": {
                    f"{domain}/{name}": value + 0.003 * noise.normal() - 0.004 * (v == 1)
                    for domain in ("pooled", "forget", "retain")
                    for name, value in (
                        ("explained_variance", 0.9),
                        ("ce_loss_score", 0.96),
                        ("l0", 27.0),
                        ("frac_alive", 0.9),
                        ("mse", 0.1),
                    )
                },
                "subspace": {
                    "principal_angle/mean_deg": 48 + 3 * v + noise.normal(),
                    "principal_angle/min_deg": 15 + noise.normal(),
                    "mean_max_cosine": 0.39 - 0.05 * v + 0.003 * noise.normal(),
                    "condition_number/forget+retain": 40 + 5 * noise.normal(),
                },
                "unlearning": metrics,
                "sparse_probing": probing("accuracy", 0.01 * v, noise),
                "sae_probes": probing("auc", 0.01 * v, noise) | probing("accuracy", 0.0, noise),
                "absorption": {
                    "full_absorption": 0.12 - 0.02 * v + 0.01 * noise.normal(),
                    "absorption_fraction": 0.2 + 0.01 * noise.normal(),
                    "n_split_features": 1.2 + 0.1 * noise.normal(),
                    "n_letters": 24.0,
                },
                "tpp": {
                    f"threshold_{n}{part}": share * (0.05 * np.log(n) + 0.01 * noise.normal())
                    for n in (2, 5, 10, 20, 50, 100, 500)
                    for part, share in (("", 1.0), ("_intended", 1.2), ("_unintended", 0.2))
                },
                "scr": {
                    f"threshold_{n}": 0.05 * np.log(n) + 0.02 * noise.normal()
                    for n in (2, 5, 10, 20, 50, 100, 500)
                },
                "training": {"train_seconds": 200 + 10 * v + 5 * noise.normal(), "tokens": 1e6},
                "later_probe": {"some_score": noise.random(), "other_score": noise.random()},
            }
            results += [
                Result(
                    eval,
                    variant,
                    seed,
                    seconds=60.0 + seed,
                    metrics=values,
                    details=details if eval == "unlearning" else {},
                )
                for eval, values in found.items()
            ]
    reason = "needs a model that answers multiple choice: 26% right of 4 options"
    results += [
        Result("ravel", variant, seed, "failed", reason)
        for variant in VARIANTS
        for seed in range(seeds)
    ]
    return results


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for each in every_result():
        write_result(result_path(folder, each.variant, each.seed, each.eval), each)
    (folder / "config.yaml").write_text("model_name: tiny\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def summary(run: Path) -> Summary:
    return summarise(load_results(run))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def shown(summary: Summary, width: int = 120) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(terminal_table(summary))
    return console.export_text()


# What a metric is called


@pytest.mark.parametrize(
    ("key", "label", "direction"),
    [
        (
            "unlearning/loss/forget_damage_at_0.10",
            "unlearning: forget damage at retain damage ≤ 0.10 nats",
            "higher",
        ),
        (
            "unlearning/loss/forget_damage_at_0.10_halfwidth",
            "unlearning: bootstrap half-width at retain damage ≤ 0.10 nats",
            None,
        ),
        (
            "unlearning/mcq/forget_accuracy_at_0.95",
            "unlearning: forget accuracy at retain accuracy ≥ 0.95",
            "lower",
        ),
        ("unlearning/mcq/chance", "unlearning: accuracy by chance", None),
        ("sparse_probing/sae_top_20_accuracy", "sparse probing: accuracy, k = 20", "higher"),
        ("sparse_probing/pca_top_5_accuracy", None, None),
        ("sparse_probing/llm_accuracy", None, None),
        ("sae_probes/sae_top_1_auc", "SAE Probes: AUC, k = 1", "higher"),
        ("absorption/n_split_features", "absorption: latents per letter", "lower"),
        ("absorption/n_letters", None, None),
        ("tpp/threshold_10", "TPP: score, 10 latents ablated", "higher"),
        ("tpp/threshold_10_unintended", "TPP: unintended effect, 10 latents ablated", None),
        ("scr/threshold_500", "SCR: score, 500 latents ablated", "higher"),
        ("ravel/isolation", "RAVEL: isolation", "higher"),
        ("core/pooled/l0", "L0, pooled", None),
    ],
)
def test_labels_and_directions(key: str, label: str | None, direction: str | None) -> None:
    info = describe(key)
    assert label is None or info.full_label == label
    assert info.direction == direction
    assert "{n}" not in info.full_label


def test_every_primary_metric_has_a_direction() -> None:
    for info in BUILT_IN:
        for key in info.keys(info.primary):
            assert describe(key).direction is not None, key


def test_the_headline_keeps_corpora_for_reconstruction_only(summary: Summary) -> None:
    keys = summary.headline
    assert "core/forget/explained_variance" in keys
    assert "core/pooled/l0" in keys
    assert "core/forget/l0" not in keys
    assert keys.index("subspace/mean_max_cosine") < keys.index("unlearning/score")
    assert keys[-1] == "training/train_seconds"
    assert headline_keys(["later/x"]) == []


# Verdicts


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        ({DAMAGE[0]: CLEAR, DAMAGE[1]: UNCLEAR}, "better"),
        ({DAMAGE[0]: [-d for d in CLEAR], DAMAGE[1]: UNCLEAR}, "worse"),
        # Of accuracy that is left, less is better.
        ({ACCURACY[0]: CLEAR}, "worse"),
        ({ACCURACY[0]: [-d for d in CLEAR]}, "better"),
        ({DAMAGE[0]: CLEAR, ACCURACY[0]: CLEAR}, "mixed"),
        ({DAMAGE[0]: UNCLEAR, ACCURACY[0]: UNCLEAR}, "no difference at 95%"),
        ({DAMAGE[0]: [0.3]}, "too few seeds"),
        # The published score is no primary metric.
        ({"score": CLEAR}, "not measured"),
    ],
    ids=["better", "worse", "lower", "lower better", "mixed", "none", "few", "secondary"],
)
def test_the_verdict_follows_the_primary_metrics(
    shifts: Mapping[str, Sequence[float]], expected: str
) -> None:
    found = verdict(differing("unlearning", shifts))
    assert found.verdict == expected
    assert found.text.startswith("adaptive against fixed")
    assert expected.split()[0] in found.text


def test_the_sentence_carries_numbers_counts_and_what_is_missing() -> None:
    found = verdict(differing("unlearning", {DAMAGE[0]: UNCLEAR, DAMAGE[1]: CLEAR}))
    assert (found.judged, found.absent, found.differing) == (2, 4, 1)
    # Half width 0.01 · 4.302653 / √3 = 0.0248.
    assert found.text == (
        "adaptive against fixed, 3 seeds: better at 95% in 1 of 2 primary metrics, 1 if corrected "
        "for 2 (forget damage at retain damage ≤ 0.10 nats +0.310 [+0.285, +0.335]); 4 not measured"
    )
    same = verdict(differing("tpp", {"threshold_10": UNCLEAR, "threshold_50": UNCLEAR}))
    # Half width 0.1 · 4.302653 / √3 = 0.248.
    assert same.text == (
        "adaptive against fixed, 3 seeds: no difference at 95% in 2 primary metrics "
        "(score, 10 / 50 latents ablated: 0.00 [−0.25, +0.25] / 0.00 [−0.25, +0.25])"
    )
    one = verdict(differing("absorption", {"full_absorption": CLEAR}))
    assert one.text == (
        "adaptive against fixed, 3 seeds: worse at 95% (full absorption rate +0.310 "
        "[+0.285, +0.335])"
    )
    mixed = verdict(differing("unlearning", {DAMAGE[0]: CLEAR, ACCURACY[0]: CLEAR}))
    assert "mixed at 95%, better in 1 and worse in 1 of 2 primary metrics, 2 if" in mixed.text


def test_a_difference_that_the_correction_takes_away_is_said_so() -> None:
    # Mean 0.1, deviation 0.03: |t| = 5.8 of 2 degrees of freedom, beyond 4.30 (one metric) and
    # short of 10.9 (six metrics).
    barely = (0.07, 0.10, 0.13)
    rest: dict[str, Sequence[float]] = dict.fromkeys([*DAMAGE[1:], *ACCURACY], UNCLEAR)
    found = verdict(differing("unlearning", {DAMAGE[0]: barely} | rest))
    assert (found.verdict, found.differing, found.corrected) == ("better", 1, 0)
    assert "better at 95% in 1 of 6 primary metrics, 0 if corrected for 6 (" in found.text


def test_every_pair_gets_a_verdict(summary: Summary) -> None:
    for name in ("core", "subspace", "unlearning", "sparse_probing", "sae_probes", "scr", "tpp"):
        found = summary.evaluations[name]
        assert [(v.variant, v.reference) for v in found.verdicts] == summary.pairs
        assert all(v.judged for v in found.verdicts)
    assert summary.evaluations["training"].verdicts == []
    document = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    tpp = document["evaluations"]["tpp"]
    assert tpp["primary"] == ["tpp/threshold_10", "tpp/threshold_50"]
    assert tpp["mean_seconds"] == 61.0
    assert tpp["verdicts"][0]["judged"] == 2


def test_knowledge_is_judged_by_unlearning_and_geometry_stays_geometry() -> None:
    geometry = differing("subspace", {"mean_max_cosine": CLEAR})
    without = summarise(geometry)
    assert "on their own they do not show that the knowledge" in without.verdict
    assert (without.verdicts[0].knowledge, without.verdicts[0].geometry) == (
        "not measured",
        "worse",
    )
    both = summarise([*geometry, *differing("unlearning", {DAMAGE[0]: CLEAR})])
    assert (both.verdicts[0].knowledge, both.verdicts[0].geometry) == ("better", "worse")
    assert "adaptive separates knowledge better: forget damage" in both.verdict
    assert ". It separates decoder directions worse: mean max cosine" in both.verdict
    assert "which is not knowledge" in both.verdict
    assert "on their own they do not show" not in both.verdict
    six: dict[str, Sequence[float]] = dict.fromkeys([*DAMAGE, *ACCURACY], UNCLEAR)
    none = summarise([*geometry, *differing("unlearning", six)])
    assert "no difference at 95% in how far it separates knowledge in 6 of 6 unlear" in none.verdict
    some = summarise([*geometry, *differing("unlearning", six | {DAMAGE[0]: CLEAR})])
    assert "separates knowledge better in 1 of 6 unlearning metrics, 1 if corr" in some.verdict
    useless = summarise([*geometry, *failed("unlearning", "no questions")])
    assert "on their own they do not show that the knowledge" in useless.verdict


# Failures


def test_an_evaluation_that_failed_for_every_sae_is_one_line_everywhere() -> None:
    reason = "needs a model that answers multiple choice"
    core = differing("core", {"pooled/explained_variance": UNCLEAR})
    core += [Result("core", "baseline", s, metrics=r.metrics) for s, r in enumerate(core[:3])]
    summary = summarise([*core, *failed("unlearning", reason)])
    (group,) = summary.gap_groups
    assert (group.kind, group.eval, group.who) == ("failed", "unlearning", "every SAE (9)")
    assert len(summary.gaps) == 9
    found = summary.evaluations["unlearning"]
    assert not found.measured
    assert all(v.text.endswith(f"not measured; {reason}") for v in found.verdicts)
    assert markdown_table(summary).count(reason) == 1
    assert markdown_verdicts(summary).count(reason) == 1
    assert f"not measured, every SAE (9): {reason}" in shown(summary, 200)
    page = render_page([*core, *failed("unlearning", reason)])
    section = page[page.index('<section id="eval-unlearning">') :].split("</section>")[0]
    assert section.count(reason) == 1
    assert "<table" not in section


def test_gaps_are_grouped_by_reason_and_say_whose_they_are() -> None:
    results = [r for r in failed("tpp", "a") if (r.variant, r.seed) != ("fixed", 1)]
    results.append(Result("tpp", "fixed", 1, "failed", "b"))
    assert [(g.who, g.reason) for g in summarise(results).gap_groups] == [
        ("baseline (seeds 0, 1, 2), fixed (seeds 0, 2), adaptive (seeds 0, 1, 2)", "a"),
        ("fixed (seed 1)", "b"),
    ]


def test_a_part_that_could_not_be_measured_is_said() -> None:
    found = summarise(every_result(mcq=False)).evaluations["unlearning"]
    assert found.remarks == [
        "On text, forget damage is above retain damage at every limit.",
        "No multiple choice: the model answers no more questions than chance",
    ]
    assert "3 not measured" in found.verdicts[0].text


# Page, figures, tables


def test_the_page_has_each_section_once_in_order(page: str) -> None:
    names = [info.name for info in BUILT_IN] + ["later_probe"]
    assert re.findall(r'<section id="eval-([a-z_]+)">', page) == names
    contents = page[page.index('<nav id="contents"') : page.index("</nav>")]
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


def test_every_measured_evaluation_with_a_figure_has_it(summary: Summary) -> None:
    figures = run_figures(summary, every_result())
    assert set(figures) == {
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
def test_frontiers_are_drawn_with_one_seed_and_without_questions(seeds: int, mcq: bool) -> None:
    results = every_result(seeds, mcq)
    figure = frontier_figure(Section(summarise(results), results, "unlearning"))
    assert figure is not None
    assert len(figure.axes) == 1 + mcq
    # Per variant the mean and, with several seeds, each of them; then the line of equal damage.
    per_variant = 1 if seeds == 1 else 1 + seeds
    assert len(figure.axes[0].lines) == 3 * per_variant + 1


def test_a_frontier_with_holes_or_on_another_grid_is_drawn() -> None:
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


def test_words_of_the_results_are_told_once_and_come_before_ours() -> None:
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


def test_an_unknown_evaluation_shows_all_its_metrics_and_no_verdict(
    summary: Summary, page: str
) -> None:
    found = summary.evaluations["later_probe"]
    assert (found.info.title, found.info.primary, found.verdicts) == ("Later probe", (), [])
    section = page[page.index('<section id="eval-later_probe">') :].split("</section>")[0]
    assert "some score" in section
    assert "other score" in section
    assert evaluation("later_probe").short == ""


def test_tables_list_a_verdict_per_evaluation(summary: Summary) -> None:
    text = shown(summary, 150)
    listed = text[text.index("By evaluation") :]
    for info in BUILT_IN:
        if info.primary:
            assert info.title.split()[0] in listed
    verdicts = markdown_verdicts(summary)
    bullets = [line for line in verdicts.splitlines() if line.startswith("- ")]
    assert len(bullets) == 9
    assert bullets[3].startswith("- **Sparse probing**: adaptive against baseline, 3 seeds: ")
    assert "; adaptive against fixed, 3 seeds: " in bullets[3]
    assert "fixed against baseline" not in verdicts
