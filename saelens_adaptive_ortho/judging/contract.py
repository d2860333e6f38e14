"""What an evaluation of a finished SAE gets and gives.

The module of an evaluation has ``run(context, settings) -> Outcome``. A driver of SAEBench imports
it inside ``run``, so that a missing extra stops only its own evaluation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.text.corpora import CorpusConfig, TokenisedCorpus
from saelens_adaptive_ortho.text.models import load_language_model


class Outcome(NamedTuple):
    """Flat metrics (None where a value does not exist) and anything else worth keeping."""

    metrics: dict[str, float | None]
    details: dict[str, Any]


class EvaluationError(RuntimeError):
    """An evaluation that could not run; the message is the reason shown in the report."""


@dataclass(frozen=True)
class Workbench:
    """The model and the text that SAEs are judged on, shared by all of them.

    Args:
        model: with hook points, weights unprocessed.
        model_name: a hub name, a directory, or ``demo:model``.
        corpora: tokenised: forget and retain, or one, or none.
        texts: where the text of each corpus comes from, by domain.
        context_size: tokens in a context of ``corpora``.
        prepend_bos: whether those contexts begin with BOS.
        device: where SAEs are evaluated.
        dtype: of the SAEs.
        cache: scratch kept between evaluations; anything in it is keyed by what determines it.
    """

    model: HookedRootModule
    model_name: str
    corpora: list[TokenisedCorpus]
    texts: dict[str, CorpusConfig]
    context_size: int
    cache: Path
    prepend_bos: bool = True
    device: str = "cpu"
    dtype: str = "float32"
    others: dict[str, HookedRootModule] = field(default_factory=dict, init=False, repr=False)

    @property
    def model_label(self) -> str:
        """The model's name without a path: SAEBench makes file names of it."""
        return self.model_name.replace(":", "-").rstrip("/").rpartition("/")[2]

    @cached_property
    def model_digest(self) -> str:
        """Identity of the model's weights."""
        return tensors_digest(self.model.state_dict())

    def language_model(self, name: str | None) -> HookedRootModule:
        """The workbench's model, or another one, loaded once for all SAEs."""
        if name is None:
            return self.model
        if name not in self.others:
            self.others[name] = load_language_model(
                name, self.device, model_from_pretrained_kwargs={"dtype": self.dtype}
            )
        return self.others[name]


@dataclass(frozen=True)
class EvalContext:
    """One SAE on a workbench.

    Args:
        bench: model and text.
        load: a fresh copy of the SAE, as plain SAELens loads it (SAEBench mutates what it gets).
        variant: name of the SAE, without its seed.
        seed: of its training.
        raw_dir: where SAEBench's own result files go.
    """

    bench: Workbench
    load: Callable[[], SAE[Any]]
    variant: str
    seed: int
    raw_dir: Path

    @property
    def model(self) -> HookedRootModule:
        return self.bench.model

    @property
    def corpora(self) -> list[TokenisedCorpus]:
        return self.bench.corpora

    @property
    def has_domains(self) -> bool:
        """Whether there is a forget and a retain corpus, in this order."""
        return len(self.corpora) == 2

    @property
    def release(self) -> str:
        """Unique per SAE of a run: SAEBench names its files by it and reuses those it finds."""
        return f"{self.variant}__seed{self.seed}"

    @cached_property
    def sae_digest(self) -> str:
        """Identity of the SAE: weights, architecture, hook, and which tokens count for it."""
        sae = self.load()
        metadata = sae.cfg.metadata
        parts = [sae.cfg.architecture(), metadata.hook_name, tensors_digest(sae.state_dict())]
        # Which tokens count is the SAE's own setting; the usual ones leave the digest as it is.
        usual = ("seqpos_slice", [None]), ("hook_head_index", None), ("prepend_bos", True)
        for name, value in (*usual, ("exclude_special_tokens", False)):
            own = list(metadata[name]) if isinstance(metadata[name], tuple) else metadata[name]
            if own not in (None, value):
                parts.append(f"{name}={own}")
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def need_corpora(self, n: int) -> list[TokenisedCorpus]:
        """The corpora, if there are at least ``n``.

        Raises:
            EvaluationError: there are fewer.
        """
        if len(self.corpora) < n:
            wanted = "a forget and a retain corpus" if n == 2 else "a corpus"
            raise EvaluationError(
                f"needs {wanted}: give ortho_corpora in the config, or --forget and --retain"
            )
        return self.corpora


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
