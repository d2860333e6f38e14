"""Examples for the report: prompts from held-out text, ``unlearn --example``, and ``compare``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saelens_adaptive_ortho import examples
from saelens_adaptive_ortho.commands import cli
from saelens_adaptive_ortho.commands import examples as making
from saelens_adaptive_ortho.commands.comparison import Comparison
from saelens_adaptive_ortho.commands.experiment import build_experiment
from saelens_adaptive_ortho.commands.unlearn import UnlearnOptions
from saelens_adaptive_ortho.commands.unlearning import Prompt, write
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.subjects import find_subject
from saelens_adaptive_ortho.judging.unlearning.choosing import context_for
from saelens_adaptive_ortho.results import Result, load_results, result_path, write_result
from saelens_adaptive_ortho.text.corpora import TokenisedCorpus
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
    options = UnlearnOptions(sae="x", max_new_tokens=5)
    prompt = Prompt(first.prompt, first.truth)
    again = write(context.model, context.load(), prompt, options)
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


# ------------------------------------------------------------------ the prompts


class Words:
    """A tokenizer with a word for each number; 0 is BOS."""

    bos_token_id, eos_token_id, pad_token_id = 0, 0, 0

    def decode(self, ids: list[int]) -> str:
        return "".join(f" w{i}." if i % 10 == 0 else f" w{i}" for i in ids)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str | None]]]:
    monkeypatch.setattr(making, "uncounted_tokens", lambda *_: {0})

    class Model:
        tokenizer = Words()

    def find(*contexts: list[int], tokens: int = 40) -> list[tuple[str, str | None]]:
        held_out = torch.tensor(contexts)
        corpus = TokenisedCorpus("forget", held_out, held_out, "x")
        found = making.held_out_prompts(corpus, Model(), Any, tokens)
        return [(p.prompt, p.continuation) for p in found]

    return find


def test_prompt_is_the_beginning_of_the_longest_stretch(prompts: Any) -> None:
    """Special tokens separate documents, and a prompt begins with a sentence if it can."""
    ((prompt, truth),) = prompts([0, 1, 2, 0, *range(11, 19), *range(21, 29), 0])
    assert prompt == "".join(f" w{i}" for i in range(11, 19))
    assert truth == "".join(f" w{i}" for i in range(21, 29))
    ((prompt, _),) = prompts([0, 3, 4, 10, *range(31, 39), *range(41, 45)])
    assert prompt.startswith(" w31")
    # A sentence that begins after the first third is not waited for.
    ((prompt, _),) = prompts([0, *range(1, 10), 10, 11, 12, 13, 14])
    assert prompt.startswith(" w1 ")


def test_prompt_has_32_tokens_at_most(prompts: Any) -> None:
    ((prompt, truth),) = prompts([i + 1 - (i % 10 == 9) for i in range(11, 141)], tokens=7)
    assert len(prompt.split()) == 32
    assert len(truth.split()) == 7


def test_short_passages_are_left_out(prompts: Any) -> None:
    assert prompts([0, 1, 2, 3, 0, 1, 2, 3]) == []
    long = list(range(1, 9))
    assert len(prompts(long, [0] * 8, long, long, [0] * 8, long)) == 2


# ------------------------------------------------------------------ compare


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_compare_makes_examples_once(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {
        "n_select_contexts": 8,
        "n_choose_contexts": 4,
        "n_contexts": 4,
        "n_reference_contexts": 4,
        "counts": [4],
        "specificities": [1.01],
        "ranks": [2],
        "references": False,
        "gate": "token",
        "replicates": 5,
    }
    tree = settings(
        variants={"baseline": {"ortho_mode": "off"}, "adaptive": {}},
        seeds=[0],
        evals={"unlearning": quick},
        output_path=str(tmp_path / "run"),
    )
    calls: list[str] = []
    make = making.make_examples

    def counted(context: Any, *rest: Any) -> Any:
        calls.append(context.variant)
        return make(context, *rest)

    monkeypatch.setattr("saelens_adaptive_ortho.commands.comparison.make_examples", counted)
    comparison = Comparison(build_experiment(tree), say=lambda _: None)
    comparison.run()
    assert calls == ["adaptive"]
    results = tmp_path / "run" / "results"
    found = examples.read(results)
    assert found is not None
    assert (found.variant, found.seed) == ("adaptive", 0)
    assert found.examples or found.reason
    assert {r.eval for r in load_results(results)} == {"training", "unlearning"}
    before = (results / examples.FILE).read_bytes()
    comparison.write_examples()
    assert calls == ["adaptive"]
    # Examples that a user made for another SAE of the run are kept, those of a lost SAE are not.
    digest = comparison._context("baseline", 0).sae_digest
    for kept, variant in ((digest, "baseline"), ("other", "baseline"), (digest, "lost")):
        other = examples.Examples(variant=variant, seed=0, sae_digest=kept, reason="none")
        examples.write(results, other)
        comparison.write_examples()
        same = (kept, variant) == (digest, "baseline")
        assert examples.read(results) == (other if same else found)
    assert calls == ["adaptive"] * 3
    assert (results / examples.FILE).read_bytes() == before
    comparison.clear()  # as --fresh does
    assert not (results / examples.FILE).exists()
    comparison.write_examples()  # there is no result now
    assert not (results / examples.FILE).exists()
