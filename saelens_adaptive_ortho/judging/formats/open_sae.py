"""OpenSAE of THU-KEG: ``model.safetensors`` and ``config.json``, as transformers saves models.

``f = TopK(ReLU((x - b_dec) W^T + b))`` and ``x' = f W_dec + b_dec``, which is SAELens's top-k SAE.
Two variants have no counterpart in SAELens: with ``input_normalize``, the encoder reads
``(x - mean) / (std + eps)`` while the decoder gives ``x`` itself, or multiplies by ``std + eps``
where SAELens multiplies by ``std``; and ``jumprelu`` lowers its threshold for tokens at which
nothing would fire.
"""

from __future__ import annotations

from pathlib import Path

from saelens_adaptive_ortho.judging.formats.hooks import hook_of_module
from saelens_adaptive_ortho.judging.formats.reading import (
    Converted,
    read_json,
    read_safetensors,
    refusal,
    top_k,
    value,
)

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def read(folder: Path) -> Converted:
    """Read a folder of OpenSAE.

    Raises:
        ConfigError: a file is missing or damaged, or SAELens has no SAE that computes the same.
    """
    file = folder / CONFIG
    cfg = read_json(file)
    if value(cfg, "input_normalize", bool, file, True):
        raise refusal(
            file,
            "says input_normalize=true: the encoder reads normalised activations, and the decoder "
            "does not undo this as an SAE of SAELens does. Such an SAE cannot be judged here.",
        )
    activation = value(cfg, "activation", str, file, "topk")
    if activation != "topk":
        rule = f"says activation={activation!r}; SAELens has no such SAE, only topk."
        raise refusal(file, rule)
    module = value(cfg, "input_hookpoint", str, file)
    if value(cfg, "output_hookpoint", str, file, module) != module:
        raise refusal(file, "is of a transcoder: it predicts another module. Give an SAE.")
    if not (folder / WEIGHTS).is_file() and (folder / f"{WEIGHTS}.index.json").is_file():
        rule = "is in several files. Load it with its library and save it with a larger shard size."
        raise refusal(folder / WEIGHTS, rule)
    tensors = read_safetensors(folder / WEIGHTS)
    d_in, d_sae = value(cfg, "hidden_size", int, file), value(cfg, "feature_size", int, file)
    state = {
        "W_enc": tensors.take("encoder.weight", d_sae, d_in).T.contiguous(),
        "b_enc": tensors.take("encoder.bias", d_sae),
        "W_dec": tensors.take("W_dec", d_sae, d_in),
        "b_dec": tensors.take("b_dec", d_in),
    }
    tensors.finish()
    k = top_k(cfg, "k", d_sae, file)
    hook_name, about_hook = hook_of_module(module)
    metadata = {"model_name": value(cfg, "model_name", str, file)}
    if hook_name is not None:
        metadata["hook_name"] = hook_name
    config = {"architecture": "topk", "k": k, "apply_b_dec_to_input": True}
    return Converted(config, state, metadata, about_hook)
