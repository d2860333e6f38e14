"""Every file of a run is cut short and has a bit flipped: the next run says so, or makes it again.

After a damage, the same command ends with the same files, to the bit, or with one line that names
the file. Files in which a damage goes unnoticed today are listed in ``UNNOTICED``.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.figures import FULL, record
from tests.campaign.processes import Ended, watch
from tests.campaign.runs import Run, content, differing, small_run
from tests.tiny import Tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
STRIDE = 1 if FULL else 4

# Files without a checksum: a damage that still parses is not seen. To be emptied once every file
# has one.
UNNOTICED: dict[str, str] = {
    "sparsity.safetensors": "nothing reads it",
    "runner_cfg.json": "compare does not read it",
    "cfg.json": "a changed value may still parse",
    "sae_weights.safetensors": "changed weights are weights",
    "ortho_run.json": "a changed value may still parse",
    "activation_scaler.json": "a changed value may still parse",
    "trainer_state.pt": "changed moments are moments",
    "rng_state.pt": "a changed state is a state",
    "lockstep_state.json": "a changed value may still parse",
    "setup.json": "it is for people",
    "fixed__seed0__training.json": "a changed value may still parse",
    "fixed__seed0__subspace.json": "a changed value may still parse",
    "adaptive__seed0__training.json": "compare does not make it again",
    "adaptive__seed0__subspace.json": "a changed value may still parse",
}
UNREAD = "not read, stays damaged"
OTHER = "unnoticed, other results"


@pytest.fixture
def run(
    tiny: Tiny,
    settings: Callable[..., dict[str, Any]],
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    return small_run(tiny, settings, model, tmp_path, monkeypatch)


def damages(path: Path) -> dict[str, Callable[[], None]]:
    """Ways to damage a file, by name."""
    size = path.stat().st_size

    def cut(share: float) -> None:
        os.truncate(path, int(size * share))

    def flip(share: float) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(size * share), size - 1)] ^= 4
        path.write_bytes(data)

    return {
        "emptied": lambda: cut(0),
        "cut in half": lambda: cut(0.5),
        "cut at the end": lambda: cut(0.97),
        "bit at the start": lambda: flip(0.02),
        "bit in the middle": lambda: flip(0.5),
        "bit at the end": lambda: flip(0.95),
    }


def known(name: str) -> bool:
    """Whether a damage of this file may go unnoticed today; in a cache, a bit of any file may."""
    return Path(name).name in UNNOTICED or "cache" in Path(name).parts


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
        print(f"{verdict}: {name} {damage}: {found[:3]}")
        bad = verdict in ("traceback or hang", "refused, not named")
        bad |= verdict == OTHER and not damage.startswith("bit")
        # The text of a cache is believed, and another fingerprint counts as other settings.
        flipped = damage.startswith("bit") and ("run/cache" in name or "ortho_run" in name)
        bad &= not flipped
        if bad or (verdict in (UNREAD, OTHER) and not known(name)):
            faults.append((name, damage, verdict, found, ended.output[-1500:]))
    record(f"damage: {kind}", **counts, seconds=round(time.perf_counter() - started))
    assert not faults, faults


def files(root: Path) -> list[str]:
    """The files that hold something."""
    found = (p for p in root.rglob("*") if p.is_file() and p.stat().st_size)
    return sorted(str(p.relative_to(root)) for p in found)


@pytest.mark.xfail(
    strict=False,
    reason="Written before SHA-256 sums: files that are made again carry other times, which the "
    "driver takes for other results, and UNNOTICED is to be emptied.",
)
def test_damaged_file_of_a_finished_run(run: Run, tmp_path: Path) -> None:
    run.root.mkdir()
    assert run.compare().status == 0
    expected = content(run.root)
    state = shutil.copytree(run.root, tmp_path / "state")
    # These two are written anew by every run.
    names = [name for name in files(state) if Path(name).suffix not in (".html", ".yaml")]
    campaign("finished run", run, state, names, expected)


@pytest.mark.xfail(
    strict=False,
    reason="Written before SHA-256 sums: files that are made again carry other times, which the "
    "driver takes for other results, and UNNOTICED is to be emptied.",
)
def test_damaged_file_of_an_interrupted_run(run: Run, tmp_path: Path) -> None:
    run.root.mkdir()
    assert run.compare().status == 0
    expected = content(run.root)
    shutil.rmtree(run.root)
    run.root.mkdir()

    def kill(operation: str, torn: Path | None) -> None:
        if "seed0/.fixed.tmp" in operation:  # the first export
            os.kill(os.getpid(), signal.SIGKILL)

    assert run.compare(before=lambda: watch(run.root, kill)).status == -signal.SIGKILL
    state = shutil.copytree(run.root, tmp_path / "state")
    names = [name for name in files(state) if "/.lock" not in name and "setup.json" not in name]
    assert sum("checkpoints" in name for name in names) > 10
    campaign("interrupted run", run, state, [n for n in names if not n.endswith(".yaml")], expected)
