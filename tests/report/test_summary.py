"""The summary as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saelens_adaptive_ortho.report.summary import write_summary
from tests.report.runs import (
    ANGLE,
    full_run,
)


def test_strict_json(tmp_path: Path) -> None:
    path = write_summary(full_run(tmp_path))
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    angle = document["metrics"][ANGLE]
    assert path == tmp_path / "results" / "summary.json"
    assert angle["variants"]["baseline"]["by_seed"] == {"0": 50.0, "1": 51.0, "2": 52.0}
    assert angle["differences"][0]["verdict"] == "better"
    assert document["verdict"].startswith("Against baseline over 3 paired seeds")
