"""A kill at every file operation of ``compare``: the same command then gives the same, to the bit.

A killed process leaves on disk what was there before the operation. So one process makes a copy of
the folder before each operation, and the same command continues from each copy. That a copy is what
a kill leaves is tested with real kills. A copy after a file was written has only half of it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.campaign.figures import FULL, record
from tests.campaign.processes import watch
from tests.campaign.runs import Run, content, differing

pytestmark = pytest.mark.slow
STRIDE = 1 if FULL else 6
KILLS = 12 if FULL else 3


def copies(run: Run, folder: Path) -> list[str]:
    """Copy the folder before each operation of a run, to ``folder/NUMBER``; the operations."""
    log = folder / "operations"

    def copy(operation: str, torn: Path | None) -> None:
        with log.open("a") as file:
            file.write(f"{operation}\n")
        target = folder / str(len(log.read_text().splitlines()) - 1)
        shutil.copytree(run.root, target)
        if torn is not None:
            half = target / torn.relative_to(run.root)
            os.truncate(half, half.stat().st_size // 2)

    folder.mkdir()
    run.root.mkdir()
    ended = run.compare(before=lambda: watch(run.root, copy))
    assert ended.status == 0, ended.output
    return log.read_text().splitlines()


@pytest.mark.timeout(3600)
def test_kill_before_any_operation(run: Run, tmp_path: Path) -> None:
    started = time.perf_counter()
    operations = copies(run, tmp_path / "copies")
    expected = content(run.root)
    assert not [name for name in expected if re.search(r"lock|tmp|old", name)]
    failures, tried = [], 0
    for number in range(0, len(operations), STRIDE):
        shutil.rmtree(run.root)
        (tmp_path / "copies" / str(number)).rename(run.root)
        ended = run.compare()
        tried += 1
        wrong = differing(content(run.root), expected) if ended.status == 0 else [ended.output]
        if wrong:
            failures.append((number, operations[number], wrong))
    seconds = round(time.perf_counter() - started)
    record(
        "kills: states of the folder at a file operation",
        operations=len(operations),
        continued=tried,
        different_or_litter=len(failures),
        seconds=seconds,
    )
    assert not failures


@pytest.mark.timeout(600)
def test_copy_is_what_a_kill_leaves(run: Run, tmp_path: Path) -> None:
    operations = copies(run, tmp_path / "copies")
    whole = [n for n, text in enumerate(operations) if not text.startswith(("fsync", "written"))]
    chosen = whole[len(whole) // (KILLS + 1) :: len(whole) // (KILLS + 1)][:KILLS]
    for number in chosen:
        seen = 0

        def kill(operation: str, torn: Path | None, number: int = number) -> None:
            nonlocal seen
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

        shutil.rmtree(run.root)
        run.root.mkdir()
        assert run.compare(before=lambda k=kill: watch(run.root, k)).status == -signal.SIGKILL
        assert shape(run.root) == shape(tmp_path / "copies" / str(number))
    record("kills: real kills, as the states", tried=len(chosen))


def shape(root: Path) -> set[str]:
    """Names, without what is drawn at random, and whether files are empty."""
    found = set()
    for path in root.rglob("*"):
        name = re.sub(r"[0-9a-f]{32}\.tmp", "HEX.tmp", str(path.relative_to(root)))
        found.add(f"{name} {path.is_dir() or path.stat().st_size > 0}")
    return found
