"""What every evaluation gets and gives; the registry of evaluations.

To add one: a module with a settings dataclass and ``run(context, settings) -> Outcome``, and a
line in ``EVALS``. Modules are imported when they run, so a missing extra stops only its own eval.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens.saes.sae import SAE
from transformer_lens.HookedTransformer import HookedRootModule

from saelens_adaptive_ortho.data import TokenisedCorpus
from saelens_adaptive_ortho.runner import AdaptiveOrthoRunnerConfig


class Outcome(NamedTuple):
    """Flat metrics (None where a value does not exist) and anything else worth keeping."""

    metrics: dict[str, float | None]
    details: dict[str, Any]


class EvaluationError(RuntimeError):
    """An evaluation that could not run; the message is the reason shown in the report."""


@dataclass(frozen=True)
class EvalContext:
    """One exported SAE and the model and text to judge it on."""

    cfg: AdaptiveOrthoRunnerConfig
    model: HookedRootModule
    corpora: list[TokenisedCorpus]
    sae_dir: Path
    variant: str
    seed: int
    work_dir: Path
    """Scratch shared by all SAEs of the run (data sets prepared once)."""
    raw_dir: Path
    """Where an evaluation's own output files go."""

    @property
    def has_domains(self) -> bool:
        return len(self.corpora) == 2

    def load_sae(self) -> SAE[Any]:
        """A fresh copy, as plain SAELens loads it (SAEBench mutates what it is given)."""
        return SAE.load_from_disk(self.sae_dir, device=self.cfg.device)

    def sae_digest(self) -> str:
        """Identity of the exported weights."""
        return hashlib.sha256((self.sae_dir / "sae_weights.safetensors").read_bytes()).hexdigest()


@dataclass(frozen=True)
class CoreSettings:
    """SAEBench core.

    Args:
        n_contexts: at most so many held-out contexts per corpus.
        batch_size_prompts: contexts per forward pass.
    """

    n_contexts: int = 256
    batch_size_prompts: int = 16


@dataclass(frozen=True)
class SubspaceSettings:
    """Geometry of forget, retain and shared groups.

    Args:
        n_contexts: training contexts per corpus in the pass that measures firing rates.
        domain_ratio: firing-rate ratio from which a latent belongs to one corpus.
        energy: share of squared singular values a group's subspace keeps for principal angles.
        batch_size_prompts: contexts per forward pass.
    """

    n_contexts: int = 256
    domain_ratio: float = 9.0
    energy: float = 0.9
    batch_size_prompts: int = 32


@dataclass(frozen=True)
class Evaluation:
    """A registered evaluation: where its ``run`` lives, its settings, its version."""

    module: str
    settings: type
    version: int = 1
    needs: tuple[str, ...] = field(default=())

    def run(self, context: EvalContext, settings: dict[str, Any]) -> Outcome:
        """Run it on one SAE.

        Raises:
            EvaluationError: it cannot run here, and why.
        """
        self.check()
        module = importlib.import_module(self.module)
        return module.run(context, self.settings(**settings))

    def check(self) -> None:
        """Refuse when a package it needs is missing.

        Raises:
            EvaluationError: naming the package and the command that installs it.
        """
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                raise EvaluationError(
                    f"needs the package {package!r}: pip install 'saelens-adaptive-ortho[bench]'"
                )


EVALS: dict[str, Evaluation] = {
    "core": Evaluation("saelens_adaptive_ortho.bench.core", CoreSettings, needs=("sae_bench",)),
    "subspace": Evaluation("saelens_adaptive_ortho.analysis", SubspaceSettings),
}
