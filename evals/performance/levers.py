"""Measure whole trainings, from text to SAE, with and without each speed-up ("lever").

Every training starts from the same weights. Our trainings also use the same batches, so that their
results can be compared. Each time is compared with SAELens's own runner on the same text, and with
one training of ours. The second ratio shows the cost of three variants that share one activation
stream. The speeds that ``adaptive-ortho plan`` predicts for our defaults are measured, too.

``--gpu`` measures the same on CUDA, with an untrained model of the shape of SmolLM2-135M (nothing
is fetched, and the weights of the model do not matter here) and an SAE of 576 x 16,384.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from saelens_adaptive_ortho.demo import MODEL_DIR
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.experiment import Experiment, load_experiment
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.host.architectures import PREFIX
from saelens_adaptive_ortho.host.config import OrthoConfig
from saelens_adaptive_ortho.progress import progress
from saelens_adaptive_ortho.text.activation_cache import FOLDER_VARIABLE
from saelens_adaptive_ortho.training.costs import measure_costs
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared, prepare
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig

ONE = {"baseline": {"ortho_mode": "off"}}
THREE = {
    **ONE,
    "fixed": {"ortho_mode": "fixed"},
    "adaptive": {"ortho_mode": "adaptive"},
}
PLAIN = {"ortho_sparse_products": False, "prefetch_llm_batches": False}
CACHED = {"ortho_cache_activations": True}
# Name of a training -> settings of the runner and variants, in the order of the table.
TRAININGS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "one variant, no lever": (PLAIN, ONE),
    "bf16 autocast of the SAE": ({**PLAIN, "autocast": True}, ONE),
    "bf16 autocast of the model": ({**PLAIN, "autocast_lm": True}, ONE),
    "prefetching": ({**PLAIN, "prefetch_llm_batches": True}, ONE),
    "sparse products (default)": ({}, ONE),
    "three variants, no lever": (PLAIN, THREE),
    "three variants (default)": ({}, THREE),
    "three variants, activations in the cache": (CACHED, THREE),
}
DEFAULT, DEFAULT_THREE = "sparse products (default)", "three variants (default)"
HOST = "SAELens's own runner"


def measure(
    experiment: Experiment, rounds: int, names: Sequence[str] = tuple(TRAININGS)
) -> dict[str, Any]:
    """Return the median seconds of each training over rounds in which all trainings take turns.

    The first round warms up and is dropped. It also fills the cache of activations.

    Args:
        experiment: text, model and SAE.
        rounds: timed rounds.
        names: trainings of ``TRAININGS``, beside SAELens's own runner and our default.
    """
    cfg = experiment.runner
    cfg.output_path = cfg.checkpoint_path = None
    prepared = prepare(cfg)
    chosen = {name: TRAININGS[name] for name in TRAININGS if name in {*names, DEFAULT}}
    trainings: dict[str, Callable[[], dict[str, Any]]] = {
        HOST: lambda: _host(cfg, prepared),
        **{
            name: lambda changes=changes, variants=variants: _ours(
                experiment, prepared, changes, variants
            )
            for name, (changes, variants) in chosen.items()
        },
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    results: dict[str, dict[str, Any]] = {}
    predicted = {}
    for turn in progress(range(rounds + 1), "Trainings", unit=" rounds", leave=True):
        for name, train in trainings.items():
            _wait(cfg.device)
            started = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                results[name] = train()
            _wait(cfg.device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
        if turn == 1:  # when everything has run once
            predicted = {
                name: _predicted(cfg, prepared, *chosen[name])
                for name in (DEFAULT, DEFAULT_THREE)
                if name in chosen
            }
    reference = results.get("one variant, no lever")
    host, one = seconds[HOST], seconds[DEFAULT]
    rows = []
    for name, values in seconds.items():
        result = results[name]
        ours = name != HOST
        rows.append(
            {
                "training": name,
                "seconds": statistics.median(values),
                "tokens_per_second": cfg.training_tokens / statistics.median(values),
                "predicted_tokens_per_second": predicted.get(name),
                "to_saelens": _ratios(values, host),
                "to_one": _ratios(values, one),
                "explained_variance": result.get("explained_variance"),
                "deviation": _deviation(result["W_dec"], reference["W_dec"])
                if ours and reference
                else None,
                "activation_seconds": result.get("activations"),
            }
        )
    return {
        "model": Path(cfg.model_name).name,
        "device": torch.cuda.get_device_name() if cfg.device.startswith("cuda") else "CPU",
        "torch": str(torch.__version__),
        "d_in": cfg.sae.d_in,
        "d_sae": cfg.sae.d_sae,
        "tokens": cfg.training_tokens,
        "batch": cfg.train_batch_size_tokens,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "full_forward_ratio": _full_forward_ratio(cfg, prepared, rounds),
        "rows": rows,
    }


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _predicted(
    cfg: AdaptiveOrthoRunnerConfig,
    prepared: Prepared,
    changes: dict[str, Any],
    variants: dict[str, dict[str, Any]],
) -> float:
    """Return the tokens per second that ``adaptive-ortho plan`` predicts."""
    with contextlib.redirect_stderr(io.StringIO()):
        runner = AdaptiveOrthoRunner(replace(cfg, **changes), variants, prepared)
        return measure_costs(runner).tokens_per_second


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


def gpu_settings(folder: Path) -> dict[str, Any]:
    """Make an untrained model of the shape of SmolLM2-135M, and return the settings of ``--gpu``.

    The text is that of the demo, so the vocabulary is small. The model is read up to layer 12 of
    30, where neither the vocabulary nor the later layers cost anything.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
    )
    AutoModelForCausalLM.from_config(shape).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "model_name": str(folder),
        "model_from_pretrained_kwargs": {"dtype": "bfloat16"},
        "hook_name": "blocks.12.hook_resid_post",
        "device": "cuda",
        "autocast": True,
        "sae.d_in": 576,
        "sae.d_sae": 16_384,
        "sae.k": 64,
        "store_batch_size_prompts": 128,
        "train_batch_size_tokens": 4096,
        "training_tokens": 819_200,
    }


@contextlib.contextmanager
def _warnings_logged_nowhere() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Keep cached activations in this folder, not in the user's cache."""
    before = os.environ.get(FOLDER_VARIABLE)
    os.environ[FOLDER_VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER_VARIABLE]
        if before is not None:
            os.environ[FOLDER_VARIABLE] = before


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default="configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), metavar="NAME"
    )
    parser.add_argument("--gpu", action="store_true", help="on CUDA, with a model made for it")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.gpu and not torch.cuda.is_available():
        parser.error("--gpu: PyTorch finds no CUDA device.")
    with (
        _warnings_logged_nowhere(),
        tempfile.TemporaryDirectory() as scratch,
        _cache_in(Path(scratch) / "cache"),
    ):
        changes = gpu_settings(Path(scratch) / "smollm2-135m-untrained") if args.gpu else {}
        overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        try:
            experiment = load_experiment(args.config, [*overrides, *args.overrides])
            found = measure(experiment, args.rounds, args.trainings)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    for row in found["rows"]:
        print(line(row))
    print(f"model stopped at the hook: {found['full_forward_ratio']['median']:.2f} of the whole")
    if args.json:
        write_json(args.json, found)
    return 0


def line(row: dict[str, Any]) -> str:
    """Return a row as text for the terminal."""
    text = f"{row['training']:41} {row['seconds']:7.1f} s {row['tokens_per_second']:9,.0f} tokens/s"
    text += f"  {row['to_saelens']['median']:.2f} of SAELens"
    text += f"  {row['to_one']['median']:.2f} of one training"
    predicted = row["predicted_tokens_per_second"]
    return text + (f"  (plan says {predicted:,.0f} tokens/s)" if predicted else "")


if __name__ == "__main__":
    sys.exit(main())
