"""Measure the cost of evaluations: wall time, peak memory, and our overhead over SAEBench.

    python -m evals.performance.cost SAE [--evals core,unlearning,...] [--json FILE]

Each evaluation runs in a process of its own. The overhead is measured in one process, on core: our
driver and SAEBench, called directly, alternate on the same SAE, model and tokens. The overhead is
the median of the ratios of the pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.judging.contract import EvalContext
from saelens_adaptive_ortho.judging.isolation import model_served, tokens_served
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.running import run_evaluation
from saelens_adaptive_ortho.judging.saebench import core
from saelens_adaptive_ortho.judging.subjects import Subject, workbench_for
from saelens_adaptive_ortho.results import load_results

DEFAULT = "core,subspace,unlearning,sparse_probing,tpp"


def one_process(sae: str, name: str) -> dict[str, float]:
    """Return seconds of the evaluation, seconds of the whole process, and its peak MiB."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "saelens_adaptive_ortho.commands.cli", "eval", sae]
        started = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--evals", name, "--out", out],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, _, usage = os.wait4(process.pid, 0)
        whole = time.perf_counter() - started
        (result,) = load_results(out)
    return {
        "seconds": result.seconds or 0.0,
        "process_seconds": whole,
        "peak_mib": usage.ru_maxrss / 1024,
        "ok": float(result.ok),
    }


def overhead(sae: str, repeats: int) -> dict[str, float]:
    """Return the time of our driver divided by that of SAEBench called directly, on core."""
    subject = Subject.parse(sae)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        bench = workbench_for([subject], JudgingOptions(saes=[sae], out=out))
        context = EvalContext(bench, subject.load, subject.variant, subject.seed, out / "raw")
        settings = core.Settings()
        size = settings.batch_size_prompts
        parts = core.held_out_contexts(context, settings)
        parts = core.whole_batches(parts, size, core.shares_of(context))

        def driver() -> None:
            run_evaluation("core", context, {})

        def direct() -> None:
            from sae_bench.evals.core import main

            for domain, contexts in parts.items():
                sae = subject.load()
                sae.cfg.metadata.prepend_bos = bool(bench.prepend_bos)
                sae.fold_W_dec_norm()
                n = len(contexts) // size
                with (
                    model_served(bench.model),
                    tokens_served(main, contexts),
                    contextlib.redirect_stdout(io.StringIO()),
                ):
                    main.multiple_evals(
                        [(f"direct-{domain}", sae)],
                        n_eval_reconstruction_batches=n,
                        n_eval_sparsity_variance_batches=n,
                        eval_batch_size_prompts=size,
                        compute_featurewise_density_statistics=True,
                        compute_featurewise_weight_based_metrics=True,
                        exclude_special_tokens_from_reconstruction=True,
                        dataset="held-out",
                        context_size=contexts.shape[1],
                        output_folder=str(out / "direct"),
                        dtype=bench.dtype,
                        device=bench.device,
                        force_rerun=True,
                    )

        # On a CPU, processor time leaves out the time of other programs.
        clock = time.process_time if bench.device == "cpu" else time.perf_counter
        times: dict[Callable[[], None], list[float]] = {direct: [], driver: []}
        for number in range(repeats + 1):
            for run in times:
                started = clock()
                run()
                if number:  # the first round warms up
                    times[run].append(clock() - started)
    ratios = sorted(b / a for a, b in zip(times[direct], times[driver], strict=True))
    return {
        "direct_seconds": statistics.median(times[direct]),
        "driver_seconds": statistics.median(times[driver]),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "repeats": repeats,
    }


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sae")
    parser.add_argument("--evals", default=DEFAULT)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    costs = {}
    for name in args.evals.split(","):
        costs[name] = one_process(args.sae, name)
        print(f"{name:16} " + "  ".join(f"{k} {v:.1f}" for k, v in costs[name].items()))
    found = overhead(args.sae, args.repeats)
    print("overhead         " + "  ".join(f"{k} {v:.3f}" for k, v in found.items()))
    if args.json:
        write_json(args.json, {"sae": args.sae, "evaluations": costs, "overhead": found})


if __name__ == "__main__":
    main()
