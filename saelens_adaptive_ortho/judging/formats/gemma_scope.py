"""Gemma Scope: JumpReLU SAEs in ``params.npz`` (https://arxiv.org/abs/2408.05147).

``f = ReLU(p) * (p > threshold)`` with ``p = x W_enc + b_enc``, and ``x' = f W_dec + b_dec``. This
is SAELens's JumpReLU without ``b_dec`` at the input. There is no config: the names of the folders
tell the model and the layer, and SAELens knows how.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae_lens.loading.pretrained_sae_loaders import get_gemma_2_config_from_hf

from saelens_adaptive_ortho.judging.formats.reading import Converted, read_npz, refusal

FILE = "params.npz"
REPOSITORY = re.compile(r"gemma-scope-\d+b-[a-z]+-[a-z]+")
ADVICE = (
    "the names of the folders do not tell the model and the layer (they are gemma-scope-2b-pt-res/"
    "layer_20/width_16k/average_l0_71 on the hub). Give --model and --hook, e.g. "
    "blocks.20.hook_resid_post."
)


def read(folder: Path) -> Converted:
    """Read a folder of Gemma Scope.

    Raises:
        ConfigError: the file is missing or damaged, or it is no SAE that reads and writes at one
            hook point.
    """
    file = folder / FILE
    repository, rest = _place(folder)
    if "transcoder" in repository:
        raise refusal(file, "is a transcoder: it predicts another hook point. Give an SAE.")
    if "embedding" in rest:
        raise refusal(
            file,
            "is an SAE of embeddings before the model scales them, and no hook point has these. "
            "Give an SAE of a layer.",
        )
    tensors = read_npz(file)
    W_enc = tensors.take("W_enc" if "W_enc" in tensors else "w_enc", None, None)
    d_in, d_sae = W_enc.shape
    state = {
        "W_enc": W_enc,
        "b_enc": tensors.take("b_enc", d_sae),
        "W_dec": tensors.take("W_dec" if "W_dec" in tensors else "w_dec", d_sae, d_in),
        "b_dec": tensors.take("b_dec", d_in),
        "threshold": tensors.take("threshold", d_sae),
    }
    tensors.finish()
    metadata = _metadata(repository, rest)
    config = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    return Converted(config, state, metadata, "" if metadata else ADVICE)


def _place(folder: Path) -> tuple[str, str]:
    """The repository that a folder was downloaded from, and the path in it; else empty names."""
    parts = folder.parts
    for number in range(len(parts) - 1, -1, -1):
        found = REPOSITORY.search(parts[number])
        if found is not None:
            return found[0], "/".join(parts[number + 1 :])
    return "", "/".join(parts[-3:])


def _metadata(repository: str, rest: str) -> dict[str, Any]:
    try:
        known = get_gemma_2_config_from_hf(repository, rest, "cpu")
    except ValueError:  # the names do not tell it
        return {}
    names = ("model_name", "hook_name", "context_size", "prepend_bos")
    return {name: known[name] for name in names}
