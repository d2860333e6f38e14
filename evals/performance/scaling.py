"""Measure penalty, statistics and refresh against d_sae, and fit exponents to their times."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evals.performance.steps import median_seconds
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.maths import affinity, coactivation, grouping, neighbours
from saelens_adaptive_ortho.maths.directions import decoder_directions
from saelens_adaptive_ortho.maths.penalties.adaptive import adaptive_penalty, pair_weights
from saelens_adaptive_ortho.progress import progress

M, R, K = 16, 64, 64


def parts(d_in: int, d_sae: int, batch: int, device: str) -> dict[str, Callable[[], Any]]:
    """Return the calls of a training step, on made-up weights and firings (K latents per row)."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(d_sae, d_in, generator=generator).to(device).requires_grad_()
    D = decoder_directions(W.detach())
    lists, _ = neighbours.top_similar(D, M)
    latents = torch.randint(0, d_sae, (batch, K), generator=generator)
    values = torch.rand(batch, K, generator=generator) + 0.1
    acts = torch.zeros(batch, d_sae).scatter_(1, latents, values).to(device)
    signs = coactivation.random_signs(batch, R, 0, 0).to(device)
    state = coactivation.update(
        coactivation.empty_state(d_sae, M, R, 2, device), acts, lists, signs, 0.99, batch // 2
    )

    def one_penalty() -> None:
        loss = adaptive_penalty(
            W,
            lists,
            pair_weights(affinity.unsuppressed_affinity(state, lists), 1.0),
            coactivation.firing_rates(state),
            coactivation.energies(state),
        )
        W.grad = None
        loss.backward()

    def refresh() -> None:
        found, _ = neighbours.top_similar(D, M)
        coactivation.retarget(state, lists, found)
        grouping.coactivation_groups(coactivation.sketch_directions(state), 0.5)

    return {
        "penalty": one_penalty,
        "statistics": lambda: coactivation.update(state, acts, lists, signs, 0.99, batch // 2),
        "refresh": refresh,
    }


def exponent(widths: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the slope of log seconds over log width, by least squares."""
    return float(np.polyfit(np.log(widths), np.log(seconds), 1)[0])


def measure(
    widths: Sequence[int], d_in: int, batch: int, rounds: int, device: str = "cpu"
) -> dict[str, dict[str, Any]]:
    """Return the median seconds of each part at each width, and the exponent fitted to them."""
    found: dict[str, list[float]] = {}
    for width in widths:
        calls = parts(d_in, width, batch, device)
        for name, call in progress(calls.items(), f"{width} latents"):
            found.setdefault(name, []).append(median_seconds(call, rounds, device))
    per_step = [p + s for p, s in zip(found["penalty"], found["statistics"], strict=True)]
    found["penalty + statistics"] = per_step
    return {
        name: {"seconds": seconds, "exponent": exponent(widths, seconds)}
        for name, seconds in found.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", nargs="+", type=int, default=[4096, 8192, 16384, 32768])
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    found = measure(args.widths, args.d_in, args.batch, args.rounds, args.device)
    for name, part in found.items():
        times = "  ".join(f"{s * 1e3:9.1f}" for s in part["seconds"])
        print(f"{name:21} {times} ms   d_sae^{part['exponent']:.2f}")
    if args.json:
        settings = {"d_in": args.d_in, "batch": args.batch, "widths": args.widths}
        write_json(args.json, {**settings, "threads": torch.get_num_threads(), "parts": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
