"""What ``adaptive-ortho sweep`` does: check everything, write the manifest, schedule, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    Manifest,
    is_sweep,
    read_manifest,
    write_manifest,
)
from saelens_adaptive_ortho.report.formatting import counted
from saelens_adaptive_ortho.sweeps.attempts import Attempts
from saelens_adaptive_ortho.sweeps.axes import Sweep, load_sweep
from saelens_adaptive_ortho.sweeps.drivers import find_driver
from saelens_adaptive_ortho.sweeps.drivers.contract import Needs
from saelens_adaptive_ortho.sweeps.folder import CONFIG
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
    another machine.

    Raises:
        ConfigError: a setting cannot work.
    """
    experiments = [experiment_of(opened.folder, unit) for unit in opened.manifest.units]
    seen: set[str] = set()
    for experiment in experiments:
        cfg = experiment.runner
        for name in ("device", "llm_device", "act_store_device"):
            if ":" in str(getattr(cfg, name)):
                rule = "a sweep chooses the card of each unit. Name the device without a number."
                raise reject(name, getattr(cfg, name), rule)
        check_fits([experiment])
        here = {"device": "cpu", "llm_device": "cpu", "act_store_device": "cpu"}
        texts = {name: corpus.settings() for name, corpus in cfg.corpora().items()}
        key = json.dumps([cfg.model_name, texts, experiment.evals], sort_keys=True, default=str)
        if key not in seen:
            seen.add(key)
            check_evals_runnable(experiment.evals)
            runner.check(replace(cfg, output_path=None, **here))
    return experiments


def run_sweep(
    opened: Opened, on: str, tries: int, console: Console, stuck_after: float | None = None
) -> int:
    """Do all units of a sweep that are not whole, write its report, and return the exit status.

    Args:
        opened: the sweep.
        on: where its units run.
        tries, stuck_after: see :class:`~saelens_adaptive_ortho.sweeps.scheduling.Scheduler`.
        console: where their status is shown.

    Raises:
        ConfigError: a setting, or the place where the units shall run, cannot work.
        KeyboardInterrupt: a signal asked the process to stop. The same command continues.
    """
    folder, experiments = opened.folder, check_sweep(opened)
    check_writable(opened.field, folder)
    driver = find_driver(on, _needs(opened, experiments))
    try:
        manifest = _write(opened)
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
            status = scheduler.run()
    finally:
        driver.close()
    console.print(_last_words(status), markup=False, highlight=False, soft_wrap=True)
    with write_failures_named(folder, WRITES):
        path = write_report(folder, console)
    console.print(f"Report: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0 if all(one.now == "whole" for one in status.values()) else 1


def _write(opened: Opened) -> Manifest:
    """Write the manifest and the config, unless they are there already; returns the manifest.

    If another command has made the sweep in the meantime, its units are taken.
    """
    folder, path = opened.folder, opened.folder / MANIFEST
    with write_failures_named(path, WRITES), write_lock(path):
        before = _manifest_before(folder)
        if opened.sweep is None:
            return opened.manifest
        manifest = pack(opened.sweep, before)
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
