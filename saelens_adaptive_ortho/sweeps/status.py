"""The status of a sweep while it runs: a live table in a terminal, lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from saelens_adaptive_ortho.manifests import Manifest
from saelens_adaptive_ortho.report.formatting import counted, duration
from saelens_adaptive_ortho.sweeps.scheduling import Now, Status

Show = Callable[[Mapping[str, Status]], None]
ORDER: tuple[Now, ...] = (
    "whole",
    "running",
    "elsewhere",
    "waiting",
    "open",
    "incomplete",
    "failed",
)
WORDS: dict[Now, str] = {
    "whole": "finished",
    "running": "running",
    "elsewhere": "running elsewhere",
    "waiting": "queued",
    "open": "to do",
    "incomplete": "with a failed evaluation",
    "failed": "failed",
}
STYLES: dict[Now, str] = {"whole": "green", "incomplete": "yellow", "failed": "bold red"}
SHOWN: tuple[Now, ...] = ("running", "elsewhere", "waiting", "incomplete", "failed")
MOST_ROWS = 24


@contextmanager
def shown(
    manifest: Manifest, seconds: Mapping[str, float], console: Console, workers: Callable[[], int]
) -> Iterator[tuple[Show, Callable[[str], None]]]:
    """A function that shows the status of all units, and one that shows a line about a unit.

    Args:
        manifest: the sweep.
        seconds: the time that each unit will take, as far as it is known.
        console: where to show it.
        workers: the number of units that run at a time.
    """
    if not console.is_terminal:
        yield _lines(manifest, seconds, console, workers), _plain(console)
        return
    with Live(console=console, refresh_per_second=2, transient=False) as live:

        def show(status: Mapping[str, Status]) -> None:
            live.update(Group(_table(manifest, status), counts(status, seconds, workers())))

        yield show, _plain(live.console)


def counts(status: Mapping[str, Status], seconds: Mapping[str, float], workers: int) -> Text:
    """How many units are where, and the time that is left."""
    number = Counter(one.now for one in status.values())
    text = Text(f"{counted(len(status), 'unit')}: ")
    there: list[Now] = [now for now in ORDER if number[now]]
    for place, now in enumerate(there):
        text.append(", " if place else "")
        text.append(f"{number[now]} {WORDS[now]}", style=STYLES.get(now, ""))
    left = time_left(status, seconds, workers)
    if left is not None:
        text.append(f"; about {duration(left)} left", style="dim")
    return text


def time_left(
    status: Mapping[str, Status], seconds: Mapping[str, float], workers: int
) -> float | None:
    """Time until all units are done, for this number of workers; None if it is not known.

    Units whose time is not known take the mean of the others.
    """
    took = [one.seconds for one in status.values() if one.now == "whole" and one.seconds]
    known = [*seconds.values(), *took]
    left = [name for name, one in status.items() if one.now in SHOWN[:3] or one.now == "open"]
    if not known or not left or workers < 1:
        return None
    mean = sum(known) / len(known)
    total = 0.0
    for name in left:
        running = status[name].now == "running"
        passed = status[name].seconds or 0.0 if running else 0.0
        total += max(0.0, seconds.get(name, mean) - passed)
    # A unit that takes longer than was thought tells nothing about the time that is left.
    return total / min(workers, len(left)) if total > 0 else None


def _table(manifest: Manifest, status: Mapping[str, Status]) -> Table:
    table = Table("unit", "what", "state", "where", "time", box=SIMPLE_HEAD)
    labels = {unit.name: unit.label for unit in manifest.units}
    rows = [(name, one) for now in SHOWN for name, one in status.items() if one.now == now]
    for name, one in rows[:MOST_ROWS]:
        took = "" if one.seconds is None else duration(one.seconds)
        state = Text(WORDS[one.now], style=STYLES.get(one.now, ""))
        table.add_row(name, labels[name], state, one.where, took)
    if len(rows) > MOST_ROWS:
        table.add_row("", f"and {len(rows) - MOST_ROWS} more", "", "", "")
    return table


def _plain(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(
    manifest: Manifest, seconds: Mapping[str, float], console: Console, workers: Callable[[], int]
) -> Show:
    """Show a line for each unit that has begun, ended, or is open again."""
    labels = {unit.name: unit.label for unit in manifest.units}
    say = _plain(console)
    before: dict[str, Now] = {}

    def show(status: Mapping[str, Status]) -> None:
        for name, one in status.items():
            old = before.get(name)
            if one.now == old:
                continue
            before[name] = one.now
            if one.now in ("failed", "incomplete", "waiting"):
                continue  # the scheduler says why it failed; what waits is no news
            if one.now == "open" and not one.reason:
                continue
            if old is None and one.now == "whole":
                continue
            at = f" on {one.where}" if one.where else ""
            why = f" ({one.reason})" if one.reason else ""
            took = f" in {duration(one.seconds)}" if one.now == "whole" and one.seconds else ""
            say(f"{name} ({labels[name]}): {WORDS[one.now]}{at}{took}{why}")
            if one.now == "whole":
                say(counts(status, seconds, workers()).plain)

    return show
