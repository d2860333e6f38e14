"""Two processes in one run folder: one works, the other says who is there."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho import locks
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.experiments import comparison
from saelens_adaptive_ortho.experiments.comparison import RECORD

TRIES = 10
LONG = 120.0  # seconds until a process that waits for another has certainly failed


def compare(config: str, root: Path, lr: float) -> None:
    """Run in a child: its errors go to a file, and its status is that of the command."""
    with (
        open(root.with_name(f"{root.name}-{lr}.err"), "w") as err,
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(err),
    ):
        status = main(["compare", config, "--set", f"output_path={root}", "--set", f"lr={lr}"])
    raise SystemExit(status)


@pytest.mark.slow
def test_one_works_and_the_other_is_refused(
    write_config: Callable[..., Path],
    no_report: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(locks, "RUN_PATIENCE", 0.05)
    config = str(write_config(variants={"adaptive": {}}, evals=[]))
    rates = (0.001, 0.003)
    fork = multiprocessing.get_context("fork")
    prepare = comparison.prepare
    for number in range(TRIES):
        root = tmp_path / f"run{number}"
        other_ended = fork.Event()

        def prepare_at_last(*args: Any, ended: Any = other_ended, **named: Any) -> Any:
            assert ended.wait(LONG)
            return prepare(*args, **named)

        # The one that works holds the lock until the other one has tried.
        monkeypatch.setattr(comparison, "prepare", prepare_at_last)
        children = [fork.Process(target=compare, args=(config, root, lr)) for lr in rates]
        for child in children:
            child.start()
        wait([child.sentinel for child in children], LONG)
        other_ended.set()
        for child in children:
            child.join()
        statuses = [child.exitcode for child in children]
        assert sorted(statuses) == [0, 2]
        winner, loser = (rates[statuses.index(status)] for status in (0, 2))
        record = json.loads((root / "seed0" / "adaptive" / RECORD).read_text())
        assert record["settings"]["lr"] == winner
        said = root.with_name(f"{root.name}-{loser}.err").read_text()
        assert "is in use: `adaptive-ortho compare` runs there as process" in said
        assert not list(root.glob(".*"))
