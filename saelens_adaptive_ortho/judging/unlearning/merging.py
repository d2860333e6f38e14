"""A bounded projection in the weights of an ordinary checkpoint, where that is exact.

A bounded selection is the affine map ``x -> x - s (x - centre) P`` of the residual stream at one
hook. Weights can hold it exactly only if the map reaches all later readers and no earlier one:

- **Inside the model it cannot.** Every sublayer reads the stream through a norm. Its input does not
  change when x is scaled, so nothing that a sublayer (or a further one) adds to the stream can be
  the linear map of x, and no reader behind a norm can compute the norm of the mapped x. Put
  into the earlier writers instead, the map also changes what the earlier sublayers read.
- **After the embedding it can** (``blocks.0.hook_resid_pre``): there is no earlier reader. Each row
  of the embedding is mapped, but the rows of tokens that never count (BOS, EOS, padding). An
  unembedding that shares the embedding's weights gets a copy of its own.

So :func:`merge` serves SAEs of the embedding, and refuses all others. It also refuses models whose
first layer reads more than the token's embedding, such as learned positions. One difference to
:func:`.use.unlearn` remains: it never edits the first token of a sequence. The two are equal for
sequences that begin with BOS or another token that never counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.judging.unlearning.clamps import Projection
from saelens_adaptive_ortho.judging.unlearning.saved import BOUNDED, UnlearningSelection
from saelens_adaptive_ortho.judging.unlearning.use import RESIDUAL_BEFORE, decoder_layers

TOLERANCE = 1e-4  # largest difference between the logits of the merged and of the hooked model


def check_mergeable(selection: UnlearningSelection) -> None:
    """Refuse a selection that no checkpoint can hold exactly.

    Raises:
        ConfigError: it is a clamp, or its hook is inside the model.
    """
    if selection.kind != BOUNDED:
        rule = "a clamp acts where latents fire, so weights cannot hold it; choose kind bounded."
        raise reject("selection.kind", selection.kind, rule)
    found = RESIDUAL_BEFORE.fullmatch(selection.hook_name)
    if found is None or int(found[1]) != 0:
        raise reject(
            "selection.hook_name",
            selection.hook_name,
            "no ordinary checkpoint can hold this map exactly: the layers after the hook read the "
            "stream through a norm, and changed weights before it would change what earlier layers "
            "read. Exact is blocks.0.hook_resid_pre alone; elsewhere use unlearn.",
        )


@torch.no_grad()
def merge(model: Any, selection: UnlearningSelection) -> None:
    """Map the embedding of a causal model of transformers, in place.

    Args:
        model: the model, in float32.
        selection: a bounded selection at ``blocks.0.hook_resid_pre``.

    Raises:
        ConfigError: the selection cannot be merged exactly into this model. The model may have
            changed then.
    """
    check_mergeable(selection)
    embedding = model.get_input_embeddings()
    width = embedding.weight.shape[1]
    if width != selection.d_in:
        rule = f"the embedding has the width {width}; the selection is for another model."
        raise reject("selection.d_in", selection.d_in, rule)
    selection.check_vocabulary(len(embedding.weight))
    tokens = _probe(len(embedding.weight), selection)
    scale = _scale(model, tokens)
    with _hooked(model, selection, tokens):
        expected = model(tokens).logits

    counted = torch.ones(len(embedding.weight), dtype=torch.bool)
    counted[torch.tensor(selection.ignored_tokens, dtype=torch.int64)] = False
    output = model.get_output_embeddings()
    if output is not None and output.weight is embedding.weight:
        output.weight = torch.nn.Parameter(output.weight.clone())
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
    x = embedding.weight[counted].double().cpu() * scale
    embedding.weight[counted] = (_mapped(x, selection) / scale).to(embedding.weight)

    difference = float((model(tokens).logits - expected).abs().max())
    if not difference <= TOLERANCE:
        raise reject(
            "model",
            type(model).__name__,
            f"the merged model differs by {difference:.2g} in its logits; it reads the embedding "
            "in a place that the selection does not edit.",
        )


def _mapped(x: Float[Tensor, "*n d"], selection: UnlearningSelection) -> Float[Tensor, "*n d"]:
    """``x - s (x - centre) P`` in float64."""
    edit = selection.intervention()
    assert isinstance(edit, Projection)
    return edit.erasure.apply(x, edit.centre, edit.strength)


def _probe(n_tokens: int, selection: UnlearningSelection) -> Int[Tensor, "batch context"]:
    """Random tokens behind one that never counts."""
    if not selection.ignored_tokens:
        rule = "without a BOS token the first token of a sequence would be edited, too."
        raise reject("selection.ignored_tokens", [], rule)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(n_tokens, (4, 16), generator=generator)
    tokens[:, 0] = selection.ignored_tokens[0]
    return tokens


def _scale(model: Any, tokens: Int[Tensor, "batch context"]) -> float:
    """The factor between the embedding and what the first layer reads.

    Raises:
        ConfigError: the first layer reads more than the embedding of each token.
    """
    read: list[Tensor] = []

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        read.append(args[0] if args else kwargs["hidden_states"])

    handle = decoder_layers(model)[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model(tokens)
    finally:
        handle.remove()
    rows, found = model.get_input_embeddings().weight[tokens].double(), read[0].double()
    scale = float((found * rows).sum() / rows.square().sum())
    if float((found - scale * rows).abs().max()) > 1e-5 * float(found.abs().max()):
        raise reject(
            "model",
            type(model).__name__,
            "its first layer reads more than the embedding of each token, such as learned "
            "positions, so the map cannot be merged exactly.",
        )
    return scale


@contextmanager
def _hooked(
    model: Any, selection: UnlearningSelection, tokens: Int[Tensor, "batch context"]
) -> Iterator[None]:
    """Inside the ``with`` statement, the first layer reads mapped activations of counted tokens."""
    counted = ~torch.isin(tokens, torch.tensor(selection.ignored_tokens))[..., None]

    def edit(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
        x = args[0] if args else kwargs["hidden_states"]
        x = torch.where(counted, _mapped(x.double(), selection).to(x), x)
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    handle = decoder_layers(model)[0].register_forward_pre_hook(edit, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
