"""Devices that torch cannot use are refused, and so is a module that is on another one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saelens_adaptive_ortho.devices import check_device, check_placed
from saelens_adaptive_ortho.errors import ConfigError


def test_the_cpu_is_always_usable() -> None:
    check_device("device", "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_unusable_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"llm_device='{device}': torch cannot use it.*cpu"):
        check_device("llm_device", device)


def test_module_or_tensor_on_another_device_is_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ConfigError, match=r"device='cpu': the SAE x: 1\.weight is on meta"):
        check_placed("the SAE x", module, "device", "cpu")
    with pytest.raises(ConfigError, match=r"device='meta': a batch is on cpu"):
        check_placed("a batch", torch.zeros(2), "device", "meta")


def test_any_card_of_a_type_without_an_index_will_do() -> None:
    check_placed("a batch", torch.zeros(2, device="meta"), "device", "meta")
