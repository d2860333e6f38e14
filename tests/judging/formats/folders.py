"""Small folders of SAEs as other libraries save them, with the formulas that they publish.

Each function writes a folder with random tensors and returns what the library would compute with
it, in a few lines that share nothing with the package.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import CONTEXT, D_SAE, HOOK, WIDTH

K = 5
LAYER = 1


class Folder(NamedTuple):
    """A folder, the library's encoder and decoder, and the kind of SAE that SAELens has for it.

    Attributes:
        scale: what an activation of the library is multiplied by, because SAELens has it in
            another unit; the decoder then takes the library's own activations.
    """

    path: Path
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    architecture: str
    scale: Tensor | float = 1.0


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """An encoder, a decoder with rows of different norms, biases and thresholds."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    norms = 0.5 + torch.rand(D_SAE, 1, generator=draw)
    return {
        "W_enc": normal(WIDTH, D_SAE) / math.sqrt(WIDTH),
        "b_enc": 0.1 * normal(D_SAE),
        "W_dec": torch.nn.functional.normalize(normal(D_SAE, WIDTH), dim=1) * norms,
        "b_dec": 0.1 * normal(WIDTH),
        "threshold": 0.5 * torch.rand(D_SAE, generator=draw) + 0.1,
        "r_mag": 0.3 * normal(D_SAE),
        "b_mag": 0.1 * normal(D_SAE),
    }


def top_k(x: Tensor, k: int = K) -> Tensor:
    """``x`` where it is one of the k largest of its row, else 0."""
    kth = x.topk(k, dim=-1).values[..., -1:]
    return torch.where(x >= kth, x, 0.0)


def write_json(file: Path, tree: dict[str, Any]) -> None:
    file.write_text(json.dumps(tree))


def make(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def plain(W_dec: Tensor, b_dec: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda f: f @ W_dec + b_dec


# ------------------------------------------------------------------ Gemma Scope


def gemma_scope(root: Path, place: str = "average_l0_71") -> Folder:
    t = tensors(1)
    folder = make(root / place)
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    np.savez(folder / "params.npz", **{name: t[name].numpy() for name in names})

    def encode(x: Tensor) -> Tensor:
        pre = x @ t["W_enc"] + t["b_enc"]
        return (pre > t["threshold"]) * pre.relu()

    return Folder(folder, encode, plain(t["W_dec"], t["b_dec"]), "jumprelu")


# ------------------------------------------------------------------ dictionary_learning


def dictionary(
    root: Path, kind: str, state: dict[str, Tensor], trainer: dict[str, Any] | None = None
) -> Path:
    folder = make(root / "trainer_0")
    torch.save(state, folder / "ae.pt")
    config = {
        "dict_class": kind,
        "activation_dim": WIDTH,
        "dict_size": D_SAE,
        "layer": LAYER,
        "lm_name": "some/model",
        "submodule_name": f"resid_post_layer_{LAYER}",
        **(trainer or {}),
    }
    buffer = {"d_submodule": WIDTH, "io": "out", "ctx_len": CONTEXT}
    write_json(folder / "config.json", {"trainer": config, "buffer": buffer})
    return folder


def as_layers(t: dict[str, Tensor], bias: str) -> dict[str, Tensor]:
    return {
        "encoder.weight": t["W_enc"].T.contiguous(),
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T.contiguous(),
        bias: t["b_dec"],
    }


def auto_encoder(root: Path) -> Folder:
    t = tensors(2)
    folder = dictionary(root, "AutoEncoder", as_layers(t, "bias"))
    norms = t["W_dec"].norm(dim=1)  # the library divides them out when it loads such an SAE

    def encode(x: Tensor) -> Tensor:
        return ((x - t["b_dec"]) @ (t["W_enc"] * norms) + t["b_enc"] * norms).relu()

    return Folder(folder, encode, plain(t["W_dec"] / norms[:, None], t["b_dec"]), "standard")


def auto_encoder_new(root: Path) -> Folder:
    t = tensors(3)
    folder = dictionary(root, "AutoEncoderNew", as_layers(t, "decoder.bias"))
    decode = plain(t["W_dec"], t["b_dec"])
    return Folder(folder, lambda x: (x @ t["W_enc"] + t["b_enc"]).relu(), decode, "standard")


def gated(root: Path) -> Folder:
    t = tensors(4)
    state = as_layers(t, "decoder_bias") | {"r_mag": t["r_mag"], "mag_bias": t["b_mag"]}
    state["gate_bias"] = state.pop("encoder.bias")
    folder = dictionary(root, "GatedAutoEncoder", state)

    def encode(x: Tensor) -> Tensor:
        y = (x - t["b_dec"]) @ t["W_enc"]
        return (y + t["b_enc"] > 0) * (t["r_mag"].exp() * y + t["b_mag"]).relu()

    return Folder(folder, encode, plain(t["W_dec"], t["b_dec"]), "gated")


def jumprelu(root: Path) -> Folder:
    t = tensors(5)
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    folder = dictionary(root, "JumpReluAutoEncoder", {name: t[name] for name in names})

    def encode(x: Tensor) -> Tensor:
        pre = x @ t["W_enc"] + t["b_enc"]
        return (pre * (pre > t["threshold"])).relu()

    return Folder(folder, encode, plain(t["W_dec"], t["b_dec"]), "jumprelu")


def auto_encoder_top_k(root: Path) -> Folder:
    t = tensors(6)
    state = as_layers(t, "b_dec") | {"k": torch.tensor(K), "threshold": torch.tensor(0.7)}
    folder = dictionary(root, "AutoEncoderTopK", state, {"k": K})

    def encode(x: Tensor) -> Tensor:
        return top_k(((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu())

    return Folder(folder, encode, plain(t["W_dec"], t["b_dec"]), "topk")


def above(t: dict[str, Tensor], threshold: float) -> Callable[[Tensor], Tensor]:
    def encode(x: Tensor) -> Tensor:
        post = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
        return post * (post > threshold)

    return encode


def batch_top_k(root: Path, threshold: float = 0.7) -> Folder:
    t = tensors(7)
    state = as_layers(t, "b_dec") | {"k": torch.tensor(K), "threshold": torch.tensor(threshold)}
    folder = dictionary(root, "BatchTopKSAE", state, {"k": K})
    return Folder(folder, above(t, threshold), plain(t["W_dec"], t["b_dec"]), "jumprelu")


def matryoshka(root: Path) -> Folder:
    t = tensors(8)
    state = {name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    state |= {"k": torch.tensor(K), "threshold": torch.tensor(0.6)}
    state["group_sizes"] = torch.tensor([16, D_SAE - 16])
    folder = dictionary(root, "MatryoshkaBatchTopKSAE", state, {"k": K})
    return Folder(folder, above(t, 0.6), plain(t["W_dec"], t["b_dec"]), "jumprelu")


# ------------------------------------------------------------------ sparsify and OpenSAE


def linear_top_k(t: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def encode(x: Tensor) -> Tensor:
        weight = t["W_enc"].T  # as a layer of torch has it
        return top_k(torch.nn.functional.linear(x - t["b_dec"], weight, t["b_enc"]).relu())

    return encode


def sparsify(root: Path, module: str = f"layers.{LAYER}") -> Folder:
    t = tensors(9)
    folder = make(root / "run" / module)
    state = as_layers(t, "b_dec") | {"W_dec": t["W_dec"]}
    del state["decoder.weight"]
    save_file(state, folder / "sae.safetensors")
    cfg = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True}
    cfg |= {"num_latents": D_SAE, "k": K, "multi_topk": False, "transcode": False}
    write_json(folder / "cfg.json", {**cfg, "skip_connection": False, "d_in": WIDTH})
    run = {"sae": cfg, "model": "some/model", "ctx_len": CONTEXT}
    write_json(root / "run" / "config.json", run)
    return Folder(folder, linear_top_k(t), plain(t["W_dec"], t["b_dec"]), "topk")


def open_sae(root: Path) -> Folder:
    t = tensors(10)
    folder = make(root / "open_sae")
    state = as_layers(t, "b_dec") | {"W_dec": t["W_dec"]}
    del state["decoder.weight"]
    save_file(state, folder / "model.safetensors")
    config = {"hidden_size": WIDTH, "feature_size": D_SAE, "activation": "topk", "k": K}
    config |= {"input_normalize": False, "model_name": "some/model"}
    hooks = {"input_hookpoint": f"layers.{LAYER}", "output_hookpoint": f"layers.{LAYER}"}
    write_json(folder / "config.json", config | hooks)
    return Folder(folder, linear_top_k(t), plain(t["W_dec"], t["b_dec"]), "topk")


# ------------------------------------------------------------------ Llamascopium


def lm_saes(
    root: Path,
    act_fn: str,
    norm_activation: str = "dataset-wise",
    by_norm: bool = True,
    layers: bool = False,
    seed: int = 11,
    **config: Any,
) -> Folder:
    """``x' = decode(act(encode(a x))) / a``, where ``a`` makes the activations' norm sqrt(d)."""
    t, norm = tensors(seed), 3.0
    folder = make(root / "lm_sae")
    if layers:
        state = as_layers(t, "decoder.bias")
    else:
        names = {"W_E": "W_enc", "b_E": "b_enc", "W_D": "W_dec", "b_D": "b_dec"}
        state = {name: t[ours] for name, ours in names.items()}
    if act_fn == "jumprelu":
        name = "log_jumprelu_threshold"
        name = name if layers else f"activation_function.{name}"
        state[name] = t["threshold"].log()
    state[f"dataset_average_activation_norm.{HOOK}"] = torch.tensor(norm)
    if not config.get("use_decoder_bias", True):
        t["b_dec"] = torch.zeros(WIDTH)
        del state["b_D"]
    save_file(state, folder / "sae_weights.safetensors")
    cfg = {"sae_type": "sae", "d_model": WIDTH, "expansion_factor": D_SAE / WIDTH}
    cfg |= {"act_fn": act_fn, "top_k": K, "norm_activation": norm_activation}
    cfg |= {"sparsity_include_decoder_norm": by_norm, "hook_point_in": HOOK}
    write_json(folder / "config.json", cfg | {"hook_point_out": HOOK} | config)
    model = {"model_name": "some/model", "max_length": CONTEXT, "prepend_bos": True}
    write_json(folder / "lm_config.json", model)
    norms = t["W_dec"].norm(dim=1) if by_norm else torch.ones(D_SAE)
    before = t["b_dec"] if config.get("apply_decoder_bias_to_pre_encoder") else 0.0

    def scale(x: Tensor) -> Tensor | float:
        if norm_activation == "token-wise":
            return math.sqrt(WIDTH) / x.norm(dim=-1, keepdim=True)
        return math.sqrt(WIDTH) / norm if norm_activation == "dataset-wise" else 1.0

    last: list[Tensor | float] = [1.0]  # the decoder needs the factor of the encoder's input

    def encode(x: Tensor) -> Tensor:
        last[0] = scale(x)
        pre = ((x * last[0] - before) @ t["W_enc"] + t["b_enc"]) * norms
        if act_fn == "relu":
            acts = pre.relu()
        elif act_fn == "topk":
            acts = top_k(pre.relu())
        else:
            acts = pre * (pre > t["threshold"])
        return acts / norms

    def decode(f: Tensor) -> Tensor:
        return (f @ t["W_dec"] + t["b_dec"]) / last[0]

    kind = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}[act_fn]
    return Folder(folder, encode, decode, kind, norms if act_fn == "topk" else 1.0)


#: Every kind of folder by name.
FOLDERS: dict[str, Callable[[Path], Folder]] = {
    "gemma_scope": gemma_scope,
    "AutoEncoder": auto_encoder,
    "AutoEncoderNew": auto_encoder_new,
    "GatedAutoEncoder": gated,
    "JumpReluAutoEncoder": jumprelu,
    "AutoEncoderTopK": auto_encoder_top_k,
    "BatchTopKSAE": batch_top_k,
    "MatryoshkaBatchTopKSAE": matryoshka,
    "sparsify": sparsify,
    "open_sae": open_sae,
    "lm_saes relu": lambda root: lm_saes(root, "relu"),
    "lm_saes jumprelu": lambda root: lm_saes(root, "jumprelu"),
    "lm_saes jumprelu plain": lambda root: lm_saes(root, "jumprelu", by_norm=False),
    "lm_saes topk": lambda root: lm_saes(root, "topk"),
    "lm_saes topk plain": lambda root: lm_saes(root, "topk", by_norm=False),
    "lm_saes layers": lambda root: lm_saes(root, "jumprelu", layers=True),
    "lm_saes token-wise": lambda root: lm_saes(root, "topk", "token-wise"),
    "lm_saes inference": lambda root: lm_saes(root, "jumprelu", "inference"),
    "lm_saes no bias": lambda root: lm_saes(root, "relu", use_decoder_bias=False),
    "lm_saes subtracts": lambda root: lm_saes(
        root, "jumprelu", apply_decoder_bias_to_pre_encoder=True
    ),
}
