"""What every evaluation gets and gives; the registry; running what has no result yet.

To add an evaluation: a module with a ``Settings`` dataclass and ``run(context, settings) ->
Outcome``, and a line in ``EVALS``. A driver of SAEBench imports it inside ``run``, so a missing
extra stops only its own evaluation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens.HookedTransformer import HookedRootModule

from saelens_adaptive_ortho import report
from saelens_adaptive_ortho.bench.patches import state_kept
from saelens_adaptive_ortho.config import reject
from saelens_adaptive_ortho.data import CorpusConfig, TokenisedCorpus
from saelens_adaptive_ortho.models import load_language_model
from saelens_adaptive_ortho.report import Result
from saelens_adaptive_ortho.runner import AdaptiveOrthoRunnerConfig, Prepared, versions

SEED = 42  # of every evaluation; SAEBench's own default


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
        seqpos_slice: token positions the SAEs were trained on.
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
    seqpos_slice: tuple[int | None, ...] = (None,)
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


def workbench(cfg: AdaptiveOrthoRunnerConfig, prepared: Prepared, cache: Path) -> Workbench:
    """The workbench of a training run: its model, its corpora, its contexts."""
    return Workbench(
        model=prepared.model,
        model_name=cfg.model_name,
        corpora=prepared.corpora,
        texts=cfg.corpora(),
        context_size=cfg.context_size,
        cache=cache.resolve(),
        prepend_bos=bool(cfg.prepend_bos),
        seqpos_slice=tuple(cfg.seqpos_slice),
        device=cfg.device,
        dtype=cfg.dtype,
    )


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
        """Identity of the SAE: weights, architecture, hook."""
        sae = self.load()
        metadata = sae.cfg.metadata
        parts = [sae.cfg.architecture(), metadata.hook_name, tensors_digest(sae.state_dict())]
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


@dataclass(frozen=True)
class Evaluation:
    """A registered evaluation: the module of its ``Settings`` and ``run``, and its version.

    Args:
        module: imported when the evaluation is first used.
        version: raised when its numbers change meaning, so that old results are made again.
        needs: packages of an extra.
    """

    module: str
    version: int = 1
    needs: tuple[str, ...] = field(default=())

    @property
    def settings(self) -> type:
        """The dataclass of its settings."""
        return importlib.import_module(self.module).Settings

    def run(self, context: EvalContext, settings: dict[str, Any]) -> Outcome:
        """Run it on one SAE, from a fixed seed; leaves no trace in the process.

        Raises:
            EvaluationError: it cannot run here, and why.
        """
        self.check()
        module = importlib.import_module(self.module)
        with state_kept(SEED):
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


_SAE_BENCH = ("sae_bench",)
EVALS: dict[str, Evaluation] = {
    "core": Evaluation("saelens_adaptive_ortho.bench.core", version=2, needs=_SAE_BENCH),
    "subspace": Evaluation("saelens_adaptive_ortho.analysis"),
    "unlearning": Evaluation("saelens_adaptive_ortho.bench.unlearning", version=2),
    "sparse_probing": Evaluation("saelens_adaptive_ortho.bench.sparse_probing", needs=_SAE_BENCH),
    "sae_probes": Evaluation("saelens_adaptive_ortho.bench.sae_probes", needs=_SAE_BENCH),
    "absorption": Evaluation("saelens_adaptive_ortho.bench.absorption", needs=_SAE_BENCH),
    "tpp": Evaluation("saelens_adaptive_ortho.bench.tpp", needs=_SAE_BENCH),
    "scr": Evaluation("saelens_adaptive_ortho.bench.scr", needs=_SAE_BENCH),
    "ravel": Evaluation("saelens_adaptive_ortho.bench.ravel", needs=_SAE_BENCH),
}


def check_evals_runnable(evals: Iterable[str]) -> None:
    """Refuse evaluations that lack a package, before anything long starts.

    Raises:
        ConfigError: as said.
    """
    for name in evals:
        try:
            EVALS[name].check()
        except EvaluationError as error:
            raise reject("evals", name, f"{error}, or take it off the list.") from error


def run_missing(
    context: EvalContext,
    evals: dict[str, dict[str, Any]],
    root: Path,
    say: Callable[[str], None],
) -> None:
    """Run the evaluations that have no result in ``root`` yet; a failure stops only itself."""
    for name, settings in evals.items():
        fingerprint = _fingerprint(name, settings, context)
        path = report.result_path(root, context.variant, context.seed, name)
        if path.is_file():
            found = report.load_result(path)
            if found.ok and found.fingerprint == fingerprint:
                continue
        say(f"Seed {context.seed}: evaluating {context.variant} ({name})")
        started = time.perf_counter()
        try:
            outcome = EVALS[name].run(context, settings)
        except Exception as error:  # the other evaluations go on; the report says why
            outcome = str(error) if isinstance(error, EvaluationError) else repr(error)
            say(f"Seed {context.seed}: {name} of {context.variant} failed: {outcome}")
        seconds = time.perf_counter() - started
        write_outcome(root, name, context.variant, context.seed, outcome, seconds, fingerprint)


def _fingerprint(name: str, settings: dict[str, Any], context: EvalContext) -> str:
    bench = context.bench
    complete = dataclasses.asdict(EVALS[name].settings(**settings))
    texts = [Path(v).expanduser() for v in complete.values() if isinstance(v, str) and v]
    parts = [
        name,
        EVALS[name].version,
        complete,
        # A setting that names a file (questions, labelled texts) stands for what is in it.
        [hashlib.sha256(t.read_bytes()).hexdigest() for t in texts if t.is_file()],
        context.sae_digest,
        bench.model_digest,
        [c.fingerprint for c in bench.corpora],
        bench.context_size,
        bench.dtype,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_outcome(
    root: Path,
    name: str,
    variant: str,
    seed: int,
    outcome: Outcome | str,
    seconds: float,
    fingerprint: str,
) -> None:
    """Write a result file; an ``outcome`` that is text is the reason of a failure."""
    failed = isinstance(outcome, str)
    report.write_result(
        report.result_path(root, variant, seed, name),
        Result(
            eval=name,
            variant=variant,
            seed=seed,
            status="failed" if failed else "ok",
            reason=outcome if failed else None,
            seconds=seconds,
            metrics={} if failed else outcome.metrics,
            details={} if failed else outcome.details,
            fingerprint=fingerprint,
            versions=versions(),
        ),
    )
