"""Judging with named retain corpora and a second forget text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.evaluations import core as core_settings
from saelens_adaptive_ortho.judging import geometry, pairs, running
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Workbench
from saelens_adaptive_ortho.judging.firing import Firings, accumulate, passes, two_sides
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.reconstruction import ExplainedVariance
from saelens_adaptive_ortho.judging.saebench import core, tasks
from saelens_adaptive_ortho.judging.subjects import chosen_corpora
from saelens_adaptive_ortho.maths import grouping
from saelens_adaptive_ortho.results import load_result, result_path
from saelens_adaptive_ortho.text.corpora import CorpusConfig
from tests.judging.test_firing import CONTEXT, Case, build_sae, tokenised
from tests.tiny import Tiny

SHARES = {"forget": 1.0, "retain": 0.7, "near": 0.3, "far": 0.0, "forget_test": 0.0}
SUBSPACE = geometry.Settings(n_contexts=8, batch_size_prompts=4)


@pytest.fixture
def make(model: Any, tiny: Tiny, tmp_path: Path) -> Callable[..., EvalContext]:
    """Return a function that makes a context with the corpora of the given shares."""
    two = tokenised(model, tiny, True)
    # The other corpora are contexts of the first two in other mixtures.
    mixed = torch.cat([two[0].train[:4], two[1].train[4:]])
    train = {
        "forget": two[0].train,
        "retain": two[1].train,
        "near": mixed,
        "far": mixed.flip(0),
        "forget_test": two[0].train.flip(1),
    }

    def context(shares: dict[str, float] = SHARES, **fingerprints: str) -> EvalContext:
        corpora = [
            replace(
                two[name != "forget"],
                domain=name,
                share=share,
                train=train[name],
                held_out=train[name],
                fingerprint=fingerprints.get(name, name),
            )
            for name, share in shares.items()
        ]
        texts = {name: CorpusConfig(path=str(tiny.forget)) for name in shares}
        bench = Workbench(model, str(tiny.model), corpora, texts, CONTEXT, tmp_path)
        load = lambda: build_sae(Case(), model)  # noqa: E731
        return EvalContext(bench, load, "random", 0, tmp_path / "raw")

    return context


# --------------------------------------------------------------------- contract


def test_context_knows_each_kind_of_corpus(make: Callable[..., EvalContext]) -> None:
    context = make()
    assert context.forget.domain == "forget"
    assert context.retain.domain == "retain"
    assert [c.domain for c in context.named_retain] == ["near", "far"]
    assert context.forget_test is context.corpora[-1]
    assert [c.domain for c in context.trained] == ["forget", "retain", "near"]
    assert context.need_corpora(2) == context.corpora
    two = make({"forget": 1.0, "retain": 1.0})
    assert (two.named_retain, two.forget_test) == ([], None)
    single = make({"forget": 1.0})
    for side in ("forget", "retain"):
        with pytest.raises(EvaluationError, match="a forget and a retain corpus"):
            getattr(single, side)


def test_sides_mix_rates_by_share(make: Callable[..., EvalContext]) -> None:
    rates = torch.rand(5, 7, dtype=torch.float64)
    forget, retain = two_sides(rates, make().corpora)
    assert torch.equal(forget, rates[0])
    torch.testing.assert_close(retain, 0.7 * rates[1] + 0.3 * rates[2])
    two = make({"forget": 1.0, "retain": 1.0}).corpora
    assert torch.equal(two_sides(rates[:2], two), rates[:2])
    assert torch.equal(two_sides(rates[:1], two[:1]), rates[:1])


# --------------------------------------------------------------------- subspace


def test_groups_are_forget_against_the_mixed_retain_side(
    make: Callable[..., EvalContext],
) -> None:
    context = make()
    sae = context.load()
    firings = Firings(sae, 3)
    contexts = [c.train[:8] for c in context.corpora[:3]]
    accumulate(passes(sae, context.model, contexts, 4), firings)
    forget, retain, near = firings.rates()
    ids = grouping.domain_groups(torch.stack([forget, 0.7 * retain + 0.3 * near]), 9.0)
    found = geometry.run(context, SUBSPACE)
    assert set(found.details["firing_rates"]) == {"forget", "retain"}
    for code, name in grouping.DOMAIN_NAMES.items():
        assert found.metrics[f"n_{name}"] == float((ids == code).sum())
    analysed = pairs.run(context, pairs.Settings(n_contexts=8, batch_size_prompts=4, min_cosine=-1))
    assert found.metrics.items() <= analysed.metrics.items()
    assert analysed.metrics["domain_churn"] is not None
    texts = [t for pair in analysed.details["absorption_candidates"] for t in pair["texts"]["rare"]]
    assert {t["corpus"] for t in texts} <= {"forget", "retain", "near"}


def test_unseen_corpora_change_no_group(make: Callable[..., EvalContext]) -> None:
    unseen = make({"forget": 1.0, "retain": 1.0, "near": 0.0, "forget_test": 0.0})
    two = make({"forget": 1.0, "retain": 1.0})
    assert geometry.run(unseen, SUBSPACE) == geometry.run(two, SUBSPACE)
    given = geometry.run(make({"forget": 1.0, "retain": 0.2, "near": 0.8}), SUBSPACE)
    assert given.details["firing_rates"] != geometry.run(two, SUBSPACE).details["firing_rates"]


# ------------------------------------------------------------------------- core


@pytest.mark.parametrize("size", [3, 4])
def test_core_measures_each_corpus_and_the_mixture(
    make: Callable[..., EvalContext], size: int
) -> None:
    context = make()
    settings = core_settings.Settings(n_contexts=12, batch_size_prompts=size)
    parts = core.held_out_contexts(context, settings)
    whole = core.whole_batches(parts, size, core.shares_of(context))
    assert list(whole) == [*SHARES, "pooled"]
    n = {name: len(p) for name, p in parts.items()}
    assert n == dict.fromkeys(SHARES, 12)
    pooled = Counter(map(tuple, whole["pooled"].tolist()))
    wanted = [*parts["forget"], *parts["retain"][:8], *parts["near"][:3]]
    assert len(whole["pooled"]) == len(wanted) // size * size
    assert pooled <= Counter(tuple(c.tolist()) for c in wanted)
    own = core.own_measurements(context, settings, parts)
    sae = context.load()
    for name, contexts in whole.items():
        expected, rates = ExplainedVariance(sae), Firings(sae, 1)
        batches = passes(sae, context.model, [contexts], size, reconstruct=True)
        accumulate(batches, expected, rates)
        assert own.explained_variance[name] == pytest.approx(expected.result(), abs=1e-9)
        if name != "pooled":
            found = own.rates[own.domains.index(name)]
            torch.testing.assert_close(found, rates.rates()[0], rtol=0, atol=1e-12)


def test_two_corpora_are_pooled_in_turn() -> None:
    parts = {"forget": torch.arange(5)[:, None], "retain": 10 + torch.arange(7)[:, None]}
    whole = core.whole_batches(parts, 2, {"forget": 1.0, "retain": 1.0})
    assert whole["pooled"].flatten().tolist() == [0, 10, 1, 11, 2, 12, 3, 13, 4, 14]
    parts |= {"near": 20 + torch.arange(3)[:, None], "far": 30 + torch.arange(9)[:, None]}
    shares = {"forget": 1.0, "retain": 0.5, "near": 0.5, "far": 0.0}
    pooled = core.whole_batches(parts, 2, shares)["pooled"].flatten().tolist()
    assert pooled == [0, 10, 20, 1, 2, 11, 21, 3]  # 5 contexts of forget allow 2 of each other one


# ------------------------------------------------------------------------ tasks


def test_corpus_classes_are_forget_and_retain_alone(
    make: Callable[..., EvalContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make()
    assert tasks.resolve_source(context, "auto") == tasks.CORPUS
    read: list[str] = []

    def documents(_: CorpusConfig, where: str) -> list[str]:
        read.append(where)
        return ["the1 " * 200]

    monkeypatch.setattr(tasks, "read_documents", documents)
    assert list(tasks._corpus_passages(context, 2)) == ["forget", "retain"]
    assert read == ["forget", "retain"]


# ---------------------------------------------------------------- finished results


def test_new_text_or_share_makes_results_again(
    make: Callable[..., EvalContext], tmp_path: Path
) -> None:
    said: list[str] = []

    def runs(context: EvalContext) -> bool:
        said.clear()
        running.run_missing(context, {"subspace": {"n_contexts": 4}}, tmp_path, said.append)
        assert load_result(result_path(tmp_path, "random", 0, "subspace")).ok
        return bool(said)

    assert runs(make())
    assert not runs(make())
    assert runs(make(far="other text"))
    assert runs(make(forget_test="other text"))
    assert runs(make({**SHARES, "far": 0.1, "retain": 0.6}))
    assert runs(make({k: v for k, v in SHARES.items() if k != "far"}))
    assert not runs(make({k: v for k, v in SHARES.items() if k != "far"}))


def test_old_results_of_two_corpora_stay_valid(
    make: Callable[..., EvalContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    digested: list[list[Any]] = []
    dumps = json.dumps

    def noted(parts: Any, **options: Any) -> str:
        digested.append(parts)
        return dumps(parts, **options)

    context = make({"forget": 1.0, "retain": 1.0})
    monkeypatch.setattr(running.json, "dumps", noted)
    running._fingerprint("subspace", {}, context)
    assert digested[-1][6] == ["forget", "retain"]
    running._fingerprint("subspace", {}, make({"forget": 1.0}))
    assert digested[-1][6] == ["forget"]
    running._fingerprint("subspace", {}, make({"forget": 1.0, "retain": 0.7, "near": 0.3}))
    assert digested[-1][6] == ["forget", "retain", ["near", 0.3, "near"]]


# ---------------------------------------------------------------- the command line


@pytest.fixture
def chosen(tiny: Tiny, tmp_path: Path) -> Callable[..., dict[str, tuple[str, float | None]]]:
    """Return a function that gives name, file and share of the corpora of some options."""
    recorded = {
        "forget": str(tiny.forget),
        "retain": {"path": str(tiny.retain)},
        "near": {"path": str(tiny.retain), "share": 0.25},
    }

    def choose(record: Any = None, **options: Any) -> dict[str, tuple[str, float | None]]:
        records = {"sae": {"ortho_corpora": recorded if record is None else record}}
        found = chosen_corpora(JudgingOptions(out=tmp_path, **options), records)
        return {name: (Path(c.path).name, c.share) for name, c in found.items()}

    return choose


def test_corpora_of_the_training_are_the_default(chosen: Callable[..., Any]) -> None:
    trained = {
        "forget": ("forget.jsonl", None),
        "retain": ("retain.jsonl", None),
        "near": ("retain.jsonl", 0.25),
    }
    assert chosen() == trained
    assert chosen(retain_share=["near=0"]) == {**trained, "near": ("retain.jsonl", 0.0)}
    assert chosen({}) == {}


def test_further_corpora_join_those_of_the_training(chosen: Callable[..., Any], tiny: Tiny) -> None:
    far, test = f"far={tiny.forget}", str(tiny.retain)
    found = chosen(retain=[far], forget_test=test)
    assert list(found) == ["forget", "retain", "near", "far", "forget_test"]
    assert found["far"] == ("forget.jsonl", 0.0)
    assert found["near"] == ("retain.jsonl", 0.25)
    found = chosen(retain=[far, f"near={tiny.forget}"], retain_share=["far=0.5"])
    assert found["near"] == ("forget.jsonl", 0.0)
    assert found["far"] == ("forget.jsonl", 0.5)


def test_given_sides_replace_those_of_the_training(chosen: Callable[..., Any], tiny: Tiny) -> None:
    named = [f"far={tiny.retain}", str(tiny.retain)]
    found = chosen(forget=str(tiny.forget), retain=named, retain_share=["far=.1"])
    assert found == {
        "forget": ("forget.jsonl", None),
        "retain": ("retain.jsonl", None),
        "far": ("retain.jsonl", 0.1),
    }
    assert chosen(retain=[str(tiny.retain)]) == {"corpus": ("retain.jsonl", None)}


def test_path_with_an_equals_sign_is_a_path(
    chosen: Callable[..., Any], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near=1.jsonl").write_bytes(tiny.retain.read_bytes())
    found = chosen(forget=str(tiny.forget), retain=["near=1.jsonl", "near=near=1.jsonl"])
    assert found["retain"] == found["near"][:1] + (None,) == ("near=1.jsonl", None)
    with pytest.raises(ConfigError, match=r"--retain='data/k=2/a.txt': no such file"):
        chosen(forget=str(tiny.forget), retain=["data/k=2/a.txt"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retain": ["near=nowhere.txt"]}, r"--retain near='nowhere.txt': no such file"),
        ({"retain": ["FILE", "FILE"]}, r"--retain='.*retain.jsonl': is given twice"),
        ({"retain": ["a=FILE", "a=FILE"]}, r"--retain a='.*retain.jsonl': is given twice"),
        ({"retain": ["pooled=FILE"]}, r"--retain pooled=.*has a meaning of its own"),
        ({"retain": ["forget=FILE"]}, r"--retain='forget=.*use --forget\."),
        ({"retain": ["forget_test=FILE"]}, r"use --forget-test\."),
        ({"retain": ["a b=FILE"]}, r"--retain a b=.*letters, digits"),
        ({"retain": ["retian=FILE"], "forget": "FILE"}, r"retian=.*Did you mean --retain\?"),
        ({"retain": ["a=FILE"], "forget": "FILE"}, r"--retain a=.*needs both .* give --retain\."),
        ({"forget_test": "FILE", "retain": ["FILE"]}, r"--forget-test=.*needs both.*--forget\."),
        ({"forget_test": "nowhere.txt"}, r"--forget-test='nowhere.txt': no such file"),
        ({"retain_share": ["far=0.2"]}, r"--retain-share='far=0.2': far is no named .* are near"),
        ({"retain_share": ["retain=0.2"]}, r"retain is no named retain corpus"),
        ({"retain_share": ["near"]}, r"--retain-share='near': must read NAME=SHARE"),
        ({"retain_share": ["near=1"]}, r"--retain-share='near=1': must read NAME=SHARE"),
        (
            {"retain_share": ["near=0", "near=0.3"]},
            r"'near=0\.3': the share of near is given twice",
        ),
        ({"retain": ["FILE"], "forget": "FILE"}, r"--retain='.*': has the same text as --forget\."),
        ({"retain_share": ["near=nan"]}, r"must read NAME=SHARE"),
        (
            {"retain": ["a=FILE"], "retain_share": ["near=0.5", "a=0.5"]},
            r"--retain-share a=0\.5: leaves nothing for --retain",
        ),
    ],
)
def test_bad_option_is_named(
    chosen: Callable[..., Any], tiny: Tiny, options: dict[str, Any], message: str
) -> None:
    def filled(text: str) -> str:
        return text.replace("FILE", str(tiny.retain))

    given = {
        k: [filled(t) for t in v] if isinstance(v, list) else filled(v) for k, v in options.items()
    }
    with pytest.raises(ConfigError, match=message):
        chosen(**given)


def test_share_without_a_named_corpus_says_how_to_give_one(chosen: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="near is no named retain corpus; give --retain NAME="):
        chosen({}, retain_share=["near=0.2"])
