"""Ways to damage a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def damages(path: Path) -> dict[str, Callable[[], None]]:
    """Ways to damage a file, by name."""
    size = path.stat().st_size

    def cut(share: float) -> None:
        os.truncate(path, int(size * share))

    def flip(share: float) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(size * share), size - 1)] ^= 4
        path.write_bytes(data)

    return {
        "emptied": lambda: cut(0),
        "cut in half": lambda: cut(0.5),
        "cut at the end": lambda: cut(0.97),
        "bit at the start": lambda: flip(0.02),
        "bit in the middle": lambda: flip(0.5),
        "bit at the end": lambda: flip(0.95),
    }
