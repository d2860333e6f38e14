"""The run that the drivers kill and damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.runs import Run, small_run
from tests.tiny import Tiny


@pytest.fixture
def run(
    tiny: Tiny,
    settings: Callable[..., dict[str, Any]],
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    return small_run(tiny, settings, model, tmp_path, monkeypatch)
