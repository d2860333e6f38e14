"""What ``browse`` measures of each latent, compared with loops over contexts and positions."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig

from saelens_adaptive_ortho.judging import browsing
from saelens_adaptive_ortho.judging.browsing import Pieces, Settings, Survey, logit_lens, survey
from saelens_adaptive_ortho.judging.contract import EvalContext, Workbench
from saelens_adaptive_ortho.maths import grouping
from saelens_adaptive_ortho.text.corpora import (
    CorpusConfig,
    Tokenisation,
    tokenise_corpus,
)
from saelens_adaptive_ortho.text.models import load_language_model
from tests.tiny import BOS, CONTEXT, HOOK, PAD, WIDTH, Tiny, save_model

D_SAE = 24
SETTINGS = Settings(
    n_contexts=7, n_passages=3, width=4, n_neighbours=5, n_tokens=6, batch_size_prompts=3
)


def build_sae(model: Any, hook: str = HOOK, d_in: int = WIDTH) -> JumpReLUSAE:
    """A random SAE; each of its latents fires on a part of the tokens, and the last one never."""
    generator = torch.Generator().manual_seed(0)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=D_SAE))
    sae.cfg.metadata.hook_name, sae.cfg.metadata.prepend_bos = hook, True
    with torch.no_grad():
        rows = torch.randn(D_SAE, d_in, generator=generator)
        sae.W_dec.copy_(3 * torch.nn.functional.normalize(rows, dim=1))  # no unit rows
        sae.W_enc.copy_(rows.T)
        sae.threshold.copy_(torch.linspace(1, 40, D_SAE))
        sae.threshold[-1] = 1e9
    return sae


@pytest.fixture(scope="module")
def context(model: Any, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> EvalContext:
    folder = tmp_path_factory.mktemp("browse")
    how = Tokenisation(CONTEXT, True, "bos", holdout_fraction=0.3, holdout_contexts=11)
    corpora = [
        tokenise_corpus(CorpusConfig(path=str(path)), domain, model.tokenizer, how, 12)
        for domain, path in (("forget", tiny.forget), ("retain", tiny.retain))
    ]
    bench = Workbench(model, str(tiny.model), corpora, {}, CONTEXT, folder)
    return EvalContext(bench, lambda: build_sae(model), "random", 0, folder)


@pytest.fixture(scope="module")
def seen(context: EvalContext) -> Survey:
    return survey(context, SETTINGS)


Acts = dict[tuple[int, int, int], list[float]]


@pytest.fixture(scope="module")
def acts(context: EvalContext) -> Acts:
    """The activations of all latents at each counted token: corpus, context, position."""
    sae, found = context.load(), {}
    for corpus, c in enumerate(context.corpora):
        for number, tokens in enumerate(c.train[:7]):
            _, cache = context.model.run_with_cache(tokens[None].long(), prepend_bos=False)
            for position, token in enumerate(tokens.tolist()):
                if token not in (BOS, PAD):
                    code = sae.encode(cache[HOOK][0, position][None])[0]
                    found[corpus, number, position] = code.tolist()
    return found


def test_counts_are_those_of_a_loop(seen: Survey, acts: Acts) -> None:
    for corpus in (0, 1):
        codes = [code for place, code in acts.items() if place[0] == corpus]
        assert int(seen.n_tokens[corpus]) == len(codes)
        fired = [sum(code[i] > 0 for code in codes) for i in range(D_SAE)]
        assert seen.fired[corpus].tolist() == fired
    largest = [max(code[i] for code in acts.values()) for i in range(D_SAE)]
    assert seen.largest.tolist() == pytest.approx(largest, rel=1e-4)
    assert int(seen.fired[:, -1].sum()) == 0
    assert 0 < int((seen.fired.sum(0) > 0).sum()) < D_SAE


def test_top_passages_are_the_contexts_with_the_largest_activation(
    seen: Survey, acts: Acts, context: EvalContext
) -> None:
    found = seen.passages
    for corpus in (0, 1):
        for latent in range(D_SAE):
            peaks: dict[int, tuple[float, int]] = {}
            for (c, number, position), code in acts.items():
                if c == corpus and code[latent] > peaks.get(number, (0.0, 0))[0]:
                    peaks[number] = (code[latent], position)
            best = sorted(peaks.items(), key=lambda item: -item[1][0])[: SETTINGS.n_passages]
            n = len(best)
            values, places = found.values[corpus, latent], found.places[corpus, latent]
            assert values[:n].tolist() == pytest.approx([p[1][0] for p in best], rel=1e-4)
            assert places[:n].tolist() == [[number, peak[1]] for number, peak in best]
            assert values[n:].tolist() == [0] * (SETTINGS.n_passages - n)
            assert places[n:].tolist() == [[-1, -1]] * (SETTINGS.n_passages - n)
            for slot, (number, (_, peak)) in enumerate(best):
                window = [
                    acts.get((corpus, number, p), [0.0] * D_SAE)[latent]
                    for p in range(peak - SETTINGS.width, peak + SETTINGS.width + 1)
                ]
                shown = found.windows[corpus, latent, slot].tolist()
                assert shown == pytest.approx(window, rel=1e-4, abs=1e-6)
    edge = found.places[..., 1][found.values > 0]
    assert int(edge.min()) < SETTINGS.width  # some windows go beyond their context
    assert int(edge.max()) >= context.corpora[0].train.shape[1] - SETTINGS.width


@pytest.mark.parametrize("size", [1, 2, 7])
def test_passages_do_not_depend_on_the_batches(
    seen: Survey, context: EvalContext, size: int
) -> None:
    other = survey(context, replace(SETTINGS, batch_size_prompts=size)).passages
    assert torch.equal(other.places, seen.passages.places)
    torch.testing.assert_close(other.windows, seen.passages.windows, rtol=1e-4, atol=1e-5)


def test_earlier_of_equal_contexts_is_kept(context: EvalContext) -> None:
    one = context.corpora[0].train[:1]
    corpora = [replace(c, train=one.expand(6, -1)) for c in context.corpora]
    same = replace(context, bench=replace(context.bench, corpora=corpora))
    places = survey(same, replace(SETTINGS, batch_size_prompts=2)).passages.places
    fires = places[0, :, 0, 0] >= 0
    assert places[0, fires, :, 0].unique(dim=0).tolist() == [[0, 1, 2]]


def test_histograms_count_every_activation(seen: Survey, acts: Acts) -> None:
    edges = browsing.edges().tolist()
    for corpus in (0, 1):
        for latent in range(D_SAE):
            counts: Counter[int] = Counter()
            for place, code in acts.items():
                if place[0] == corpus and code[latent] > 0:
                    counts[max(b for b, edge in enumerate(edges) if edge <= code[latent])] += 1
            found = seen.histograms[corpus, latent].tolist()
            assert {b: count for b, count in enumerate(found) if count} == dict(counts)
    assert torch.equal(seen.histograms.sum(2), seen.fired)


def test_activations_beyond_the_bins_are_in_the_outer_ones(model: Any) -> None:
    histograms = browsing.Histograms(build_sae(model), 1)
    acts = torch.zeros(3, D_SAE)
    acts[:, 0] = torch.tensor([1e-9, 1e9, 1.0])
    rows = torch.tensor([[0, 0], [0, 1], [0, 2]])
    histograms.update(browsing.Batch(0, torch.zeros(1, 3), rows, acts, acts))
    (used,) = histograms.counts[0, 0].nonzero(as_tuple=True)
    assert used.tolist() == [0, 48, browsing.N_BINS - 1]
    assert browsing.edges()[48] == 1


def test_nearest_latents_have_the_largest_cosines_and_lifts_of_a_loop(
    seen: Survey, acts: Acts, context: EvalContext
) -> None:
    W = context.load().W_dec.detach().double()
    cosines = torch.nn.functional.cosine_similarity(W[:, None], W[None], dim=-1)
    cosines.fill_diagonal_(-2)
    codes = list(acts.values())
    compared = 0
    for i in range(D_SAE):
        best = cosines[i].sort(descending=True).indices[:5].tolist()
        assert seen.neighbours[i].tolist() == best
        assert seen.cosines[i].tolist() == pytest.approx(cosines[i, best].tolist(), abs=1e-5)
        for j, lift in zip(best, seen.lifts[i].tolist(), strict=True):
            one, other = sum(c[i] > 0 for c in codes), sum(c[j] > 0 for c in codes)
            if not one * other:
                assert math.isnan(lift)
                continue
            both = sum(c[i] > 0 and c[j] > 0 for c in codes)
            assert lift == pytest.approx(both * len(codes) / (one * other))
            compared += both > 0
    assert compared > 10


def test_logit_lens_is_the_change_of_the_logits(seen: Survey, context: EvalContext) -> None:
    """The final norm and the unembedding are written out, without the code that is tested."""
    model, lens = context.model, seen.lens
    assert lens is not None
    d = context.load().W_dec.detach().double()
    d = d / d.norm(dim=1, keepdim=True) * WIDTH**0.5
    norm = model.ln_final
    centred = d - d.mean(1, keepdim=True)
    scale = (centred.square().mean(1, keepdim=True) + model.cfg.eps).sqrt()
    logits = (centred / scale * norm.w.double()) @ model.W_U.double()
    logits = (logits - logits.mean(1, keepdim=True)).detach()
    order = logits.sort(dim=1, descending=True)
    assert torch.equal(lens.promoted, order.indices[:, :6])
    assert torch.equal(lens.suppressed, order.indices.flip(1)[:, :6])
    assert lens.raised == pytest.approx(order.values[:, :6].float(), rel=1e-3)
    assert lens.lowered == pytest.approx(order.values.flip(1)[:, :6].float(), rel=1e-3)


@pytest.mark.parametrize(
    ("hook", "d_in", "has"),
    [
        ("blocks.0.hook_mlp_out", WIDTH, True),
        ("blocks.1.attn.hook_z", WIDTH, False),  # of the right width, but no residual stream
        (HOOK, WIDTH // 2, False),
    ],
)
def test_logit_lens_is_for_the_residual_stream(model: Any, hook: str, d_in: int, has: bool) -> None:
    assert (logit_lens(build_sae(model, hook, d_in), model, 3) is not None) is has


def test_biases_of_norm_and_unembedding_are_left_out(context: EvalContext, tiny: Tiny) -> None:
    model = load_language_model(str(tiny.model))
    before = logit_lens(context.load(), model, 6)
    with torch.no_grad():
        model.ln_final.b.normal_(std=5)
        model.unembed.b_U.normal_(std=5)
    after = logit_lens(context.load(), model, 6)
    assert before is not None
    assert after is not None
    assert torch.equal(before.promoted, after.promoted)
    torch.testing.assert_close(before.raised, after.raised, rtol=1e-3, atol=1e-3)


def test_logit_lens_of_a_bridge_with_another_norm(tmp_path: Path) -> None:
    """A Llama has an RMS norm and no biases."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=PAD,
    )
    model: Any = load_language_model(str(save_model(config, tmp_path)))
    assert isinstance(model, TransformerBridge)
    with torch.no_grad():
        model.original_model.model.norm.weight.uniform_(0.5, 2)
    sae = build_sae(model)
    lens = logit_lens(sae, model, 4)
    assert lens is not None
    d = torch.nn.functional.normalize(sae.W_dec.detach().double(), dim=1) * WIDTH**0.5
    plain = model.original_model
    logits = (d * plain.model.norm.weight.double()) @ plain.lm_head.weight.double().T
    logits = logits[:, : len(model.tokenizer)].detach()
    order = (logits - logits.mean(1, keepdim=True)).sort(dim=1, descending=True)
    assert torch.equal(lens.promoted, order.indices[:, :4])
    assert lens.raised == pytest.approx(order.values[:, :4].float(), rel=1e-3)


def test_groups_leans_and_flags(seen: Survey, acts: Acts) -> None:
    assert seen.groups is not None
    assert seen.lean is not None
    n = seen.n_tokens.tolist()

    def rates(contexts: range, i: int) -> list[float]:
        tokens = [
            [code[i] > 0 for (c, k, _), code in acts.items() if c == corpus and k in contexts]
            for corpus in (0, 1)
        ]
        return [sum(fired) / len(fired) for fired in tokens]

    names = {grouping.FORGET: "f", grouping.RETAIN: "r", grouping.SHARED: "s", -1: "i"}

    def group(forget: float, retain: float) -> str:
        if forget == retain == 0:
            return "i"
        return "f" if forget >= 9 * retain else "r" if retain >= 9 * forget else "s"

    for i in range(D_SAE):
        forget, retain = rates(range(7), i)
        assert names[int(seen.groups[i])] == group(forget, retain)
        lean = math.log2((forget + 1 / n[0]) / (retain + 1 / n[1]))
        assert float(seen.lean[i]) == pytest.approx(lean)
        assert bool(seen.merged[i]) == (group(forget, retain) == "s" and lean >= 1)
        halves = [group(*rates(half, i)) for half in (range(3), range(3, 7))]
        assert bool(seen.changed[i]) == ("i" not in halves and halves[0] != halves[1])
    assert len(seen.groups.unique()) > 1
    assert bool(seen.merged.any())
    assert bool(seen.changed.any())


def test_corpus_without_share_is_shown_and_changes_no_group(
    context: EvalContext, seen: Survey
) -> None:
    forget, retain = context.corpora
    near = replace(forget, domain="near", share=0.0)
    more = replace(context, bench=replace(context.bench, corpora=[forget, retain, near]))
    found = survey(more, SETTINGS)
    assert found.corpora == ["forget", "retain", "near"]
    assert torch.equal(found.fired[2], seen.fired[0])
    assert found.groups is not None
    assert seen.groups is not None
    assert torch.equal(found.groups, seen.groups)
    assert torch.equal(found.merged, seen.merged)


def test_single_corpus_has_no_groups(context: EvalContext) -> None:
    corpora = [replace(context.corpora[0], domain="corpus")]
    found = survey(replace(context, bench=replace(context.bench, corpora=corpora)), SETTINGS)
    assert found.groups is None
    assert found.lean is None
    assert not bool(found.merged.any() | found.changed.any())


# ---------------------------------------------------------------------------- text


def test_pieces_of_words_keep_the_spaces(model: Any, tiny: Tiny) -> None:
    words = "the castle of the virus"
    ids = model.tokenizer(words)["input_ids"]
    texts = Pieces(model.tokenizer).of_text(ids)
    assert "".join(texts).strip() == model.tokenizer.decode(ids)
    assert [text.strip() for text in texts] == [model.tokenizer.decode([i]) for i in ids]


class Bytes:
    """A tokenizer with a token for each byte."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("text", ["plain", "größer", "漢字 and 🦊🦊", "é", ""])
def test_pieces_put_a_character_of_several_tokens_together(text: str) -> None:
    pieces = Pieces(Bytes()).of_text(list(text.encode()))
    assert len(pieces) == len(text.encode())
    assert "".join(pieces) == text
    assert {piece for piece in pieces if piece} == set(text)


def test_broken_bytes_are_shown_as_such() -> None:
    pieces = Pieces(Bytes()).of_text([*b"a", 0xFF, *b"bcdef"])
    assert "".join(pieces) == "a\N{REPLACEMENT CHARACTER}bcdef"
    assert len(pieces) == 7
