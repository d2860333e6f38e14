"""GGUF files become Hugging Face directories of the same model, or are refused with a reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from saelens_adaptive_ortho.commands.fetch_model import convert_file
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.text.gguf_models import read_header
from saelens_adaptive_ortho.text.models import check_model, load_language_model
from tests.text.gguf_files import VOCABULARY, random_llama, weights, write_gguf

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="needs the package gguf"
)


@pytest.fixture(scope="module")
def llama() -> Any:
    return random_llama()


@pytest.fixture
def write(llama: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write ``tmp_path/model.gguf``; ``without`` and ``changed`` name weights."""

    def file(
        without: str | None = None, changed: dict[str, np.ndarray] | None = None, **options: Any
    ) -> Path:
        tensors = {n: w for n, w in weights(llama).items() if n != without} | (changed or {})
        return write_gguf(tmp_path / "model.gguf", tensors, **options)

    return file


def refused(file: Path, *parts: str) -> str:
    """Check that the file is refused with these parts of a message, and that nothing is written."""
    before = {path.name for path in file.parent.iterdir()}
    with pytest.raises(ConfigError) as error:
        convert_file(file, file.parent / "out")
    for part in ("gguf=", *parts):
        assert part in str(error.value)
    assert {path.name for path in file.parent.iterdir()} == before
    return str(error.value)


@needs_gguf
def test_converted_model_computes_the_same(
    llama: Any, write: Callable[..., Path], tmp_path: Path
) -> None:
    convert_file(write(), tmp_path / "out")
    check_model(str(tmp_path / "out"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert not (tmp_path / "out" / "source").exists()
    model: Any = load_language_model(str(tmp_path / "out"))
    tokens = model.to_tokens("the hehe")
    t, he = VOCABULARY.index("t"), VOCABULARY.index("he")
    assert tokens.tolist() == [[0, t, he, VOCABULARY.index("Ġhe"), he]]
    with torch.no_grad():
        theirs = llama(tokens).logits
        assert theirs.std() > 0.1
        torch.testing.assert_close(model(tokens), theirs, rtol=0, atol=1e-4)


@needs_gguf
@pytest.mark.parametrize(
    ("named", "bos", "eos", "pad"),
    [
        ({"bos": 0, "eos": 1}, 0, 1, 1),
        ({"bos": 0, "eos": 1, "pad": 0}, 0, 1, 0),
        ({"eos": 1}, 1, 1, 1),
        ({"bos": 0}, 0, 0, 0),
    ],
)
def test_special_tokens_agree(
    write: Callable[..., Path],
    tmp_path: Path,
    named: dict[str, int],
    bos: int,
    eos: int,
    pad: int,
) -> None:
    found = convert_file(write(special=named), tmp_path / "out")
    assert found.special == {"bos": bos, "eos": eos, "pad": pad}
    assert found.bos == VOCABULARY[bos]
    model: Any = load_language_model(str(tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for holder in (tokenizer, model.tokenizer, model.original_model.config):
        assert [getattr(holder, f"{name}_token_id") for name in found.special] == [bos, eos, pad]
    assert len(tokenizer) == len(VOCABULARY)  # transformers added no token of its own
    assert tokenizer("he", add_special_tokens=False)["input_ids"] == [VOCABULARY.index("he")]
    assert model.to_tokens("he")[0, 0] == bos


@needs_gguf
@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, "names neither a BOS nor an EOS token"),
        ({"bos": 0, "eos": 10_000}, "cannot read this model"),
    ],
)
def test_impossible_special_tokens_are_refused(
    write: Callable[..., Path], named: dict[str, int], message: str
) -> None:
    refused(write(special=named), message)


@needs_gguf
def test_unknown_architecture_is_refused(write: Callable[..., Path]) -> None:
    refused(
        write(architecture="nonesuch"),
        "cannot read a GGUF file of the architecture 'nonesuch'",
        "Use another model",
    )


@needs_gguf
def test_unknown_tokenizer_is_refused(write: Callable[..., Path]) -> None:
    refused(write(tokenizer="nonesuch"), "cannot read this model")


@needs_gguf
def test_missing_weights_are_refused(write: Callable[..., Path]) -> None:
    refused(write(without="blk.1.ffn_up.weight"), "lacks 1 weights", "layers.1.mlp.up_proj", "join")


@needs_gguf
def test_broken_weights_are_refused(write: Callable[..., Path], llama: Any) -> None:
    name = "output_norm.weight"
    broken = np.full_like(weights(llama)[name], np.nan)
    refused(write(changed={name: broken}), "norm.weight are not finite")


@needs_gguf
def test_truncated_file_is_refused(write: Callable[..., Path]) -> None:
    file = write()
    whole = file.read_bytes()
    header = len(whole) - 4 * sum(w.size for w in weights(random_llama()).values())
    for keep in (5, 12, 30, header // 4, header // 2, header - 100, header + 40, len(whole) - 100):
        file.write_bytes(whole[:keep])
        refused(file, "cannot be read as GGUF", "truncated or damaged")


@needs_gguf
def test_header_counts_weights(write: Callable[..., Path], llama: Any) -> None:
    header = read_header("gguf", write())
    assert header.architecture == "llama"
    assert header.parameters == sum(weight.numel() for weight in llama.parameters())
    assert header.special == {"bos": 0, "eos": 1}


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 a wheel, not a model"])
def test_other_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    refused(tmp_path / "model.gguf", "is no GGUF file")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.gguf", "nowhere.gguf", "No such file")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "Is a directory", "Give a GGUF file")


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    refused(tmp_path / "model.gguf", 'pip install "saelens-adaptive-ortho[gguf]"')
