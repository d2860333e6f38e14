"""Run one evaluation, or all evaluations that have no result yet."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.checksums import sha256_of
from saelens_adaptive_ortho.errors import ConfigError, Explained, reject
from saelens_adaptive_ortho.evaluations import Evaluation, runnable
from saelens_adaptive_ortho.evaluations.contract import SEED, determining
from saelens_adaptive_ortho.files import user_path
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.results import (
    Result,
    ResultError,
    load_result,
    result_path,
    result_text,
    versions,
    write_result,
)
from saelens_adaptive_ortho.rng import state_kept
from saelens_adaptive_ortho.text.corpora import DOMAINS, TokenisedCorpus
from saelens_adaptive_ortho.text.mixture import ONLY


def run_evaluation(name: str, context: EvalContext, settings: dict[str, Any]) -> Outcome:
    """Run one evaluation on one SAE, from a fixed seed.

    Afterwards the grad mode, the random generators and the working directory are as before.

    Raises:
        EvaluationError: the evaluation cannot run here. The message gives the reason.
    """
    chosen = runnable()[name]
    if chosen.lacks is not None:
        raise EvaluationError(chosen.lacks)
    module = importlib.import_module(chosen.module)
    with state_kept(SEED):
        return module.run(context, complete(chosen, settings))


def complete(chosen: Evaluation, settings: dict[str, Any]) -> Any:
    """The settings object of an evaluation, with defaults where nothing is given."""
    return () if chosen.settings is None else chosen.settings(**settings)


def check_evals_runnable(evals: Mapping[str, dict[str, Any]]) -> None:
    """Refuse evaluations that cannot run, before any long work starts.

    An evaluation cannot run if a package is missing, or if a file of questions or labelled texts
    cannot be read (see ``judging.contract``).

    Args:
        evals: settings of the evaluations, by name.

    Raises:
        ConfigError: an evaluation cannot run. The message names it and the reason.
    """
    for name, settings in evals.items():
        chosen = runnable()[name]
        if chosen.lacks is not None:
            raise reject("evals", name, f"{chosen.lacks}, or take it off the list.")
        try:
            check = getattr(importlib.import_module(chosen.module), "check", None)
        except Exception:  # the run reports it as the failure of this evaluation
            continue
        if check is None:
            continue
        try:
            check(complete(chosen, settings))
        except ConfigError as error:
            raise ConfigError(f"evals.{name}.{error}") from error
        except EvaluationError as error:
            raise ConfigError(f"evals.{name}: {error}.") from error


def check_evals_corpora(
    evals: Mapping[str, dict[str, Any]], corpora: Sequence[TokenisedCorpus]
) -> None:
    """Refuse evaluations for which a corpus has too little held-out text.

    Args:
        evals: settings of the evaluations, by name.
        corpora: the corpora of the run.

    Raises:
        ConfigError: a corpus is too small. The message names the evaluation, it, and the remedy.
    """
    for name, settings in evals.items():
        chosen = runnable()[name]
        try:
            check = getattr(importlib.import_module(chosen.module), "check_corpora", None)
        except Exception:  # the run reports it as the failure of this evaluation
            continue
        try:
            if check is not None:
                check(complete(chosen, settings), corpora)
        except EvaluationError as error:
            raise ConfigError(f"evals.{name}: {error}.") from error


def run_missing(
    context: EvalContext,
    evals: dict[str, dict[str, Any]],
    root: Path,
    say: Callable[[str], None],
) -> bool:
    """Run the evaluations that have no result in ``root`` yet; returns whether there were any.

    If one fails, or a value in its result is NaN or infinite, its result file holds the reason, and
    the other evaluations still run. A damaged result file is made again.
    """
    ran = False
    for name, settings in evals.items():
        path = result_path(root, context.variant, context.seed, name)
        fingerprint = ""
        started = time.perf_counter()
        try:
            fingerprint = _fingerprint(name, settings, context)
            if _is_finished(path, fingerprint, say):
                continue
            say(f"Seed {context.seed}: evaluating {context.variant} ({name})")
            outcome = storable(run_evaluation(name, context, settings))
        # The other evaluations still run, and the report shows the reason. An evaluation of
        # another package may even exit.
        except (Exception, SystemExit) as error:
            outcome = _reason(error)
            say(f"Seed {context.seed}: {name} of {context.variant} failed: {outcome}")
            if not fingerprint and path.is_file():  # not of the evaluation: no SAE, or no text
                say(f"{path.name} of before is kept")
                continue
        seconds = time.perf_counter() - started
        write_outcome(root, name, context.variant, context.seed, outcome, seconds, fingerprint)
        ran = True
    return ran


def _is_finished(path: Path, fingerprint: str, say: Callable[[str], None]) -> bool:
    """Whether a file holds the result of these settings."""
    if not path.is_file():
        return False
    try:
        found = load_result(path)
    except ResultError as error:
        say(f"{path.name} is damaged and is made again ({error})")
        return False
    return found.ok and found.fingerprint == fingerprint


def _reason(error: BaseException) -> str:
    """What a result file says about an evaluation that failed; never empty, and valid UTF-8."""
    explained = isinstance(error, EvaluationError | Explained)
    reason = (explained and str(error)) or repr(error)
    return reason.encode("utf-8", "backslashreplace").decode()


def storable(outcome: object) -> Outcome:
    """The outcome, if a result file can hold it.

    Raises:
        EvaluationError: it is no :class:`Outcome`, or a value in it is not finite or not JSON. The
            message names the value.
    """
    if not isinstance(outcome, Outcome):
        raise EvaluationError(f"run returned a {type(outcome).__name__}, not an Outcome")
    try:
        result_text(Result("none", "none", 0, metrics=outcome.metrics, details=outcome.details))
    except (TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"the result cannot be stored: {error}") from error
    return outcome


def _fingerprint(name: str, settings: dict[str, Any], context: EvalContext) -> str:
    bench = context.bench
    chosen = runnable()[name]
    values = determining(complete(chosen, settings)) if chosen.settings else {}
    texts = [user_path(v) for v in values.values() if isinstance(v, str) and v]
    # A corpus beside forget and retain counts with its name and its share.
    corpora = [
        c.fingerprint if c.domain in (*DOMAINS, ONLY) else [c.domain, c.share, c.fingerprint]
        for c in bench.corpora
    ]
    parts = [
        name,
        chosen.version,
        values,
        # Some settings name a file (questions, labelled texts) or a folder (a model, a data set):
        # its content counts, too.
        [_content_digest(Path(t)) for t in texts if os.path.isfile(t) or os.path.isdir(t)],
        context.sae_digest,
        bench.model_digest,
        corpora,
        bench.context_size,
        bench.dtype,
    ]
    if chosen.needs:  # other versions of SAEBench give other numbers
        parts.append(
            {name: v for name, v in versions(chosen.needs).items() if name in chosen.needs}
        )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _content_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files in a folder."""
    if path.is_file():
        status = path.stat()
        return _file_digest(path, status.st_size, status.st_mtime_ns)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    named = [f"{_content_digest(f)} {f.relative_to(path).as_posix()}" for f in files]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


@lru_cache(maxsize=1024)
def _file_digest(path: Path, size: int, changed_ns: int) -> str:  # noqa: ARG001  # parts of the key
    return sha256_of(path)


def write_outcome(
    root: Path,
    name: str,
    variant: str,
    seed: int,
    outcome: Outcome | str,
    seconds: float,
    fingerprint: str,
) -> Result:
    """Write a result file, and return what it holds.

    If ``outcome`` is a text, it is the reason why the evaluation failed.
    """
    failed = isinstance(outcome, str)
    needs = runnable()[name].needs if name in runnable() else ()
    result = Result(
        eval=name,
        variant=variant,
        seed=seed,
        status="failed" if failed else "ok",
        reason=outcome if failed else None,
        seconds=seconds,
        metrics={} if failed else outcome.metrics,
        details={} if failed else outcome.details,
        fingerprint=fingerprint,
        versions=versions(needs),
    )
    write_result(result_path(root, variant, seed, name), result)
    return result
