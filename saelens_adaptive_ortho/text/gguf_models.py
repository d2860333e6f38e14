"""GGUF files: their header, and their conversion to a Hugging Face directory.

A GGUF file has the weights (usually quantised), the configuration and the tokenizer of a model.
Transformers reads such files, with the package ``gguf`` (the extra ``gguf``).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from saelens_adaptive_ortho.errors import ConfigError, reject

#: What the tokenizer, the configuration and rounding add to the weights, at most.
BESIDE_WEIGHTS = 32_000_000
#: The names of a tokenizer's ids in the metadata of a GGUF file.
SPECIAL_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"}


class Header(NamedTuple):
    """What a GGUF file says about its model before its weights are read.

    Args:
        architecture: name of the architecture in GGUF, e.g. ``llama``.
        parameters: number of weights.
        tensors: names of the weights.
        special: ids of the BOS, EOS and padding token, as far as the file names them.
    """

    architecture: str
    parameters: int
    tensors: tuple[str, ...]
    special: dict[str, int]

    @property
    def written(self) -> int:
        """Bytes of the Hugging Face directory, at most: two for each weight, and the tokenizer."""
        return 2 * self.parameters + BESIDE_WEIGHTS


class Converted(NamedTuple):
    """A converted model: what a user needs to know to train on it."""

    layers: int
    width: int
    bos: str
    special: dict[str, int]


def check_package(field: str, value: object) -> None:
    """Refuse to begin without the package ``gguf``.

    Raises:
        ConfigError: the package is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise reject(
            field,
            str(value),
            "reading GGUF files needs the package gguf. Install it with "
            'pip install "saelens-adaptive-ortho[gguf]".',
        )


def read_header(field: str, path: Path) -> Header:
    """Read the header of a GGUF file, and check that the file is complete.

    Args:
        field: the setting that names the file, for errors.
        path: the file.

    Raises:
        ConfigError: there is no such file, it is no GGUF file, it is truncated, or the package
            ``gguf`` is missing.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise reject(
            field, str(path), f"cannot be read ({error.strerror}). Give a GGUF file."
        ) from error
    if magic != b"GGUF":
        raise reject(field, str(path), "is no GGUF file: its first four bytes are not 'GGUF'.")
    check_package(field, path)
    from gguf import GGUFReader

    try:
        # The reader maps each tensor, so a file that ends too early is noticed here.
        fields, tensors = (reader := GGUFReader(path)).fields, reader.tensors
        architecture = fields["general.architecture"]
        return Header(
            bytes(architecture.parts[architecture.data[0]]).decode(),
            sum(int(tensor.n_elements) for tensor in tensors),
            tuple(tensor.name for tensor in tensors),
            {
                name: int(fields[key].parts[fields[key].data[0]][0])
                for name, key in ((n, f"tokenizer.ggml.{k}") for n, k in SPECIAL_IDS.items())
                if key in fields
            },
        )
    except Exception as error:  # NumPy and the reader fail in many ways on a damaged file
        raise reject(
            field,
            str(path),
            f"cannot be read as GGUF ({_text(error)}). It is truncated or damaged: get it again.",
        ) from error


def convert(field: str, source: Path, header: Header, folder: Path) -> Converted:
    """Write the model of a GGUF file as a Hugging Face directory, with weights in bfloat16.

    The ids of the BOS, EOS and padding tokens are the same in tokenizer and configuration. A model
    without a BOS token uses its EOS token as BOS, and one without a padding token pads with EOS.

    Args:
        field: the setting that names the file, for errors.
        source: the GGUF file, alone in its folder (transformers reads other files of the folder).
        header: the header of the file.
        folder: an existing folder for the result.

    Raises:
        ConfigError: transformers does not know the architecture or cannot read the tokenizer or
            the weights, or weights are missing or not finite.
    """
    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    version = f"transformers {transformers.__version__}"
    try:
        config = AutoConfig.from_pretrained(source.parent, **where)
    except Exception as error:
        raise reject(
            field,
            str(source.resolve()),
            f"{version} cannot read a GGUF file of the architecture {header.architecture!r} "
            f"({_text(error)}). Use another model, a newer transformers, or the model's "
            "safetensors directory.",
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
        special = _set_special_tokens(tokenizer, header, config.vocab_size)
        # Newer versions keep some architectures quantised in memory if they are not told otherwise.
        packed = getattr(transformers, "GgufConfig", None)
        how = {"quantization_config": packed(dequantize=True)} if packed else {}
        found: Any = AutoModelForCausalLM.from_pretrained(
            source.parent, dtype=torch.bfloat16, output_loading_info=True, **how, **where
        )
        read, info = found
    except ConfigError:
        raise
    except Exception as error:
        raise reject(
            field,
            str(source.resolve()),
            f"{version} cannot read this model ({_text(error)}). Use another file of the model, or "
            "its safetensors directory.",
        ) from error
    _check_weights(field, source, read, info)
    model = _plain(read, special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _drop_invented_tokens(folder / "tokenizer.json", config.vocab_size)
    return Converted(
        model.config.num_hidden_layers, model.config.hidden_size, tokenizer.bos_token, special
    )


def _set_special_tokens(tokenizer: Any, header: Header, vocab_size: int) -> dict[str, int]:
    """Give the tokenizer the special tokens that the file names, and return their ids.

    Transformers invents ``<s>`` and ``</s>`` where the file names none.
    """
    named = header.special
    eos = named.get("eos", named.get("bos"))
    if eos is None:
        raise ValueError("the file names neither a BOS nor an EOS token")
    special = {"bos": named.get("bos", eos), "eos": eos, "pad": named.get("pad", eos)}
    for name, number in special.items():
        token = tokenizer.convert_ids_to_tokens(number) if number < vocab_size else None
        if token is None:
            raise ValueError(f"the {name} token {number} is not in the vocabulary")
        setattr(tokenizer, f"{name}_token", token)
    return special


def _drop_invented_tokens(file: Path, vocab_size: int) -> None:
    """Remove tokens that transformers added and that the model has no embedding for."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    added = tokenizer["added_tokens"]
    kept = [token for token in added if token["id"] < vocab_size]
    if kept != added:
        tokenizer["added_tokens"] = kept
        file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _check_weights(field: str, source: Path, model: Any, info: dict[str, Any]) -> None:
    """Refuse weights that the file lacks (transformers would draw them) or that are not finite."""
    if missing := sorted(info["missing_keys"]):
        raise reject(
            field,
            str(source.resolve()),
            f"the file lacks {len(missing)} weights of the model, such as {missing[0]}. If it is "
            "one part of several, join them first (llama-gguf-split --merge).",
        )
    broken = [n for n, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise reject(
            field,
            str(source.resolve()),
            f"the weights {broken[0]} are not finite: the file is damaged.",
        )


def _plain(read: Any, special: dict[str, int]) -> Any:
    """The same model without the mark of a quantised one, which cannot be saved."""
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for name, number in special.items():
        setattr(config, f"{name}_token_id", number)
    with torch.device("meta"):  # the weights are shared with `read`, not copied
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model


def _text(error: BaseException) -> str:
    """An exception as one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:297]}..."
