"""sparsify of EleutherAI: top-k SAEs in ``sae.safetensors`` and ``cfg.json``.

``f = TopK(ReLU((x - b_dec) W^T + b))`` and ``x' = f W_dec + b_dec``. This is SAELens's top-k SAE,
which applies ReLU behind the choice: the chosen values are the same. Older folders have the same
tensors and formula.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.judging.formats.hooks import hook_of_module
from saelens_adaptive_ortho.judging.formats.reading import (
    Converted,
    context_size,
    read_json,
    read_safetensors,
    refusal,
    top_k,
    value,
)

WEIGHTS, CONFIG, RUN_CONFIG = "sae.safetensors", "cfg.json", "config.json"
# Each would change what is computed, and no SAE of SAELens computes that.
UNKNOWN = {
    "transcode": "is a transcoder: it predicts the output of a module from its input",
    "skip_connection": "has a linear skip connection",
    "signed": "has signed activations, which fire below zero",
}


def read(folder: Path) -> Converted:
    """Read a folder of sparsify.

    Raises:
        ConfigError: a file is missing or damaged, or SAELens has no SAE that computes the same.
    """
    file = folder / CONFIG
    cfg = read_json(file)
    for name, what in UNKNOWN.items():
        if value(cfg, name, bool, file, False):
            rule = f"says {name}=true: the SAE {what}. Give an SAE without it."
            raise refusal(file, rule)
    activation = value(cfg, "activation", str, file, "topk")
    if activation != "topk":
        rule = f"says activation={activation!r}; SAELens has no such SAE, only topk."
        raise refusal(file, rule)
    tensors = read_safetensors(folder / WEIGHTS)
    d_in = value(cfg, "d_in", int, file)
    n_latents = value(cfg, "num_latents", int, file, 0)  # 0: d_in times expansion_factor
    encoder = tensors.take("encoder.weight", n_latents or None, d_in)
    d_sae = len(encoder)
    state = {
        "W_enc": encoder.T.contiguous(),
        "b_enc": tensors.take("encoder.bias", d_sae),
        "W_dec": tensors.take("W_dec", d_sae, d_in),
        "b_dec": tensors.take("b_dec", d_in),
    }
    tensors.finish()
    # With several seeds, the folder of a module has a folder for each.
    module = folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder
    hook_name, about_hook = hook_of_module(module.name)
    k = top_k(cfg, "k", d_sae, file)
    config = {"architecture": "topk", "k": k, "apply_b_dec_to_input": True}
    metadata = {**_of_run(module.parent), **({"hook_name": hook_name} if hook_name else {})}
    return Converted(config, state, metadata, about_hook)


def _of_run(folder: Path) -> dict[str, Any]:
    """The model and the context size in the config of the run, if it is there."""
    file = folder / RUN_CONFIG
    if not file.is_file():
        return {}
    found = read_json(file)
    if not isinstance(found.get("model"), str):  # of something else
        return {}
    return {"model_name": found["model"], **context_size(found, "ctx_len", file)}
