"""dictionary_learning of Marks, Karvonen and Mueller: ``ae.pt`` and ``config.json``.

The config names the class of the SAE. Each class is an SAE of SAELens:

- ``AutoEncoder``: ReLU with ``b_dec`` subtracted from the input. The library loads it with decoder
  rows of norm 1, and so do we.
- ``AutoEncoderNew``: ReLU without ``b_dec`` at the input.
- ``GatedAutoEncoder``: gated; ``JumpReluAutoEncoder``: JumpReLU without ``b_dec`` at the input.
- ``AutoEncoderTopK``: top-k; the library does not use its threshold by default.
- ``BatchTopKSAE`` and ``MatryoshkaBatchTopKSAE``: JumpReLU with one threshold for all latents,
  which is how the library itself applies them after the training.

Biases are saved for activations that are not normalised, so there is nothing to fold.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from saelens_adaptive_ortho.judging.formats.reading import (
    Converted,
    Tensors,
    context_size,
    read_json,
    read_pt,
    refusal,
    top_k,
    unit_decoder,
    value,
)

WEIGHTS, CONFIG = "ae.pt", "config.json"
Read = Callable[[Tensors, dict[str, Any]], tuple[dict[str, Any], dict[str, Tensor]]]


def read(folder: Path) -> Converted:
    """Read a folder of dictionary_learning.

    Raises:
        ConfigError: a file is missing or damaged, or SAELens has no SAE that computes the same.
    """
    file = folder / CONFIG
    whole = read_json(file)
    trainer = value(whole, "trainer", dict, file)
    kind = value(trainer, "dict_class", str, file)
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise refusal(file, f"says dict_class={kind!r}; known are {known}.")
    tensors = read_pt(folder / WEIGHTS)
    config, state = CLASSES[kind](tensors, trainer)
    tensors.finish()
    metadata: dict[str, Any] = {}
    if isinstance(trainer.get("lm_name"), str):
        metadata["model_name"] = trainer["lm_name"]
    buffer = value(whole, "buffer", dict, file, {})
    metadata |= context_size(buffer, "ctx_len", file)
    hook_name, about_hook = _hook(file, trainer, buffer)
    if hook_name is not None:
        metadata["hook_name"] = hook_name
    return Converted(config, state, metadata, about_hook)


def _hook(file: Path, trainer: dict[str, Any], buffer: dict[str, Any]) -> tuple[str | None, str]:
    """The hook point, if the config tells it, and what the user should know about it."""
    layer, module, io = trainer.get("layer"), trainer.get("submodule_name"), buffer.get("io", "out")
    if io == "in_and_out":
        raise refusal(file, "is of a transcoder: it predicts another hook point. Give an SAE.")
    if type(layer) is not int or io != "out":
        said = f"layer={layer!r}, submodule_name={module!r} and io={io!r}"
        return None, f"{CONFIG} says {said}. Give the hook point of these activations as --hook."
    residual = f"blocks.{layer}.hook_resid_post"
    if module is None:
        return residual, (
            f"{CONFIG} names no submodule, so the SAE is taken for one of the residual stream "
            f"behind layer {layer}, {residual}. If it is not, give --hook."
        )
    if re.match(r"resid(ual)?(_(post|out))?(_|$)", str(module)):
        return residual, ""
    return None, f"{CONFIG} says submodule_name={module!r}. Give its hook point as --hook."


# ------------------------------------------------------------------ the classes


def _linear(tensors: Tensors, b_dec: str) -> dict[str, Tensor]:
    """The tensors of an encoder and a decoder that are layers of torch."""
    encoder = tensors.take("encoder.weight", None, None)
    d_sae, d_in = encoder.shape
    return {
        "W_enc": encoder.T.contiguous(),
        "b_enc": tensors.take("encoder.bias", d_sae),
        "W_dec": tensors.take("decoder.weight", d_in, d_sae).T.contiguous(),
        "b_dec": tensors.take(b_dec, d_in),
    }


def _matrices(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of an encoder and a decoder with the names and the shapes of SAELens."""
    W_enc = tensors.take("W_enc", None, None)
    d_in, d_sae = W_enc.shape
    return {
        "W_enc": W_enc,
        "b_enc": tensors.take("b_enc", d_sae),
        "W_dec": tensors.take("W_dec", d_sae, d_in),
        "b_dec": tensors.take("b_dec", d_in),
    }


def _standard(tensors: Tensors, _: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = {"architecture": "standard", "apply_b_dec_to_input": True}
    return config, unit_decoder(_linear(tensors, "bias"))


def _standard_new(tensors: Tensors, _: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = {"architecture": "standard", "apply_b_dec_to_input": False}
    return config, _linear(tensors, "decoder.bias")


def _gated(tensors: Tensors, _: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    encoder = tensors.take("encoder.weight", None, None)
    d_sae, d_in = encoder.shape
    state = {
        "W_enc": encoder.T.contiguous(),
        "W_dec": tensors.take("decoder.weight", d_in, d_sae).T.contiguous(),
        "b_dec": tensors.take("decoder_bias", d_in),
        "b_gate": tensors.take("gate_bias", d_sae),
        "b_mag": tensors.take("mag_bias", d_sae),
        "r_mag": tensors.take("r_mag", d_sae),
    }
    return {"architecture": "gated", "apply_b_dec_to_input": True}, state


def _jumprelu(tensors: Tensors, _: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = _matrices(tensors)
    state["threshold"] = tensors.take("threshold", len(state["b_enc"]))
    return {"architecture": "jumprelu", "apply_b_dec_to_input": False}, state


def _topk(tensors: Tensors, trainer: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = _linear(tensors, "b_dec")
    k = _k(tensors, trainer, len(state["b_enc"]))
    tensors.drop("threshold")  # the library uses it only when asked to
    return {"architecture": "topk", "k": k, "apply_b_dec_to_input": True}, state


def _batch_topk(
    tensors: Tensors, trainer: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = _matrices(tensors) if "W_enc" in tensors else _linear(tensors, "b_dec")
    _k(tensors, trainer, len(state["b_enc"]))
    tensors.drop("group_sizes")  # every group is used after the training
    threshold = tensors.take("threshold")
    if threshold < 0:
        raise refusal(
            tensors.file,
            f"its threshold is {float(threshold):g}: the training was too short to estimate it, "
            "and every positive latent would fire. Train it for more steps.",
        )
    state["threshold"] = threshold.expand(len(state["b_enc"])).clone()
    return {"architecture": "jumprelu", "apply_b_dec_to_input": True}, state


def _k(tensors: Tensors, trainer: dict[str, Any], d_sae: int) -> int:
    """The number of latents that fire. Older files have it in the config only.

    Raises:
        ConfigError: it is missing or out of bounds, or the two files differ.
    """
    file = tensors.file.parent / CONFIG
    k = top_k(trainer, "k", d_sae, file)
    if "k" in tensors and (saved := int(tensors.take("k"))) != k:
        raise refusal(file, f"says k={k}, and {WEIGHTS} {saved}. Which config belongs to it?")
    return k


CLASSES: dict[str, Read] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _standard_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _batch_topk,
}
