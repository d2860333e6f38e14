"""What ``adaptive-ortho plan`` says about a sweep: its units, the longest first, and the total."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from saelens_adaptive_ortho.experiments.costs_in_words import gb
from saelens_adaptive_ortho.files import check_writable, write_failures_named
from saelens_adaptive_ortho.manifests import Manifest, Unit
from saelens_adaptive_ortho.report.formatting import counted, duration
from saelens_adaptive_ortho.sweeps.axes import in_words
from saelens_adaptive_ortho.sweeps.pricing import (
    Price,
    kind_of,
    known_seconds,
    makespan,
    measure,
    unfinished,
    write_prices,
)
from saelens_adaptive_ortho.sweeps.starting import check_sweep, open_sweep

WORKERS = (1, 2, 4, 8)


def plan_sweep(
    path: str, overrides: Sequence[str], steps: int, say: Callable[[str], None], console: Console
) -> None:
    """Check a sweep, time some steps of each kind of unit, and show what all of it will cost.

    The times are kept in the sweep's folder, where ``sweep`` takes the order of its units from
    them.

    Raises:
        ConfigError: a setting cannot work.
        StorageError: the times could not be written.
    """
    opened = open_sweep(path, overrides)
    folder, manifest = opened.folder, opened.manifest
    check_sweep(opened)
    check_writable(opened.field, folder)
    prices = measure(folder, manifest, steps, say)
    with write_failures_named(folder, "Finished units are intact."):
        write_prices(folder, manifest, prices)
    console.print(_table(manifest, prices))
    left = unfinished(folder, manifest)
    for topic, text in _words(manifest, prices, left, known_seconds(folder, manifest)).items():
        say(f"{topic:<13}{text}")


def _table(manifest: Manifest, prices: Mapping[str, Price]) -> Table:
    """The units, the longest first; those of one kind in one row."""
    table = Table("units", "what", "training", "memory", "disk", box=SIMPLE_HEAD)
    kinds: dict[str, list[Unit]] = {}
    for unit in manifest.units:
        kinds.setdefault(kind_of(unit), []).append(unit)
    for units in sorted(kinds.values(), key=lambda u: -prices[u[0].name].seconds):
        price, first = prices[units[0].name], units[0]
        seeds = ", ".join(str(unit.points[0].seed) for unit in units)
        saes, of_seeds = counted(len(first.points), "SAE"), "seed" if len(units) == 1 else "seeds"
        what = f"{first.label.partition(',')[0]}, {saes}, {of_seeds} {seeds}"
        table.add_row(
            f"{len(units)} x {duration(price.seconds)}",
            what,
            duration(price.seconds * len(units)),
            gb(price.memory),
            gb(price.disk * len(units)),
        )
    return table


def _words(
    manifest: Manifest,
    prices: Mapping[str, Price],
    left: Sequence[Unit],
    known: Mapping[str, float],
) -> dict[str, str]:
    axes = " x ".join(
        f"{axis} [{', '.join(map(in_words, values))}]" for axis, values in manifest.axes.items()
    )
    units, saes = len(manifest.units), len(manifest.points)
    training = [prices[unit.name].seconds for unit in left]
    disk = sum(prices[unit.name].disk for unit in manifest.units)
    words = {
        "sweep": axes,
        "units": f"{units} of {counted(saes, 'SAE')} in all, {units - len(left)} of them finished",
        "training": _for_workers(training),
        "disk": f"up to {gb(disk)}",
        "evaluations": "their time is not in this plan; a plan after some units are done has it",
    }
    if len(left) < units and left:
        words["as it went"] = f"{_for_workers([known[u.name] for u in left])}, with evaluations"
    return words


def _for_workers(seconds: Sequence[float]) -> str:
    if not seconds:
        return "nothing is left"
    n = len(seconds)
    times = [(w, makespan(seconds, w)) for w in WORKERS if w == 1 or w <= n]
    parts = [f"{duration(time)} with {w}" for w, time in times]
    return f"{', '.join(parts)} at a time"
