"""An SAE that is divided among two processes on one GPU learns what one process learns there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from safetensors.torch import load_file

from saelens_adaptive_ortho.commands.cli import main
from tests.tiny import BATCH
from tests.training.test_sharded import difference, torchrun

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")


@pytest.mark.parametrize("architecture", ["batchtopk", "topk"])
def test_two_processes_on_a_gpu(
    write_config: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    # One process on a GPU draws its initial weights there, and several processes draw them on the
    # CPU. So the one to compare with trains on the CPU.
    config = write_config(
        {"architecture": f"adaptive_ortho_{architecture}"},
        training_tokens=40 * BATCH,
        lr=1e-3,
        device="cuda",
        dead_feature_window=10,
    )
    results = {}
    for size in (2, 4):
        folder = tmp_path / str(size)
        ran = subprocess.run(
            torchrun(config, f"output_path={folder}", size=size),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        results[size] = load_file(folder / "sae" / SAE_WEIGHTS_FILENAME)
    on_cpu = tmp_path / "cpu"
    assert (
        main(["train", str(config), "--set", "device=cpu", "--set", f"output_path={on_cpu}"]) == 0
    )
    expected = load_file(on_cpu / "sae" / SAE_WEIGHTS_FILENAME)
    for name, x in expected.items():
        for found in results.values():
            assert difference(found[name], x) < 1e-2, name
    assert difference(results[4]["W_dec"], results[2]["W_dec"]) < 1e-2
