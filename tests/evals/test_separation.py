"""The figure of the separation studies, and their configs."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from evals.separation.answer import STUDIES, answer, answer_figure, load_studies
from evals.separation.figures import is_separation_study, main, separation_figure
from saelens_adaptive_ortho.experiments.experiment import load_experiment
from saelens_adaptive_ortho.report.opening import best_without_sae
from saelens_adaptive_ortho.report.statistics import Summary
from saelens_adaptive_ortho.results import Result, ResultError, write_results_file

CONFIGS = Path(__file__).parents[2] / "evals" / "separation" / "configs"
TOKEN, GATED = (f"{name}/forget_damage_at_0.10" for name in ("token", "loss"))


def study(*variants: str) -> list[Result]:
    found = []
    for number, variant in enumerate(variants):
        for seed in (0, 1):
            ev, damage = 0.92 - 1e-3 * number + 1e-4 * seed, 3.0 + number + 0.1 * seed
            metrics = {TOKEN: damage, GATED: damage + 2}
            found.append(Result("core", variant, seed, metrics={"pooled/explained_variance": ev}))
            found.append(Result("unlearning", variant, seed, metrics=metrics))
    return found


def test_figure_has_a_panel_for_each_measured_reading() -> None:
    panels = separation_figure(study("baseline", "groups")).axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert len(titles) == 2
    assert "every token" in titles[0]
    assert "every token" not in titles[1]


def test_a_study_with_near_is_one_of_separation() -> None:
    plain = study("baseline", "adaptive")
    assert not is_separation_study(plain)
    plain[1].metrics["token/near_per_forget_damage_at_0.10"] = 0.1
    assert is_separation_study(plain)


def test_figure_needs_a_reading() -> None:
    only_core = [r for r in study("baseline", "groups") if r.eval == "core"]
    with pytest.raises(ResultError, match="no SAE has both"):
        separation_figure(only_core)


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        (("baseline", "groups"), True),
        (("baseline", "groups=0.3"), True),
        (("baseline", "adaptive"), False),
    ],
)
def test_study_is_known_by_its_variants(variants: tuple[str, ...], expected: bool) -> None:
    assert is_separation_study(study(*variants)) is expected


def test_command_writes_the_figure_or_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results_file(tmp_path / "results.jsonl", study("baseline", "groups"))
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "plots" / "separation.png").is_file()
    assert main([str(tmp_path / "missing")]) == 2
    assert "separation: error:" in capsys.readouterr().err


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_is_valid_and_begins_with_the_baseline(config: Path) -> None:
    experiment = load_experiment(config)
    assert next(iter(experiment.variants)) == "baseline"
    assert len(experiment.seeds) >= 3


def committed(folder: Path, values: dict[str, float]) -> None:
    """Write a study with three seeds of each variant; the reference without an SAE reaches .7."""
    found = []
    for variant, value in values.items():
        for seed in range(3):
            ev = 0.97 - 0.001 * (variant == "adaptive") + 1e-4 * seed
            metrics = {"mcq/forget_accuracy_at_0.95": value + 0.01 * seed}
            details = {"references": {"detector": {"mcq/forget_accuracy_at_0.95": 0.7}}}
            found.append(Result("core", variant, seed, metrics={"pooled/explained_variance": ev}))
            found.append(Result("unlearning", variant, seed, metrics=metrics, details=details))
    folder.mkdir(parents=True)
    write_results_file(folder / "results.jsonl", found)


def test_answer_has_rows_and_a_panel_for_each_committed_study(tmp_path: Path) -> None:
    committed(tmp_path / "demo", {"baseline": 0.8, "groups": 0.61, "adaptive": 0.6})
    studies = load_studies(tmp_path)
    head, _, title, gain, *others = answer(studies).splitlines()
    assert "| baseline | groups | adaptive | adaptive − baseline |" in head
    assert "3 paired seeds" in title
    assert gain.startswith(
        "| Forget accuracy at retain accuracy ≥ 0.95 ↓ | 0.810 | 0.620 | 0.610 |"
    )
    assert gain.endswith("| detector 0.700 |")
    assert all(row.count("|") == head.count("|") for row in [title, gain, *others])
    (panel,) = answer_figure(studies).axes
    assert "Forget accuracy" in panel.get_title(loc="left")


def test_answer_needs_a_committed_study(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="holds none of the studies demo, local_text, textbooks"):
        load_studies(tmp_path)


def test_numbers_in_words_are_those_of_the_committed_results() -> None:
    """``docs/results.md`` and the README say these in words."""
    studies = load_studies()
    first_two = [studies[name] for name in ("demo", "local_text")]

    def mean(summary: Summary, key: str, variant: str) -> float:
        found = summary.metrics[f"unlearning/{key}"].variants[variant].mean
        assert found is not None
        return found

    limits = ("0.05", "0.10", "0.20")
    for summary, limit, variant in product(first_two, limits, ("groups", "adaptive")):
        token, bounded = (f"{kind}/forget_damage_at_{limit}" for kind in ("token", "bounded"))
        ratio = mean(summary, token, variant) / mean(summary, token, "baseline")
        assert 1.95 < ratio < 3.05, "two to three times"
        gain = mean(summary, bounded, variant) - mean(summary, bounded, "baseline")
        assert gain < 0.1, "bounded interventions gain less than .1 nats"
    for name in ("local_text", "textbooks"):
        summary, key = studies[name], STUDIES[name].gain
        (method, level), *_ = best_without_sae(summary, key)
        saes = [spread.mean for spread in summary.metrics[key].variants.values()]
        assert method == "detector"
        assert all(level > sae for sae in saes if sae is not None), "more damage than any SAE"
