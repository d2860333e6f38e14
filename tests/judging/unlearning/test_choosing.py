"""The selection that is chosen within a budget, and its file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.unlearning import choosing
from saelens_adaptive_ortho.judging.unlearning.choosing import choose, choose_selection
from saelens_adaptive_ortho.judging.unlearning.saved import UnlearningSelection, weights_digest
from saelens_adaptive_ortho.judging.unlearning.use import unlearn
from saelens_adaptive_ortho.text.models import special_tokens
from tests.judging.unlearning.conftest import HOOK, build_sae

QUICK = Settings(
    counts=[4, 8],
    strengths=[2.0, 8.0],
    ranks=[2, 4],
    n_select_contexts=8,
    n_choose_contexts=4,
    batch_size_prompts=8,
)
BUDGET = 0.4


@pytest.fixture(scope="module")
def model(demo_model: Any) -> Any:
    return demo_model


def loss(model: Any, tokens: Tensor) -> Tensor:
    """The loss at every second position, as ``Settings.loss_every`` says."""
    with torch.no_grad():
        per_token = model(tokens.long(), return_type="loss", loss_per_token=True, prepend_bos=False)
    return per_token[:, ::2].mean()


@pytest.mark.parametrize("kind", ["clamp", "bounded"])
def test_largest_damage_within_the_budget_is_chosen_and_reproduced(
    context: EvalContext,
    kind: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[tuple[int, int, Tensor]] = []
    measured = choosing._damage

    def spy(trial: Any, first: int, n: int, sweep: Any) -> Tensor:
        read.append((first, n, measured(trial, first, n, sweep)))
        return read[-1][2]

    monkeypatch.setattr(choosing, "_damage", spy)
    chosen = choose(context, BUDGET, kind, QUICK, "here")
    assert [(first, n) for first, n, _ in read] == [(8, 4), (12, 8)]
    forget, retain = read[1][2]
    assert chosen.chosen_on is not None
    damages = [c.damage for c in chosen.chosen_on.corpora]
    assert damages[0] == pytest.approx(float(forget[retain <= BUDGET].max()))
    assert damages[0] > 0
    assert damages[1] <= BUDGET
    # The model that forgets has the damage that the file says. The evaluation's clamp also edits
    # separators inside a context.
    for corpus, damage in zip(context.corpora, damages, strict=True):
        tokens = corpus.train[12:20]
        before = loss(context.model, tokens)
        with unlearn(context.model, context.load(), chosen):
            found = float(loss(context.model, tokens) - before)
        assert found == pytest.approx(damage, abs=1e-4 if kind == "bounded" else 0.05)


def test_selection_says_where_it_comes_from(context: EvalContext, tmp_path: Path) -> None:
    chosen = choose(context, BUDGET, "clamp", QUICK, "here")
    assert chosen.gate is not None
    assert chosen.sae == "here"
    assert chosen.sae_digest == weights_digest(context.load())
    assert (chosen.model_name, chosen.hook_name) == ("demo:model", HOOK)
    assert chosen.ignored_tokens == sorted(special_tokens(context.model))
    assert "saelens-adaptive-ortho" in chosen.versions
    on = chosen.chosen_on
    assert on is not None
    assert [c.fingerprint for c in on.corpora] == [c.fingerprint for c in context.corpora]
    assert [c.path for c in on.corpora] == ["demo:forget", "demo:retain"]
    assert (on.budget, on.context_size, on.ranking) == (BUDGET, 48, "rate")
    file = chosen.save(tmp_path / "new" / "selection.json")
    assert UnlearningSelection.load(file) == chosen
    everywhere = choose(context, BUDGET, "clamp", dataclasses.replace(QUICK, gate="token"))
    assert everywhere.gate is None


def test_every_retain_corpus_stays_within_the_budget(
    context: EvalContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near = dataclasses.replace(context.corpora[0], domain="near", share=0.25)
    forget, retain = context.corpora
    bench = dataclasses.replace(
        context.bench,
        corpora=[forget, dataclasses.replace(retain, share=0.75), near],
        texts=context.bench.texts | {"near": context.bench.texts["forget"]},
    )
    within = dataclasses.replace(context, bench=bench)
    # The third corpus is the forget corpus itself: what harms one harms the other.
    with pytest.raises(EvaluationError, match="every retain corpus stays within 1e-06 nats"):
        choose(within, 1e-6, "bounded", QUICK)
    chosen = choose(within, BUDGET, "bounded", QUICK)
    assert chosen.chosen_on is not None
    assert [c.name for c in chosen.chosen_on.corpora] == ["forget", "retain", "near"]
    assert all(c.damage <= BUDGET for c in chosen.chosen_on.corpora)


def test_choosing_refuses_bad_arguments_before_it_loads(tmp_path: Path) -> None:
    sae = tmp_path / "sae"
    build_sae().save_model(sae)
    for given, rule in (
        ({"budget": 0.0}, "budget=0.0"),
        ({"budget": float("nan")}, "budget=nan"),
        ({"kind": "clmp"}, "Did you mean 'clamp'"),
    ):
        with pytest.raises(ConfigError, match=rule):
            choose_selection(sae, **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no cfg.json"):
        choose_selection(tmp_path)


def selection(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "clamp",
        "latents": [3, 1],
        "values": [-1.0, -2.0],
        "strength": 2.0,
        "model_name": "m",
        "hook_name": HOOK,
        "sae_digest": "0",
        "d_in": 2,
    } | changes


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"kind": "push"}, "selection.kind='push': must be one of clamp, bounded"),
        ({"latents": []}, "selection.latents"),
        ({"latents": [3, 3]}, "named twice"),
        ({"latents": [3, -1]}, "selection.latents"),
        ({"values": [1.0]}, "one value for each of its 2 latents"),
        ({"gate": 1.5}, "selection.gate=1.5"),
        ({"strength": None}, "selection.strength=None: must be given"),
        ({"gates": 0.1}, "Did you mean selection.gate"),
        ({"kind": "bounded"}, "needs directions of 2 numbers"),
        ({"kind": "bounded", "gate": 0.1}, "only a clamp has a gate"),
        ({"kind": "bounded", "basis": [[1.0, 0.0]]}, "centre"),
        ({"chosen_on": {"corpora": 3}}, "selection.chosen_on"),
        ({"chosen_on": {"corpora": [{"name": "x"}]}}, "selection.chosen_on.corpora.0.path"),
    ],
)
def test_file_with_a_wrong_field_is_refused(
    changes: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    file = tmp_path / "selection.json"
    file.write_text(json.dumps(selection()))
    assert UnlearningSelection.load(file).latents == [3, 1]
    file.write_text(json.dumps(selection(**changes)))
    with pytest.raises(ConfigError, match=rule):
        UnlearningSelection.load(file)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "selection.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        UnlearningSelection.load(file)
    file.write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        UnlearningSelection.load(file)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="must be a mapping"):
        UnlearningSelection.load(file)


def test_digest_of_weights() -> None:
    """A copy in bfloat16 is the same SAE; another weight makes another one."""
    sae = build_sae()
    found = weights_digest(sae)
    assert weights_digest(build_sae().to(torch.bfloat16)) == found
    with torch.no_grad():
        sae.W_dec[0, 0] += 1
    assert weights_digest(sae) != found
