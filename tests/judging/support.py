"""Helpers of several tests: a model of words, a context, and the state a run must not change."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxtyping
import numpy as np
import torch
from sae_lens.saes.sae import SAE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from saelens_adaptive_ortho.judging.contract import EvalContext, Outcome, Workbench
from saelens_adaptive_ortho.report.published import read_file
from saelens_adaptive_ortho.text.corpora import CorpusConfig, TokenisedCorpus
from saelens_adaptive_ortho.text.models import load_language_model


def word_model(
    folder: Path, embeddings: dict[str, Tensor], separator: Any, others: tuple[str, ...] = ()
) -> Any:
    """A language model whose residual stream is the embedding of the word at each position.

    Args:
        folder: folder for the model in Hugging Face's format.
        embeddings: embedding of each word.
        separator: a pre-tokenizer that cuts text into words.
        others: further tokens with an embedding of zero.
    """
    special = ["<|endoftext|>", "<|pad|>", "<|unknown|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *others, *embeddings])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=special[2]))
    tokenizer.pre_tokenizer = separator
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[0],
        pad_token=special[1],
        unk_token=special[2],
    ).save_pretrained(folder)
    network = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(vocabulary),
            hidden_size=len(next(iter(embeddings.values()))),
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with torch.no_grad():
        for parameter in network.gpt_neox.layers.parameters():
            parameter.zero_()
        network.gpt_neox.embed_in.weight.zero_()
        for word, vector in embeddings.items():
            network.gpt_neox.embed_in.weight[vocabulary[word]] = vector
    network.save_pretrained(folder)
    return load_language_model(str(folder))


def make_context(
    model: Any,
    folder: Path,
    load: Callable[[], SAE[Any]],
    name: str,
    texts: dict[str, CorpusConfig] | None = None,
) -> EvalContext:
    """A context for an SAE, with cache and result files in ``folder``."""
    texts = texts or {}
    bench = Workbench(
        model=model,
        model_name=name,
        corpora=[TokenisedCorpus(d, torch.empty(0), torch.empty(0), d) for d in texts],
        texts=texts,
        context_size=128,
        cache=folder / "cache",
    )
    return EvalContext(bench=bench, load=load, variant="sae", seed=0, raw_dir=folder / "raw")


def read_back(raw: Path, name: str, outcome: Outcome) -> dict[str, float]:
    """The metrics that ``--published`` reads from SAEBench's file of an outcome, as ours."""
    path = raw / name / outcome.details["sae_bench_file"]
    found = read_file(path).sae.metrics.items()
    metrics = {key.removeprefix(f"{name}/"): value for key, value in found}
    assert metrics
    return metrics


def files_of(folder: Path) -> set[Path]:
    """All files in ``folder`` except Python's bytecode."""
    return {f for f in folder.rglob("*") if f.suffix != ".pyc" and f.name != "__pycache__"}


def process_state(*modules: ModuleType) -> dict[str, Any]:
    """All state that an evaluation could change: this process, SAEBench's modules, and files.

    Args:
        modules: modules of SAEBench in which a driver replaces something.
    """
    import sae_bench
    from transformer_lens import HookedTransformer

    packages = (Path(sae_bench.__file__).parents[1] / p for p in ("sae_bench", "sae_probes"))
    return {
        "modules": [repr(dict(vars(m))) for m in modules],
        "model loader": vars(HookedTransformer)["from_pretrained_no_processing"],
        "installed": {
            f: (f.stat().st_size, f.stat().st_mtime_ns)
            for package in packages
            for f in files_of(package)
            if f.is_file()
        },
        "cwd": os.getcwd(),
        "grad": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[union-attr]
        "python": random.getstate(),
        "warnings": list(warnings.filters),
        "jaxtyping": jaxtyping.config.jaxtyping_disable,
    }
