"""Every file of a run is cut short and has a bit flipped: the next run says so, or makes it again.

After a damage, the same command ends with the same files, to the bit, or with one line that names
the file.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.figures import FULL, record
from tests.campaign.processes import Ended, watch
from tests.campaign.runs import Run, content, differing
from tests.damages import damages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
STRIDE = 1 if FULL else 4

UNREAD = "not read, stays damaged"
OTHER = "unnoticed, other results"
# A run writes page and config anew. The description of cached activations is for people.
NOT_READ = (".html", ".yaml", "setup.json")


def judged(ended: Ended, found: list[str], name: str) -> str:
    """What became of a damage."""
    if "Traceback" in ended.output or ended.status not in (0, 2):
        return "traceback or hang"
    if ended.status == 2:
        last = ended.output.strip().splitlines()[-1]
        named = last.startswith("adaptive-ortho: error: ") and Path(name).name in last
        return "refused, named" if named else "refused, not named"
    if not found:
        return "made again"
    return UNREAD if found == [name] else OTHER


def campaign(kind: str, run: Run, state: Path, names: list[str], expected: dict[str, Any]) -> None:
    started = time.perf_counter()
    counts: Counter[str] = Counter()
    faults = []
    cases = [(name, damage) for name in names for damage in damages(state / name)]
    for name, damage in cases[::STRIDE]:
        shutil.rmtree(run.root, ignore_errors=True)
        shutil.copytree(state, run.root)
        damages(run.root / name)[damage]()
        ended = run.compare()
        found = differing(content(run.root), expected)
        verdict = judged(ended, found, name)
        counts[verdict] += 1
        if verdict not in ("made again", "refused, named"):
            last = ended.output.strip().splitlines()[-1:]
            faults.append(f"{verdict}: {name}, {damage}: {found[:3]} {last}")
    record(f"damage: {kind}", **counts, seconds=round(time.perf_counter() - started))
    assert not faults, "\n".join(faults)


def files(root: Path) -> list[str]:
    """The files that hold something that a run reads."""
    found = (p for p in root.rglob("*") if p.is_file() and p.stat().st_size)
    return sorted(str(p.relative_to(root)) for p in found if not p.name.endswith(NOT_READ))


def killed_at_first_export(operation: str, torn: Path | None) -> None:
    if "seed0/.fixed.tmp" in operation:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["finished run", "interrupted run", "caches"])
def test_damaged_file(kind: str, run: Run, tmp_path: Path) -> None:
    run.root.mkdir()
    assert run.compare().status == 0
    expected = content(run.root)
    if kind == "interrupted run":
        shutil.rmtree(run.root)
        run.root.mkdir()
        ended = run.compare(before=lambda: watch(run.root, killed_at_first_export))
        assert ended.status == -signal.SIGKILL
    elif kind == "caches":  # a run that starts over reads them all
        for path in (run.root / "run").iterdir():
            if path.is_dir() and path.name != "cache":
                shutil.rmtree(path)
    state = shutil.copytree(run.root, tmp_path / "state")
    names = [name for name in files(state) if ("cache" in Path(name).parts) == (kind == "caches")]
    assert (kind == "interrupted run") == (sum("checkpoints" in name for name in names) > 10)
    campaign(kind, run, state, names, expected)
