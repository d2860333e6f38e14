"""Profile a training step with and without sparse products, and compute a floor of its time.

The floor counts what every implementation of a BatchTopK step must do:

* multiply the batch with the encoder once: ``2 * batch * d_in * d_sae`` flops (everything after the
  selection needs the firing latents alone);
* write the pre-activations, and read them once to select among them;
* in Adam, read weight, gradient and two moments, and write weight and moments.

Flops and bytes become seconds with the rates that this machine reaches in a product and a copy of
the same sizes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from evals.performance.overhead import parse_size
from evals.performance.steps import BY_NAME, Size, Stepper, activations, median_seconds
from saelens_adaptive_ortho.files import write_json

PROFILED = ("stock", "off, sparse products", "adaptive, sparse products")
FLOAT = 4  # bytes


def floor(size: Size, rounds: int = 5) -> dict[str, float]:
    """Return flops and bytes of a step, the rates of the machine, and the resulting seconds."""
    batch, d_in, d_sae = size.batch, size.d_in, size.d_sae
    parameters = 2 * d_in * d_sae + d_in + d_sae
    flops = 2.0 * batch * d_in * d_sae
    moved = FLOAT * (2.0 * batch * d_sae + 7 * parameters)
    x, W = torch.randn(batch, d_in), torch.randn(d_in, d_sae)
    out, copy = torch.empty(batch, d_sae), torch.empty(batch, d_sae)
    flops_rate = flops / median_seconds(lambda: torch.mm(x, W, out=out), rounds)
    bytes_rate = 2 * FLOAT * out.numel() / median_seconds(lambda: copy.copy_(out), rounds)
    return {
        "flops": flops,
        "bytes": moved,
        "flops_per_second": flops_rate,
        "bytes_per_second": bytes_rate,
        "seconds": flops / flops_rate + moved / bytes_rate,
    }


def profiled(size: Size, variant: str, steps: int = 3) -> dict[str, Any]:
    """Return the seconds per plain step, and the self time of every operation in it."""
    stepper = Stepper("batchtopk", BY_NAME[variant], size)
    batch = activations(size)
    kinds = stepper.kinds()
    first = kinds.get("refreshed", kinds["plain"])
    stepper.step(batch, first.number, first.search)
    number = kinds["plain"].number
    seconds = statistics.median(stepper.step(batch, number) for _ in range(steps))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            stepper.step(batch, number)
    self_times = {e.key: e.self_cpu_time_total / 1e6 / steps for e in found.key_averages()}
    slowest_first = sorted(self_times.items(), key=lambda item: -item[1])
    operations = {name.removeprefix("aten::"): value for name, value in slowest_first}
    return {"variant": variant, "seconds": seconds, "operations": operations}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="512x16384", metavar="D_INxD_SAE")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    size = parse_size(args.size, args.batch)
    found = floor(size)
    steps = [profiled(size, variant) for variant in PROFILED]
    print(f"floor {found['seconds'] * 1e3:.0f} ms")
    for step in steps:
        print(f"{step['variant']:26} {step['seconds'] * 1e3:.0f} ms")
        for name, seconds in list(step["operations"].items())[:8]:
            print(f"    {name:34} {seconds * 1e3:8.1f} ms")
    if args.json:
        document = {**size._asdict(), "threads": torch.get_num_threads(), "floor": found}
        write_json(args.json, {**document, "steps": steps})
    return 0


if __name__ == "__main__":
    sys.exit(main())
