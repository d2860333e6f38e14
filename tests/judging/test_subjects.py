"""The SAEs that are judged, and the records beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.judging.subjects import Subject


@pytest.mark.parametrize("text", ['{"model_na', "[]"])
def test_damaged_runner_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    file = tmp_path / "runner_cfg.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"SAE=.*runner_cfg\.json.*is damaged\. Delete it"):
        Subject.parse(str(tmp_path)).record()
