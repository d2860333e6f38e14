"""Llamascopium, before lm-saes, of OpenMOSS: ``sae_weights.safetensors`` and ``config.json``.

With ``a = sqrt(d) / n`` for the mean norm ``n`` of the activations (``norm_activation``):

    p = (a x) W_E + b_E,   f = act(p |W_D|) / |W_D|,   x' = (f W_D + b_D) / a

The factor ``|W_D|`` is there with ``sparsity_include_decoder_norm``. It does not change ReLU; it
divides the thresholds of JumpReLU; and for top-k it is folded into the weights, so that a latent's
activation is ``f |W_D|``. The factor ``a`` is folded, too: ``a W_E``, ``W_D / a``, ``b_D / a``.
With ``token-wise``, ``n`` is the norm of each token, which SAELens calls ``constant_norm_rescale``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelens_adaptive_ortho.judging.formats.reading import (
    Converted,
    Tensors,
    context_size,
    read_json,
    read_safetensors,
    refusal,
    top_k,
    unit_decoder,
    value,
)

WEIGHTS, CONFIG, MODEL_CONFIG = "sae_weights.safetensors", "config.json", "lm_config.json"
NORM = "dataset_average_activation_norm."
THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")


def read(folder: Path) -> Converted:
    """Read a folder of Llamascopium or lm-saes.

    Raises:
        ConfigError: a file is missing or damaged, or SAELens has no SAE that computes the same.
    """
    file = folder / CONFIG
    cfg = read_json(file)
    _refuse_what_is_no_sae(file, cfg)
    if not (folder / WEIGHTS).is_file():
        rule = "is missing. Load the SAE with its library and save_checkpoint() it as this file."
        raise refusal(folder / WEIGHTS, rule)
    tensors = read_safetensors(folder / WEIGHTS)
    state = _state(tensors, cfg, file)
    d_in, d_sae = state["W_enc"].shape
    config: dict[str, Any] = {
        "apply_b_dec_to_input": value(cfg, "apply_decoder_bias_to_pre_encoder", bool, file, False)
    }
    by_norm = value(cfg, "sparsity_include_decoder_norm", bool, file, True)
    act = value(cfg, "act_fn", str, file, "relu").lower()
    if act == "relu":
        config["architecture"] = "standard"
    elif act == "jumprelu":
        name = next((n for n in THRESHOLDS if n in tensors), THRESHOLDS[0])
        threshold = tensors.take(name, d_sae).exp()
        norms = state["W_dec"].norm(dim=1)
        # A row of zeros never fires: its threshold is infinite.
        state["threshold"] = threshold / norms if by_norm else threshold
        config["architecture"] = "jumprelu"
    elif act == "topk":
        state = unit_decoder(state) if by_norm else state
        config |= {"architecture": "topk", "k": top_k(cfg, "top_k", d_sae, file)}
    else:
        raise refusal(
            file,
            f"says act_fn={act!r}. SAELens has relu, jumprelu and topk; what batchtopk gives for a "
            "token depends on the other tokens of its batch.",
        )
    if value(cfg, "norm_activation", str, file, "dataset-wise") == "token-wise":
        config["normalize_activations"] = "constant_norm_rescale"
    else:
        state = _folded(state, _scale(tensors, cfg, file, d_in))
    tensors.drop(NORM + cfg["hook_point_in"])  # saved without being used
    tensors.finish()
    metadata = {"hook_name": cfg["hook_point_in"], **_model(folder)}
    return Converted(config, state, metadata)


def _refuse_what_is_no_sae(file: Path, cfg: dict[str, Any]) -> None:
    kind = value(cfg, "sae_type", str, file, "sae")
    if kind != "sae":
        raise refusal(file, f"says sae_type={kind!r}. Only 'sae' reads and writes at one hook.")
    hook_in = value(cfg, "hook_point_in", str, file)
    hook_out = value(cfg, "hook_point_out", str, file, hook_in)
    if hook_in != hook_out:
        rule = f"is of a transcoder: it reads {hook_in} and predicts {hook_out}. Give an SAE."
        raise refusal(file, rule)
    if value(cfg, "use_glu_encoder", bool, file, False):
        raise refusal(file, "says use_glu_encoder=true. SAELens has no SAE with a gated encoder.")


def _state(tensors: Tensors, cfg: dict[str, Any], file: Path) -> dict[str, Tensor]:
    """The tensors before any folding; older files have them as layers of torch."""
    d_in = value(cfg, "d_model", int, file)
    if "encoder.weight" in tensors:
        W_enc = tensors.take("encoder.weight", None, d_in).T.contiguous()
        b_enc = tensors.take("encoder.bias", W_enc.shape[1])
        W_dec = tensors.take("decoder.weight", d_in, W_enc.shape[1]).T.contiguous()
        name = "decoder.bias"
    else:
        W_enc = tensors.take("W_E", d_in, None)
        b_enc = tensors.take("b_E", W_enc.shape[1])
        W_dec = tensors.take("W_D", W_enc.shape[1], d_in)
        name = "b_D"
    has_bias = value(cfg, "use_decoder_bias", bool, file, True)
    b_dec = tensors.take(name, d_in) if has_bias else torch.zeros(d_in)
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}


def _scale(tensors: Tensors, cfg: dict[str, Any], file: Path, d_in: int) -> float:
    """``a``, the factor of the activations."""
    kind = value(cfg, "norm_activation", str, file, "dataset-wise")
    if kind == "inference":
        return 1.0
    if kind != "dataset-wise":
        raise refusal(
            file,
            f"says norm_activation={kind!r}. SAELens has dataset-wise, token-wise and inference; "
            "what batch-wise gives for a token depends on the other tokens of its batch.",
        )
    norm = float(tensors.take(NORM + cfg["hook_point_in"]))
    if norm <= 0:
        rule = f"{NORM}{cfg['hook_point_in']} is {norm:g}; it must be the mean norm, above 0."
        raise refusal(tensors.file, rule)
    return math.sqrt(d_in) / norm


def _folded(state: dict[str, Tensor], a: float) -> dict[str, Tensor]:
    """The SAE for activations that are not multiplied by ``a``."""
    return {
        **state,
        "W_enc": state["W_enc"] * a,
        "W_dec": state["W_dec"] / a,
        "b_dec": state["b_dec"] / a,
    }


def _model(folder: Path) -> dict[str, Any]:
    """What the config of the model tells, beside the SAE or in the folder above."""
    for file in (folder / MODEL_CONFIG, folder.parent / MODEL_CONFIG):
        if file.is_file():
            found = read_json(file)
            return {
                "model_name": value(found, "model_name", str, file),
                **context_size(found, "max_length", file),
                "prepend_bos": value(found, "prepend_bos", bool, file, True),
            }
    return {}
