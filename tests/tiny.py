"""Fixtures: a random language model, two synthetic corpora and a tiny experiment, per session."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from saelens_adaptive_ortho.experiments.experiment import build_experiment
from saelens_adaptive_ortho.report import summary
from saelens_adaptive_ortho.report.page import run as page
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.text.models import load_language_model, tensors_digest
from saelens_adaptive_ortho.training.runner import Prepared, prepare
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig

CONTEXT, WIDTH, D_SAE, BATCH, STEPS = 32, 32, 64, 128, 24
HOOK = "blocks.1.hook_resid_post"
BOS, PAD = 0, 1
TOKENIZER = ("padding_side", "truncation_side", "pad_token_id", "bos_token_id", "eos_token_id")
SPECIAL = ["<|endoftext|>", "<|pad|>", "<|unknown|>"]
FORGET_WORDS = [f"virus{i}" for i in range(90)]
RETAIN_WORDS = [f"castle{i}" for i in range(90)]
SHARED_WORDS = [f"the{i}" for i in range(60)]


def documents(words: list[str], seed: int, n: int = 300) -> list[str]:
    """Return texts of 8 to 40 words from ``words`` and the shared words."""
    draw = random.Random(seed)
    pool = words + SHARED_WORDS
    return [" ".join(draw.choices(pool, k=draw.randint(8, 40))) for _ in range(n)]


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path


@dataclass(frozen=True)
class Tiny:
    """The model and corpora of the session, and functions that make more such text."""

    model: Path
    forget: Path
    retain: Path
    hook = HOOK
    context, width, d_sae, batch, steps = CONTEXT, WIDTH, D_SAE, BATCH, STEPS
    bos, pad, n_special = BOS, PAD, len(SPECIAL)
    forget_words, retain_words, shared_words = FORGET_WORDS, RETAIN_WORDS, SHARED_WORDS
    documents = staticmethod(documents)
    write_jsonl = staticmethod(write_jsonl)


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = [*SPECIAL, *FORGET_WORDS, *RETAIN_WORDS, *SHARED_WORDS]
    model = WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=SPECIAL[2])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[BOS],
        pad_token=SPECIAL[PAD],
        unk_token=SPECIAL[2],
    )


def save_model(config: PretrainedConfig, path: Path) -> Path:
    """Save a random model of this config, and the tokenizer, in the format of Hugging Face."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


def build_model(path: Path) -> Path:
    """Save a random GPT-NeoX and its tokenizer in the format of Hugging Face."""
    config = GPTNeoXConfig(
        vocab_size=len(SPECIAL) + len(FORGET_WORDS) + len(RETAIN_WORDS) + len(SHARED_WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=PAD,
        # Large enough that tokens differ at every layer.
        initializer_range=0.3,
    )
    return save_model(config, path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    return Tiny(
        build_model(root / "model"),
        write_jsonl(root / "forget.jsonl", documents(FORGET_WORDS, 1)),
        write_jsonl(root / "retain.jsonl", documents(RETAIN_WORDS, 2)),
    )


@pytest.fixture(scope="session")
def settings(tiny: Tiny) -> Callable[..., dict[str, Any]]:
    """Return a function that makes the settings of a tiny experiment.

    Its ``sae`` is merged into the default (None removes a key); other settings are replaced.
    """

    def tree(sae: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        full = {
            "model_name": str(tiny.model),
            "hook_name": HOOK,
            "ortho_corpora": {"forget": str(tiny.forget), "retain": str(tiny.retain)},
            "ortho_holdout_fraction": 0.1,
            "ortho_holdout_contexts": 16,
            "ortho_log_every": 4,
            "context_size": CONTEXT,
            "store_batch_size_prompts": 8,
            "n_batches_in_buffer": 2,
            "n_batches_for_norm_estimate": 2,
            "training_tokens": BATCH * STEPS,
            "train_batch_size_tokens": BATCH,
            "lr": 1e-2,
            "device": "cpu",
            "dtype": "float32",
            "sae": {
                "architecture": "adaptive_ortho_batchtopk",
                "d_in": WIDTH,
                "d_sae": D_SAE,
                "k": 4,
                "normalize_activations": "expected_average_only_in",
                "ortho_neighbours": 8,
                "ortho_sketch_size": 16,
                "ortho_refresh_every": 8,
                "ortho_statistics_every": 2,
                **(sae or {}),
            },
            "evals": {
                "core": {"n_contexts": 8, "batch_size_prompts": 4},
                "subspace": {"n_contexts": 8},
            },
            **changes,
        }
        full["sae"] = {k: v for k, v in full["sae"].items() if v is not None}
        return full

    return tree


@pytest.fixture(scope="session")
def make_config(
    settings: Callable[..., dict[str, Any]],
) -> Callable[..., AdaptiveOrthoRunnerConfig]:
    """Return a function that makes a tiny runner config, which writes only to ``output_path``."""

    def make(sae: dict[str, Any] | None = None, **changes: Any) -> AdaptiveOrthoRunnerConfig:
        fields = {"output_path": None, "checkpoint_path": None, **changes}
        return build_experiment(settings(sae, **fields)).runner

    return make


def contents(model: Any) -> dict[str, Any]:
    """What no test may change in a model that all tests share."""
    return {
        "weights": tensors_digest(model.state_dict()),
        "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "training": [module.training for module in model.modules()],
        "hooks": [len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_points()],
        "config": str(model.cfg),
        "tokenizer": {name: str(getattr(model.tokenizer, name)) for name in TOKENIZER},
    }


@pytest.fixture(scope="session")
def model(tiny: Tiny) -> Iterator[Any]:
    shared = load_language_model(str(tiny.model))
    before = contents(shared)
    yield shared
    now = contents(shared)
    changed = {name: (before[name], now[name]) for name in now if before[name] != now[name]}
    assert not changed, "a test has changed the model of all tests"


@pytest.fixture(scope="session")
def prepared(make_config: Callable[..., AdaptiveOrthoRunnerConfig], model: Any) -> Prepared:
    """The model and tokenised corpora of the session, for configs that do not change the data."""
    return prepare(make_config(), model=model)


@pytest.fixture
def write_config(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the YAML of a tiny experiment.

    The experiment writes to ``tmp_path / "run"``.
    """

    def write(sae: dict[str, Any] | None = None, **changes: Any) -> Path:
        tree = settings(sae, **{"output_path": str(tmp_path / "run"), **changes})
        path = tmp_path / "experiment.yaml"
        path.write_text(dump_yaml(tree))
        return path

    return write


@pytest.fixture(autouse=True)
def _offline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from the network; the stand-in of the hub runs locally, in its own process."""
    if "hub" in request.path.parts:
        return

    def refuse(*_: object) -> None:
        raise OSError("the tests have no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the drawing of figures in tests that do not look at them."""

    def skip(root: Path) -> Path:
        return root / "report.html"

    monkeypatch.setattr(page, "write_report", skip)
    monkeypatch.setattr(summary, "write_summary", skip)
