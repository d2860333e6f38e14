"""Damaged, incomplete and unrepresentable folders are refused. The error names file and remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.judging.subjects import Subject
from tests.judging.formats import folders
from tests.judging.formats.folders import FOLDERS
from tests.tiny import D_SAE, HOOK, WIDTH

# A folder of each library: its file of tensors, and its config if it has one.
FILES = {
    "gemma_scope": ("params.npz", None),
    "AutoEncoderTopK": ("ae.pt", "config.json"),
    "sparsify": ("sae.safetensors", "cfg.json"),
    "lm_saes jumprelu": ("sae_weights.safetensors", "config.json"),
    "open_sae": ("model.safetensors", "config.json"),
}
WITH_CONFIG = [name for name, (_, config) in FILES.items() if config]


def refused(folder: Path, match: str, hook: str | None = HOOK) -> None:
    with pytest.raises(ConfigError, match=match):
        Subject.parse(str(folder), hook).load()


def change(file: Path, **changes: Any) -> None:
    """Change a JSON file; None takes a name out."""
    tree = json.loads(file.read_text())
    below = tree.get("trainer", tree)
    below |= changes
    for name in [n for n, v in changes.items() if v is None]:
        del below[name]
    file.write_text(json.dumps(tree))


# ------------------------------------------------------------------ any library


@pytest.mark.parametrize("name", FILES)
def test_truncated_tensors(name: str, tmp_path: Path) -> None:
    file = FOLDERS[name](tmp_path).path / FILES[name][0]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(file.parent, rf"SAE=.*{FILES[name][0]}.*(truncated|damaged)")


@pytest.mark.parametrize("name", WITH_CONFIG)
def test_missing_tensors_or_config(name: str, tmp_path: Path) -> None:
    folder = FOLDERS[name](tmp_path).path
    weights, config = FILES[name]
    assert config is not None
    if name in ("AutoEncoderTopK", "sparsify"):  # others are recognised by their config
        kept = (folder / config).read_text()
        (folder / config).unlink()
        refused(folder, rf"SAE=.*{config}': is missing\. Copy it")
        (folder / config).write_text(kept)
    if name in ("lm_saes jumprelu", "open_sae"):
        subject = Subject.parse(str(folder))
        (folder / weights).unlink()
        with pytest.raises(ConfigError, match=rf"{weights}': is missing\."):
            subject.load()


@pytest.mark.parametrize("name", ["AutoEncoderTopK", "sparsify", "lm_saes jumprelu"])
@pytest.mark.parametrize("text", ['{"k": ', "[1]", "[" * 100_000])
def test_damaged_config(name: str, text: str, tmp_path: Path) -> None:
    file = FOLDERS[name](tmp_path).path / str(FILES[name][1])
    file.write_text(text)
    refused(file.parent, rf"SAE=.*{file.name}.*Copy it again")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("AutoEncoderTopK", "k", None),
        ("AutoEncoderTopK", "k", "5"),
        ("AutoEncoderTopK", "dict_class", None),
        ("sparsify", "k", None),
        ("sparsify", "d_in", 32.5),
        ("sparsify", "transcode", 1),
        ("lm_saes jumprelu", "d_model", None),
        ("lm_saes jumprelu", "hook_point_in", 5),
        ("open_sae", "feature_size", True),
        ("open_sae", "model_name", None),
    ],
)
def test_missing_or_mistyped_value(name: str, field: str, value: object, tmp_path: Path) -> None:
    file = FOLDERS[name](tmp_path).path / str(FILES[name][1])
    change(file, **{field: value})
    said = f"has no {field}" if value is None else f"says {field}="
    refused(file.parent, rf"{file.name}.*: {said}.*it needs {field} as ")


@pytest.mark.parametrize("k", [0, -1, D_SAE + 1])
@pytest.mark.parametrize(
    ("name", "field"), [("sparsify", "k"), ("open_sae", "k"), ("lm_saes topk", "top_k")]
)
def test_k_out_of_bounds(name: str, field: str, k: int, tmp_path: Path) -> None:
    folder = FOLDERS[name](tmp_path).path
    change(folder / ("cfg.json" if name == "sparsify" else "config.json"), **{field: k})
    refused(folder, rf"says {field}={k}; it must be between 1 and the {D_SAE} latents")


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors in a file of any kind."""
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        change(state)
        np.savez(file, **{name: t.numpy() for name, t in state.items()})
    elif file.suffix == ".pt":
        state = torch.load(file, weights_only=True)
        change(state)
        torch.save(state, file)
    else:
        state = load_file(file)
        change(state)
        save_file(state, file)


@pytest.mark.parametrize("name", FILES)
def test_tensors_that_do_not_fit(name: str, tmp_path: Path) -> None:
    file = FOLDERS[name](tmp_path).path / FILES[name][0]
    bias = {"gemma_scope": "b_enc", "lm_saes jumprelu": "b_E"}.get(name, "encoder.bias")
    edit(file, lambda state: state.update({"W_skip": torch.zeros(WIDTH, WIDTH)}))
    refused(file.parent, rf"{file.name}.*holds the further tensors W_skip")
    edit(file, lambda state: (state.pop("W_skip"), state.update({bias: torch.zeros(D_SAE + 1)})))
    refused(file.parent, rf"{bias} has the shape \({D_SAE + 1},\), not \({D_SAE}\)")
    edit(file, lambda state: state.update({bias: torch.zeros(1, D_SAE)}))
    refused(file.parent, rf"{bias} has the shape \(1, {D_SAE}\), not")
    edit(file, lambda state: state.update({bias: torch.full((D_SAE,), torch.nan)}))
    refused(file.parent, rf"{bias} holds NaN or infinity")
    edit(file, lambda state: state.update({bias: torch.zeros(D_SAE, dtype=torch.bool)}))
    refused(file.parent, rf"{bias} holds torch\.bool, not numbers")
    edit(file, lambda state: state.pop(bias))
    refused(file.parent, rf"has no tensor {bias}\. Left are: .*different SAEs\?")


@pytest.mark.parametrize(
    ("name", "file", "field"),
    [
        ("AutoEncoder", "config.json", "ctx_len"),
        ("sparsify", "../config.json", "ctx_len"),
        ("lm_saes relu", "lm_config.json", "max_length"),
    ],
)
def test_context_size_below_one(name: str, file: str, field: str, tmp_path: Path) -> None:
    folder = FOLDERS[name](tmp_path).path
    tree = json.loads((folder / file).read_text())
    tree.get("buffer", tree)[field] = 0
    (folder / file).write_text(json.dumps(tree))
    refused(folder, rf"config\.json.*says {field}=0; it must be at least 1")


# ------------------------------------------------------------------ no code is run


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    evil = Evil(tmp_path / "evil")
    folder = folders.auto_encoder(tmp_path).path
    torch.save({"encoder.weight": evil}, folder / "ae.pt")
    refused(folder, r"ae\.pt.*nothing is unpickled\. Load it with its library")
    folder = folders.gemma_scope(tmp_path).path
    np.savez(folder / "params.npz", W_enc=np.array([evil], dtype=object))
    refused(folder, r"params\.npz.*cannot be read \(ValueError: Object arrays cannot be loaded")
    assert not (tmp_path / "evil").exists()


# ------------------------------------------------------------------ dictionary_learning


def test_backup_of_an_unfinished_training(tmp_path: Path) -> None:
    folder = folders.auto_encoder(tmp_path).path
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({"step": 3, "ae": state, "norm_factor": 2.0}, folder / "ae.pt")
    refused(folder, r"ae\.pt.*no dictionary of tensors\. If it is a backup")


def test_unknown_class_of_a_dictionary(tmp_path: Path) -> None:
    folder = folders.auto_encoder(tmp_path).path
    change(folder / "config.json", dict_class="CrossCoder")
    refused(folder, "says dict_class='CrossCoder'; known are AutoEncoder, ")


def test_tensors_of_another_class(tmp_path: Path) -> None:
    folder = folders.auto_encoder(tmp_path).path
    change(folder / "config.json", dict_class="JumpReluAutoEncoder")
    refused(folder, r"has no tensor W_enc\. Left are: bias, decoder\.weight")


def test_config_and_tensors_with_another_k(tmp_path: Path) -> None:
    folder = folders.auto_encoder_top_k(tmp_path).path
    change(folder / "config.json", k=7)
    refused(folder, r"says k=7, and ae\.pt 5\. Which config belongs to it")


def test_threshold_that_was_never_estimated(tmp_path: Path) -> None:
    refused(folders.batch_top_k(tmp_path, -1.0).path, "threshold is -1: the training was too short")


def test_transcoder_of_dictionary_learning(tmp_path: Path) -> None:
    folder = folders.auto_encoder(tmp_path).path
    tree = json.loads((folder / "config.json").read_text())
    tree["buffer"]["io"] = "in_and_out"
    (folder / "config.json").write_text(json.dumps(tree))
    refused(folder, "is of a transcoder")


@pytest.mark.parametrize(
    "changes", [{"layer": None}, {"submodule_name": "mlp_out"}, {"layer": "1"}]
)
def test_hook_that_dictionary_learning_does_not_tell(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = folders.auto_encoder(tmp_path).path
    change(folder / "config.json", **changes)
    refused(folder, r"--hook=None: .*config\.json says .* as --hook", hook=None)
    assert Subject.parse(str(folder), HOOK).load().cfg.metadata.hook_name == HOOK


# ------------------------------------------------------------------ what SAELens cannot compute


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"transcode": True}, "transcode=true: the SAE is a transcoder"),
        ({"skip_connection": True}, "skip_connection=true: the SAE has a linear skip connection"),
        ({"signed": True}, "signed=true: the SAE has signed activations"),
        ({"activation": "groupmax"}, "activation='groupmax'; SAELens has no such SAE"),
    ],
)
def test_sparse_coder_without_a_counterpart(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    folder = folders.sparsify(tmp_path).path
    change(folder / "cfg.json", **changes)
    refused(folder, match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sae_type": "crosscoder"}, "sae_type='crosscoder'"),
        ({"hook_point_out": "blocks.1.hook_mlp_out"}, "is of a transcoder: it reads"),
        ({"use_glu_encoder": True}, "no SAE with a gated encoder"),
        ({"act_fn": "batchtopk"}, "depends on the other tokens of its batch"),
        ({"norm_activation": "batch-wise"}, "depends on the other tokens of its batch"),
    ],
)
def test_lm_sae_without_a_counterpart(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = folders.lm_saes(tmp_path, "jumprelu").path
    change(folder / "config.json", **changes)
    refused(folder, match)


def test_lm_sae_without_a_norm(tmp_path: Path) -> None:
    folder = folders.lm_saes(tmp_path, "jumprelu").path
    name = f"dataset_average_activation_norm.{HOOK}"
    edit(folder / "sae_weights.safetensors", lambda state: state.update({name: torch.tensor(0.0)}))
    refused(folder, "is 0; it must be the mean norm, above 0")


def test_lm_sae_in_the_format_of_several_processes(tmp_path: Path) -> None:
    folder = folders.lm_saes(tmp_path, "relu").path
    (folder / "sae_weights.safetensors").unlink()
    (folder / "sae_weights.dcp").mkdir()
    refused(folder, r"sae_weights\.safetensors': is missing\. Load the SAE with its library")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"input_normalize": True}, "the encoder reads normalised activations"),
        ({"input_normalize": None}, "the encoder reads normalised activations"),
        ({"activation": "jumprelu"}, "activation='jumprelu'; SAELens has no such SAE"),
        ({"output_hookpoint": "layers.2"}, "is of a transcoder"),
    ],
)
def test_open_sae_without_a_counterpart(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    folder = folders.open_sae(tmp_path).path
    change(folder / "config.json", **changes)
    refused(folder, match)


def test_open_sae_in_several_files(tmp_path: Path) -> None:
    folder = folders.open_sae(tmp_path).path
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "is in several files")


@pytest.mark.parametrize(
    ("place", "match"),
    [
        ("gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_9", "is a transcoder"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "is an SAE of embeddings"),
    ],
)
def test_gemma_scope_without_a_counterpart(place: str, match: str, tmp_path: Path) -> None:
    refused(folders.gemma_scope(tmp_path, place).path, match)
