"""The pass over text and its accumulators, compared with loops over contexts and positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sae_lens.registry import get_sae_class
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig

from saelens_adaptive_ortho.evaluations import core as core_settings
from saelens_adaptive_ortho.judging import firing, geometry, pairs
from saelens_adaptive_ortho.judging.contract import EvalContext, Workbench
from saelens_adaptive_ortho.judging.firing import (
    Batch,
    Firings,
    Halves,
    PairFirings,
    Sketches,
    TopTexts,
    accumulate,
    as_trained,
    passes,
)
from saelens_adaptive_ortho.judging.reconstruction import ExplainedVariance
from saelens_adaptive_ortho.judging.saebench import core
from saelens_adaptive_ortho.judging.unlearning import selection
from saelens_adaptive_ortho.maths import coactivation
from saelens_adaptive_ortho.maths.directions import decoder_directions
from saelens_adaptive_ortho.maths.similar_pairs import similar_pairs
from saelens_adaptive_ortho.text.corpora import (
    CorpusConfig,
    Tokenisation,
    TokenisedCorpus,
    tokenise_corpus,
)
from saelens_adaptive_ortho.text.models import load_language_model
from tests.tiny import BOS, CONTEXT, HOOK, PAD, WIDTH, Tiny, save_model

D_SAE, N_HEADS = 24, 2
HEADS = "blocks.1.attn.hook_z"


class Case(NamedTuple):
    """An SAE with its own settings of counted tokens, and a text."""

    metadata: dict[str, Any] = {}  # noqa: RUF012
    cfg: dict[str, Any] = {}  # noqa: RUF012
    corpora_with_bos: bool = True
    d_in: int = WIDTH


CASES = {
    "as the corpora": Case(),
    "positions": Case({"seqpos_slice": (2, 20, 3)}),
    "positions from a file": Case({"seqpos_slice": [None, -4]}),
    "one head": Case({"hook_name": HEADS, "hook_head_index": 1}, d_in=WIDTH // N_HEADS),
    "all heads": Case({"hook_name": HEADS}),
    "heads reshaped by the SAE": Case({"hook_name": HEADS}, {"reshape_activations": "hook_z"}),
    "no BOS, on text with it": Case({"prepend_bos": False}),
    "BOS, on text without it": Case({"prepend_bos": True}, corpora_with_bos=False),
    "no BOS, and positions": Case({"prepend_bos": False, "seqpos_slice": (3, None)}),
    "trained without some words": Case({"exclude_special_tokens": [BOS, 5, 190, 200]}),
    "trained without special tokens": Case({"exclude_special_tokens": True}),
    "trained with special tokens": Case({"exclude_special_tokens": False}),
    "layer norm": Case({}, {"normalize_activations": "layer_norm"}),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def build_sae(case: Case, model: Any, seed: int = 0) -> SAE[Any]:
    """A random SAE; each of its latents fires on a part of the tokens."""
    generator = torch.Generator().manual_seed(seed)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=case.d_in, d_sae=D_SAE, **case.cfg))
    metadata = {"hook_name": HOOK, "prepend_bos": case.corpora_with_bos, **case.metadata}
    for name, value in metadata.items():
        sae.cfg.metadata[name] = value
    with torch.no_grad():
        rows = torch.randn(D_SAE, case.d_in, generator=generator)
        sae.W_dec.copy_(torch.nn.functional.normalize(rows, dim=1))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(0.1 * torch.randn(case.d_in, generator=generator))
        scale = 1.0 if case.cfg.get("normalize_activations") else 0.3
        if metadata["hook_name"] == HOOK and scale != 1:
            scale = float(_activations(model, torch.arange(3, 40)[None], sae).std())
        sae.threshold.copy_(scale * torch.linspace(0.1, 1.5, D_SAE))
    return sae


def tokenised(model: Any, tiny: Tiny, with_bos: bool) -> list[TokenisedCorpus]:
    how = Tokenisation(CONTEXT, with_bos, "bos", holdout_fraction=0.3, holdout_contexts=11)
    paths = {"forget": tiny.forget, "retain": tiny.retain}
    return [
        tokenise_corpus(CorpusConfig(path=str(path)), domain, model.tokenizer, how, 12)
        for domain, path in paths.items()
    ]


@pytest.fixture
def context(case: Case, model: Any, tiny: Tiny, tmp_path: Path) -> EvalContext:
    corpora = tokenised(model, tiny, case.corpora_with_bos)
    bench = Workbench(model, str(tiny.model), corpora, {}, CONTEXT, tmp_path, case.corpora_with_bos)
    return EvalContext(bench, lambda: build_sae(case, model), "random", 0, tmp_path / "raw")


@torch.no_grad()
def _activations(model: Any, tokens: Tensor, sae: SAE[Any]) -> Tensor:
    """Activations at the hook, from a run of the whole model."""
    hook = sae.cfg.metadata.hook_name
    return model.run_with_cache(tokens.long(), names_filter=[hook], prepend_bos=False)[1][hook]


class Row(NamedTuple):
    corpus: int
    context: int
    position: int
    x: Tensor
    code: Tensor
    output: Tensor


@torch.no_grad()
def loop(sae: SAE[Any], model: Any, corpora: list[Tensor]) -> list[Row]:
    """Loop over the tokens and apply the rules in the docstring of ``firing``."""
    metadata, rows = sae.cfg.metadata, []
    excluded = metadata.exclude_special_tokens
    uncounted = {BOS, PAD} | (set(excluded) if isinstance(excluded, list) else set())
    for corpus, contexts in enumerate(corpora):
        for number, tokens in enumerate(contexts.tolist()):
            if metadata.prepend_bos and tokens[0] != BOS:
                tokens = [BOS, *tokens[:-1]]
            if metadata.prepend_bos is False and all(c[0] == BOS for c in contexts.tolist()):
                tokens = tokens[1:]
            acts = _activations(model, torch.tensor([tokens]), sae)[0]
            window = range(len(tokens))[slice(*(metadata.seqpos_slice or (None,)))]
            for position in window:
                if tokens[position] in uncounted:
                    continue
                x = acts[position]
                if metadata.hook_head_index is not None:
                    x = x[metadata.hook_head_index]
                given = x[None] if sae.cfg.reshape_activations == "hook_z" else x.flatten()[None]
                code = sae.encode(given)[0]
                output = sae(given).flatten()
                rows.append(Row(corpus, number, position, x.flatten(), code, output))
    return rows


def contexts_of(context: EvalContext) -> list[Tensor]:
    return [c.train[:7] for c in context.corpora]


def test_pass_yields_each_counted_token_once_in_order(context: EvalContext) -> None:
    sae, corpora = context.load(), contexts_of(context)
    batches = list(passes(sae, context.model, corpora, batch_size=3, reconstruct=True))
    expected = loop(sae, context.model, corpora)
    places = [(b.corpus, *row) for b in batches for row in b.rows.tolist()]
    assert places == [(r.corpus, r.context, r.position) for r in expected]
    assert len(places) > 2 * D_SAE
    for name, attribute in (("x", "x"), ("feature_acts", "code"), ("output", "output")):
        found = torch.cat([getattr(b, name) for b in batches])
        wanted = torch.stack([getattr(r, attribute) for r in expected])
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)
        assert not found.requires_grad
    lengths = {b.tokens.shape[1] for b in batches}
    assert lengths == {as_trained(sae, context.model, corpora[0]).shape[1]}
    assert [len(b.tokens) for b in batches] == [3, 3, 1] * 2


def test_firing_rates_and_scales_match_a_loop(context: EvalContext) -> None:
    sae, corpora = context.load(), contexts_of(context)
    found = Firings(sae, 2)
    accumulate(passes(sae, context.model, corpora, batch_size=3), found)
    rows = loop(sae, context.model, corpora)
    for corpus in (0, 1):
        codes = [r.code.tolist() for r in rows if r.corpus == corpus]
        for latent in range(D_SAE):
            fired = [code[latent] for code in codes if code[latent] > 0]
            rate = len(fired) / len(codes)
            assert float(found.rates()[corpus, latent]) == pytest.approx(rate, abs=1e-12)
            scale = sum(fired) / max(1, len(fired))
            assert float(found.scales()[corpus, latent]) == pytest.approx(scale, rel=1e-4)
    assert len(set(found.rates()[0].tolist())) > 5


def test_halves_are_rates_of_each_half(context: EvalContext) -> None:
    sae, corpora = context.load(), contexts_of(context)
    found = Halves(sae, [len(c) for c in corpora])
    accumulate(
        passes(sae, context.model, corpora, batch_size=2), found
    )  # one batch holds contexts of both halves
    rows = loop(sae, context.model, corpora)
    for corpus in (0, 1):
        for half, numbers in enumerate((range(3), range(3, 7))):
            codes = [r.code for r in rows if r.corpus == corpus and r.context in numbers]
            expected = (torch.stack(codes) > 0).double().mean(0)
            torch.testing.assert_close(found.rates()[half, corpus], expected, rtol=0, atol=1e-12)


def test_pairs_count_tokens_on_which_both_fire(context: EvalContext) -> None:
    sae, corpora = context.load(), contexts_of(context)
    chosen = torch.tensor([[0, 1], [2, 9], [4, 23]])
    found = PairFirings(sae, chosen)
    accumulate(passes(sae, context.model, corpora, batch_size=3), found)
    codes = [r.code.tolist() for r in loop(sae, context.model, corpora)]
    counts = found.result()
    assert counts.n_tokens == len(codes)
    assert counts.fired.tolist() == [sum(c[i] > 0 for c in codes) for i in range(D_SAE)]
    both = [sum(c[i] > 0 and c[j] > 0 for c in codes) for i, j in chosen.tolist()]
    assert counts.both.tolist() == both
    assert sum(both) > 0


def test_top_texts_are_the_largest_activations(
    context: EvalContext,
) -> None:
    sae, corpora = context.load(), contexts_of(context)
    latents = torch.tensor([0, 3, 7, 23])
    found = TopTexts(sae, latents, 4)
    accumulate(passes(sae, context.model, corpora, batch_size=3), found)
    rows = loop(sae, context.model, corpora)
    by_place = {(r.corpus, r.context, r.position): r.code for r in rows}
    for column, latent in enumerate(latents.tolist()):
        largest = sorted((float(r.code[latent]) for r in rows), reverse=True)[:4]
        values = found.values[:, column].tolist()
        assert values == pytest.approx(largest, rel=1e-4)
        for value, place in zip(values, found.places[:, column].tolist(), strict=True):
            if value > 0:
                assert float(by_place[tuple(place)][latent]) == pytest.approx(value, rel=1e-4)
    assert (found.values[0] > 0).any()


def test_sketches_share_one_state_over_all_corpora(context: EvalContext) -> None:
    sae, corpora = context.load(), contexts_of(context)
    found = Sketches(sae, 2)
    batches = list(passes(sae, context.model, corpora, batch_size=3))
    accumulate(batches, found)
    rows = loop(sae, context.model, corpora)
    fires = torch.stack([r.code for r in rows]) > 0
    signs = []
    for corpus in (0, 1):
        for step, start in enumerate((0, 3, 6)):
            n = sum(r.corpus == corpus and start <= r.context < start + 3 for r in rows)
            signs.append(coactivation.random_signs(n, firing.SKETCH_SIZE, corpus, step))
    centred = (fires.double() - fires.double().mean(0)).T @ torch.cat(signs).double()
    expected = torch.nn.functional.normalize(centred, dim=1).float()
    torch.testing.assert_close(found.result(), expected, atol=1e-4, rtol=1e-4)


def test_explained_variance_matches_a_loop(context: EvalContext) -> None:
    sae, corpora = context.load(), contexts_of(context)
    found = ExplainedVariance(sae)
    accumulate(passes(sae, context.model, corpora, batch_size=3, reconstruct=True), found)
    rows = loop(sae, context.model, corpora)
    x, output = (torch.stack([getattr(r, n) for r in rows]).double() for n in ("x", "output"))
    error, variance = (x - output).square().sum(), (x - x.mean(0)).square().sum()
    assert found.result() == pytest.approx(float(1 - error / variance), abs=1e-5)


# ---------------------------------------------------------------- one firing rate everywhere


def test_evaluations_agree_on_firing_rates(
    context: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subspace, unlearning and analyse read training text; core gets the same text here."""
    n, size = 8, 4
    expected = Firings(context.load(), 2)
    sae = context.load()
    accumulate(passes(sae, context.model, [c.train[:n] for c in context.corpora], size), expected)
    rates = expected.rates()
    assert float(rates.min(0).values.max()) > 0

    seen = []

    def noted(
        sae: SAE[Any], sides: list[str], rates: Tensor, sketches: Tensor, settings: Any
    ) -> Any:
        seen.append(rates)
        return describe(sae, sides, rates, sketches, settings)

    describe = geometry.describe
    monkeypatch.setattr(geometry, "describe", noted)
    subspace = geometry.Settings(n_contexts=n, batch_size_prompts=size)
    outcome = geometry.run(context, subspace)
    found = pairs.run(context, pairs.Settings(n_contexts=n, batch_size_prompts=size, min_cosine=-1))
    assert found.details["firing_rates"] == outcome.details["firing_rates"]
    assert outcome.metrics.items() <= found.metrics.items()
    statistics = selection.measure_statistics(
        context, sae, selection.Settings(n_select_contexts=n, batch_size_prompts=size)
    )
    seen.append(torch.stack([statistics.forget_rate, statistics.retain_rate]))
    corpora = [replace(c, held_out=c.train) for c in context.corpora]
    judged = replace(context, bench=replace(context.bench, corpora=corpora))
    settings = core_settings.Settings(n_contexts=n, batch_size_prompts=size)
    parts = core.held_out_contexts(judged, settings)
    seen.append(core.own_measurements(judged, settings, parts).rates)
    assert len(seen) == 4
    for own in seen:
        torch.testing.assert_close(own, rates, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n_forget", "n_retain", "size"), [(11, 9, 4), (5, 11, 4), (7, 7, 3)])
def test_pooled_explained_variance_takes_both_corpora(
    model: Any, tiny: Tiny, tmp_path: Path, n_forget: int, n_retain: int, size: int
) -> None:
    """Each number is over the contexts that SAEBench evaluates under the same name."""
    corpora = [
        replace(c, held_out=c.held_out[:n])
        for c, n in zip(tokenised(model, tiny, True), (n_forget, n_retain), strict=True)
    ]
    bench = Workbench(model, "tiny", corpora, {}, CONTEXT, tmp_path)
    context = EvalContext(bench, lambda: build_sae(Case(), model), "random", 0, tmp_path)
    settings = core_settings.Settings(n_contexts=50, batch_size_prompts=size)
    parts = core.held_out_contexts(context, settings)
    assert [len(p) for p in parts.values()] == [n_forget, n_retain]
    own = core.own_measurements(context, settings, parts)
    whole = core.whole_batches(parts, size, core.shares_of(context))
    assert list(whole) == ["forget", "retain", "pooled"]
    assert torch.equal(whole["pooled"][:2], torch.stack([p[0] for p in parts.values()]))
    sae = context.load()
    for domain, contexts in whole.items():
        assert len(contexts) % size == 0
        expected, rates = ExplainedVariance(sae), Firings(sae, 1)
        accumulate(passes(sae, model, [contexts], size, reconstruct=True), expected, rates)
        assert own.explained_variance[domain] == pytest.approx(expected.result(), abs=1e-9)
        if domain != "pooled":
            number = own.domains.index(domain)
            torch.testing.assert_close(own.rates[number], rates.rates()[0], rtol=0, atol=1e-12)


def test_single_corpus_is_judged_as_pooled(model: Any, tiny: Tiny, tmp_path: Path) -> None:
    corpus = replace(tokenised(model, tiny, True)[0], domain="corpus")
    bench = Workbench(model, "tiny", [corpus], {}, CONTEXT, tmp_path)
    context = EvalContext(bench, lambda: build_sae(Case(), model), "random", 0, tmp_path)
    settings = core_settings.Settings(n_contexts=10, batch_size_prompts=4)
    parts = core.held_out_contexts(context, settings)
    assert list(core.whole_batches(parts, 4, core.shares_of(context))) == ["pooled"]
    found = core.own_measurements(context, settings, parts)
    expected = ExplainedVariance(context.load())
    accumulate(passes(context.load(), model, [corpus.held_out[:8]], 4, reconstruct=True), expected)
    assert found.explained_variance["pooled"] == pytest.approx(expected.result(), abs=1e-12)
    assert found.rates.shape == (1, D_SAE)


def test_analyse_runs_the_model_once(
    model: Any, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = tokenised(model, tiny, True)
    bench = Workbench(model, "tiny", corpora, {}, CONTEXT, tmp_path)
    context = EvalContext(bench, lambda: build_sae(Case(), model), "random", 0, tmp_path)
    read: list[int] = []
    at_hook = firing.at_hook

    def counted(sae: SAE[Any], model: Any, tokens: Tensor) -> Tensor:
        read.append(len(tokens))
        return at_hook(sae, model, tokens)

    monkeypatch.setattr(firing, "at_hook", counted)
    settings = pairs.Settings(n_contexts=7, batch_size_prompts=4, min_cosine=-1, max_lift=1)
    found = pairs.run(context, settings)
    assert read == [4, 3, 4, 3]
    churn = found.metrics["domain_churn"]
    assert churn is not None
    assert 0 <= churn <= 1
    # Each text shows the token of its activation.
    texts = found.details["absorption_candidates"][0]["texts"]["frequent"]
    sae = context.load()
    by_value = {
        round(float(value), 3): bench.model.tokenizer.decode(  # type: ignore[union-attr]
            corpora[row.corpus].train[row.context, row.position]
        )
        for row in loop(sae, model, [c.train[:7] for c in corpora])
        for value in row.code
    }
    for text in texts:
        assert by_value[round(text["activation"], 3)] == text["token"]


def test_survey_matches_its_accumulators(model: Any, tiny: Tiny, tmp_path: Path) -> None:
    corpora = tokenised(model, tiny, True)
    bench = Workbench(model, "tiny", corpora, {}, CONTEXT, tmp_path)
    context = EvalContext(bench, lambda: build_sae(Case(), model), "random", 0, tmp_path)
    sae, contexts = context.load(), [c.train[:5] for c in corpora]
    chosen = similar_pairs(decoder_directions(sae.W_dec.detach()), 0.2)
    settings = pairs.Settings(n_texts=2, batch_size_prompts=5)
    seen = pairs.survey(context, sae, contexts, chosen, settings)
    other = pairs.survey(context, sae, contexts, chosen, replace(settings, batch_size_prompts=1))
    codes = torch.stack([r.code for r in loop(sae, model, contexts)])
    assert seen.counts.n_tokens == other.counts.n_tokens == len(codes)
    for survey in (seen, other):
        assert torch.equal(survey.counts.fired, (codes > 0).sum(0))
        torch.testing.assert_close(survey.top, codes[:, survey.latents].topk(2, 0).values)
        torch.testing.assert_close(survey.halves, seen.halves)


# ------------------------------------------------------------------------------- BOS


def test_bos_is_added_or_removed_as_in_training(model: Any) -> None:
    sae = build_sae(Case(), model)
    without = torch.tensor([[5, 6, 7, 8], [BOS, 9, 10, 11]])
    with_it = torch.tensor([[BOS, 5, 6, 7], [BOS, 9, 10, 11]])
    assert torch.equal(as_trained(sae, model, without), with_it)
    assert torch.equal(as_trained(sae, model, with_it), with_it)
    sae.cfg.metadata.prepend_bos = False
    assert torch.equal(as_trained(sae, model, with_it), with_it[:, 1:])
    assert torch.equal(
        as_trained(sae, model, without), without
    )  # one context begins with BOS by chance
    sae.cfg.metadata.prepend_bos = None
    for contexts in (without, with_it):
        assert torch.equal(as_trained(sae, model, contexts), contexts)


def test_sae_digest_depends_on_counted_tokens(model: Any, tiny: Tiny, tmp_path: Path) -> None:
    bench = Workbench(model, "tiny", [], {}, CONTEXT, tmp_path)

    def digest(case: Case) -> str:
        return EvalContext(bench, lambda: build_sae(case, model), "v", 0, tmp_path).sae_digest

    usual = {"seqpos_slice": (None,), "exclude_special_tokens": False, "hook_head_index": None}
    assert digest(Case(usual)) == digest(Case())
    others = [
        {"seqpos_slice": (1, None)},
        {"exclude_special_tokens": True},
        {"exclude_special_tokens": [5]},
        {"prepend_bos": False},
    ]
    digests = {digest(Case({**usual, **other})) for other in others}
    assert len(digests | {digest(Case())}) == 5


# --------------------------------------------------------------------- other SAEs, models


def test_batch_without_counted_tokens_is_skipped(model: Any) -> None:
    sae = build_sae(Case(), model)
    contexts = torch.tensor([[BOS, PAD, PAD], [BOS, 5, PAD]])
    batches = list(passes(sae, model, [contexts, contexts[:1]], batch_size=1))
    assert [b.rows.tolist() for b in batches] == [[[1, 1]]]
    found = Firings(sae, 2)
    accumulate(batches, found)
    assert found.rates()[1].tolist() == [0] * D_SAE
    assert found.n_tokens.flatten().tolist() == [1, 0]


def test_skip_connection_is_part_of_the_reconstruction(model: Any) -> None:
    sae_class, cfg_class = get_sae_class("jumprelu_skip_transcoder")
    sae = sae_class(
        cfg_class(d_in=WIDTH, d_out=WIDTH, d_sae=D_SAE, apply_b_dec_to_input=False)  # type: ignore[call-arg]
    )
    torch.manual_seed(0)
    for parameter in sae.parameters():
        parameter.data.normal_()
    sae.cfg.metadata.hook_name = HOOK
    (batch,) = passes(sae, model, [torch.arange(3, 23).view(2, 10)], reconstruct=True)
    assert batch.output is not None
    torch.testing.assert_close(batch.output, sae(batch.x).detach(), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that TransformerLens loads only through its bridge."""
    path = tmp_path_factory.mktemp("bridge") / "model"
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=PAD,
        initializer_range=0.3,
    )
    found = load_language_model(str(save_model(config, path)))
    assert isinstance(found, TransformerBridge)
    return found


@pytest.mark.parametrize("name", ["as the corpora", "positions", "no BOS, on text with it"])
def test_bridge_models_work(bridge: Any, tiny: Tiny, name: str) -> None:
    corpora = [c.train[:3] for c in tokenised(bridge, tiny, True)]
    sae = build_sae(CASES[name], bridge)
    batches = list(passes(sae, bridge, corpora, batch_size=2))
    rows = loop(sae, bridge, corpora)
    found = torch.cat([b.feature_acts for b in batches])
    expected = torch.stack([r.code for r in rows])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert 0 < float((found > 0).float().mean()) < 1


def test_model_runs_only_up_to_the_hook(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = build_sae(Case({"hook_name": "blocks.0.hook_resid_post"}), model)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the second block ran")

    monkeypatch.setitem(vars(model.blocks[1]), "forward", refuse)  # the model is shared
    batches: list[Batch] = list(passes(sae, model, [torch.arange(3, 13).view(1, 10)]))
    assert len(batches[0].x) == 9  # the added BOS does not count


def test_pass_needs_no_gradients_and_keeps_grad_mode(
    model: Any,
) -> None:
    sae = build_sae(Case(), model)
    for batch in passes(sae, model, [torch.arange(3, 13).view(2, 5)], 1, reconstruct=True):
        assert torch.is_grad_enabled()
        assert batch.output is not None
        assert not batch.x.requires_grad
        assert not batch.feature_acts.requires_grad
        assert not batch.output.requires_grad
