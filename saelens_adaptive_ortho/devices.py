"""Devices: whether torch can use one, and whether model, SAEs and batches are where they should be.

A module that stays on another device computes the same numbers, only many times slower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saelens_adaptive_ortho.errors import reject


def check_device(field: str, device: str) -> None:
    """Refuse a device that torch cannot use on this machine.

    Raises:
        ConfigError: torch does not know the device, or has no driver or card for it.
    """
    here = f"Usable here: {', '.join(usable())}."
    try:
        found = torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")  # the first sentence
        raise reject(field, device, f"torch cannot use it ({reason}). {here}") from error
    if found.is_meta:
        raise reject(field, device, f"holds no numbers. {here}")


def usable() -> list[str]:
    """The devices of this machine that torch can use."""
    found = ["cpu"]
    found += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    return found


def check_placed(what: str, held: nn.Module | Tensor, field: str, device: str) -> None:
    """Refuse a module or a tensor that is not on the device that the config names.

    Args:
        what: name of the module or tensor, for the error.
        held: a module, of which every parameter is checked, or a tensor.
        field: field of the config that names the device.
        device: the device; without an index, any card of its type will do.

    Raises:
        ConfigError: something is on another device. The message names it and both devices.
    """
    named = held.named_parameters() if isinstance(held, nn.Module) else [("", held)]
    for name, tensor in named:
        if not _same(tensor.device, torch.device(device)):
            part = f"{what}: {name}" if name else what
            raise reject(field, device, f"{part} is on {tensor.device}. {REPORT}")


REPORT = "This is a fault of this package or of the model's code, not of the config: report it."


def _same(found: torch.device, asked: torch.device) -> bool:
    return found.type == asked.type and asked.index in (None, found.index)
