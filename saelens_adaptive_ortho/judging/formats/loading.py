"""Load a folder of another library as an inference SAE of SAELens."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import sae_lens
import torch
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.judging.formats import Format
from saelens_adaptive_ortho.judging.formats.hooks import NO_HOOK
from saelens_adaptive_ortho.judging.formats.reading import Converted


def load(kind: Format, folder: Path, hook: str | None = None, device: str = "cpu") -> SAE[Any]:
    """The SAE of a folder, as a stock SAE of SAELens that computes the same.

    Args:
        hook: hook point of TransformerLens; by default the one that the folder tells.

    Raises:
        ConfigError: a file is missing or damaged, SAELens has no SAE that computes the same, or
            the hook point is unknown.
    """
    found: Converted = importlib.import_module(kind.module).read(folder)
    hook_name = hook or found.metadata.get("hook_name")
    if hook_name is None:
        raise reject("--hook", None, f"{folder}: {found.about_hook or NO_HOOK}")
    if hook is None and found.about_hook:
        warnings.warn(f"{folder}: {found.about_hook}", stacklevel=2)
    return SAE.load_from_disk(
        folder, device=device, converter=lambda *_, **__: _for_host(found, hook_name, device)
    )


def _for_host(
    found: Converted, hook_name: str, device: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors in the form of SAELens's own readers."""
    d_in, d_sae = found.state["W_enc"].shape
    config = {
        **found.config,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": device,
        "reshape_activations": "hook_z" if hook_name.endswith("hook_z") else "none",
        "metadata": {
            "sae_lens_version": sae_lens.__version__,
            **found.metadata,
            "hook_name": hook_name,
        },
    }
    return config, {name: t.to(torch.device(device)) for name, t in found.state.items()}
