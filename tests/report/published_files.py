"""Result files in SAEBench's form, with invented numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL, HOOK, D_SAE = "tiny-1b", "blocks.8.hook_resid_post", 4096
NS, KS = (2, 5, 10, 20, 50, 100, 500), (1, 2, 5, 10, 20, 50, 100)
#: The ``eval_type_id`` of each kind of file -> our name of the evaluation.
KINDS = {
    "core": "core",
    "sparse_probing": "sparse_probing",
    "sparse_probing_sae_probes": "sae_probes",
    "absorption_first_letter": "absorption",
    "scr": "scr",
    "tpp": "tpp",
    "ravel": "ravel",
    "unlearning": "unlearning",
}


def core(l0: float, explained_variance: float, **scores: float) -> dict[str, Any]:
    return {
        "model_behavior_preservation": {
            "kl_div_score": 0.95,
            "kl_div_with_ablation": 10.0,
            "kl_div_with_sae": 0.5,
        },
        "model_performance_preservation": {
            "ce_loss_score": scores.get("ce_loss_score", 0.97),
            "ce_loss_with_ablation": 12.0,
            "ce_loss_with_sae": 3.1,
            "ce_loss_without_sae": 3.0,
        },
        "reconstruction_quality": {
            "explained_variance": explained_variance,
            "explained_variance_legacy": scores.get("legacy", 0.7),
            "mse": 1.0,
            "cossim": 0.9,
        },
        "shrinkage": {
            "l2_norm_in": 10.0,
            "l2_norm_out": 9.0,
            "l2_ratio": 0.9,
            "relative_reconstruction_bias": 1.0,
        },
        "sparsity": {"l0": l0, "l1": 50.0},
        "token_stats": {
            "total_tokens_eval_reconstruction": 1000,
            "total_tokens_eval_sparsity_variance": 1000,
        },
        "misc_metrics": {
            "freq_over_1_percent": 0.1,
            "freq_over_10_percent": 0.01,
            "normalized_freq_over_1_percent": 0.2,
            "normalized_freq_over_10_percent": 0.02,
            "average_max_encoder_cosine_sim": 0.3,
            "average_max_decoder_cosine_sim": 0.4,
            "frac_alive": 0.9,
        },
    }


def metrics_of(kind: str) -> dict[str, Any]:
    """Invented metrics of each kind of file; a score with the number n in its name is n / 1000."""
    if kind == "core":
        return core(40.0, 0.8)
    if kind in ("sparse_probing", "sparse_probing_sae_probes"):
        scores = ("accuracy",) if kind == "sparse_probing" else ("accuracy", "auc", "f1")
        sae = {f"sae_top_{k}_test_{s}": k / 1000 for k in KS for s in scores}
        return {"llm": {"llm_test_accuracy": 0.95}, "sae": {"sae_test_accuracy": None, **sae}}
    if kind == "absorption_first_letter":
        names = ("absorption_fraction_score", "full_absorption_score", "num_split_features")
        means = {f"mean_{name}": 0.1 * i for i, name in enumerate(names)}
        return {"mean": means | {f"std_dev_{name}": 0.01 for name in names}}
    if kind == "scr":
        parts = ("dir1", "metric", "dir2")
        return {"scr_metrics": {f"scr_{p}_threshold_{n}": n / 1000 for n in NS for p in parts}}
    if kind == "tpp":
        ends = {"total_metric": 1, "intended_diff_only": 2, "unintended_diff_only": 3}
        return {
            "tpp_metrics": {
                f"tpp_threshold_{n}_{end}": factor * n / 1000
                for n in NS
                for end, factor in ends.items()
            }
        }
    if kind == "ravel":
        scores = {"disentanglement_score": 0.6, "cause_score": 0.5, "isolation_score": 0.7}
        return {"ravel": scores}
    assert kind == "unlearning"
    return {"unlearning": {"unlearning_score": 0.05}}


def document(
    kind: str,
    metrics: Mapping[str, Any],
    release: str = "bench_topk_trainer_0",
    architecture: str = "topk",
    made: int = 1737009408554,
    **config: Any,
) -> dict[str, Any]:
    return {
        "eval_type_id": kind,
        "eval_config": {"model_name": MODEL},
        "eval_id": "9b853a36-4822-4632-b220-0beafe91faab",
        "datetime_epoch_millis": made,
        "eval_result_metrics": dict(metrics),
        "eval_result_details": [],
        "sae_bench_commit_hash": "141aff72928f7588c1451bed47c401e1d565d471",
        "sae_lens_id": "custom_sae",
        "sae_lens_release_id": release,
        "sae_lens_version": "5.3.1",
        "sae_cfg_dict": {
            "model_name": MODEL,
            "d_in": 768,
            "d_sae": D_SAE,
            "hook_layer": 8,
            "hook_name": HOOK,
            "architecture": architecture,
            "training_tokens": 499998720,
            **config,
        },
        "eval_result_unstructured": None,
    }


def write(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write a document where SAEBench would write it: a folder per kind, a file per SAE."""
    name = f"{found['sae_lens_release_id']}_{found['sae_lens_id']}_eval_results.json"
    path = folder / found["eval_type_id"] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=4), encoding="utf-8")
    return path


def sweep(folder: Path, architecture: str, points: Mapping[float, float], **config: Any) -> None:
    """Core and sparse probing of an SAE for each L0; the values are those of ``points``."""
    for number, (l0, value) in enumerate(points.items()):
        release = f"bench_{architecture}_trainer_{number}"
        scores = core(l0, value, legacy=value - 0.1, ce_loss_score=value + 0.1)
        write(folder, document("core", scores, release, architecture, **config))
        probes = {"llm": {}, "sae": {"sae_top_5_test_accuracy": value - 0.05}}
        write(folder, document("sparse_probing", probes, release, architecture, **config))
