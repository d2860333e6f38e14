"""Fixtures: tiny sweeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.manifests import Manifest, write_manifest
from saelens_adaptive_ortho.sweeps.axes import build_sweep
from saelens_adaptive_ortho.sweeps.packing import pack
from tests.sweeps.helpers import LAYERS


@pytest.fixture
def sweep_settings(settings: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return a function that makes the settings of a sweep with one evaluation.

    Without axes, there are two units of one SAE each. ``times`` makes each unit that much longer;
    there is a checkpoint every six steps.
    """

    def make(folder: Path, times: int = 1, **axes: Any) -> dict[str, Any]:
        tree = settings(
            n_checkpoints=4 * times - 1,
            sweep={"hook_name": LAYERS, "sae.ortho_alpha": [0.5], **axes},
            evals={"subspace": {"n_contexts": 8}},
            output_path=str(folder),
        )
        tree["training_tokens"] *= times
        return tree

    return make


@pytest.fixture
def make_sweep(sweep_settings: Callable[..., dict[str, Any]]) -> Callable[..., Manifest]:
    """Return a function that writes the manifest of such a sweep into its folder."""

    def make(folder: Path, times: int = 1, **axes: Any) -> Manifest:
        manifest = pack(build_sweep(sweep_settings(folder, times, **axes)))
        write_manifest(folder, manifest)
        return manifest

    return make
