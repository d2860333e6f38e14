"""Constructed results and runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from saelens_adaptive_ortho.evaluations import BUILT_IN, Evaluation
from saelens_adaptive_ortho.report.statistics import Summary
from saelens_adaptive_ortho.report.tables import terminal_table
from saelens_adaptive_ortho.results import (
    Result,
    result_path,
    write_result,
)

EV = "core/pooled/explained_variance"
ANGLE = "subspace/principal_angle/mean_deg"
COSINE = "subspace/mean_max_cosine"
VARIANTS = ("baseline", "fixed", "adaptive")
KS = (1, 2, 5, 10, 20, 50)
DAMAGE = [f"loss/forget_damage_at_{limit}" for limit in ("0.05", "0.10", "0.20")]
ACCURACY = [f"mcq/forget_accuracy_at_{limit}" for limit in ("0.99", "0.95", "0.90")]
FAILED = "ravel"  # the evaluation that failed for every SAE in `every_result`
#: Evaluations whose values `every_result` writes by hand; the other built-in ones get defaults.
BY_HAND = (
    *("core", "subspace", "unlearning", "sparse_probing", "sae_probes"),
    *("absorption", "tpp", "scr", "training", FAILED),
)
#: Differences of three seeds. The first are significant (t = 54). The second are neither
#: significant nor equivalent within a margin of 0.3. The third are equivalent within 0.05.
CLEAR, UNCLEAR, SMALL = (0.30, 0.31, 0.32), (-0.2, 0.0, 0.2), (-0.01, 0.0, 0.01)


def result(
    eval: str, variant: str, seed: int, metrics: Mapping[str, float | None], **rest: Any
) -> Result:
    return Result(eval, variant, seed, metrics=metrics, **rest)


def core(
    variant: str, values: list[float | None], name: str = "explained_variance"
) -> list[Result]:
    return [result("core", variant, s, {f"pooled/{name}": v}) for s, v in enumerate(values)]


def put(run: Path, *results: Result) -> Path:
    for each in results:
        write_result(result_path(run, each.variant, each.seed, each.eval), each)
    return run


def full_run(run: Path) -> Path:
    for v, variant in enumerate(("baseline", "adaptive")):
        for seed in range(3):
            history = [
                {
                    "step": step,
                    "n_training_samples": 10 * step,
                    "mse_loss": 1 / (step + 1),
                    "explained_variance": 1 - 1 / (step + 2),
                    "l0": 8.0,
                    "ortho_loss": 0.1 if v else None,
                }
                for step in range(5)
            ]
            groups = [
                {"step": s, "n_groups": 4 + s, "largest": 9, "churn": 0.5 / (s + 1)}
                for s in range(3)
            ]
            put(
                run,
                result(
                    "core",
                    variant,
                    seed,
                    {
                        "pooled/explained_variance": 0.9 + 0.001 * seed - 0.01 * v,
                        "pooled/ce_loss_score": 0.95 + 0.002 * seed * (-1) ** v,
                        "pooled/l0": 8.0,
                        "forget/frac_alive": 0.7,
                    },
                    versions={"sae-lens": "6.54.12"},
                    seconds=2.0,
                ),
                result(
                    "subspace",
                    variant,
                    seed,
                    {
                        "principal_angle/mean_deg": 50.0 + seed + (10 + 0.1 * seed) * v,
                        "mean_max_cosine": 0.4 - 0.1 * v + 0.01 * seed * (1 + v),
                        "condition_number/forget+retain": None,
                    },
                    details={
                        "principal_angles_deg": [40.0 + v, 60.0][: 2 - seed % 2],
                        "cosine_histogram": {"edges": [-1, -0.5, 0, 1], "counts": [0, 9, 1]},
                        "firing_rates": {"forget": [0.1, 0.0, 0.02], "retain": [0.0, 0.2, 0.01]},
                    },
                ),
                result(
                    "training",
                    variant,
                    seed,
                    {"train_seconds": 3.0 + v, "tokens": 40},
                    details={"history": history, "groups": groups},
                ),
            )
    (run / "config.yaml").write_text("model: tiny <&>\n", encoding="utf-8")
    return run


def differing(
    eval: str, shifts: Mapping[str, Sequence[float]], reference: str = "fixed"
) -> list[Result]:
    """Return results of adaptive and a reference that differ by the given amounts per seed."""
    seeds = range(len(next(iter(shifts.values()))))
    return [
        Result(
            eval,
            variant,
            seed,
            metrics={
                name: 0.5 + 0.01 * seed + (shift[seed] if variant == "adaptive" else 0.0)
                for name, shift in shifts.items()
            },
        )
        for variant in (reference, "adaptive")
        for seed in seeds
    ]


def failed(eval: str, reason: str) -> list[Result]:
    return [Result(eval, v, seed, "failed", reason) for v in VARIANTS for seed in range(3)]


def unlearning(gain: float, noise: np.random.Generator, mcq: bool = True) -> tuple[Any, Any]:
    """Return metrics and details of one SAE with smooth frontiers."""
    metrics: dict[str, float | None] = {}
    x = np.linspace(0, 0.3, 31)
    y = (1.2 + gain + 0.08 * noise.normal()) * np.sqrt(x) + 0.4 * x
    details: dict[str, Any] = {
        "frontiers": {"loss": {"x": x, "y": y, "low": 0.9 * y, "high": 1.1 * y}},
        "reference_frontiers": {"loss": {"detector": {"x": x, "y": 2 * y}}},
        "points": {"loss": [[a, b * noise.random()] for a, b in zip(x, y, strict=True)]},
        "verdict": "On text, forget damage is above retain damage at every limit.",
    }
    for limit, name in zip((0.05, 0.1, 0.2), DAMAGE, strict=True):
        metrics[name] = float(np.interp(limit, x, y))
        metrics[f"{name}_halfwidth"] = 0.1 * float(np.interp(limit, x, y))
    metrics["loss/area"] = float(y.mean())
    metrics["score"] = 0.03 + 0.02 * noise.random()
    if not mcq:
        details["mcq_reason"] = "the model answers no more questions than chance"
        return metrics, details
    x = np.linspace(1, 0, 101)
    y = np.maximum(0.2, 1 - (1 + 0.4 * gain + 0.1 * noise.normal()) * np.sqrt(1 - x))
    details["frontiers"]["mcq"] = {"x": x, "y": y, "low": y - 0.05, "high": y + 0.05}
    details["points"]["mcq"] = [[a, b + 0.2 * noise.random()] for a, b in zip(x, y, strict=True)]
    for limit, name in zip((0.99, 0.95, 0.90), ACCURACY, strict=True):
        metrics[name] = float(np.interp(limit, x[::-1], y[::-1]))
        metrics[f"{name}_halfwidth"] = 0.05
    metrics |= {
        "mcq/area": float(y.mean()),
        "mcq/original_forget_accuracy": 1.0,
        "mcq/original_retain_accuracy": 1.0,
        "mcq/chance": 0.25,
        "mcq/n_forget_questions": 512.0,
        "mcq/n_retain_questions": 384.0,
    }
    return metrics, details


def probing(measure: str, gain: float, noise: np.random.Generator) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {f"llm_{measure}": 0.94, f"sae_{measure}": 0.93}
    for k in KS:
        rise = 0.06 * np.log(k)
        metrics[f"sae_top_{k}_{measure}"] = 0.68 + gain + rise + 0.008 * noise.normal()
        metrics[f"llm_top_{k}_{measure}"] = 0.62 + rise
        metrics[f"pca_top_{k}_{measure}"] = 0.60 + 1.1 * rise
    return metrics


def default_metrics(info: Evaluation, noise: np.random.Generator) -> dict[str, float | None]:
    """A value in [0, 1) for each metric of an evaluation; ``{n}`` in a name becomes 10."""
    names = (*info.primary, *info.headline, *info.glance, *info.metrics)
    return {name.replace("{n}", "10"): noise.random() for name in names}


def every_result(seeds: int = 3, mcq: bool = True) -> list[Result]:
    """A run with every evaluation, an unknown one, and one that failed for every SAE.

    A built-in evaluation that is not in ``BY_HAND`` gets :func:`default_metrics`.
    """
    results = []
    for v, variant in enumerate(VARIANTS):
        for seed in range(seeds):
            noise = np.random.default_rng(100 * v + seed)
            metrics, details = unlearning(0.3 * v, noise, mcq)
            found: dict[str, Any] = {
                "core": {
                    f"{domain}/{name}": value + 0.003 * noise.normal() - 0.004 * (v == 1)
                    for domain in ("pooled", "forget", "retain")
                    for name, value in (
                        ("explained_variance", 0.9),
                        ("ce_loss_score", 0.96),
                        ("l0", 27.0),
                        ("frac_alive", 0.9),
                        ("mse", 0.1),
                    )
                },
                "subspace": {
                    "principal_angle/mean_deg": 48 + 3 * v + noise.normal(),
                    "principal_angle/min_deg": 15 + noise.normal(),
                    "mean_max_cosine": 0.39 - 0.05 * v + 0.003 * noise.normal(),
                    "condition_number/forget+retain": 40 + 5 * noise.normal(),
                },
                "unlearning": metrics,
                "sparse_probing": probing("accuracy", 0.01 * v, noise),
                "sae_probes": probing("auc", 0.01 * v, noise) | probing("accuracy", 0.0, noise),
                "absorption": {
                    "full_absorption": 0.12 - 0.02 * v + 0.01 * noise.normal(),
                    "absorption_fraction": 0.2 + 0.01 * noise.normal(),
                    "n_split_features": 1.2 + 0.1 * noise.normal(),
                    "n_letters": 24.0,
                },
                "tpp": {
                    f"threshold_{n}{part}": share * (0.05 * np.log(n) + 0.01 * noise.normal())
                    for n in (2, 5, 10, 20, 50, 100, 500)
                    for part, share in (("", 1.0), ("_intended", 1.2), ("_unintended", 0.2))
                },
                "scr": {
                    f"threshold_{n}": 0.05 * np.log(n) + 0.02 * noise.normal()
                    for n in (2, 5, 10, 20, 50, 100, 500)
                },
                "training": {"train_seconds": 200 + 10 * v + 5 * noise.normal(), "tokens": 1e6},
                "later_probe": {"some_score": noise.random(), "other_score": noise.random()},
            }
            found |= {
                info.name: default_metrics(info, noise)
                for info in BUILT_IN
                if info.name not in BY_HAND
            }
            results += [
                Result(
                    eval,
                    variant,
                    seed,
                    seconds=60.0 + seed,
                    metrics=values,
                    details=details if eval == "unlearning" else {},
                )
                for eval, values in found.items()
            ]
    reason = "needs a model that answers multiple choice: 26% right of 4 options"
    results += [
        Result(FAILED, variant, seed, "failed", reason)
        for variant in VARIANTS
        for seed in range(seeds)
    ]
    return results


def shown(summary: Summary, width: int = 120, full: bool = True) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(terminal_table(summary, full))
    return console.export_text()
