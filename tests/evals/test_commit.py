"""The committed results of a run give the same tables as the run itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.alpha.tables import PANELS, alpha_table
from evals.commit import commit_run, main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.report.tables import markdown_table, markdown_verdicts
from saelens_adaptive_ortho.results import (
    Result,
    ResultError,
    load_results,
    result_path,
    write_result,
)


def make_run(run: Path, variants: list[str]) -> Path:
    (run / "results").mkdir(parents=True)
    (run / "config.yaml").write_text("name: run\n")
    for number, variant in enumerate(variants):
        for seed in (0, 1, 2):
            value = 0.5 + 0.1 * number + 0.01 * seed**2
            damage = "loss/forget_damage_at_0.10"
            details = {
                "replicates": {damage: [value + 0.001 * i for i in range(50)]},
                "mcq_reason": "the model answers too few questions",
            }
            for result in (
                Result("core", variant, seed, metrics={"pooled/explained_variance": value}),
                Result("unlearning", variant, seed, metrics={damage: value}, details=details),
                Result("training", variant, seed, metrics={"steps": 10.0}),
            ):
                write_result(result_path(run, variant, seed, result.eval), result)
    return run


def test_committed_run_gives_same_tables(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["baseline", "fixed", "adaptive"])
    target = tmp_path / "study" / "results"
    (target / "plots").mkdir(parents=True)
    (target / "plots" / "old.png").write_text("")
    commit_run(run, target)
    assert {p.name for p in target.iterdir()} == {"config.yaml", "results.jsonl", "plots"}
    assert {p.suffix for p in (target / "plots").iterdir()} == {".png"}
    assert "replicates" not in (target / "results.jsonl").read_text()
    whole, kept = summarise(load_results(run)), summarise(load_results(target))
    assert markdown_table(kept) == markdown_table(whole)
    assert markdown_verdicts(kept) == markdown_verdicts(whole)
    assert kept.evaluations["unlearning"].remarks == whole.evaluations["unlearning"].remarks != []


def test_alpha_study_keeps_table_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["baseline", "fixed", "alpha=0", "alpha=1"])
    commit_run(run, tmp_path / "kept")
    kept = load_results(tmp_path / "kept")
    assert {f"{r.eval}/{name}" for r in kept for name in r.metrics} <= set(PANELS)
    assert not any(r.details for r in kept)
    assert alpha_table(kept) == alpha_table(load_results(run))
    assert [p.name for p in (tmp_path / "kept" / "plots").iterdir()] == ["alpha.png"]


def test_run_without_results_replaces_nothing(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    commit_run(make_run(tmp_path / "run", ["baseline"]), target)
    before = (target / "results.jsonl").read_bytes()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("{}")
    with pytest.raises(ResultError, match="results"):
        commit_run(empty, target)
    with pytest.raises(ConfigError, match="run=.*missing.*is no run folder"):
        commit_run(tmp_path / "missing", target)
    assert (target / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("place", ["run", "run/seed0", ".", "other", "file.txt"])
def test_only_results_of_this_command_are_replaced(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", ["baseline"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    (tmp_path / "file.txt").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit):
        main([str(run), str(tmp_path / place)])
    assert "target=" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
