"""What a GPU needs to work without waits: no reads by the host, few and large kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_gpu(x: Tensor) -> bool:
    """Whether ``x`` takes the paths written for a CUDA device.

    A test can also take these paths on a CPU: what runs on a CUDA device alone is asked for
    separately (:func:`.kernels.available`, for the Triton kernels), and plain tensor operations do
    the same elsewhere.
    """
    return x.device.type == "cuda" and not torch.compiler.is_compiling()


def moved(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``; the host does not wait for the copy."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """A vector of ``values`` with dtype and device of ``like``; nothing is copied to the device."""
    return torch.stack([like.new_full((), value) for value in values])
