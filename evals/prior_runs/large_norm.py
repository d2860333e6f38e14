"""Make a language model with larger activations and the same predictions.

A pre-norm transformer reads its residual stream only through layer norms. If the embeddings and
all other weights that write to the stream are multiplied by one factor, every activation of the
stream is multiplied by this factor, and the predictions stay the same (up to the epsilon of the
layer norms).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from saelens_adaptive_ortho.errors import reject

# Weights and biases of a GPT-NeoX model that write to the residual stream.
WRITERS = re.compile(
    r"(embed_in\.weight|attention\.dense\.(weight|bias)|dense_4h_to_h\.(weight|bias))$"
)


@torch.no_grad()
def scale_residual_stream(model: Any, factor: float) -> Any:
    """Multiply the residual stream of a Hugging Face GPT-NeoX model by ``factor``, in place.

    Raises:
        ConfigError: the model has another architecture, or shares embedding and unembedding.
    """
    if model.config.model_type != "gpt_neox":
        raise reject("model", model.config.model_type, "only gpt_neox is known here.")
    if model.config.tie_word_embeddings:
        raise reject("tie_word_embeddings", True, "scaling it would scale the logits too.")
    for name, parameter in model.named_parameters():
        if WRITERS.search(name):
            parameter *= factor
    return model


@torch.no_grad()
def mean_norm(model: Any, tokens: torch.Tensor, layer: int) -> float:
    """Return the mean l2 norm of the residual stream after a layer, without the first position."""
    hidden = model(tokens, output_hidden_states=True).hidden_states[layer + 1]
    return float(hidden[:, 1:].norm(dim=-1).mean())


def write_large_norm_model(
    source: str | Path, target: str | Path, text: str, layer: int, norm: float
) -> float:
    """Save a copy of a model whose activations after ``layer`` have mean norm ``norm`` on a text.

    Returns:
        The factor by which the residual stream was multiplied.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=128).input_ids
    factor = norm / mean_norm(model, tokens, layer)
    scale_residual_stream(model, factor).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return factor
