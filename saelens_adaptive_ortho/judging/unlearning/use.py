"""Unlearning in use: a model that forgets inside a ``with`` statement, also while it generates.

:func:`unlearn` puts PyTorch hooks on the model. They edit the activations at the SAE's hook as the
evaluation does (:mod:`.clamps`), with two rules for text that arrives piece by piece:

- **Which tokens.** BOS, EOS, padding and the tokens that the SAE was trained without never count
  and are never edited, nor is the first token of a sequence. Padding is what the attention mask
  leaves out. (The evaluation's clamp also edits a separator inside a context.)
- **The sequence gate.** The share of firing tokens is computed over all tokens of the sequence that
  the model has read when it edits: the tokens of this call and those of earlier calls that the KV
  cache holds. A call with a whole text sees the share of this text, as in the evaluation. In
  generation, the prompt is edited by its own share, and each new token by the share of the prompt
  and all tokens since. Tokens in the cache stay as they were edited. So without a gate, generation
  equals one pass over the whole text; with a gate it does as long as the gate stays open or closed.

The firings of a sequence are kept on the object of its KV cache. They follow when the cache is
copied, cropped or reordered (beam search), and several sequences may be in use at the same time.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens import HookedTransformer

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.judging.unlearning.clamps import (
    Clamp,
    Seen,
    decoder_rows,
    firing_share,
    has_affine_decoder,
)
from saelens_adaptive_ortho.judging.unlearning.saved import UnlearningSelection
from saelens_adaptive_ortho.text import models

LAYER = re.compile(r"blocks\.(\d+)\..+")
RESIDUAL_BEFORE = re.compile(r"blocks\.(\d+)\.hook_(?:resid_pre|in)")
RESIDUAL_AFTER = re.compile(r"blocks\.(\d+)\.hook_(?:resid_post|out)")
KEPT = "_adaptive_ortho_firings"  # attribute of a KV cache
_numbers = itertools.count()

#: Keeps the handle of a hook, to remove it at the end.
Keep = Callable[[Any], object]


class Acted(NamedTuple):
    """What the edit did in one call of the model.

    Attributes:
        fires: tokens on which a latent of the selection fires. A bounded projection has no such
            condition; then they are all tokens that count.
        edited: tokens whose activations were edited.
    """

    fires: Bool[Tensor, "batch context"]
    edited: Bool[Tensor, "batch context"]


@contextmanager
def unlearn(
    model: Any,
    sae: SAE[Any],
    selection: UnlearningSelection | str | Path,
    watch: Callable[[Acted], object] | None = None,
) -> Iterator[Any]:
    """Inside the ``with`` statement, the model forgets what the selection was chosen for.

    The docstring of the module says which tokens are edited, and how the gate works in generation.
    After the statement the model is as before, also after an error. Statements may be nested: the
    inner one sees the activations that the outer one has edited. No weight changes.

    Args:
        model: a HookedTransformer, a TransformerBridge, or a causal model of transformers. The
            last one needs a hook of the residual stream (``blocks.N.hook_resid_pre`` or ``_post``).
        sae: the SAE that the selection was chosen for.
        selection: the selection, or the file that holds it.
        watch: function that gets what the edit did in each call of the model.

    Yields:
        The model.

    Raises:
        ConfigError: the selection cannot be read, the SAE is another one, or the model has no such
            hook. Inside the statement: the tokens that the model reads are unknown (embeddings
            instead of tokens, a static KV cache, a KV cache from outside the statement).
    """
    if not isinstance(selection, UnlearningSelection):
        selection = UnlearningSelection.load(selection)
    _check(sae, selection)
    edit = _Edit(sae, selection, watch)
    with ExitStack() as stack:

        def keep(handle: Any) -> None:
            stack.callback(handle.remove)

        _attach(model, selection.hook_name, edit, keep)
        selection.check_vocabulary(n_tokens(model))
        yield model


def _check(sae: SAE[Any], selection: UnlearningSelection) -> None:
    metadata = sae.cfg.metadata
    selection.check_width(sae.cfg.d_in, sae.cfg.d_sae)
    if metadata.hook_name is not None and metadata.hook_name != selection.hook_name:
        rule = f"the SAE belongs to the hook {metadata.hook_name}."
        raise reject("selection.hook_name", selection.hook_name, rule)
    if metadata.hook_head_index is not None or sae.cfg.reshape_activations != "none":
        rule = "unlearn edits hooks without heads, such as those of the residual stream."
        raise reject("hook_name", selection.hook_name, rule)
    selection.check_sae(sae)


def n_tokens(model: Any) -> int:
    """The number of tokens that the model or its tokenizer knows."""
    if hasattr(model, "hook_dict"):  # of TransformerLens
        tokenizer = getattr(model, "tokenizer", None)
        return max(model.cfg.d_vocab, 0 if tokenizer is None else len(tokenizer))
    return len(model.get_input_embeddings().weight)


class _Firings(NamedTuple):
    """Which tokens of each sequence any of the latents fires on, and which tokens count."""

    fires: Bool[Tensor, "batch seen"]
    counted: Bool[Tensor, "batch seen"]

    def then(self, other: _Firings) -> _Firings:
        """These tokens, followed by others."""
        return _Firings(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))

    def first(self, n: int) -> _Firings:
        """The first ``n`` tokens."""
        return _Firings(*(part[:, :n] for part in self))

    def rows(self, index: Int[Tensor, " n"]) -> _Firings:
        """Some sequences, in another order."""
        return _Firings(*(part[index.to(part.device)] for part in self))

    def repeated(self, repeats: int) -> _Firings:
        """Each sequence ``repeats`` times."""
        return _Firings(*(part.repeat_interleave(repeats, 0) for part in self))


class _Edit:
    """The edit of one ``with`` statement, and the tokens that the model is reading."""

    def __init__(
        self,
        sae: SAE[Any],
        selection: UnlearningSelection,
        watch: Callable[[Acted], object] | None = None,
    ) -> None:
        self.sae, self.watch = sae, watch
        self.ignored = torch.tensor(selection.ignored_tokens, dtype=torch.int64, device=sae.device)
        self.intervention = selection.intervention()
        self.key = next(_numbers)
        self.gated = isinstance(self.intervention, Clamp) and self.intervention.gate is not None
        self.counted: Tensor | None = None
        self.earlier: _Firings | None = None
        if isinstance(self.intervention, Clamp):
            self.latents = self.intervention.latents.to(sae.device)
            self.values = self.intervention.values.to(sae.device, sae.dtype)
            self.rows = decoder_rows(sae, self.latents) if has_affine_decoder(sae) else None
        else:
            self.project = self.intervention.on(sae)

    def begin(
        self,
        tokens: Int[Tensor, "batch context"],
        mask: Tensor | None,
        past: int,
        cache: Any,
    ) -> None:
        """The model begins to read tokens.

        Args:
            tokens: tokens of this call.
            mask: which of the earlier tokens and these are no padding, ``[batch, past + context]``.
            past: number of earlier tokens, padding included.
            cache: KV cache with the earlier tokens, or None.
        """
        batch, n = tokens.shape
        device = self.sae.device
        tokens = tokens.to(device)
        real = torch.ones(batch, past + n, dtype=torch.bool, device=device)
        if mask is not None:
            known = mask[:, : past + n].bool().to(device)
            real[:, past + n - known.shape[1] :] = known
        first = real.int().argmax(1, keepdim=True)
        positions = torch.arange(past, past + n, device=device)
        usual = ~torch.isin(tokens, self.ignored)
        kept = getattr(cache, KEPT, {}).get(self.key)
        self.earlier = kept.first(past) if kept is not None else None
        have = 0 if self.earlier is None else self.earlier.fires.shape[1]
        if self.gated and past != have:
            raise reject(
                "past_key_values",
                f"{past} tokens",
                "the sequence gate has not seen them. Read the whole sequence inside the `with` "
                "statement, or use a selection without a gate.",
            )
        self.counted = real[:, past:] & usual & (positions != first)

    def apply(self, x: Tensor) -> Tensor:
        """The edited activations at the hook."""
        if self.counted is None:
            raise reject(
                "model",
                type(self).__name__,
                "the tokens at the hook are unknown. Call the model that was given to unlearn, "
                "with tokens.",
            )
        shape = tuple(self.counted.shape)
        if x.ndim != 3 or tuple(x.shape[:2]) != shape or x.shape[2] != self.sae.cfg.d_in:
            rule = f"the SAE needs [batch, tokens, width] = {[*shape, self.sae.cfg.d_in]}."
            raise reject("activations", list(x.shape), rule)
        change = self._change(x.to(self.sae.device, self.sae.dtype), self.counted)
        return x if change is None else x + change.to(x.device, x.dtype)

    def end(self, cache: Any) -> None:
        """The model has read the tokens; ``cache`` holds them, or is None."""
        if self.gated and cache is not None and self.earlier is not None:
            _keep_on(cache, self.key, self.earlier)
        self.forget_call()

    def forget_call(self) -> None:
        """No call is known any more: the next activations must be announced by :meth:`begin`."""
        self.counted = self.earlier = None

    def _change(
        self, x: Float[Tensor, "batch context d_in"], counted: Bool[Tensor, "batch context"]
    ) -> Float[Tensor, "batch context d_in"] | None:
        """What is added to the activations; None if nothing is."""
        if not isinstance(self.intervention, Clamp):
            self._tell(counted, counted)
            return self.project(Seen(self.sae, x, counted)).x - x
        acts = self.sae.encode(x)
        chosen = acts[..., self.latents]
        active = (chosen > 0) & counted[..., None]
        fires = active.any(-1)
        if self.intervention.gate is not None:
            now = _Firings(fires, counted)
            seen = self.earlier = now if self.earlier is None else self.earlier.then(now)
            is_open = firing_share(seen.fires, seen.counted) > self.intervention.gate
            active = active & is_open[:, None, None]
        self._tell(fires, active.any(-1))
        if not active.any():
            return None
        if self.rows is not None:
            return ((self.values - chosen) * active) @ self.rows
        edited = acts.clone()
        edited[..., self.latents] = torch.where(active, self.values, chosen)
        before = self.sae.decode(acts)
        self.sae.encode(x)  # the second decode needs the statistics of the input again
        change = self.sae.decode(edited) - before
        return torch.where(active.any(-1, keepdim=True), change, 0.0)

    def _tell(
        self, fires: Bool[Tensor, "batch context"], edited: Bool[Tensor, "batch context"]
    ) -> None:
        if self.watch is not None:
            self.watch(Acted(fires, edited))


def _keep_on(cache: Any, key: int, firings: _Firings) -> None:
    """Keep firings on a KV cache, where they follow every change of its rows."""
    if KEPT not in vars(cache):
        setattr(cache, KEPT, {})
        for name, follow in _FOLLOWERS.items():
            if hasattr(cache, name):
                setattr(cache, name, MethodType(follow, cache))
    getattr(cache, KEPT)[key] = firings


def _reorder_cache(cache: Any, beam_idx: Tensor) -> None:
    type(cache).reorder_cache(cache, beam_idx)
    _follow(cache, lambda firings: firings.rows(beam_idx))


def _batch_select_indices(cache: Any, indices: Tensor) -> None:
    type(cache).batch_select_indices(cache, indices)
    _follow(cache, lambda firings: firings.rows(indices))


def _batch_repeat_interleave(cache: Any, repeats: int) -> None:
    type(cache).batch_repeat_interleave(cache, repeats)
    _follow(cache, lambda firings: firings.repeated(repeats))


def _follow(cache: Any, change: Callable[[_Firings], _Firings]) -> None:
    kept = getattr(cache, KEPT)
    for key, firings in kept.items():
        kept[key] = change(firings)


# Methods of a cache of transformers that change its rows. As bound methods of the cache they are
# bound to the copy when the cache is copied.
_FOLLOWERS = {
    "reorder_cache": _reorder_cache,
    "batch_select_indices": _batch_select_indices,
    "batch_repeat_interleave": _batch_repeat_interleave,
}


# ------------------------------------------------------------------ the three kinds of models


def _attach(model: Any, hook_name: str, edit: _Edit, keep: Keep) -> None:
    """Put the hooks on a model.

    Raises:
        ConfigError: the model is of another kind, or has no such hook.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, HookedTransformer):
        _attach_hooked_transformer(model, hook_name, edit, keep)
        return
    bridge = isinstance(model, TransformerBridge)
    inner = model.original_model if bridge else model
    if not isinstance(inner, torch.nn.Module) or not hasattr(inner, "config"):
        rule = "must be a HookedTransformer, a TransformerBridge or a causal model of transformers."
        raise reject("model", type(model).__name__, rule)
    if (edit.sae.cfg.metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        rule = "its SAE was trained on a HookedTransformer with centred weights; load that model."
        raise reject("model", type(model).__name__, rule)
    if getattr(inner.config, "is_encoder_decoder", False):
        raise reject("model", type(inner).__name__, "has an encoder; unlearn needs a decoder only.")
    if bridge:
        _add_to_hook_point(model, hook_name, edit, keep)
    else:
        _attach_to_layer(inner, hook_name, edit, keep)
    _watch_calls(inner, edit, keep)


def _add_to_hook_point(model: Any, hook_name: str, edit: _Edit, keep: Keep) -> int:
    """Edit what a hook point of TransformerLens returns; returns its layer."""
    models.check_hook(model, hook_name)
    layer = LAYER.fullmatch(hook_name)
    if layer is None:
        raise reject("hook_name", hook_name, "must be a hook in a layer, blocks.N.*.")
    point = model.hook_dict[hook_name]
    keep(point.register_forward_hook(lambda module, inputs, output: edit.apply(output)))  # noqa: ARG005
    return int(layer[1])


def _attach_hooked_transformer(
    model: HookedTransformer, hook_name: str, edit: _Edit, keep: Keep
) -> None:
    """The tokens are read at the embedding; mask and KV cache at the layer of the hook.

    ``generate`` calls ``forward`` itself and embeds each new token alone, also when it then runs
    the whole sequence without a KV cache. So the embedded tokens are collected.
    """
    layer = _add_to_hook_point(model, hook_name, edit, keep)
    embedded: list[Tensor] = []
    fresh = [False]

    def embeds(module: Any, args: tuple[Any, ...]) -> None:  # noqa: ARG001
        if embedded and len(embedded[0]) != len(args[0]):
            embedded.clear()
        embedded.append(args[0])
        fresh[0] = True

    def begins(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        edit.forget_call()
        tokens = _latest(embedded, args[0].shape[1]) if fresh[0] else None
        fresh[0] = False
        if tokens is None or len(tokens) != len(args[0]):
            return
        if tokens is embedded[-1]:
            del embedded[:-1]
        cache = kwargs.get("past_kv_cache_entry")
        past = 0 if cache is None else cache.past_keys.shape[1]
        edit.begin(tokens, kwargs.get("attention_mask"), past, cache)

    def ends(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:  # noqa: ARG001
        cache = kwargs.get("past_kv_cache_entry")
        edit.end(None if cache is None or cache.frozen else cache)

    block = model.blocks[layer]
    keep(model.embed.register_forward_pre_hook(embeds))
    keep(block.register_forward_pre_hook(begins, with_kwargs=True))
    keep(block.register_forward_hook(ends, with_kwargs=True))


def _latest(embedded: list[Tensor], n: int) -> Int[Tensor, "batch n"] | None:
    """The last ``n`` embedded tokens, if they are whole calls of the embedding; else None."""
    if embedded and embedded[-1].shape[1] == n:
        return embedded[-1]
    for start in reversed(range(len(embedded))):
        if sum(t.shape[1] for t in embedded[start:]) == n:
            return torch.cat(embedded[start:], 1)
    return None


def _watch_calls(model: torch.nn.Module, edit: _Edit, keep: Keep) -> None:
    """Read tokens, mask and KV cache from the calls of a model of transformers."""
    signature = inspect.signature(model.forward)
    rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]

    def given(args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        found = dict(signature.bind_partial(*args, **kwargs).arguments)
        for name in rest:
            found |= found.pop(name, {})
        return found

    def begins(module: Any, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        edit.forget_call()
        call = given(args, kwargs)
        tokens, mask = call.get("input_ids"), call.get("attention_mask")
        if tokens is None:
            rule = "is needed to know which tokens count; give tokens, not embeddings."
            raise reject("input_ids", None, rule)
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            rule = "must be [batch, tokens]; do not generate with a static KV cache."
            raise reject("attention_mask", type(mask).__name__, rule)
        cache = call.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        edit.begin(tokens, mask, past, cache)

    def ends(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:  # noqa: ARG001
        cache = given(args, kwargs).get("past_key_values")
        edit.end(_cache_in(output) if cache is None else cache)

    keep(model.register_forward_pre_hook(begins, with_kwargs=True))
    keep(model.register_forward_hook(ends, with_kwargs=True))


def _cache_in(output: Any) -> Any:
    """The KV cache in the output of a model of transformers; None without one."""
    found = getattr(output, "past_key_values", None)
    if found is None and isinstance(output, tuple):
        found = next((part for part in output if hasattr(part, "get_seq_length")), None)
    return found


def _attach_to_layer(model: Any, hook_name: str, edit: _Edit, keep: Keep) -> None:
    """Edit what a decoder layer of a model of transformers gets or returns."""
    before = RESIDUAL_BEFORE.fullmatch(hook_name)
    after = RESIDUAL_AFTER.fullmatch(hook_name)
    found = before or after
    if found is None:
        raise reject(
            "hook_name",
            hook_name,
            "a model of transformers has the hooks blocks.N.hook_resid_pre and _post only; load it "
            "as HookedTransformer or TransformerBridge.",
        )
    layers = decoder_layers(model)
    if int(found[1]) >= len(layers):
        raise reject("hook_name", hook_name, f"the model has {len(layers)} layers.")
    width = model.config.get_text_config().hidden_size
    if width != edit.sae.cfg.d_in:
        rule = f"the SAE has the width {edit.sae.cfg.d_in}; it belongs to another model."
        raise reject("model.config.hidden_size", width, rule)
    layer = layers[int(found[1])]

    def gets(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
        if args:
            return (edit.apply(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edit.apply(kwargs["hidden_states"])}

    def returns(module: Any, args: Any, output: Any) -> Any:  # noqa: ARG001
        if isinstance(output, tuple):
            return edit.apply(output[0]), *output[1:]
        return edit.apply(output)

    if before is not None:
        keep(layer.register_forward_pre_hook(gets, with_kwargs=True))
    else:
        keep(layer.register_forward_hook(returns))


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The list of decoder layers: the only list of modules that is as long as the config says.

    Raises:
        ConfigError: there is no such list, or more than one.
    """
    n = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    lists = [m for m in decoder.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n]
    if len(lists) != 1:
        raise reject(
            "model",
            type(model).__name__,
            f"has {len(lists)} lists of {n} modules, so its decoder layers cannot be found. Load "
            "it as TransformerBridge.",
        )
    return lists[0]
