"""The local-text experiment; it is skipped if its model and corpora are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from sae_lens import SAE

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.results import load_result, result_path

ROOT = Path(__file__).parents[2]
CONFIG = "configs/local_text.yaml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "../shared/models/tiny-neox-wiki-bio").is_dir(),
        reason="the local model and corpora are not part of the repository",
    ),
]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the paths in the config are relative to the root


def test_config_is_ready_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", CONFIG, "--set", f"output_path={tmp_path}"]) == 0
    assert "ready to run" in capsys.readouterr().out


def test_short_training_explains_variance(tmp_path: Path) -> None:
    overrides = {
        "output_path": tmp_path,
        "training_tokens": 100 * 1024,
        "train_batch_size_tokens": 1024,
        "lr_warm_up_steps": 10,
        "lr_decay_steps": 20,
        "sae.d_sae": 256,
        "seeds": [0],
        "evals": "[subspace]",
    }
    options = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    assert main(["compare", CONFIG, *options]) == 0
    for variant in ("baseline", "fixed", "adaptive"):
        result = load_result(result_path(tmp_path, variant, 0, "training"))
        assert result.details["history"][-1]["explained_variance"] > 0.4
        assert SAE.load_from_disk(tmp_path / "seed0" / variant).cfg.d_sae == 256
