"""What is shown while a sweep runs: lines, or a table in a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from saelens_adaptive_ortho.manifests import Manifest, Unit
from saelens_adaptive_ortho.sweeps.scheduling import Status
from saelens_adaptive_ortho.sweeps.starting import _last_words
from saelens_adaptive_ortho.sweeps.status import MOST_ROWS, counts, shown

UNITS = [Unit(f"u{i}", f"layer {i}", [], {}, 0, 1.0) for i in range(3)]
MANIFEST = Manifest("sweep", {}, UNITS)
STEPS = [
    {"u0": Status("whole", seconds=20.0), "u1": Status("open"), "u2": Status("open")},
    {"u0": Status("whole", seconds=20.0), "u1": Status("waiting"), "u2": Status("open")},
    {
        "u0": Status("whole", seconds=20.0),
        "u1": Status("running", "card 3", seconds=5.0),
        "u2": Status("elsewhere", "node7, process 12"),
    },
    {
        "u0": Status("whole", seconds=20.0),
        "u1": Status("open", reason="signal 9 ended its process"),
        "u2": Status("whole", seconds=30.0),
    },
]


def output(manifest: Manifest, steps: list[dict[str, Status]], terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    with shown(manifest, {}, console, lambda: 1) as (show, say):
        for step in steps:
            show(step)
        say("u9 [bold]failed[/]")
    return text.getvalue()


def test_lines_say_what_has_changed() -> None:
    assert output(MANIFEST, STEPS, terminal=False).splitlines() == [
        "u1 (layer 1): running on card 3",
        "u2 (layer 2): running elsewhere on node7, process 12",
        "u1 (layer 1): to do (signal 9 ended its process)",
        "u2 (layer 2): finished in 30 s",
        "3 units: 2 finished, 1 to do; about 25 s left",
        "u9 [bold]failed[/]",
    ]


def test_table_shows_what_runs() -> None:
    text = output(MANIFEST, STEPS[:3], terminal=True)
    for words in ("card 3", "node7, process 12", "3 units", "1 running elsewhere", "[bold]"):
        assert words in text
    many = [Unit(f"u{i}", "layer", [], {}, 0, 1.0) for i in range(MOST_ROWS + 7)]
    running = {unit.name: Status("running", f"card {i}") for i, unit in enumerate(many)}
    assert "and 7 more" in output(Manifest("sweep", {}, many), [running], terminal=True)


def test_one_unit_is_not_units() -> None:
    assert counts({"u1": Status("whole")}, {}, 1).plain == "1 unit: 1 finished"
    assert _last_words({"u1": Status("whole")}) == "1 unit is finished."
    assert _last_words({"u1": Status("failed")}).startswith("0 of 1 unit is finished.")
    two = {"u1": Status("whole"), "u2": Status("failed")}
    assert _last_words(two).startswith("1 of 2 units is finished.")
    assert _last_words({name: Status("whole") for name in two}) == "All 2 units are finished."
