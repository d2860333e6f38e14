"""What ``adaptive-ortho sweep`` does: check everything, write the manifest, schedule, report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.experiments.experiment import Experiment, check_fits
from saelens_adaptive_ortho.files import check_writable, write_failures_named, write_text_atomic
from saelens_adaptive_ortho.judging.running import check_evals_runnable
from saelens_adaptive_ortho.locks import write_lock
from saelens_adaptive_ortho.manifests import (
    MANIFEST,
    UNITS,
    Manifest,
    Unit,
    is_sweep,
    read_manifest,
    write_manifest,
)
from saelens_adaptive_ortho.report.formatting import counted
from saelens_adaptive_ortho.sweeps.attempts import FOLDER as ATTEMPTS
from saelens_adaptive_ortho.sweeps.attempts import Attempt, Attempts
from saelens_adaptive_ortho.sweeps.axes import Sweep, load_sweep
from saelens_adaptive_ortho.sweeps.copying import Copy, CopyError, DamagedError, bring_back
from saelens_adaptive_ortho.sweeps.drivers import find_driver
from saelens_adaptive_ortho.sweeps.drivers.contract import Needs
from saelens_adaptive_ortho.sweeps.folder import CACHE, CONFIG, LOGS
from saelens_adaptive_ortho.sweeps.packing import pack
from saelens_adaptive_ortho.sweeps.pricing import known_seconds
from saelens_adaptive_ortho.sweeps.reporting import write_report
from saelens_adaptive_ortho.sweeps.scheduling import Scheduler, Status
from saelens_adaptive_ortho.sweeps.status import shown
from saelens_adaptive_ortho.sweeps.working import experiment_of
from saelens_adaptive_ortho.training import runner

WRITES = "Units that are finished are intact."


@dataclass(frozen=True)
class Opened:
    """A sweep that is ready to run.

    Args:
        folder: its folder, absolute.
        manifest: what it consists of.
        field: the setting that names the folder, for errors.
        sweep: its config; None if the folder was named.
    """

    folder: Path
    manifest: Manifest
    field: str
    sweep: Sweep | None = None


def open_sweep(path: str, overrides: Sequence[str] = ()) -> Opened:
    """Read a sweep's config, or a sweep's folder. Nothing is written.

    Args:
        path: a config, the name of a shipped config, or the folder of a sweep.
        overrides: texts of the form ``key=value``, for a config.

    Raises:
        ConfigError: a setting cannot work; see :func:`~saelens_adaptive_ortho.sweeps.axes`.
    """
    if Path(path).is_dir():
        if overrides:
            rule = "a folder has its settings already. Name the config to change them."
            raise reject("--set", overrides[0], rule)
        folder = Path(path).absolute()
        return Opened(folder, read_manifest(folder), "SWEEP")
    sweep = load_sweep(path, overrides)
    folder = sweep.folder.absolute()
    return Opened(folder, pack(sweep, _manifest_before(folder)), "output_path", sweep)


def _manifest_before(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if there is none, or if it is damaged."""
    if not is_sweep(folder):
        return None
    try:
        return read_manifest(folder)
    except ConfigError:
        return None  # it is written again


def check_sweep(opened: Opened) -> list[Experiment]:
    """Refuse what cannot work, before any unit starts; returns the experiment of each unit.

    Models and texts are looked for, and evaluations, too. Devices are not: a unit may run on
    another machine. A URL of a copy is opened, but nothing is written there.

    Raises:
        ConfigError: a setting cannot work.
    """
    if opened.manifest.copy_to:
        Copy(opened.manifest.copy_to)
    experiments = [experiment_of(opened.folder, unit) for unit in opened.manifest.units]
    for experiment in experiments:
        cfg = experiment.runner
        for name in ("device", "llm_device", "act_store_device"):
            if ":" in str(getattr(cfg, name)):
                rule = "a sweep chooses the card of each unit. Name the device without a number."
                raise reject(name, getattr(cfg, name), rule)
        check_fits([experiment])
    for first, *_ in by_text(experiments):
        check_evals_runnable(first.evals)
        runner.check(first.runner)
    return experiments


def by_text(experiments: Sequence[Experiment]) -> list[list[Experiment]]:
    """The experiments with the same model, text and evaluations together; one for each hook.

    They are on this machine's CPU, and have no folder, so that they can be checked here.
    """
    groups: dict[str, dict[str, Experiment]] = {}
    here = {"device": "cpu", "llm_device": "cpu", "act_store_device": "cpu"}
    for experiment in experiments:
        cfg = experiment.runner
        texts = {name: corpus.settings() for name, corpus in cfg.corpora().items()}
        parts = [cfg.model_name, texts, experiment.evals, cfg.context_size, cfg.training_tokens]
        key = json.dumps(parts, sort_keys=True, default=str)
        one = replace(experiment, runner=replace(cfg, output_path=None, **here))
        groups.setdefault(key, {}).setdefault(cfg.hook_name, one)
    return [list(group.values()) for group in groups.values()]


def run_sweep(
    opened: Opened, on: str, tries: int, console: Console, stuck_after: float | None = None
) -> int:
    """Do all units of a sweep that are not whole, write its report, and return the exit status.

    With ``copy_to``, units that the URL has come back first, and all that is new is copied there.

    Args:
        opened: the sweep.
        on: where its units run.
        tries, stuck_after: see :class:`~saelens_adaptive_ortho.sweeps.scheduling.Scheduler`.
        console: where their status is shown.

    Raises:
        ConfigError: a setting, or the place where the units shall run, cannot work.
        CopyError: the URL of the copy does not answer any more, before the first unit has started.
        KeyboardInterrupt: a signal asked the process to stop. The same command continues.
    """
    folder, experiments = opened.folder, check_sweep(opened)
    check_writable(opened.field, folder)
    for path in (folder / name for name in (CACHE, UNITS, ATTEMPTS, LOGS)):
        if os.path.lexists(path):
            check_writable(opened.field, path)
    copy = _checked_copy(opened)
    opened = _as_copied(opened, copy, console)
    driver = find_driver(on, _needs(opened, experiments))
    try:
        manifest = _write(opened)
        if copy:
            copy.put_sweep(folder)
        seconds = known_seconds(folder, manifest)
        with shown(manifest, seconds, console, driver.capacity) as (show, say):
            scheduler = Scheduler(
                folder,
                manifest,
                driver,
                seconds=seconds,
                tries=tries,
                stuck_after=stuck_after,
                show=show,
                say=say,
            )
            n = counted(len(manifest.units), "unit")
            say(f"{n} in {folder}; what is finished is read first")
            if copy:
                say(f"Those that are not here are looked for in the copy at {copy.url}")
                scheduler.restore = _restorer(copy, folder, say)
            status = scheduler.run()
    finally:
        driver.close()
    _print(console, _last_words(status))
    with write_failures_named(folder, WRITES):
        path = write_report(folder, console)
    _print(console, f"Report: {path}")
    ok = all(one.now == "whole" for one in status.values())
    if copy:
        ok &= _copy_rest(copy, folder, scheduler.found, console)
    return 0 if ok else 1


def _checked_copy(opened: Opened) -> Copy | None:
    if not opened.manifest.copy_to:
        return None
    copy = Copy(opened.manifest.copy_to)
    copy.check(opened.folder)
    return copy


def _as_copied(opened: Opened, copy: Copy | None, console: Console) -> Opened:
    """The sweep with the units of its copy, if its folder has none yet.

    The memory of another machine, or the order in which a sweep has grown, makes other units of the
    same SAEs.
    """
    if copy is None or opened.sweep is None or _manifest_before(opened.folder) is not None:
        return opened
    try:
        before = copy.manifest()
    except DamagedError as error:
        _print(console, f"The copy of the sweep is not used: {error}")
        return opened
    return replace(opened, manifest=pack(opened.sweep, before))


def _restorer(
    copy: Copy, folder: Path, say: Callable[[str], None]
) -> Callable[[Unit], Attempt | None]:
    """A function that brings a unit back from its copy, and says so."""

    def restore(unit: Unit) -> Attempt | None:
        attempt = bring_back(copy, folder, unit, say)
        if attempt is not None and attempt.ended == "whole":
            say(f"{unit.name} ({unit.label}): back from the copy")
        return attempt

    return restore


def _copy_rest(copy: Copy, folder: Path, units: Sequence[Unit], console: Console) -> bool:
    """Copy the report, and the units that no worker has copied; returns whether that succeeded.

    A unit that the URL has already is not sent again.
    """
    newest = Attempts(folder).newest()
    try:
        sent = [copy.put(folder, unit, newest[unit.name].seconds) for unit in units]
        copy.put_sweep(folder)
    except CopyError as error:
        _print(console, f"{error} {WRITES} The same command copies them.")
        return False
    n = sum(map(bool, sent))
    new = f" ({counted(n, 'unit')} of before {'are' if n > 1 else 'is'} new there)" if n else ""
    _print(console, f"Copy: {copy.url}{new}")
    return True


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _write(opened: Opened) -> Manifest:
    """Write the manifest and the config, unless they are there already; returns the manifest.

    If another command has made the sweep in the meantime, its units are taken.
    """
    folder, path = opened.folder, opened.folder / MANIFEST
    with write_failures_named(path, WRITES), write_lock(path):
        before = _manifest_before(folder)
        if opened.sweep is None:
            return opened.manifest
        manifest = pack(opened.sweep, before or opened.manifest)
        if before != manifest:
            write_manifest(folder, manifest)
            write_text_atomic(folder / CONFIG, manifest.config)
    return manifest


def _needs(opened: Opened, experiments: Sequence[Experiment]) -> Needs:
    newest = Attempts(opened.folder).newest()
    units = opened.manifest.units
    done = [u for u in units if u.name in newest and newest[u.name].ended == "whole"]
    return Needs(
        device=str(experiments[0].runner.device),
        memory=max(unit.memory for unit in units),
        units=len(units) - len(done),
        folder=opened.folder,
    )


def _last_words(status: Mapping[str, Status]) -> str:
    whole = sum(one.now == "whole" for one in status.values())
    if whole == len(status):
        return "1 unit is finished." if whole == 1 else f"All {whole} units are finished."
    failed = ", ".join(name for name, one in status.items() if one.now != "whole")
    of = f"{whole} of {counted(len(status), 'unit')}"
    verb = "is" if 1 in (whole, len(status)) else "are"
    return f"{of} {verb} finished. The same command tries again: {failed}."
