"""One unit of a sweep, done in this process."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.errors import Explained
from saelens_adaptive_ortho.experiments.comparison import Comparison
from saelens_adaptive_ortho.experiments.experiment import Experiment, build_experiment
from saelens_adaptive_ortho.manifests import Unit, read_manifest, unit_folder
from saelens_adaptive_ortho.results import Result
from saelens_adaptive_ortho.signals import Interrupted
from saelens_adaptive_ortho.sweeps.attempts import Attempts, Ending
from saelens_adaptive_ortho.sweeps.drivers.contract import (
    CRASHED,
    HELD,
    INCOMPLETE,
    OK,
    REFUSED,
    Task,
)
from saelens_adaptive_ortho.sweeps.folder import is_whole, settings_digest
from saelens_adaptive_ortho.text.models import MODEL_CLASSES
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig


@dataclass
class Kept:
    """A language model that stays loaded while units pass through one process.

    The next unit uses it if its config names the same model in the same way. A model that a config
    compiles is not kept.
    """

    key: str = ""
    model: HookedRootModule | None = None

    def model_for(self, cfg: AdaptiveOrthoRunnerConfig) -> HookedRootModule | None:
        """The kept model if it is that of a config; otherwise it is let go."""
        if self.key != _model_key(cfg):
            self.key, self.model = "", None
        return self.model

    def keep(self, cfg: AdaptiveOrthoRunnerConfig, model: HookedRootModule) -> None:
        """Keep the model of a config."""
        if not cfg.compile_llm:
            self.key, self.model = _model_key(cfg), model


def do_task(task: Task, kept: Kept | None = None) -> int:
    """Do a task in this process, for a driver that keeps its processes, and return its status.

    The working directory, the output and the environment are as before afterwards. A signal that
    stops the process is raised again (:class:`~saelens_adaptive_ortho.signals.Interrupted`).

    Args:
        task: the task.
        kept: what stays loaded between two tasks; one object per process.
    """
    before = os.getcwd()
    with ExitStack() as stack:
        task.log.parent.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context(task.log.open("a", encoding="utf-8", buffering=1))
        stack.enter_context(redirect_stdout(log))
        stack.enter_context(redirect_stderr(log))
        stack.callback(os.chdir, before)
        os.chdir(task.cwd)
        return do_unit(task.folder, task.unit, task.ticket, kept)


def do_unit(
    sweep: Path,
    name: str,
    ticket: str,
    kept: Kept | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Do a unit, unless it is whole or another process does it, and return the exit status.

    Errors are printed, and written down in the sweep's folder.

    Args:
        sweep: the sweep's folder.
        name: name of the unit.
        ticket: the task's.
        kept: what stays loaded between two units.
        say: function that shows a line of progress.

    Raises:
        ConfigError: there is no such sweep or unit.
        OSError: the folder cannot be written.
        Interrupted: a signal asked the process to stop. Finished work is kept.
    """
    unit = read_manifest(sweep).unit(name)
    attempts, settings = Attempts(sweep), settings_digest(unit)
    if is_whole(sweep, unit, attempts.newest_of(name)):
        say(f"{name} is whole already")
        return OK
    attempt = attempts.claim(name, ticket, settings)
    if attempt is None:
        other = attempts.newest_of(name)
        say(f"{name}: {other.where if other else 'another process'} works on it")
        return HELD
    started = time.monotonic()
    ended: Ending = "failed"
    reason, status = "", CRASHED
    try:
        with attempts.beating(attempt):
            results = _compare(sweep, unit, kept, say)
        lacking = [r for r in results if not r.ok]
        ended, status = ("incomplete", INCOMPLETE) if lacking else ("whole", OK)
        reason = "; ".join(f"{r.eval} of {r.variant}: {r.reason}" for r in lacking)
    except Explained as error:
        reason, status = str(error), REFUSED
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt as error:
        ended, reason = "stopped", str(error) or "interrupted"
        status = error.status if isinstance(error, Interrupted) else 130
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    finally:
        seconds = time.monotonic() - started
        attempts.end(attempt, ended, reason, status=status, seconds=seconds)
    return status


def experiment_of(sweep: Path, unit: Unit) -> Experiment:
    """The experiment of a unit, with its folder.

    Raises:
        ConfigError: a setting cannot work.
    """
    tree = {**unit.settings, "output_path": str(unit_folder(sweep, unit.name))}
    return build_experiment(tree, unit.name)


def _compare(
    sweep: Path, unit: Unit, kept: Kept | None, say: Callable[[str], None]
) -> list[Result]:
    experiment = experiment_of(sweep, unit)
    comparison = Comparison(experiment, say)
    if kept is None:
        return comparison.run()
    results = comparison.run(model=kept.model_for(experiment.runner))
    assert comparison.prepared is not None
    kept.keep(experiment.runner, comparison.prepared.model)
    return results


def _model_key(cfg: AdaptiveOrthoRunnerConfig) -> str:
    """What decides which model is loaded, and how."""
    parts: list[Any] = [cfg.model_name, cfg.model_class_name, str(cfg.llm_device)]
    parts += [cfg.model_from_pretrained_kwargs, cfg.compile_llm]
    if cfg.model_class_name != MODEL_CLASSES[0]:  # others have only the hooks that were asked for
        parts.append(cfg.hook_name)
    return json.dumps(parts, sort_keys=True, default=str)
