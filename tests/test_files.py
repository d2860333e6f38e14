"""Files that can be made again, and records that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.files import read_cached
from saelens_adaptive_ortho.judging.subjects import Subject


@pytest.mark.parametrize("text", [None, "", '{"a": [1', "\x00\x00"])
def test_missing_or_damaged_cache_file_is_none(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "kept.json"
    if text is not None:
        file.write_text(text)
    assert read_cached(file) is None
    file.write_text('{"a": [1]}')
    assert read_cached(file) == {"a": [1]}


@pytest.mark.parametrize("text", ['{"model_na', "[]"])
def test_damaged_runner_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    file = tmp_path / "runner_cfg.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"SAE=.*runner_cfg\.json.*is damaged\. Delete it"):
        Subject.parse(str(tmp_path)).record()
