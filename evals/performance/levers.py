"""Measure whole trainings, from text to SAE, with and without each speed-up ("lever").

Every training starts from the same weights. Our trainings also use the same batches, so that their
results can be compared. Each time is compared with SAELens's own runner on the same text, and with
one training of ours. The second ratio shows the cost of three variants that share one activation
stream.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, TrainingSAE
from sae_lens.config import LoggingConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor
from tqdm.auto import tqdm

from saelens_adaptive_ortho.commands.experiment import Experiment, load_experiment
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.host.architectures import PREFIX
from saelens_adaptive_ortho.host.config import OrthoConfig
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared, prepare
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig

ONE = {"baseline": {"ortho_mode": "off"}}
THREE = {
    **ONE,
    "fixed": {"ortho_mode": "fixed"},
    "adaptive": {"ortho_mode": "adaptive"},
}
PLAIN = {"ortho_sparse_products": False, "prefetch_llm_batches": False}
# Name of a training -> settings of the runner and variants, in the order of the table.
TRAININGS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "one variant, no lever": (PLAIN, ONE),
    "bf16 autocast of the SAE": ({**PLAIN, "autocast": True}, ONE),
    "bf16 autocast of the model": ({**PLAIN, "autocast_lm": True}, ONE),
    "prefetching": ({**PLAIN, "prefetch_llm_batches": True}, ONE),
    "sparse products (default)": ({}, ONE),
    "three variants, no lever": (PLAIN, THREE),
    "three variants (default)": ({}, THREE),
}
HOST = "SAELens's own runner"


def measure(experiment: Experiment, rounds: int) -> dict[str, Any]:
    """Return the median seconds of each training over rounds in which all trainings take turns.

    The first round warms up and is dropped.
    """
    cfg = experiment.runner
    cfg.output_path = cfg.checkpoint_path = None
    prepared = prepare(cfg)
    trainings: dict[str, Callable[[], dict[str, Any]]] = {
        HOST: lambda: _host(cfg, prepared),
        **{
            name: lambda changes=changes, variants=variants: _ours(
                experiment, prepared, changes, variants
            )
            for name, (changes, variants) in TRAININGS.items()
        },
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    results: dict[str, dict[str, Any]] = {}
    for turn in tqdm(range(rounds + 1), desc="Trainings", unit=" rounds"):
        for name, train in trainings.items():
            started = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                results[name] = train()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    reference = results["one variant, no lever"]["W_dec"]
    host, one = seconds[HOST], seconds["sparse products (default)"]
    rows = []
    for name, values in seconds.items():
        result = results[name]
        rows.append(
            {
                "training": name,
                "seconds": statistics.median(values),
                "to_saelens": _ratios(values, host),
                "to_one": _ratios(values, one),
                "explained_variance": result.get("explained_variance"),
                "deviation": None if name == HOST else _deviation(result["W_dec"], reference),
                "activation_seconds": result.get("activations"),
            }
        )
    return {
        "d_in": cfg.sae.d_in,
        "d_sae": cfg.sae.d_sae,
        "tokens": cfg.training_tokens,
        "batch": cfg.train_batch_size_tokens,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "full_forward_ratio": _full_forward_ratio(cfg, prepared, rounds),
        "rows": rows,
    }


def _ratios(seconds: list[float], reference: list[float]) -> dict[str, float]:
    """Return median and range of ``seconds / reference`` over rounds."""
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def _deviation(W: Tensor, reference: Tensor) -> float:
    return float((W - reference).norm() / reference.norm())


def _ours(
    experiment: Experiment,
    prepared: Prepared,
    changes: dict[str, Any],
    variants: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    cfg = experiment.runner
    runner = AdaptiveOrthoRunner(replace(cfg, **changes), variants, prepared)
    runner.run()
    state = runner.trainer.state
    return {
        "W_dec": runner.saes["baseline"].W_dec.detach().clone(),
        "explained_variance": state.history["baseline"][-1]["explained_variance"],
        "activations": state.seconds["activations"],
    }


def _host(cfg: AdaptiveOrthoRunnerConfig, prepared: Prepared) -> dict[str, Any]:
    """Train with stock SAELens: its own classes, its own runner, its defaults."""
    sae_class, sae_config = get_sae_training_class(cfg.sae.architecture().removeprefix(PREFIX))
    ortho = {*OrthoConfig.__dataclass_fields__, "metadata"}
    sae_cfg = sae_config(
        **{
            f.name: getattr(cfg.sae, f.name)
            for f in fields(sae_config)
            if f.init and f.name not in ortho
        }
    )
    ours = {f.name for f in fields(AdaptiveOrthoRunnerConfig) if f.name.startswith("ortho_")}
    ours |= {"sae", "sae_lens_version", "sae_lens_training_version", "logger"}
    kept = {
        f.name: getattr(cfg, f.name)
        for f in fields(LanguageModelSAERunnerConfig)
        if f.init and f.name not in ours
    }
    kept |= {"is_dataset_tokenized": True, "checkpoint_path": None, "output_path": None}
    host_cfg = LanguageModelSAERunnerConfig(
        sae=sae_cfg, logger=LoggingConfig(log_to_wandb=False), **kept
    )
    torch.manual_seed(cfg.seed)
    sae: TrainingSAE[Any] = sae_class(sae_cfg)
    contexts = torch.cat([c.train for c in prepared.corpora])
    contexts = contexts[torch.randperm(len(contexts))]
    dataset = Dataset.from_dict({"tokens": contexts.tolist()})
    LanguageModelSAETrainingRunner(host_cfg, dataset, prepared.model, sae).run()
    return {"W_dec": sae.W_dec.detach()}


@torch.no_grad()
def _full_forward_ratio(
    cfg: AdaptiveOrthoRunnerConfig, prepared: Prepared, rounds: int
) -> dict[str, float]:
    """Return the time of a forward pass that stops after the hook over that of a whole one.

    SAELens stops after the hook.
    """
    model, tokens = prepared.model, prepared.corpora[0].train[: cfg.store_batch_size_prompts].long()
    stop_at = extract_stop_at_layer_from_tlens_hook_name(cfg.hook_name)
    times: dict[int | None, list[float]] = {stop_at: [], None: []}
    for turn in range(rounds + 1):
        for stop, values in times.items():
            started = time.perf_counter()
            model.run_with_cache(
                tokens, names_filter=[cfg.hook_name], stop_at_layer=stop, prepend_bos=False
            )
            if turn:
                values.append(time.perf_counter() - started)
    return _ratios(times[stop_at], times[None])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default="configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    try:
        found = measure(load_experiment(args.config, args.overrides), args.rounds)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in found["rows"]:
        print(
            f"{row['training']:28} {row['seconds']:7.1f} s  {row['to_saelens']['median']:.2f} of "
            f"SAELens  {row['to_one']['median']:.2f} of one training  deviation {row['deviation']}"
        )
    print(f"model stopped at the hook: {found['full_forward_ratio']['median']:.2f} of the whole")
    if args.json:
        write_json(args.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
