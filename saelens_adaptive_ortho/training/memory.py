"""Whether the SAEs of a run fit into memory, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig

# Numbers that training holds for each weight: the weight, its gradient, two moments of Adam.
PER_WEIGHT = 4
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def least_memory(configs: Sequence[AdaptiveOrthoRunnerConfig]) -> int:
    """Bytes that SAEs trained together need at the very least.

    ``sum_SAE 4 * (2 * d_in * d_sae) * bytes + 2 * batch * d_sae * 4``: weights, gradients and
    moments of encoder and decoder, and the pre-activations and activations of one batch. With
    ``ortho_shards``, ``d_sae`` stands for the latents of one process.
    """
    latents = [cfg.sae.d_sae // cfg.ortho_shards for cfg in configs]
    each = zip(configs, latents, strict=True)
    weights = sum(2 * cfg.sae.d_in * n * itemsize(cfg) for cfg, n in each)
    widest = max(latents)
    return PER_WEIGHT * weights + 2 * configs[0].train_batch_size_tokens * widest * 4


def check_memory(configs: Sequence[AdaptiveOrthoRunnerConfig], processes: int = 1) -> None:
    """Refuse SAEs that cannot fit into the memory of their device.

    Args:
        configs: the configs of the SAEs that are trained together.
        processes: number of processes that share the device. Each needs as much.

    Raises:
        ConfigError: they need more than there is. What fits by this count may still be too much,
            because the language model and the penalty are not in it; ``plan`` measures those.
    """
    device = configs[0].device
    needed, there = processes * least_memory(configs), memory_of(device)
    if there is None or needed <= there:
        return
    shards = configs[0].ortho_shards
    if shards > 1:
        who = f"{processes} of {shards} processes need"
        remedy = "Lower it, or divide the SAE among more cards or machines (ortho_shards)."
    else:
        who = "1 SAE needs" if len(configs) == 1 else f"{len(configs)} SAEs need"
        remedy = (
            "Lower it, train fewer variants or hooks together, or divide one SAE among several "
            "cards (ortho_shards)."
        )
    raise reject(
        "sae.d_sae",
        max(cfg.sae.d_sae for cfg in configs),
        f"{who} at least {needed / 1e9:,.3g} GB on {device}, which has {there / 1e9:,.3g} GB. "
        f"{remedy}",
    )


def memory_of(device: str) -> int | None:
    """Bytes of memory of a device; None if they are not known, or there is no such device."""
    try:
        kind = torch.device(device).type
        if kind == "cuda":
            return torch.cuda.get_device_properties(device).total_memory
    except (RuntimeError, AssertionError):
        return None
    if kind != "cpu":
        return None
    found = None
    with suppress(OSError, ValueError, AttributeError):
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found = min(found, int(CGROUP_LIMIT.read_text()))  # "max" where there is no limit
    return found


def itemsize(cfg: AdaptiveOrthoRunnerConfig) -> int:
    """Bytes of a number of the SAE."""
    dtype = getattr(torch, cfg.sae.dtype.removeprefix("torch."), torch.float32)
    return dtype.itemsize
