"""A model that forgets inside a ``with`` statement: one pass, generation, padding, clean-up."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    T5Config,
    T5ForConditionalGeneration,
)

import saelens_adaptive_ortho as ortho
from saelens_adaptive_ortho.demo import MODEL_DIR, RETAIN_CORPUS
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.judging.unlearning import use
from saelens_adaptive_ortho.judging.unlearning.clamps import Seen, firing_share
from saelens_adaptive_ortho.judging.unlearning.saved import UnlearningSelection, weights_digest
from saelens_adaptive_ortho.text.models import load_language_model, special_tokens
from tests.judging.unlearning import conftest
from tests.judging.unlearning.conftest import D_IN, D_SAE

N = 24
HOOKS = ["blocks.1.hook_resid_post", "blocks.1.hook_resid_pre"]
KINDS = ["hooked", "bridge", "plain"]
EDITS = ["clamp", "gated", "bounded"]
CLOSE: dict[str, Any] = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(scope="module")
def kinds() -> dict[str, Any]:
    """The demo's model in the three classes."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)

    def plain() -> Any:
        return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()

    bridge = TransformerBridge.boot_transformers(
        str(MODEL_DIR), device="cpu", tokenizer=tokenizer, hf_model=plain()
    )
    return {"hooked": load_language_model("demo:model"), "bridge": bridge, "plain": plain()}


@pytest.fixture(scope="module")
def tokens(kinds: dict[str, Any]) -> Tensor:
    """Three texts behind BOS."""
    tokenizer = kinds["hooked"].tokenizer
    lines = [json.loads(t)["text"] for t in RETAIN_CORPUS.read_text().splitlines()[:20]]
    ids = tokenizer(" ".join(lines), add_special_tokens=False)["input_ids"]
    rows = torch.tensor(ids[: 3 * (N - 1)]).view(3, N - 1)
    assert not set(rows.flatten().tolist()) & special_tokens(kinds["hooked"])
    return torch.cat([torch.full((3, 1), tokenizer.bos_token_id), rows], 1)


def build_sae(hook: str = HOOKS[0], seed: int = 0, **changes: Any) -> SAE[Any]:
    """A random SAE whose latents fire on a part of the tokens, also on BOS."""
    return conftest.build_sae(seed, hook, 6.0, **changes)


def build_selection(sae: SAE[Any], edit: str, model: Any, gate: float = 0.1) -> UnlearningSelection:
    """A selection of six latents or four directions."""
    fields: dict[str, Any] = {
        "latents": [1, 5, 9, 20, 33, 60],
        "strength": 4.0,
        "ignored_tokens": sorted(special_tokens(model)),
        "model_name": "demo:model",
        "hook_name": sae.cfg.metadata.hook_name,
        "sae_digest": weights_digest(sae),
        "d_in": D_IN,
    }
    if edit == "bounded":
        generator = torch.Generator().manual_seed(3)
        basis = torch.linalg.qr(torch.randn(D_IN, 4, generator=generator).double())[0].T
        fields |= {"basis": basis.tolist(), "centre": [0.1] * D_IN, "strength": 0.8}
        return UnlearningSelection(kind="bounded", **fields)
    values = [-2.0, 0.0, -4.0, -3.0, -1.0, -2.5]
    return UnlearningSelection(
        kind="clamp", values=values, gate=gate if edit == "gated" else None, **fields
    )


def logits_of(model: Any, tokens: Tensor, **given: Any) -> Tensor:
    """Logits of one pass, of any of the three classes."""
    with torch.no_grad():
        if isinstance(model, HookedTransformer):
            return model(tokens, prepend_bos=False, **given)
        output = model(tokens, **given)
        return getattr(output, "logits", output)


def by_the_evaluation(
    model: Any, sae: SAE[Any], selection: UnlearningSelection, tokens: Tensor
) -> Tensor:
    """Logits of the HookedTransformer when the evaluation's own intervention edits."""
    edit = selection.intervention().on(sae)
    counted = ~torch.isin(tokens, torch.tensor(selection.ignored_tokens))
    counted[:, 0] = False

    def replace(x: Tensor, hook: object) -> Tensor:
        touched, edited = edit(Seen(sae, x, counted))
        x = x.clone()
        x[touched] = edited
        return x

    with torch.no_grad():
        return model.run_with_hooks(
            tokens, fwd_hooks=[(selection.hook_name, replace)], prepend_bos=False
        )


def hooks_of(model: Any) -> list[OrderedDict[int, Any]]:
    modules = list(model.modules())
    if isinstance(model, TransformerBridge):
        modules += list(model.original_model.modules())
    return [dict(h) for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]  # type: ignore[misc]


# ------------------------------------------------------------------ one pass


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("hook", HOOKS)
def test_all_classes_equal_the_evaluation(
    kinds: dict[str, Any], tokens: Tensor, hook: str, edit: str
) -> None:
    sae = build_sae(hook)
    selection = build_selection(sae, edit, kinds["hooked"])
    expected = by_the_evaluation(kinds["hooked"], sae, selection, tokens)
    plain = logits_of(kinds["hooked"], tokens)
    assert (expected - plain).abs().max() > 0.1
    for kind in KINDS:
        with ortho.unlearn(kinds[kind], sae, selection) as model:
            assert model is kinds[kind]
            found = logits_of(model, tokens)
        torch.testing.assert_close(found, expected, **CLOSE)


def test_gate_leaves_some_sequences_alone(kinds: dict[str, Any], tokens: Tensor) -> None:
    """The gate is the second largest share of firing tokens, so it is open for one sequence."""
    model, sae = kinds["hooked"], build_sae()
    selection = build_selection(sae, "gated", model)
    with torch.no_grad():
        x = model.run_with_cache(tokens, names_filter=HOOKS[0], prepend_bos=False)[1][HOOKS[0]]
        fires = (sae.encode(x)[..., selection.latents] > 0).any(-1)
    counted = torch.ones_like(fires)
    counted[:, 0] = False
    shares = firing_share(fires, counted)
    assert len(shares.unique()) == 3
    selection = build_selection(sae, "gated", model, gate=float(shares.sort().values[1]))
    plain = logits_of(kinds["plain"], tokens)
    with ortho.unlearn(kinds["plain"], sae, selection):
        changed = (logits_of(kinds["plain"], tokens) != plain).flatten(1).any(1)
    assert changed.tolist() == (shares == shares.max()).tolist()


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_decoders_that_depend_on_the_input(
    kinds: dict[str, Any], tokens: Tensor, normalisation: Any
) -> None:
    sae = build_sae(normalize_activations=normalisation)
    with torch.no_grad():
        sae.threshold.fill_(1.2)  # of activations of norm sqrt(d_in)
    selection = build_selection(sae, "clamp", kinds["hooked"])
    expected = by_the_evaluation(kinds["hooked"], sae, selection, tokens)
    assert (expected - logits_of(kinds["hooked"], tokens)).abs().max() > 0.1
    with ortho.unlearn(kinds["plain"], sae, selection):
        torch.testing.assert_close(logits_of(kinds["plain"], tokens), expected, **CLOSE)


def test_other_hooks_of_hook_points(kinds: dict[str, Any], tokens: Tensor) -> None:
    """TransformerLens's classes have more hooks than the residual stream."""
    sae = build_sae("blocks.1.hook_mlp_out")
    with torch.no_grad():
        sae.threshold.fill_(0.2)
    selection = build_selection(sae, "clamp", kinds["hooked"])
    expected = by_the_evaluation(kinds["hooked"], sae, selection, tokens)
    assert (expected - logits_of(kinds["hooked"], tokens)).abs().max() > 0.01
    for kind in ("hooked", "bridge"):
        with ortho.unlearn(kinds[kind], sae, selection):
            torch.testing.assert_close(logits_of(kinds[kind], tokens), expected, **CLOSE)


def test_model_in_half_precision_keeps_its_dtype(tokens: Tensor) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.bfloat16).eval()
    model.tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    sae = build_sae()
    plain = logits_of(model, tokens)
    with ortho.unlearn(model, sae.to(torch.bfloat16), build_selection(build_sae(), "clamp", model)):
        found = logits_of(model, tokens)
    assert found.dtype == torch.bfloat16
    assert not torch.equal(found, plain)


# ------------------------------------------------------------------ generation


def in_pieces(model: Any, tokens: Tensor, sizes: list[int]) -> Tensor:
    """Logits when the tokens are read in pieces, with a KV cache."""
    if isinstance(model, HookedTransformer):
        cache: Any = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(tokens))
        parts = [logits_of(model, t, past_kv_cache=cache) for t in tokens.split(sizes, 1)]
        return torch.cat(parts, 1)
    inner = model.original_model if isinstance(model, TransformerBridge) else model
    found, cache = [], None
    with torch.no_grad():
        for part in tokens.split(sizes, 1):
            output = inner(part, past_key_values=cache, use_cache=True)
            found.append(output.logits)
            cache = output.past_key_values
    return torch.cat(found, 1)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_equals_one_pass(
    kinds: dict[str, Any], tokens: Tensor, kind: str, edit: str
) -> None:
    """The gate stays open: its share is above the gate after the prompt and later."""
    model, sae = kinds[kind], build_sae()
    selection = build_selection(sae, edit, kinds["hooked"], gate=0.01)
    with ortho.unlearn(model, sae, selection):
        whole = logits_of(model, tokens)
        found = in_pieces(model, tokens, [10] + [1] * (N - 10))
    assert (whole - logits_of(model, tokens)).abs().max() > 0.1
    torch.testing.assert_close(found, whole, **CLOSE)


def gate_that_opens_late(model: Any, sae: SAE[Any], tokens: Tensor, prompt: int) -> float:
    """A gate above the share of the prompt, which a later token reaches."""
    with torch.no_grad():
        x = model.run_with_cache(tokens, names_filter=HOOKS[0], prepend_bos=False)[1][HOOKS[0]]
        fires = (sae.encode(x)[..., [1, 5, 9, 20, 33, 60]] > 0).any(-1)[0, 1:]
    shares = fires.cumsum(0) / torch.arange(1, len(fires) + 1)
    gate = float(shares[prompt - 2])
    assert (shares[prompt - 1 :] > gate).any()
    return gate


@pytest.mark.parametrize("kind", KINDS)
def test_gate_counts_all_tokens_so_far(kinds: dict[str, Any], tokens: Tensor, kind: str) -> None:
    """Each piece is edited by the share of itself and of all earlier pieces."""
    model, sae = kinds[kind], build_sae()
    row, prompt = next(
        (tokens[i : i + 1], n)
        for i in range(3)
        for n in range(6, 14)
        if _opens(kinds["hooked"], sae, tokens[i : i + 1], n)
    )
    gate = gate_that_opens_late(kinds["hooked"], sae, row, prompt)
    selection = build_selection(sae, "gated", kinds["hooked"], gate=gate)
    sizes = [prompt] + [1] * (N - prompt)

    latents = selection.latents
    seen: list[Tensor] = []
    opened: list[bool] = []

    def expected_edit(x: Tensor, hook: object) -> Tensor:
        """The same rule, written for one sequence in pieces."""
        acts = sae.encode(x)
        chosen = acts[..., latents]
        active = chosen > 0
        if not seen:
            active[:, 0] = False  # BOS
        seen.append(active.any(-1)[0] if seen else active.any(-1)[0, 1:])
        opened.append(float(torch.cat(seen).float().mean()) > gate)
        if not opened[-1]:
            return x
        edited = acts.clone()
        edited[..., latents] = torch.where(active, torch.tensor(selection.values), chosen)
        return x + sae.decode(edited) - sae.decode(acts)

    hooked = kinds["hooked"]
    with hooked.hooks([(HOOKS[0], expected_edit)]), torch.no_grad():
        expected = in_pieces(hooked, row, sizes)
    assert not opened[0]
    assert any(opened)
    with ortho.unlearn(model, sae, selection):
        found = in_pieces(model, row, sizes)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (found - in_pieces(model, row, sizes)).abs().max() > 0.1


def _opens(model: Any, sae: SAE[Any], row: Tensor, prompt: int) -> bool:
    try:
        return gate_that_opens_late(model, sae, row, prompt) > 0
    except AssertionError:
        return False


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", KINDS)
def test_generate_with_cache_equals_generate_without(
    kinds: dict[str, Any], tokens: Tensor, kind: str, edit: str
) -> None:
    model, sae = kinds[kind], build_sae()
    selection = build_selection(sae, edit, kinds["hooked"], gate=0.01)

    def generate(cached: bool) -> Tensor:
        if kind == "plain":
            given: dict[str, Any] = {"use_cache": cached, "eos_token_id": None}
        else:
            given = {"use_past_kv_cache": cached, "verbose": False, "stop_at_eos": False}
        return model.generate(tokens[:, :8], max_new_tokens=8, do_sample=False, **given)

    with ortho.unlearn(model, sae, selection):
        found, expected = generate(True), generate(False)
    assert found.tolist() == expected.tolist()
    assert found.tolist() != generate(True).tolist()


def test_left_padding_changes_nothing(kinds: dict[str, Any], tokens: Tensor) -> None:
    """Rows of a padded batch give the tokens that they give alone, with every kind of edit."""
    model, hooked, sae = kinds["plain"], kinds["hooked"], build_sae()
    pad = hooked.tokenizer.pad_token_id
    prompts = [tokens[0, :12], tokens[1, 1:6], tokens[2, :9]]  # the second one without BOS
    padded = torch.full((3, 12), pad)
    mask = torch.zeros(3, 12, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        padded[row, 12 - len(prompt) :] = prompt
        mask[row, 12 - len(prompt) :] = 1
    given: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    given["use_cache"] = True
    for edit in EDITS:
        selection = build_selection(sae, edit, hooked, gate=0.2)
        with ortho.unlearn(model, sae, selection):
            together = model.generate(padded, attention_mask=mask, **given)[:, 12:]
            alone = [model.generate(p[None], **given)[0, len(p) :] for p in prompts]
        assert together.tolist() == torch.stack(alone).tolist()


@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_left_padded_texts_of_transformer_lens(
    kinds: dict[str, Any], tokens: Tensor, kind: str
) -> None:
    model, sae = kinds[kind], build_sae()
    texts = [model.tokenizer.decode(t) for t in (tokens[0, 1:12], tokens[1, 1:6])]
    given: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "verbose": False}
    given |= {"stop_at_eos": False, "prepend_bos": True}
    for edit in EDITS:
        with ortho.unlearn(model, sae, build_selection(sae, edit, model, gate=0.2)):
            together = model.generate(texts, **given)
            assert together == [model.generate(text, **given) for text in texts]


def test_first_token_without_bos_is_not_edited(kinds: dict[str, Any], tokens: Tensor) -> None:
    model, sae = kinds["plain"], build_sae()
    with torch.no_grad():
        sae.threshold.fill_(-1e6)  # every latent fires on every token
    selection = build_selection(sae, "clamp", kinds["hooked"])
    with ortho.unlearn(model, sae, selection):
        found = logits_of(model, tokens[:, 1:])
    plain = logits_of(model, tokens[:, 1:])
    assert torch.equal(found[:, 0], plain[:, 0])
    assert (found[:, 1:] != plain[:, 1:]).any(-1).all()


def test_firings_follow_the_cache(kinds: dict[str, Any], tokens: Tensor) -> None:
    """Copied, cropped, repeated and reordered caches go on with the right sequences."""
    model, sae = kinds["plain"], build_sae()
    selection = build_selection(sae, "gated", kinds["hooked"], gate=0.3)

    def rest(cache: Any, rows: Tensor, first: int) -> Tensor:
        with torch.no_grad():
            return model(rows[:, first:], past_key_values=cache).logits

    with ortho.unlearn(model, sae, selection):
        with torch.no_grad():
            cache = model(tokens[:, :12], use_cache=True).past_key_values
        order = torch.tensor([2, 2, 0])
        reordered = copy.deepcopy(cache)
        reordered.reorder_cache(order)
        found = rest(reordered, tokens[order], 12)
        repeated = copy.deepcopy(cache)
        repeated.batch_repeat_interleave(2)
        twice = rest(repeated, tokens.repeat_interleave(2, 0), 12)
        whole = rest(copy.deepcopy(cache), tokens, 12)
        cropped = copy.deepcopy(cache)
        rest(cropped, tokens[[1, 1, 1]], 12)
        cropped.crop(12 - N)
        again = rest(cropped, tokens, 12)
    torch.testing.assert_close(found, whole[order], **CLOSE)
    torch.testing.assert_close(twice, whole.repeat_interleave(2, 0), **CLOSE)
    torch.testing.assert_close(again, whole, **CLOSE)


def test_beam_search_runs(kinds: dict[str, Any], tokens: Tensor) -> None:
    model, sae = kinds["plain"], build_sae()
    selection = build_selection(sae, "gated", kinds["hooked"], gate=0.01)
    given: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    with ortho.unlearn(model, sae, selection):
        found = model.generate(tokens[:1, :8], use_cache=True, **given)
        assert found.tolist() == model.generate(tokens[:1, :8], use_cache=False, **given).tolist()


# ------------------------------------------------------------------ before and afterwards


class Interrupted(Exception):
    pass


def fail_inside(model: Any, sae: SAE[Any], selection: UnlearningSelection, tokens: Tensor) -> None:
    with ortho.unlearn(model, sae, selection):
        logits_of(model, tokens)
        raise Interrupted


@pytest.mark.parametrize("kind", KINDS)
def test_model_is_as_before_afterwards(kinds: dict[str, Any], tokens: Tensor, kind: str) -> None:
    model, sae = kinds[kind], build_sae()
    selection = build_selection(sae, "gated", kinds["hooked"])
    logits = logits_of(model, tokens)  # the first run of a bridge adds hooks of its own
    before = hooks_of(model)
    with ortho.unlearn(model, sae, selection):
        assert hooks_of(model) != before
        logits_of(model, tokens)
    assert hooks_of(model) == before
    with pytest.raises(Interrupted):
        fail_inside(model, sae, selection, tokens)
    assert hooks_of(model) == before
    assert torch.equal(logits_of(model, tokens), logits)


def test_nothing_remains_if_the_start_fails(
    kinds: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sae = kinds["plain"], build_sae()
    before = hooks_of(model)
    monkeypatch.setattr(use, "_watch_calls", lambda *_: 1 / 0)
    with (
        pytest.raises(ZeroDivisionError),
        ortho.unlearn(model, sae, build_selection(sae, "clamp", kinds["hooked"])),
    ):
        pass
    assert hooks_of(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_nested_statements_edit_one_after_the_other(
    kinds: dict[str, Any], tokens: Tensor, kind: str
) -> None:
    model, sae = kinds[kind], build_sae()
    outer, inner = (build_selection(sae, e, kinds["hooked"]) for e in ("clamp", "bounded"))
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[:, 0] = False

    def both(x: Tensor, hook: object) -> Tensor:
        for selection in (outer, inner):
            touched, edited = selection.intervention().on(sae)(Seen(sae, x, counted))
            x = x.clone()
            x[touched] = edited
        return x

    with torch.no_grad():
        expected = kinds["hooked"].run_with_hooks(
            tokens, fwd_hooks=[(HOOKS[0], both)], prepend_bos=False
        )
    with ortho.unlearn(model, sae, outer), ortho.unlearn(model, sae, inner):
        torch.testing.assert_close(logits_of(model, tokens), expected, **CLOSE)


def test_selection_is_read_from_a_file(
    kinds: dict[str, Any], tokens: Tensor, tmp_path: Path
) -> None:
    model, sae = kinds["plain"], build_sae()
    for edit in EDITS:
        selection = build_selection(sae, edit, kinds["hooked"])
        file = selection.save(tmp_path / f"{edit}.json")
        assert UnlearningSelection.load(file) == selection
        with ortho.unlearn(model, sae, selection):
            expected = logits_of(model, tokens)
        with ortho.unlearn(model, sae, file):
            assert torch.equal(logits_of(model, tokens), expected)


def test_another_sae_is_refused(kinds: dict[str, Any]) -> None:
    model, sae = kinds["plain"], build_sae()
    selection = build_selection(sae, "clamp", kinds["hooked"])
    smaller = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=32))
    narrower = JumpReLUSAE(JumpReLUSAEConfig(d_in=8, d_sae=D_SAE))
    for other, rule in (
        (build_sae(seed=1), "was chosen for an SAE with the weights"),
        (build_sae(HOOKS[1]), "belongs to the hook blocks.1.hook_resid_pre"),
        (smaller, r"selection\.latents=60: the SAE has 32 latents"),
        (narrower, rf"selection\.d_in={D_IN}: .*width 8"),
    ):
        with pytest.raises(ConfigError, match=rule), ortho.unlearn(model, other, selection):
            pass


@pytest.mark.parametrize("kind", ["plain", "hooked", "bridge"])
def test_token_that_the_model_does_not_have_is_refused(kinds: dict[str, Any], kind: str) -> None:
    sae = build_sae()
    selection = build_selection(sae, "clamp", kinds["hooked"])
    other = replace(selection, ignored_tokens=[0, 10**6])
    model = kinds[kind]
    before = hooks_of(model)
    rule = r"selection\.ignored_tokens=1000000: the model has \d+ tokens"
    with pytest.raises(ConfigError, match=rule), ortho.unlearn(model, sae, other):
        pass
    assert hooks_of(model) == before


@pytest.mark.parametrize(
    ("edit", "changes", "rule"),
    [
        ("clamp", {"values": [1e39] + [0.0] * 5}, r"values=1e\+39: is too large for float32"),
        ("clamp", {"ignored_tokens": [2**63]}, "ignored_tokens=.*at most 9223372036854775807"),
        ("clamp", {"latents": [2**63, 1, 2, 3, 4, 5]}, "latents=.*at most 9223372036854775807"),
        ("bounded", {"strength": 1.5}, r"strength=1\.5: .* a number in \[0, 1\]"),
        ("bounded", {"centre": [-1e39] + [0.0] * (D_IN - 1)}, "centre=.*too large for float32"),
        ("bounded", {"basis": [[0.0] * D_IN]}, "basis=.*not orthonormal: .* by 1 from"),
        ("bounded", {"basis": [[1.0] + [0.0] * (D_IN - 1)] * 2}, "basis=.*not orthonormal"),
        ("bounded", {"basis": [[1e300] * D_IN]}, "basis=.*not orthonormal"),
        ("bounded", {"basis": [[float("nan")] * D_IN]}, "basis=.*a list of lists of numbers"),
    ],
)
def test_selection_that_means_nothing_is_refused(
    kinds: dict[str, Any], edit: str, changes: dict[str, Any], rule: str
) -> None:
    selection = build_selection(build_sae(), edit, kinds["hooked"])
    with pytest.raises(ConfigError, match=rule):
        replace(selection, **changes)


@pytest.mark.parametrize("corpora", [[5], ["x"]])
def test_bad_record_of_a_corpus_is_named(
    kinds: dict[str, Any], tmp_path: Path, corpora: list[Any]
) -> None:
    selection = build_selection(build_sae(), "clamp", kinds["hooked"])
    tree = asdict(selection) | {"chosen_on": {"corpora": corpora}}
    file = tmp_path / "selection.json"
    file.write_text(json.dumps(tree))
    rule = rf"selection\.chosen_on\.corpora\.0={corpora[0]!r}: must be a mapping"
    with pytest.raises(ConfigError, match=rule):
        UnlearningSelection.load(file)


def test_models_and_hooks_that_cannot_be_edited(kinds: dict[str, Any]) -> None:
    t5 = T5ForConditionalGeneration(
        T5Config(d_model=D_IN, d_ff=8, num_layers=1, num_heads=2, d_kv=8, vocab_size=32)
    )
    for model, hook, rule in (
        (object(), HOOKS[0], "must be a HookedTransformer"),
        (t5, HOOKS[0], "has an encoder"),
        (kinds["plain"], "blocks.1.hook_mlp_out", "hook_resid_pre and _post only"),
        (kinds["plain"], "blocks.9.hook_resid_post", "has 4 layers"),
        (kinds["hooked"], "blocks.9.hook_resid_post", "no such hook point"),
        (kinds["bridge"], "blocks.1.hook_nothing", "no such hook point"),
        (kinds["hooked"], "hook_embed", "must be a hook in a layer"),
    ):
        sae = build_sae(hook)
        selection = build_selection(sae, "clamp", kinds["hooked"])
        with pytest.raises(ConfigError, match=rule), ortho.unlearn(model, sae, selection):
            pass
    sae = build_sae("blocks.1.attn.hook_z")
    sae.cfg.metadata.hook_head_index = 1
    selection = build_selection(sae, "clamp", kinds["hooked"])
    with (
        pytest.raises(ConfigError, match="without heads"),
        ortho.unlearn(kinds["hooked"], sae, selection),
    ):
        pass


def test_unknown_tokens_are_an_error(kinds: dict[str, Any], tokens: Tensor) -> None:
    plain, hooked, sae = kinds["plain"], kinds["hooked"], build_sae()
    gated = build_selection(sae, "gated", hooked)
    with torch.no_grad():
        outside = plain(tokens[:, :5], use_cache=True).past_key_values
        embeddings = plain.get_input_embeddings()(tokens)
    with ortho.unlearn(plain, sae, gated), torch.no_grad():
        with pytest.raises(ConfigError, match="has not seen them"):
            plain(tokens[:, 5:], past_key_values=outside)
        with pytest.raises(ConfigError, match="give tokens, not embeddings"):
            plain(inputs_embeds=embeddings)
        with pytest.raises(ConfigError, match="Call the model that was given"):
            plain.gpt_neox(tokens)
        with pytest.raises(ConfigError, match="static KV cache"):
            plain.generate(tokens, use_cache=True, cache_implementation="static", max_new_tokens=2)
    with ortho.unlearn(hooked, sae, gated), torch.no_grad():
        hooked(tokens, prepend_bos=False)
        with pytest.raises(ConfigError, match="tokens at the hook are unknown"):
            hooked(embeddings, start_at_layer=0)


def test_cache_from_outside_serves_a_selection_without_a_gate(
    kinds: dict[str, Any], tokens: Tensor
) -> None:
    """Only the tokens that are read inside the statement are edited."""
    model, sae = kinds["plain"], build_sae()
    selection = build_selection(sae, "clamp", kinds["hooked"])
    with torch.no_grad():
        cache = model(tokens[:, :12], past_key_values=DynamicCache()).past_key_values
        plain = model(tokens[:, 12:], past_key_values=copy.deepcopy(cache)).logits
        with ortho.unlearn(model, sae, selection):
            found = model(tokens[:, 12:], past_key_values=cache).logits
    assert (found - plain).abs().max() > 0.1


def test_package_offers_its_names_when_they_are_used() -> None:
    assert ortho.unlearn is use.unlearn
    assert ortho.UnlearningSelection is UnlearningSelection
    assert all(hasattr(ortho, name) for name in ortho.__all__)
    with pytest.raises(AttributeError, match="no attribute 'unlearned'"):
        _ = ortho.unlearned
