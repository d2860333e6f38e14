"""Random numbers: seeds made of several numbers, and states that are as they were afterwards."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix(*numbers: int) -> int:
    """One seed from several numbers, well spread (adjacent seeds must not give kin streams)."""
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63


@contextmanager
def state_kept(seed: int | None = None) -> Iterator[None]:
    """Grad mode, RNG states and the working directory are as before, on any exit.

    Args:
        seed: of Python's, NumPy's and torch's generators inside the block.
    """
    grad, cwd = torch.is_grad_enabled(), os.getcwd()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
            yield
        finally:
            torch.set_grad_enabled(grad)
            os.chdir(cwd)
            random.setstate(python_state)
            np.random.set_state(numpy_state)
