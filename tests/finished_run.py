"""A finished run folder: random SAEs as an export leaves them, and constructed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from safetensors.torch import save_file

from saelens_adaptive_ortho.checksums import write_sums
from saelens_adaptive_ortho.experiments.comparison import RECORD
from saelens_adaptive_ortho.results import Result, result_path, write_result

HOOK = "blocks.1.hook_resid_post"
D_IN, D_SAE = 96, 128
VARIANTS, SEEDS = ("baseline", "adaptive"), (0, 1)


def write_run(root: Path, model_name: str = "demo:model", **metadata: Any) -> Path:
    """Write the SAEs of two variants and two seeds, and results with a trade-off.

    Args:
        root: folder of the run.
        model_name: the language model in the settings of the SAEs.
        metadata: further metadata of the SAEs.
    """
    for v, variant in enumerate(VARIANTS):
        for seed in SEEDS:
            folder = root / f"seed{seed}" / variant
            _write_sae(folder, 10 * v + seed, {"model_name": model_name, **metadata}, variant)
            explained = {"pooled/explained_variance": 0.9 - 0.01 * v + 0.001 * seed}
            gain = {"loss/forget_damage_at_0.10": 1.0 + v + 0.1 * seed}
            for name, metrics in (("core", explained), ("unlearning", gain)):
                result = Result(name, variant, seed, metrics=metrics, versions={"sae-lens": "6"})
                write_result(result_path(root, variant, seed, name), result)
    return root


def _write_sae(folder: Path, seed: int, metadata: dict[str, Any], variant: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE))
    with torch.no_grad():
        for value in sae.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator))
    details = {"ortho_mode": "off" if variant == "baseline" else variant, "k": 8}
    given = {"training_architecture": "adaptive_ortho_batchtopk", "hook_name": HOOK, **metadata}
    for name, value in {**given, "training_architecture_details": details}.items():
        setattr(sae.cfg.metadata, name, value)
    sae.save_model(folder)
    save_file({"sparsity": torch.zeros(D_SAE)}, folder / "sparsity.safetensors")
    (folder / "runner_cfg.json").write_text(json.dumps({"logger": {"wandb_entity": "somebody"}}))
    record = {"fingerprint": "f", "settings": {"lr": 0.001, "training_tokens": 4096}}
    (folder / RECORD).write_text(json.dumps(record))
    write_sums(folder)
