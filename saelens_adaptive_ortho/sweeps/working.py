"""One unit of a sweep, done in this process."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.errors import Explained
from saelens_adaptive_ortho.experiments.comparison import Comparison
from saelens_adaptive_ortho.experiments.experiment import Experiment, build_experiment
from saelens_adaptive_ortho.locks import write_lock
from saelens_adaptive_ortho.manifests import Unit, read_manifest, unit_folder
from saelens_adaptive_ortho.results import Result
from saelens_adaptive_ortho.signals import Interrupted
from saelens_adaptive_ortho.sweeps.attempts import Attempts, Ending
from saelens_adaptive_ortho.sweeps.copying import copy_unit
from saelens_adaptive_ortho.sweeps.drivers.contract import (
    CRASHED,
    HELD,
    INCOMPLETE,
    OK,
    REFUSED,
    Task,
)
from saelens_adaptive_ortho.sweeps.folder import CACHE, is_whole, settings_digest
from saelens_adaptive_ortho.text.models import MODEL_CLASSES
from saelens_adaptive_ortho.training import runner
from saelens_adaptive_ortho.training.runner import Prepared
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig


@dataclass
class Kept:
    """A language model and its text, which stay loaded while units pass through one process.

    The next unit uses the model if its config names the same one in the same way, and the text if
    it is the same one, too. A model that a config compiles is not kept.
    """

    of_model: str = ""
    of_text: str = ""
    prepared: Prepared | None = None

    def prepare(self, cfg: AdaptiveOrthoRunnerConfig, cache: Path | None = None) -> Prepared:
        """The model and the tokenised text of a config.

        Args:
            cfg: the config.
            cache: folder of the tokenised text, which several processes may use at a time. The
                first one tokenises, and the others wait for it. None for none.

        Raises:
            ConfigError: a setting cannot work.
        """
        of_model, of_text = _model_key(cfg), _text_key(cfg)
        if self.prepared is not None and (of_model, of_text) == (self.of_model, self.of_text):
            runner.check_site(self.prepared.model, cfg)
            return self.prepared
        model = self.prepared.model if self.prepared and of_model == self.of_model else None
        self.prepared = None  # before another model is loaded, this one is let go
        if model is None:
            runner.check(cfg)
            assert cfg.llm_device is not None
            model = runner.models.load_language_model(
                cfg.model_name,
                cfg.llm_device,
                cfg.model_class_name,
                cfg.model_from_pretrained_kwargs,
                [cfg.hook_name],
            )
        with ExitStack() as stack:
            if cache is not None:
                cache.mkdir(parents=True, exist_ok=True)
                stack.enter_context(write_lock(cache / "text"))
            prepared = runner.prepare(cfg, cache, model)
        if not cfg.compile_llm:
            self.of_model, self.of_text, self.prepared = of_model, of_text, prepared
        return prepared


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
    manifest = read_manifest(sweep)
    unit = manifest.unit(name)
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
            if manifest.copy_to and not lacking:
                say(f"Copying to {manifest.copy_to}")
                copy_unit(manifest.copy_to, sweep, unit, time.monotonic() - started)
        ended, status = ("incomplete", INCOMPLETE) if lacking else ("whole", OK)
        reason = _reasons(lacking)
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
    prepared = (kept or Kept()).prepare(experiment.runner, sweep / CACHE)
    return Comparison(experiment, say, cache=sweep / CACHE).run(prepared=prepared)


def _reasons(failed: Sequence[Result]) -> str:
    """Which evaluations failed, and why; equal reasons once."""
    saes: dict[tuple[str, str], list[str]] = {}
    for result in failed:
        saes.setdefault((result.eval, result.reason or ""), []).append(result.variant)
    return "; ".join(f"{name} of {', '.join(v)}: {why}" for (name, why), v in saes.items())


# Fields that change neither the model nor the text.
_OF_SAES = {"sae", "seed", "output_path", "checkpoint_path", "logger", "hook_name", "lr"}


def _text_key(cfg: AdaptiveOrthoRunnerConfig) -> str:
    """What decides how the text is read; it has some fields that do not matter, too."""
    settings = {k: v for k, v in cfg.to_dict().items() if k not in _OF_SAES}
    return json.dumps(settings, sort_keys=True, default=str)


def _model_key(cfg: AdaptiveOrthoRunnerConfig) -> str:
    """What decides which model is loaded, and how."""
    parts: list[Any] = [cfg.model_name, cfg.model_class_name, str(cfg.llm_device)]
    parts.append(cfg.model_from_pretrained_kwargs)
    if cfg.model_class_name != MODEL_CLASSES[0]:  # others have only the hooks that were asked for
        parts.append(cfg.hook_name)
    return json.dumps(parts, sort_keys=True, default=str)
