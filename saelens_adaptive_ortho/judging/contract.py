"""The input and the output of an evaluation of a finished SAE.

The module of an evaluation has ``run(context, settings) -> Outcome``. A module that drives SAEBench
imports it inside ``run``. So a missing extra stops only the evaluations that need it.

The module may also have ``check(settings)``. It reads the files that the settings name, before
training, and raises a ``ConfigError`` or an :class:`EvaluationError` if one cannot be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens.saes.sae import SAE
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.text import mixture
from saelens_adaptive_ortho.text.corpora import CorpusConfig, TokenisedCorpus
from saelens_adaptive_ortho.text.models import load_language_model, tensors_digest, weights_digest


class Outcome(NamedTuple):
    """The result of an evaluation.

    Attributes:
        metrics: metrics by name; None where a value does not exist.
        details: other results that the result file keeps, as JSON can hold them.
    """

    metrics: dict[str, float | None]
    details: dict[str, Any]


class EvaluationError(RuntimeError):
    """An evaluation could not run. The report shows the message as the reason."""


@dataclass(frozen=True)
class Workbench:
    """The model and the text on which all SAEs are judged.

    Args:
        model: model with hook points and unprocessed weights.
        model_name: a hub name, a directory, or ``demo:model``.
        corpora: the tokenised corpora: forget, retain, the named retain corpora and forget_test,
            in this order; or a single one, or none.
        texts: source of the text of each corpus, by domain.
        context_size: tokens in a context of ``corpora``.
        prepend_bos: whether the contexts of ``corpora`` begin with BOS.
        device: device on which SAEs are evaluated.
        dtype: dtype of the SAEs.
        cache: folder for intermediate results that several evaluations use. The name of each
            entry is a hash of everything that determines its content.
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
        """The model's name without its path, because SAEBench uses it in file names."""
        return self.model_name.replace(":", "-").rstrip("/").rpartition("/")[2]

    @property
    def model_digest(self) -> str:
        """SHA-256 of the model's weights."""
        return weights_digest(self.model)

    def language_model(self, name: str | None) -> HookedRootModule:
        """The workbench's model if ``name`` is None, else the named one; each is loaded once."""
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
        load: returns a fresh copy of the SAE, as plain SAELens loads it. Each evaluation needs its
            own copy, because SAEBench changes the SAE that it gets.
        variant: name of the SAE, without its seed.
        seed: seed of the SAE's training.
        raw_dir: folder for SAEBench's own result files.
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
        """All corpora: forget, retain, the named retain corpora, forget_test; or a single one."""
        return self.bench.corpora

    @property
    def trained(self) -> list[TokenisedCorpus]:
        """The corpora that the SAE counts as trained on: those with a share above 0."""
        return [c for c in self.corpora if c.share > 0]

    @property
    def forget(self) -> TokenisedCorpus:
        """The forget corpus.

        Raises:
            EvaluationError: there is no forget and retain corpus.
        """
        return self.need_corpora(2)[0]

    @property
    def retain(self) -> TokenisedCorpus:
        """The retain corpus, without the named retain corpora.

        Raises:
            EvaluationError: there is no forget and retain corpus.
        """
        return self.need_corpora(2)[1]

    @property
    def named_retain(self) -> list[TokenisedCorpus]:
        """The named retain corpora, those with share 0 included, in the order of the config."""
        return [c for c in self.corpora if c.domain not in mixture.RESERVED]

    @property
    def forget_test(self) -> TokenisedCorpus | None:
        """The second forget text, which nothing is trained on or chosen by; None without one."""
        return next((c for c in self.corpora if c.domain == mixture.FORGET_TEST), None)

    @property
    def release(self) -> str:
        """A name that is unique for each SAE of a run.

        SAEBench puts it into file names, and reuses a file that already has the name.
        """
        return f"{self.variant}__seed{self.seed}"

    @cached_property
    def sae_digest(self) -> str:
        """SHA-256 of what identifies the SAE: weights, architecture, hook, and counted tokens."""
        sae = self.load()
        metadata = sae.cfg.metadata
        parts = [sae.cfg.architecture(), metadata.hook_name, tensors_digest(sae.state_dict())]
        # These settings decide which tokens count. A usual value adds nothing to the digest, so
        # the digests in old results stay valid.
        usual = ("seqpos_slice", [None]), ("hook_head_index", None), ("prepend_bos", True)
        for name, usual_value in (*usual, ("exclude_special_tokens", False)):
            value = list(metadata[name]) if isinstance(metadata[name], tuple) else metadata[name]
            if value not in (None, usual_value):
                parts.append(f"{name}={value}")
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def need_corpora(self, n: int) -> list[TokenisedCorpus]:
        """All corpora, after a check that there are at least ``n`` (1 or 2).

        With two or more corpora, the first one is forget and the second one is retain. Named retain
        corpora and forget_test follow; they exist only beside these two.

        Raises:
            EvaluationError: there are fewer than ``n``.
        """
        if len(self.corpora) < n:
            wanted = "a forget and a retain corpus" if n == 2 else "a corpus"
            raise EvaluationError(
                f"needs {wanted}: give ortho_corpora in the config, or --forget and --retain"
            )
        return self.corpora
