"""Measure what the checksums of a comparison cost: their share of the time of the whole command.

A profile of one ``adaptive-ortho compare`` in this process, in an empty folder. Only functions that
read or compute sums count, with everything they call.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.commands.cli import main as adaptive_ortho
from saelens_adaptive_ortho.files import write_json

#: Module and function; none of them calls another.
SUMS = (
    ("checksums", "write_sums"),
    ("checksums", "find_damage"),
    ("checksums", "sealed"),
    ("checksums", "breaks_seal"),
    ("text/models", "tensors_digest"),
    ("text/activation_cache", "_checksum"),
)


def measure(config: str, changes: list[str]) -> dict[str, Any]:
    """Run the comparison, and return the seconds in all and in each function."""
    with tempfile.TemporaryDirectory() as folder:
        changes = [*changes, f"output_path={folder}/run"]
        profile, started = cProfile.Profile(), time.perf_counter()
        words = ["compare", config, *(w for c in changes for w in ("--set", c))]
        status = profile.runcall(adaptive_ortho, words)
        seconds = time.perf_counter() - started
    if status != 0:
        raise SystemExit(status)
    found: Any = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    parts = {
        f"{module}.{function}": sum(
            row[3]
            for (file, _, name), row in found.items()
            if name == function and file.endswith(f"saelens_adaptive_ortho/{module}.py")
        )
        for module, function in SUMS
    }
    return {
        "config": config,
        "changes": [c for c in changes if "path" not in c and not c.startswith("model_name")],
        "seconds": seconds,
        "parts": parts,
        "share": sum(parts.values()) / seconds,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure and print the share."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", nargs="?", default="configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    options = parser.parse_args(argv)
    found = measure(options.config, options.set)
    for name, seconds in found["parts"].items():
        print(f"{name:40} {seconds:8.3f} s")
    print(f"{found['share']:.2%} of {found['seconds']:.1f} s")
    if options.json:
        write_json(options.json, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
