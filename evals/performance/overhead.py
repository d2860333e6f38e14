"""Measure time per training step and peak memory of every mode, against the stock architecture.

Variants take turns in one process, so that other load on the machine affects all of them equally. A
variant has several kinds of steps (with statistics, with a refresh). Its time is the mean of the
medians of the kinds, weighted by their frequency. How often neighbour lists are searched depends on
the training; ``--search-every`` sets the assumed interval.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evals.performance.steps import (
    BASES,
    BY_NAME,
    SEARCH_EVERY,
    VARIANTS,
    Size,
    Stepper,
    Variant,
    activations,
)
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.maths import kernels
from saelens_adaptive_ortho.progress import progress

SIZES = ("512x4096", "512x16384", "512x32768", "2304x16384")
REPLICATES = 2000
# What --gpu measures, in about three minutes on one H200.
GPU_SIZES = ("2304x65536", "576x16384")
GPU_VARIANTS = ("stock", "off", "fixed", "fixed, every 5th", "adaptive", "groups")
GPU_MEMORY = ("adaptive", "groups")
GPU_ROUNDS = 8
GPU_SEQUENCES = 2
# Steps of a sequence: one period of the adaptive penalty.
SEQUENCE = 100


def measure(
    base: str,
    size: Size,
    rounds: int,
    variants: Sequence[str],
    device: str = "cpu",
    autocast: bool = False,
    search_every: int = SEARCH_EVERY,
    sequences: int = 0,
) -> list[dict[str, Any]]:
    """Time ``variants`` at one size, in turns, and return a row per variant.

    In each round every variant takes one step of each of its kinds. The order of variants and kinds
    is drawn anew for each round. Before its timed steps a variant takes one plain step without
    timing, because the step before was that of another SAE. The first round warms up and is
    dropped. ``variants`` must contain ``stock``. Then every variant takes ``sequences`` sequences
    of :data:`SEQUENCE` steps, in which the host does not wait for the device.
    """
    steppers = {
        name: Stepper(base, variant, size, device, autocast)
        for name, variant in BY_NAME.items()
        if name in variants
    }
    batches = [activations(size, seed, device) for seed in range(4)]
    kinds = {name: stepper.kinds(search_every) for name, stepper in steppers.items()}
    times: dict[tuple[str, str], list[float]] = {(n, k): [] for n in kinds for k in kinds[n]}
    order = random.Random(0)
    desc = f"{base} {size.d_in} x {size.d_sae}"
    for turn in progress(range(rounds + 1), desc, unit=" rounds"):
        batch = batches[turn % len(batches)]
        for name in order.sample(list(kinds), len(kinds)):
            steppers[name].step(batch, kinds[name]["plain"].number)
            for kind in order.sample(list(kinds[name]), len(kinds[name])):
                number, _, search = kinds[name][kind]
                seconds = steppers[name].step(batch, number, search)
                if turn:
                    times[name, kind].append(seconds)
    in_sequence: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(sequences):
        for name in order.sample(list(steppers), len(steppers)):
            in_sequence[name].append(steppers[name].sequence(batches, SEQUENCE) / SEQUENCE)
    rows = []

    def by_kind(name: str) -> Kinds:
        return {kind: (share, times[name, kind]) for kind, (_, share, _) in kinds[name].items()}

    stock = by_kind("stock")
    for name in steppers:
        measured, off = by_kind(name), unpenalised(BY_NAME[name])
        low, high = ratio_interval(measured, stock)
        to_off = {}
        if off in steppers:
            off_low, off_high = ratio_interval(measured, by_kind(off))
            ratio = per_step(measured) / per_step(by_kind(off))
            to_off = {"off_ratio": ratio, "off_low": off_low, "off_high": off_high}
        rows.append(
            {
                "base": base,
                **size._asdict(),
                "variant": name,
                "seconds": per_step(measured),
                "ratio": per_step(measured) / per_step(stock),
                "ratio_low": low,
                "ratio_high": high,
                **to_off,
                "kinds": {
                    kind: {"share": share, "seconds": statistics.median(values)}
                    for kind, (share, values) in measured.items()
                },
                "rounds": rounds,
            }
        )
        if sequences:
            seconds = statistics.median(in_sequence[name])
            stock_seconds = statistics.median(in_sequence["stock"])
            rows[-1] |= {"sequence_seconds": seconds, "sequence_ratio": seconds / stock_seconds}
    return rows


def unpenalised(variant: Variant) -> str | None:
    """Return the name of the variant that differs only in having no penalty; None if none does."""
    if variant.fields in (None, {"ortho_mode": "off"}):
        return None
    off = variant._replace(name="", fields={"ortho_mode": "off"}, two_corpora=False)
    return next((v.name for v in BY_NAME.values() if v._replace(name="") == off), None)


Kinds = dict[str, tuple[float, list[float]]]  # kind -> share of steps, seconds of each step


def per_step(kinds: Kinds) -> float:
    """Return the seconds per step: medians of the kinds, weighted by their shares."""
    return sum(share * statistics.median(values) for share, values in kinds.values())


def ratio_interval(variant: Kinds, reference: Kinds, seed: int = 0) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the ratio of two times per step.

    Rounds are resampled; both times use the same rounds.
    """
    generator = np.random.default_rng(seed)
    rounds = len(next(iter(variant.values()))[1])
    draws = generator.integers(rounds, size=(REPLICATES, rounds))

    def replicated(kinds: Kinds) -> np.ndarray:
        medians = [s * np.median(np.asarray(values)[draws], axis=1) for s, values in kinds.values()]
        return np.sum(medians, axis=0)

    low, high = np.quantile(replicated(variant) / replicated(reference), [0.025, 0.975])
    return float(low), float(high)


def peak_memory(base: str, size: Size, variant: str, device: str, autocast: bool) -> int:
    """Return the peak memory in bytes of a few steps of every kind, above that of the imports.

    On a CPU the steps run in a process of their own, because only the peak of a whole process can
    be read.
    """
    if device.startswith("cuda"):
        gc.collect()  # the SAEs that were timed
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        _steps_of_every_kind(base, size, variant, device, autocast)
        return torch.cuda.max_memory_allocated()
    code = (
        "from evals.performance import overhead\n"
        "from evals.performance.steps import Size\n"
        "before = overhead.peak_resident()\n"
        f"overhead._steps_of_every_kind({base!r}, {size!r}, {variant!r}, 'cpu', {autocast})\n"
        "print(overhead.peak_resident() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak_resident() -> int:
    """Return the peak memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would also count the memory of the parent process
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _steps_of_every_kind(base: str, size: Size, variant: str, device: str, autocast: bool) -> None:
    stepper = Stepper(base, BY_NAME[variant], size, device, autocast)
    batch = activations(size, 0, device)
    for _ in range(2):
        for number, _, search in stepper.kinds().values():
            stepper.step(batch, number, search)


def parse_size(text: str, batch: int) -> Size:
    """Parse a size such as ``512x16384``."""
    d_in, d_sae = (int(part) for part in text.split("x"))
    return Size(d_in, d_sae, batch)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line per variant, and write the JSON after each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="D_INxD_SAE")
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=BASES)
    names = [v.name for v in VARIANTS]
    parser.add_argument("--variants", nargs="+", default=names, choices=BY_NAME)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--search-every", type=int, default=SEARCH_EVERY)
    parser.add_argument(
        "--sequences",
        type=int,
        default=0,
        help=f"sequences of {SEQUENCE} steps in which the host does not wait for the device",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", action="store_true", help="bf16 autocast")
    parser.add_argument(
        "--memory",
        nargs="*",
        choices=BY_NAME,
        metavar="VARIANT",
        help="variants, beside stock, whose peak memory is measured (default: all; no name: none)",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--gpu",
        action="store_true",
        help=f"on CUDA in bf16 autocast: sizes {' and '.join(GPU_SIZES)}, {len(GPU_VARIANTS)} "
        f"variants, {GPU_ROUNDS} rounds, time of each kind of step; replaces these options",
    )
    args = parser.parse_args(argv)
    if args.gpu:
        if not torch.cuda.is_available():
            parser.error("--gpu: PyTorch finds no CUDA device.")
        args.device, args.autocast = "cuda", True
        args.sizes, args.variants, args.memory = GPU_SIZES, GPU_VARIANTS, GPU_MEMORY
        args.rounds, args.sequences = GPU_ROUNDS, GPU_SEQUENCES
    variants = ["stock", *(v for v in args.variants if v != "stock")]
    measured = variants if args.memory is None else args.memory and ["stock", *args.memory]
    document: dict[str, Any] = {
        "device": _device(args.device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "autocast": args.autocast,
        "search_every": args.search_every,
        "triton": _uses_triton(args.device),
        "rows": [],
    }
    for text in args.sizes:
        size = parse_size(text, args.batch)
        for base in args.bases:
            rows = measure(
                base,
                size,
                args.rounds,
                variants,
                args.device,
                args.autocast,
                args.search_every,
                args.sequences,
            )
            for row in rows:
                if row["variant"] in measured:
                    row["peak_bytes"] = peak_memory(
                        base, size, row["variant"], args.device, args.autocast
                    )
                # At very small sizes the imports need more than the steps, and the peak reads 0.
                if row.get("peak_bytes") and rows[0]["peak_bytes"]:
                    row["peak_ratio"] = row["peak_bytes"] / rows[0]["peak_bytes"]
                print(line(row), flush=True)
                if len(row["kinds"]) > 1:
                    print(f"{'':26}{kinds_line(row)}", flush=True)
            document["rows"] += rows
            if args.json:
                write_json(args.json, document)
    return 0


def line(row: dict[str, Any]) -> str:
    """Return a row as text for the terminal."""
    text = f"{row['base']:10} {row['d_in']:5} x {row['d_sae']:6}  {row['variant']:26}"
    text += f"{row['seconds'] * 1e3:9.1f} ms  {row['ratio']:.3f}"
    text += f" [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
    if "sequence_ratio" in row:
        text += f"  in sequence {row['sequence_ratio']:.3f}"
    return text + (f"  memory {row['peak_ratio']:.3f}" if "peak_ratio" in row else "")


def kinds_line(row: dict[str, Any]) -> str:
    """Return the times of the kinds of steps as text for the terminal."""
    return ", ".join(f"{name} {k['seconds'] * 1e3:.1f}" for name, k in row["kinds"].items())


def _uses_triton(device: str) -> bool:
    return kernels.available(torch.empty(0, device=device))


def _device(name: str) -> str:
    return torch.cuda.get_device_name() if name.startswith("cuda") else "CPU"


if __name__ == "__main__":
    sys.exit(main())
