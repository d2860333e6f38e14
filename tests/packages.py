"""Install small packages for one test: a module, and metadata with entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saelens_adaptive_ortho.evaluations import TABLE as EVALUATIONS
from saelens_adaptive_ortho.judging.formats import TABLE as FORMATS
from saelens_adaptive_ortho.maths.affinity import AFFINITIES
from saelens_adaptive_ortho.maths.penalties import PENALTIES
from saelens_adaptive_ortho.sweeps.drivers import TABLE as DRIVERS

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install(name, code, {group: {entry: "module:object"}})``, undone after the test."""
    # Python checks cached bytecode by the second of the last change, and a test is faster.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    root = tmp_path / "site"
    modules: list[str] = []

    def put(name: str, code: str, groups: dict[str, dict[str, str]]) -> None:
        info = root / f"{name}-1.0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = []
        for group, entries in groups.items():
            lines += [f"[{group}]", *(f"{entry} = {value}" for entry, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines))
        (root / f"{name}.py").write_text(code)
        modules.append(name)
        sys.modules.pop(name, None)  # a version that was installed before
        monkeypatch.syspath_prepend(root)
        forget()

    def forget() -> None:
        for table in (PENALTIES, AFFINITIES, EVALUATIONS, FORMATS, DRIVERS):
            table.forget()

    yield put
    for name in modules:
        sys.modules.pop(name, None)
    forget()
