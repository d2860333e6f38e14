"""Unlearning: clamp, questions and driver, compared with SAEBench and with brute force."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens.saes.sae import SAE
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from torch import Tensor

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.unlearning import accuracies, references, retraining, selection
from saelens_adaptive_ortho.judging.unlearning import clamps as intervention
from saelens_adaptive_ortho.judging.unlearning import evaluation as unlearning
from saelens_adaptive_ortho.judging.unlearning import published as published_unlearning
from saelens_adaptive_ortho.judging.unlearning import questions as mcq
from saelens_adaptive_ortho.judging.unlearning.clamps import Clamp, Projection, Push
from saelens_adaptive_ortho.judging.unlearning.families import Family, Setting
from saelens_adaptive_ortho.judging.unlearning.losses import Trial
from saelens_adaptive_ortho.maths.erasure import Detector, Erasure
from saelens_adaptive_ortho.text import models
from tests.damages import damages
from tests.judging.support import read_back
from tests.judging.unlearning.conftest import D_IN, D_SAE, HOOK, QUICK, build_sae

RETRAINED = {retraining.RMU, retraining.ASCENT}  # only if they are asked for


@pytest.fixture(scope="module")
def model(demo_model: Any) -> Any:
    return demo_model


@pytest.fixture
def few_questions(tmp_path: Path) -> str:
    """40 of the demo's questions. With so few, finding the known ones is quick."""
    lines = Path(mcq.QUESTIONS).read_text().splitlines()
    chosen = [
        line
        for domain in ("forget", "retain")
        for line in [x for x in lines if json.loads(x)["domain"] == domain][:20]
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(chosen))
    return str(path)


# ------------------------------------------------------------------ the clamp


def test_what_a_result_holds_of_a_setting() -> None:
    clamp = Clamp(torch.tensor([3, 1]), torch.tensor([-1.0, -2.0]), 0.123456)
    assert Setting(0, 2.00001, clamp).plain() == [2, 2.0, 0.1235]
    erasure = Erasure.onto(torch.eye(4, dtype=torch.float64)[:3])
    assert Setting(0, 0.5, Projection(erasure, torch.zeros(4), 0.5)).plain() == [3, 0.5, None]


@pytest.mark.saebench
def test_clamp_equals_saebench(model: Any) -> None:
    pytest.importorskip("sae_bench")
    from sae_bench.evals.unlearning.utils.intervention import anthropic_clamp_resid_SAE_features

    sae, x = build_sae(), 3 * torch.randn(2, 5, D_IN)
    latents = torch.tensor([3, 10, 40])
    ours = intervention.clamped(sae, x, Clamp(latents, torch.full((3,), -25.0)))
    theirs = anthropic_clamp_resid_SAE_features(x, None, sae, latents.tolist(), 25.0)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, x)


def test_clamp_sets_each_latent_only_where_active() -> None:
    sae, x = build_sae(), 3 * torch.randn(1, 6, D_IN)
    clamp = Clamp(torch.tensor([1, 2]), torch.tensor([-1.0, -7.0]))
    acts = sae.encode(x)
    acts[:, 0] = 0  # BOS
    wanted = torch.zeros_like(acts)
    for i, value in ((1, -1.0), (2, -7.0)):
        wanted[..., i] = torch.where(acts[..., i] > 0, value - acts[..., i], 0.0)
    torch.testing.assert_close(intervention.clamped(sae, x, clamp), x + wanted @ sae.W_dec)


@pytest.mark.saebench
def test_ranking_equals_saebench() -> None:
    pytest.importorskip("sae_bench")
    from sae_bench.evals.unlearning.utils.feature_activation import get_top_features

    generator = np.random.default_rng(0)
    forget, retain = generator.random(200), generator.random(200) * 0.02
    theirs = get_top_features(forget, retain, retain_threshold=0.01)
    ours = intervention.rank_latents(torch.tensor(forget), torch.tensor(retain), 0.01)
    assert ours.tolist() == theirs.tolist()


def test_limit_per_latent_selects_by_ratio() -> None:
    forget, retain = torch.tensor([0.09, 0.5, 0.2, 0.0]), torch.tensor([0.005, 0.2, 0.01, 0.0])
    assert intervention.rank_latents(forget, retain, forget / 9).tolist() == [2, 0]


def test_firing_statistics_ignore_special_tokens(context: EvalContext) -> None:
    settings = unlearning.Settings(n_select_contexts=4, batch_size_prompts=3)
    sae, model = context.load(), context.model
    found = selection.measure_statistics(context, sae, settings)
    special = torch.tensor(sorted(models.special_tokens(model)))
    codes = []
    for corpus in context.corpora:
        tokens = corpus.train[:4].long()
        acts = model.run_with_cache(tokens, names_filter=HOOK, prepend_bos=False)[1][HOOK]
        codes.append(sae.encode(acts[~torch.isin(tokens, special)]).detach())
    for rate, own in zip((found.forget_rate, found.retain_rate), codes, strict=True):
        torch.testing.assert_close(rate, (own > 0).double().mean(0), rtol=0, atol=1e-12)
    fired = codes[0].sum(0) / (codes[0] > 0).sum(0).clamp(min=1)
    torch.testing.assert_close(found.scale, fired)
    for energy, own in zip((found.forget_energy, found.retain_energy), codes, strict=True):
        torch.testing.assert_close(energy, own.double().square().mean(0))


def test_measure_equals_full_model_with_hook(model: Any, corpora: list[Any]) -> None:
    sae, tokens = build_sae(), corpora[0].held_out[:6]
    clamps = [
        Clamp(torch.tensor([1, 5, 9]), torch.tensor([-3.0, 0.0, -20.0])),
        Clamp(torch.tensor([7]), torch.tensor([-5.0])),
    ]
    measure = intervention.per_context_loss(tokens)
    plain, changed = intervention.measure_clamps(model, sae, tokens, clamps, measure, 4, "")

    def loss(hooks: list[Any]) -> Tensor:
        per_token = model.run_with_hooks(
            tokens.long(),
            fwd_hooks=hooks,
            return_type="loss",
            loss_per_token=True,
            prepend_bos=False,
        )
        return per_token.mean(1)

    with torch.no_grad():
        torch.testing.assert_close(plain, loss([]), atol=1e-5, rtol=1e-5)
        for number, clamp in enumerate(clamps):

            def edit(x: Tensor, hook: object, clamp: Clamp = clamp) -> Tensor:
                return intervention.clamped(sae, x, clamp)

            torch.testing.assert_close(changed[number], loss([(HOOK, edit)]), atol=1e-4, rtol=1e-4)
    assert (changed[0] > plain).any()


def test_loss_at_every_nth_position(model: Any, corpora: list[Any]) -> None:
    """It is the mean of the losses at these positions."""
    sae, tokens = build_sae(), corpora[0].held_out[:3]
    clamp = Clamp(torch.tensor([1, 5, 9]), torch.tensor([-3.0, 0.0, -20.0]))
    measure = intervention.per_context_loss(tokens, every=3)
    plain, changed = intervention.measure_clamps(model, sae, tokens, [clamp], measure, 2, "")

    def edit(x: Tensor, hook: object) -> Tensor:
        return intervention.clamped(sae, x, clamp)

    with torch.no_grad():
        for found, hooks in ((plain, []), (changed[0], [(HOOK, edit)])):
            losses = model.run_with_hooks(
                tokens.long(),
                fwd_hooks=hooks,
                return_type="loss",
                loss_per_token=True,
                prepend_bos=False,
            )
            torch.testing.assert_close(found, losses[:, ::3].mean(1), atol=1e-4, rtol=1e-4)


def test_sae_after_the_last_block(model: Any, corpora: list[Any]) -> None:
    sae, tokens = build_sae(), corpora[0].held_out[:3]
    hook = sae.cfg.metadata.hook_name = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    clamp = Clamp(torch.arange(20), -4 * torch.ones(20))
    measure = intervention.per_context_loss(tokens, every=2)
    _, changed = intervention.measure_clamps(model, sae, tokens, [clamp], measure, 2, "")

    def edit(x: Tensor, hook: object) -> Tensor:
        return intervention.clamped(sae, x, clamp)

    with torch.no_grad():
        logits = model.run_with_hooks(tokens.long(), fwd_hooks=[(hook, edit)], prepend_bos=False)
    expected = measure.of(logits, torch.arange(3))
    torch.testing.assert_close(changed[0], expected, atol=1e-4, rtol=1e-4)


def test_silent_latent_changes_nothing_exactly(model: Any, corpora: list[Any]) -> None:
    sae, tokens = build_sae(), corpora[0].held_out[:4]
    with torch.no_grad():
        sae.threshold[5] = 1e6
    clamp = Clamp(torch.tensor([5]), torch.tensor([-100.0]))
    measure = intervention.per_context_loss(tokens)
    plain, changed = intervention.measure_clamps(model, sae, tokens, [clamp], measure, 4, "")
    assert torch.equal(changed[0], plain)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
def test_fast_path_only_for_affine_decoders(
    model: Any, corpora: list[Any], normalisation: Any
) -> None:
    """Other decoders are measured by encoding and decoding the whole activation."""
    sae, tokens = build_sae(normalize_activations=normalisation), corpora[0].held_out[:4]
    with torch.no_grad():
        sae.threshold.fill_(0.3)
    clamp = Clamp(torch.arange(20), -4 * torch.ones(20))
    measure = intervention.per_context_loss(tokens)
    _, quick = intervention.measure_clamps(model, sae, tokens, [clamp], measure, 4, "")

    def edit(x: Tensor, hook: object) -> Tensor:
        return intervention.clamped(sae, x, clamp)

    with torch.no_grad():
        logits = model.run_with_hooks(tokens.long(), fwd_hooks=[(HOOK, edit)], prepend_bos=False)
        torch.testing.assert_close(
            quick[0], measure.of(logits, torch.arange(4)), atol=1e-4, rtol=1e-4
        )


def test_hook_inside_a_layer(model: Any, corpora: list[Any]) -> None:
    sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))
    sae.cfg.metadata.hook_name = "blocks.1.hook_mlp_out"
    tokens = corpora[0].held_out[:4]
    clamp = Clamp(torch.arange(8), -torch.ones(8))
    measure = intervention.per_context_loss(tokens)
    plain, changed = intervention.measure_clamps(model, sae, tokens, [clamp], measure, 4, "")
    with torch.no_grad():
        expected = measure.of(model(tokens.long(), prepend_bos=False), torch.arange(4))
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(plain, changed[0])


@pytest.mark.parametrize("head", [None, 2])
def test_hook_with_heads_changes_only_the_sae_heads(
    model: Any, corpora: list[Any], head: int | None
) -> None:
    """The SAE reads one head, or all heads concatenated."""
    width = D_IN if head is None else D_IN // model.cfg.n_heads
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=D_SAE))
    sae.cfg.metadata.hook_name = "blocks.1.attn.hook_z"
    sae.cfg.metadata.hook_head_index = head
    tokens = corpora[0].held_out[:4]
    clamp = Clamp(torch.arange(D_SAE), -4 * torch.ones(D_SAE))
    measure = intervention.per_context_loss(tokens)
    _, changed = intervention.measure_clamps(model, sae, tokens, [clamp], measure, 2, "")

    def edit(x: Tensor, hook: object) -> Tensor:
        if head is None:
            return intervention.clamped(sae, x.flatten(2), clamp).view_as(x)
        x = x.clone()
        x[:, :, head] = intervention.clamped(sae, x[:, :, head], clamp)
        return x

    with torch.no_grad():
        hooks = [("blocks.1.attn.hook_z", edit)]
        logits = model.run_with_hooks(tokens.long(), fwd_hooks=hooks, prepend_bos=False)
    expected = measure.of(logits, torch.arange(4))
    torch.testing.assert_close(changed[0], expected, atol=1e-4, rtol=1e-4)


def test_projection_and_push_equal_the_full_model_with_a_hook(
    model: Any, corpora: list[Any]
) -> None:
    """They act on every token but BOS, or on those with a high score."""
    sae, tokens = build_sae(), corpora[0].held_out[:5]
    generator = torch.Generator().manual_seed(0)
    centre, direction = torch.randn(2, D_IN, generator=generator)
    direction = direction / direction.norm()
    detector = Detector(direction, 0.1)
    edits = [
        Projection(Erasure.onto(direction[None]), centre, 0.7),
        Push(detector, 0.4, 3 * direction, 2.0),
        Push(detector, 0.4, 3 * direction, 2.0, gate=1.0),
    ]
    measure = intervention.per_context_loss(tokens)
    plain, changed = intervention.measure_clamps(model, sae, tokens, edits, measure, 3, "")
    counted = ~torch.isin(tokens, torch.tensor(sorted(models.special_tokens(model))))[..., None]

    def project(x: Tensor, hook: object) -> Tensor:
        return torch.where(counted, x - 0.7 * ((x - centre) @ direction)[..., None] * direction, x)

    def push(x: Tensor, hook: object) -> Tensor:
        found = (x @ direction + 0.1 > 0.4)[..., None] & counted
        assert found.any()
        assert not found.all()
        return torch.where(found, x - 6 * direction, x)

    with torch.no_grad():
        for number, edit in enumerate((project, push)):
            logits = model.run_with_hooks(
                tokens.long(), fwd_hooks=[(HOOK, edit)], prepend_bos=False
            )
            expected = measure.of(logits, torch.arange(5))
            torch.testing.assert_close(changed[number], expected, atol=1e-4, rtol=1e-4)
    assert (changed[0] - plain).abs().max() > 1e-3
    assert torch.equal(changed[2], plain)


def test_gate_keeps_contexts_with_few_firings(context: EvalContext) -> None:
    """A clamp acts only in contexts where more than the given share of the tokens fires."""
    model, sae, tokens = context.model, context.load(), context.forget.held_out[:8]
    latents, values = torch.arange(32, 34), -4 * torch.ones(2)
    measure = intervention.per_context_loss(tokens)
    with torch.no_grad():
        acts = sae.encode(model.run_with_cache(tokens.long(), prepend_bos=False)[1][HOOK])
    counted = ~torch.isin(tokens, torch.tensor(sorted(models.special_tokens(model))))
    fires = (acts[..., latents] > 0).any(-1) & counted
    shares = fires.sum(1) / counted.sum(1)
    gate = float(shares.median())
    clamps = [Clamp(latents, values), Clamp(latents, values, gate), Clamp(latents, values, 1.0)]
    plain, changed = intervention.measure_clamps(model, sae, tokens, clamps, measure, 3, "")
    above = shares > gate
    assert 0 < int(above.sum()) < 8
    assert torch.equal(changed[1][above], changed[0][above])
    assert torch.equal(changed[1][~above], plain[~above])
    assert torch.equal(changed[2], plain)


def test_padding_of_a_prompt_counts_for_nothing() -> None:
    fires = torch.tensor([[True, True, False, True], [True, False, True, True]])
    counted = torch.tensor([[False, True, True, False], [False, True, True, True]])
    assert intervention.firing_share(fires, counted).tolist() == [0.5, pytest.approx(2 / 3)]


# ------------------------------------------------------------------ questions


GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.mark.saebench
def test_gemma_chat_prompt_is_the_published_one() -> None:
    pytest.importorskip("sae_bench")
    from sae_bench.evals.unlearning.utils.metrics import convert_wmdp_data_to_prompt
    from transformers import AutoTokenizer

    from saelens_adaptive_ortho.demo import MODEL_DIR

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    tokenizer.chat_template = GEMMA_TEMPLATE
    tokenizer.bos_token = "<bos>"
    question = mcq.Question("forget", "biology", "What is it?", ("a", "b", "c", "d"), 1)
    order = (2, 0, 3, 1)
    ours = mcq.prompt_text(question, order, "chat", tokenizer)
    theirs = convert_wmdp_data_to_prompt(
        question.question,
        list(question.choices),
        prompt_format="GEMMA_INST_FORMAT",
        permute_choices=list(order),
    )
    assert ours == theirs


def test_prompts_end_before_the_answer(model: Any) -> None:
    questions = mcq.load_questions("demo:questions")[:2]
    prompts = mcq.make_prompts(questions, mcq.CYCLIC_ORDERS, "plain", model)
    assert prompts.tokens.shape[0] == 8
    for row, last, answer in zip(prompts.tokens, prompts.last, prompts.answers, strict=True):
        text = model.tokenizer.decode(row[: int(last) + 1])
        assert text.endswith("Answer:")
        assert row[0] == model.tokenizer.bos_token_id
        assert (row[int(last) + 1 :] == model.tokenizer.pad_token_id).all()
        letter = "ABCD"[int(answer)]
        right = next(q for q in questions if q.question in text)
        assert f"{letter}. {right.choices[right.answer]}" in text


def test_constant_letter_scores_chance_over_cyclic_orders(model: Any) -> None:
    """A model that always says one letter has an accuracy of exactly 1/4."""
    questions = mcq.load_questions("demo:questions")[:5]
    prompts = mcq.make_prompts(questions, mcq.CYCLIC_ORDERS, "plain", model)
    logits = torch.zeros(20, prompts.tokens.shape[1], model.cfg.d_vocab)
    logits[..., prompts.letters[2]] = 1.0
    right = prompts.right().of(logits, torch.arange(20))
    assert right.view(5, 4).mean(1).tolist() == [unlearning.CHANCE] * 5


def test_demo_model_knows_its_questions(model: Any, few_questions: str) -> None:
    known = mcq.known_questions(model, mcq.load_questions(few_questions)[::4], "plain", 64)
    assert known.all()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ('{"domain": "forget"}', "has no field 'question'; it has"),
        (
            '{"domain": "forget", "question": 3, "choices": ["a","b","c","d"], "answer": 0}',
            "question is 3, not a text",
        ),
        (
            '{"domain": "forget", "question": "?", "choices": "abcd", "answer": 0}',
            "choices is 'abcd', not four choices",
        ),
        (
            '{"domain": "forget", "question": "?", "choices": ["a","b","c","d"], "answer": true}',
            "answer is True, not 0",
        ),
        ('{"domain": "forget", "question": "?", "choices": ["a"], "answer": 0}', "four choices"),
        (
            '{"domain": "x", "question": "?", "choices": ["a","b","c","d"], "answer": 0}',
            "not forget or retain",
        ),
        (
            '{"domain": "forget", "question": "?", "choices": ["a","b","c","d"], "answer": 4}',
            "not 0, 1, 2 or 3",
        ),
    ],
)
def test_malformed_question_is_named_by_its_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ConfigError, match=rf"line 2 of .*{problem}"):
        mcq.load_questions(str(path))


def test_unknown_demo_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="known: demo:questions, demo:questions_second"):
        mcq.load_questions("demo:nope")


# ----------------------------------------------------------------- the driver


def test_results_are_repeatable_and_finite(context: EvalContext, few_questions: str) -> None:
    settings = unlearning.Settings(questions=few_questions, **QUICK)
    first, second = (unlearning.run(context, settings) for _ in range(2))
    assert first == second
    assert all(v is not None and math.isfinite(v) for v in first.metrics.values())
    for name in ("loss", "token", "bounded", "mcq"):
        frontier = first.details["frontiers"][name]
        assert all(lo <= hi for lo, hi in zip(frontier["low"], frontier["high"], strict=True))
        interventions = first.details["interventions"][name]
        assert len(interventions) == len(first.details["points"][name])
        for n, strength, gate in interventions:
            assert n > 0
            assert strength > 0
            assert (gate is not None) == (name in ("loss", "mcq"))
    assert first.metrics["mcq/n_forget_questions"] == 20


@pytest.mark.saebench
def test_score_is_kept_in_saebench_format(context: EvalContext, few_questions: str) -> None:
    pytest.importorskip("sae_bench")
    from pydantic import TypeAdapter
    from sae_bench.evals.unlearning.eval_output import UnlearningEvalOutput

    outcome = unlearning.run(context, unlearning.Settings(questions=few_questions, **QUICK))
    file = context.raw_dir / "unlearning" / outcome.details["sae_bench_file"]
    kept = TypeAdapter(UnlearningEvalOutput).validate_json(file.read_text())
    assert kept.eval_result_metrics.unlearning.unlearning_score == outcome.metrics["score"]
    found = read_back(context.raw_dir, "unlearning", outcome)
    assert found == {"score": outcome.metrics["score"]}


def test_no_questions_leaves_losses_and_a_reason(
    context: EvalContext,
) -> None:
    outcome = unlearning.run(context, unlearning.Settings(questions="none", **QUICK))
    assert "no questions were given" in outcome.details["mcq_reason"]
    assert not any("mcq" in key or key == "score" for key in outcome.metrics)
    assert "loss/forget_damage_at_0.10" in outcome.metrics


def test_model_that_knows_too_little_gets_a_verdict(
    context: EvalContext, few_questions: str, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in Path(few_questions).read_text().splitlines()]
    for row in rows:
        row["answer"] = (row["answer"] + 1) % 4
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("\n".join(map(json.dumps, rows)))
    outcome = unlearning.run(context, unlearning.Settings(questions=str(wrong), **QUICK))
    assert "answers 0 of 20 forget questions right under all 24" in outcome.details["mcq_reason"]


def test_one_corpus_is_not_enough(context: EvalContext) -> None:
    bench = dataclasses.replace(context.bench, corpora=context.corpora[:1])
    with pytest.raises(EvaluationError, match="a forget and a retain corpus"):
        unlearning.run(dataclasses.replace(context, bench=bench), unlearning.Settings())


@pytest.fixture
def many_corpora(context: EvalContext) -> EvalContext:
    """Retain gives four of five retain rows, `near` the fifth one; `far` and `forget_test` none."""
    forget, retain = context.corpora
    others = [
        dataclasses.replace(retain, domain="near", share=0.2, held_out=retain.train[-8:]),
        dataclasses.replace(retain, domain="far", share=0.0, train=None),
        dataclasses.replace(forget, domain="forget_test", share=0.0, train=None),
    ]
    corpora = [forget, dataclasses.replace(retain, share=0.8), *others]
    bench = dataclasses.replace(context.bench, corpora=corpora)
    return dataclasses.replace(context, bench=bench)


def test_damage_on_every_corpus_is_read_at_the_frontier(many_corpora: EvalContext) -> None:
    """Training text of corpora with share 0 is never looked at: here it does not even exist."""
    outcome = unlearning.run(many_corpora, unlearning.Settings(questions="none", **QUICK))
    found = outcome.metrics
    for frontier in ("loss", "token", "bounded"):
        for limit in ("0.05", "0.10", "0.20"):
            # Both have the text of the forget and of the retain corpus, so the answer is known.
            forget = found[f"{frontier}/forget_damage_at_{limit}"]
            assert forget == pytest.approx(
                found[f"{frontier}/transfer_damage_at_{limit}"], abs=1e-5
            )
            ratio = found[f"{frontier}/transfer_per_forget_damage_at_{limit}"]
            assert ratio == pytest.approx(1, abs=1e-4)
            assert found[f"{frontier}/far_damage_at_{limit}"] <= float(limit) + 1e-5
            assert math.isfinite(found[f"{frontier}/near_damage_at_{limit}"])
    assert outcome.details["n_passages"].keys() == {
        "forget",
        "retain",
        "near",
        "far",
        "forget_test",
    }


def test_retain_side_mixes_by_shares(many_corpora: EvalContext) -> None:
    settings = unlearning.Settings(n_select_contexts=4)
    near = dataclasses.replace(many_corpora.corpora[2], train=many_corpora.forget.train)
    bench = many_corpora.bench
    corpora = [*bench.corpora[:2], near, *bench.corpora[3:]]
    mixed = dataclasses.replace(many_corpora, bench=dataclasses.replace(bench, corpora=corpora))
    sae = mixed.load()
    alone = dataclasses.replace(mixed, bench=dataclasses.replace(bench, corpora=corpora[:2]))
    alone.bench.corpora[1] = dataclasses.replace(corpora[1], share=1.0)
    both, one = (selection.measure_statistics(c, sae, settings) for c in (mixed, alone))
    torch.testing.assert_close(both.retain_rate, 0.8 * one.retain_rate + 0.2 * one.forget_rate)
    torch.testing.assert_close(both.retain.mean, 0.8 * one.retain.mean + 0.2 * one.forget.mean)


def test_ceilings_are_measured_once_for_all_saes(
    context: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = unlearning.Settings(questions="none", **QUICK)
    first = unlearning.run(context, settings).details["references"]
    assert first.keys() == references.FRONTIERS_OF.keys() - RETRAINED
    for name, metrics in first.items():
        for frontier in references.FRONTIERS_OF[name]:
            assert metrics[f"{frontier}/forget_damage_at_0.10"] >= 0
    monkeypatch.setattr(references, "ceilings", lambda *_: pytest.fail("measured again"))

    def load() -> SAE[Any]:
        sae = context.load()
        with torch.no_grad():
            sae.W_dec.copy_(sae.W_dec.flip(0))
        return sae

    other = unlearning.run(dataclasses.replace(context, load=load), settings).details["references"]
    assert other.keys() == first.keys()
    floors = (references.RANDOM, references.GATED_RANDOM)
    assert all(other[n] == first[n] for n in first if n not in floors)
    without = dataclasses.replace(settings, references=False)
    assert unlearning.run(context, without).details["references"] == {}


def trial_of(context: EvalContext, **settings: Any) -> Trial:
    chosen = unlearning.Settings(**settings)
    return Trial(context, chosen, context.model, context.load())


def test_damaged_ceilings_are_not_read(context: EvalContext) -> None:
    cache = references.Cache(trial_of(context), None)
    found = {"LEACE": {"metrics": {"bounded/area": 0.25}, "frontiers": {}}}
    with cache.made_once() as kept:
        assert kept is None
        cache.write(found)
    with cache.made_once() as kept:
        assert kept == found
    whole = cache.file.read_bytes()
    for damage in damages(cache.file).values():
        damage()
        damaged = pytest.warns(UserWarning, match=f"{cache.file.name} is damaged")
        with damaged, cache.made_once() as kept:
            assert kept is None
        cache.file.write_bytes(whole)
    write_json(cache.file, found)  # as earlier versions did
    with cache.made_once() as kept:
        assert kept == found
    assert list(cache.file.parent.iterdir()) == [cache.file]


def test_damaged_known_questions_are_asked_again(
    context: EvalContext, few_questions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of(context, questions=few_questions)
    asked = []

    def all_known(_model: Any, questions: list[Any], *_: Any) -> Tensor:
        asked.append(len(questions))
        return torch.ones(len(questions), dtype=torch.bool)

    monkeypatch.setattr(mcq, "known_questions", all_known)
    known = accuracies.known_questions(trial)
    (file,) = (context.bench.cache / "unlearning").iterdir()
    whole = file.read_bytes()
    for name, damage in damages(file).items():
        damage()
        with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
            assert accuracies.known_questions(trial) == known
        assert file.read_bytes() == whole, name
    assert asked == [40] * 7
    write_json(file, json.loads(whole)["knows"])  # as earlier versions did
    assert accuracies.known_questions(trial) == known
    assert len(asked) == 7


def test_difference_of_means_is_removed_by_its_family(context: EvalContext) -> None:
    """At strength 1, the means of both corpora are equal along the difference."""
    settings = unlearning.Settings(n_select_contexts=8)
    found = selection.measure_statistics(context, context.load(), settings)
    samples = [
        references.Sample(torch.randn(50, D_IN) + shift, torch.arange(50) // 5, 1.0)
        for shift in (1.0, 0.0)
    ]
    ceilings = references.ceilings(found, samples, settings)
    for name in ("difference of means", "LEACE"):
        projection = ceilings[name].at(0, 1.0).intervention
        assert isinstance(projection, Projection)
        forget, retain = (
            projection.erasure.apply(m.mean, projection.centre, 1.0)
            for m in (found.forget, found.retain)
        )
        torch.testing.assert_close(forget, retain, atol=1e-4, rtol=0)
    steps = []
    for path in range(len(ceilings["detector"].paths)):
        push = ceilings["detector"].at(path, 1.0).intervention
        assert isinstance(push, Push)
        steps.append(push.step)
        assert push.detector.score(samples[0].x.double()).mean() > 0
    difference = found.forget.mean - found.retain.mean
    # Both steps change the detector's score by the same amount.
    weight = push.detector.weight
    for step in steps:
        torch.testing.assert_close(weight @ step, weight @ difference)


def test_token_frontier_is_that_of_the_token_gate(context: EvalContext) -> None:
    settings = unlearning.Settings(questions="none", references=False, gate="sequence", **QUICK)
    both = unlearning.run(context, settings).metrics
    plain = unlearning.run(context, dataclasses.replace(settings, gate="token")).metrics
    for limit in ("0.05", "0.10", "0.20"):
        key = f"forget_damage_at_{limit}"
        assert both[f"token/{key}"] == plain[f"loss/{key}"]


@pytest.mark.parametrize("with_references", [True, False])
def test_families_without_a_path_are_left_out(
    context: EvalContext, with_references: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No latent may differ enough between the corpora, and no threshold may be selective."""
    monkeypatch.setattr(unlearning, "bounded", lambda *_: Family([], [0.5, 1.0], 1.0))
    monkeypatch.setattr(references, "detector_family", lambda *_, **__: Family([], [1.0]))
    settings = unlearning.Settings(questions="none", references=with_references, **QUICK)
    outcome = unlearning.run(context, settings)
    assert not any("bounded" in key for key in outcome.metrics)
    assert "loss/forget_damage_at_0.10" in outcome.metrics
    left = {name for name in references.FRONTIERS_OF if "detector" not in name} - RETRAINED
    assert outcome.details["references"].keys() == (left if with_references else set())


@pytest.mark.parametrize("rule", ["coverage", "dsg"])
@pytest.mark.parametrize("gate", ["token", "sequence"])
def test_every_rule_and_gate_runs(context: EvalContext, rule: Any, gate: Any) -> None:
    settings = unlearning.Settings(questions="none", selection=rule, gate=gate, **QUICK)
    outcome = unlearning.run(context, settings)
    missing = references.FRONTIERS_OF.keys() - outcome.details["references"].keys()
    gated = {references.GATED_DETECTOR, references.GATED_RANDOM}
    assert missing == RETRAINED | (gated if gate == "token" else set())
    assert ("token/area" in outcome.metrics) == (gate == "sequence")
    assert all(v is not None and math.isfinite(v) for v in outcome.metrics.values())


@pytest.fixture
def taken_for_gemma(model: Any, corpora: list[Any], few_questions: str, monkeypatch: Any) -> Any:
    """The demo model under a name that SAEBench accepts, with our prompts and our text."""
    pytest.importorskip("sae_bench")
    from sae_bench.evals.unlearning.utils import feature_activation, metrics

    questions = mcq.load_questions(few_questions)
    forget = [vars(q) for q in questions if q.domain == "forget"]
    retain = [vars(q) for q in questions if q.domain == "retain"]
    sets = {"wmdp-bio": forget} | {
        subject: retain[i * 5 : i * 5 + 5] for i, subject in enumerate(mcq.MMLU[1])
    }
    plain = mcq.prompt_text

    def prompt(question: str, choices: Any, **options: Any) -> str:
        shown = mcq.Question("", "", question, tuple(choices), 0)
        text = plain(shown, (0, 1, 2, 3), "plain", model.tokenizer)
        if options.get("without_question"):
            text = "Answer:"
        elif options.get("permute_choices") is not None:
            text = plain(shown, tuple(options["permute_choices"]), "plain", model.tokenizer)
        return f"<|endoftext|>{text}"

    monkeypatch.setattr(metrics, "load_dataset", lambda path, name, split: sets[name])
    monkeypatch.setattr(metrics, "convert_wmdp_data_to_prompt", prompt)
    tokens = tuple(c.train[:8].long() for c in corpora)
    monkeypatch.setattr(
        feature_activation, "get_shuffled_forget_retain_tokens", lambda *_, **__: tokens
    )
    # Our header names the subject. SAEBench's prompt function does not get the subject.
    monkeypatch.setattr(mcq, "HEADER", "")
    monkeypatch.setattr(model.cfg, "model_name", "gemma-2-2b-it")
    return model


@pytest.mark.saebench
@pytest.mark.usefixtures("taken_for_gemma")
def test_score_equals_saebench_where_both_run(
    context: EvalContext, few_questions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = unlearning.Settings(questions=few_questions, template="plain", **QUICK)
    by_saebench = unlearning.run(context, settings)
    monkeypatch.setattr(published_unlearning, "applies", lambda model: False)
    by_us = unlearning.run(context, settings)
    assert by_saebench.metrics == by_us.metrics
    assert 0 <= by_us.metrics["score"] <= 1  # type: ignore[operator]


@pytest.fixture(autouse=True)
def _grad_mode_kept() -> Iterator[None]:
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)
