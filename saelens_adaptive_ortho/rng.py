"""Random numbers: seeds derived from several numbers, and blocks that restore the RNG states."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix(*numbers: int) -> int:
    """One seed from several numbers, hashed so that adjacent seeds give unrelated streams."""
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63


@contextmanager
def state_kept(seed: int | None = None) -> Iterator[None]:
    """Restore grad mode, RNG states and the working directory after the block, on any exit.

    Args:
        seed: seed of Python's, NumPy's and torch's generators inside the block.
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
