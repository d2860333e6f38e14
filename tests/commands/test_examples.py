"""``adaptive-ortho unlearn --example``: text before and after, for the report of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho import examples
from saelens_adaptive_ortho.commands import cli
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.experiments.comparison import Comparison
from saelens_adaptive_ortho.experiments.experiment import build_experiment, recorded_settings
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.subjects import find_subject
from saelens_adaptive_ortho.judging.unlearning.choosing import context_for
from saelens_adaptive_ortho.judging.unlearning.writing import Prompt, write
from saelens_adaptive_ortho.results import Result, result_path, write_result
from saelens_adaptive_ortho.settings import dump_yaml
from tests.commands.test_unlearn import QUICK, run  # noqa: F401  # a fixture

CALL = ["--example", "--max-new-tokens", "5", "--budget", "4", *QUICK]


@pytest.fixture
def with_results(run: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A run folder with results of unlearning."""
    folder = shutil.copytree(run, tmp_path / "run")
    for variant in ("baseline", "adaptive"):
        found = Result("unlearning", variant, 0, metrics={"token/forget_damage_at_0.10": 1.0})
        write_result(result_path(folder, variant, 0, "unlearning"), found)
    (folder / "config.yaml").write_text("model_name: demo:model\n")
    return folder


def test_example_of_a_run(with_results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The prompts are held-out text, and the texts are what the model writes after them."""
    assert cli.main(["unlearn", str(with_results), *CALL]) == 0
    assert f"Report: {with_results / 'report.html'}" in capsys.readouterr().out
    found = examples.read(with_results / "results")
    assert found is not None
    assert (found.variant, found.seed, found.budget, found.tokens) == ("adaptive", 0, 4, 5)
    assert found.latents > 0
    assert found.damage["forget"] > 0
    assert found.damage["retain"] <= 4
    assert found.corpora == ["forget", "retain"]
    subject = find_subject(str(with_results), "adaptive", 0)
    context = context_for(subject, JudgingOptions(out=with_results))
    assert found.sae_digest == context.sae_digest
    tokenizer: Any = context.model.tokenizer
    held_out = [tokenizer.decode(ids) for c in context.corpora for ids in c.held_out]
    for one in found.examples:
        assert any(one.prompt + one.truth in text for text in held_out)
    first = found.examples[0]
    prompt = Prompt(first.prompt, first.truth)
    again = write(context.model, context.load(), prompt, 5)
    assert (again.text, again.loss) == (first.before, pytest.approx(first.loss_before))
    assert any(one.loss_after != one.loss_before for one in found.examples)
    page = (with_results / "report.html").read_text()
    assert "With the SAE adaptive, seed 0." in page


def test_what_has_no_effect_is_refused(
    with_results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, message in (
        (["--prompt", "a"], "--prompt="),
        (["--temperature", "1"], "--temperature="),
        (["--save", str(tmp_path / "s.json")], "--save="),
        (["--kind", "bounded"], "--kind='bounded'"),
    ):
        assert cli.main(["unlearn", str(with_results), "--example", *more]) == 2
        assert message in capsys.readouterr().err
    sae = with_results / "seed0" / "adaptive"
    assert cli.main(["unlearn", str(sae), "--example"]) == 2
    assert "needs a run folder with results" in capsys.readouterr().err


def test_failure_leaves_the_earlier_examples(
    with_results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    impossible = ["--example", "--budget", "1e-9", *QUICK]
    assert cli.main(["unlearn", str(with_results), *impossible]) == 2
    assert "every retain corpus stays within 1e-09 nats" in capsys.readouterr().err
    assert examples.read(with_results / "results") is None


def test_settings_are_those_of_the_run(
    with_results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Settings] = []

    def make(context: Any, settings: Settings, *_: object) -> examples.Examples:
        asked.append(settings)
        return examples.Examples(variant="adaptive", seed=0, sae_digest="", reason="none")

    monkeypatch.setattr("saelens_adaptive_ortho.commands.examples.make_examples", make)
    config = with_results / "config.yaml"
    call = ["unlearn", str(with_results), "--example"]
    config.write_text(dump_yaml({"evals": {"unlearning": {"gate": "token", "n_contexts": 7}}}))
    assert cli.main(call) == 2
    assert cli.main([*call, "--set=unlearning.n_contexts=9"]) == 2
    for none in ({"evals": ["core", "unlearning"]}, {"evals": {"unlearning": None}}, {}):
        config.write_text(dump_yaml(none))
        assert cli.main(call) == 2
    config.unlink()
    assert cli.main(call) == 2
    of_run, overridden, *others = asked
    assert of_run == Settings(gate="token", n_contexts=7)
    assert overridden == Settings(gate="token", n_contexts=9)
    assert others == [Settings()] * 4
    config.write_text(dump_yaml({"evals": {"unlearning": {"gat": "token"}}}))
    capsys.readouterr()
    assert cli.main(call) == 2
    assert "evals.unlearning.gat" in capsys.readouterr().err


def test_comparison_has_the_same_settings(tmp_path: Path, settings: Any) -> None:
    given = {"unlearning": {"gate": "token", "n_contexts": 7}}
    comparison = Comparison(build_experiment(settings(evals=given, output_path=str(tmp_path))))
    comparison.write_config()
    assert recorded_settings(tmp_path, "unlearning") == Settings(gate="token", n_contexts=7)
