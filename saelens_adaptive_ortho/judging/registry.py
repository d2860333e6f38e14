"""The evaluations by name, and running those that have no result yet."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.judging.contract import SEED, EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.results import Result, load_result, result_path, versions, write_result
from saelens_adaptive_ortho.rng import state_kept


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
_HERE = "saelens_adaptive_ortho.judging"
EVALS: dict[str, Evaluation] = {
    "core": Evaluation(f"{_HERE}.saebench.core", version=2, needs=_SAE_BENCH),
    "subspace": Evaluation(f"{_HERE}.geometry"),
    "unlearning": Evaluation(f"{_HERE}.unlearning.evaluation", version=2),
    "sparse_probing": Evaluation(
        "saelens_adaptive_ortho.judging.saebench.sparse_probing", needs=_SAE_BENCH
    ),
    "sae_probes": Evaluation(
        "saelens_adaptive_ortho.judging.saebench.sae_probes", needs=_SAE_BENCH
    ),
    "absorption": Evaluation(
        "saelens_adaptive_ortho.judging.saebench.absorption", needs=_SAE_BENCH
    ),
    "tpp": Evaluation(f"{_HERE}.saebench.tpp", needs=_SAE_BENCH),
    "scr": Evaluation(f"{_HERE}.saebench.scr", needs=_SAE_BENCH),
    "ravel": Evaluation(f"{_HERE}.saebench.ravel", needs=_SAE_BENCH),
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
        path = result_path(root, context.variant, context.seed, name)
        if path.is_file():
            found = load_result(path)
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
    write_result(
        result_path(root, variant, seed, name),
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
