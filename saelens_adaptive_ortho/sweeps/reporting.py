"""Write the report of a sweep, with what is known about the units that are not whole."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from saelens_adaptive_ortho.manifests import Manifest, read_manifest
from saelens_adaptive_ortho.report.formatting import counted
from saelens_adaptive_ortho.report.page.sweep import best_lines, write_sweep_report
from saelens_adaptive_ortho.report.sweeps import collect
from saelens_adaptive_ortho.sweeps.attempts import Attempt, Attempts


def write_report(sweep: Path, console: Console) -> Path:
    """Write the report of a sweep, finished or not, and show the best settings.

    Raises:
        ConfigError: the folder holds no sweep.
        StorageError: a file could not be written.
    """
    manifest = read_manifest(sweep)
    states = known_states(sweep, manifest)
    path = write_sweep_report(sweep, states)
    results = collect(sweep, manifest, states)
    lines = best_lines(results)
    if results.missing:
        saes = counted(len(manifest.points), "SAE")
        lines.append(f"{results.finished} of {saes} are finished; the report says what is missing.")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return path


def known_states(sweep: Path, manifest: Manifest) -> dict[str, str]:
    """What is known about each unit, in words, by name."""
    newest = Attempts(sweep).newest()
    return {unit.name: _in_words(newest.get(unit.name)) for unit in manifest.units}


def _in_words(attempt: Attempt | None) -> str:
    if attempt is None:
        return "not started yet"
    if attempt.ended is None:
        return f"{attempt.where} works on it"
    if attempt.ended == "whole":
        return "it was finished, and is not whole any more"
    return f"{attempt.ended}: {attempt.reason}" if attempt.reason else attempt.ended
