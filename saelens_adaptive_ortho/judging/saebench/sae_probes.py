"""SAEBench's sae-probes: k-sparse probes at the last token, on data sets of the package sae_probes.

There are three baselines without an SAE: the package's logistic regression on all raw activations,
and the k-sparse probe on raw dimensions and on principal components. Everything is seeded. Every
SAE gets a new results folder, because the package reuses results that it finds.
"""

from __future__ import annotations

import difflib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelens_adaptive_ortho.evaluations.contract import probe_name
from saelens_adaptive_ortho.evaluations.sae_probes import Settings
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.saebench.session import keep_output, prepared_sae, session
from saelens_adaptive_ortho.judging.saebench.tasks import shared_artifacts

K_VALUES = (1, 2, 5, 10, 20, 50, 100)  # SAEBench's result has fields for these
ALL = "all"
SCORES = {"test_auc": "auc", "test_acc": "accuracy", "test_f1": "f1"}  # in sae-probes' files
ACTIVATIONS, LOGREG, K_SPARSE = "activations", "logreg", "k_sparse.json"

Encode = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n f"]]
Scores = dict[str, dict[str, float]]  # by data set, then metric


def run(context: EvalContext, settings: Settings) -> Outcome:
    """AUC, accuracy and F1 of binary classification, averaged over data sets; chance is 0.5.

    - ``sae_top_{k}_auc``: a probe on the ``k`` latents whose means differ most between classes;
    - ``llm_auc``: a probe on all raw activations;
    - ``llm_top_{k}_auc``: a probe on ``k`` raw dimensions;
    - ``pca_top_{k}_auc``: a probe on ``k`` principal components.

    Raises:
        EvaluationError: a data set is unknown, or SAEBench's result has no field for a ``k``.
    """
    if not settings.k_values or set(settings.k_values) - set(K_VALUES):
        raise EvaluationError(f"k_values must be some of {list(K_VALUES)}, not {settings.k_values}")
    sae = prepared_sae(context)
    hook_name = sae.cfg.metadata.hook_name
    model_cfg: Any = context.model.cfg
    length = min(settings.context_length, model_cfg.n_ctx)
    with session(context) as folder, _warnings_kept():
        datasets = _datasets(settings.datasets)
        parts = (datasets, settings.k_values, length, settings.llm_batch_size, settings.seed)
        with shared_artifacts(context, "sae_probes", hook_name, *parts) as artifacts:
            if not (artifacts / K_SPARSE).is_file():
                _make_activations(context, datasets, hook_name, length, settings, artifacts)
                _make_baselines(context, datasets, hook_name, settings, artifacts)
        # The artifacts are complete now, even if this SAE fails. Every SAE reads them from disk.
        with shared_artifacts(context, "sae_probes", hook_name, *parts) as artifacts:
            k_sparse: dict[str, Scores] = json.loads((artifacts / K_SPARSE).read_text())
            found, file = _run_eval(context, settings, sae, datasets, artifacts, folder)
    by_dataset = {
        name: found[name] | k_sparse["llm"][name] | k_sparse["pca"][name] for name in datasets
    }
    metrics: dict[str, float | None] = {
        metric: sum(scores[metric] for scores in by_dataset.values()) / len(datasets)
        for metric in by_dataset[datasets[0]]
    }
    return Outcome(metrics, {"by_dataset": by_dataset, "sae_bench_file": file})


@contextmanager
def _warnings_kept() -> Iterator[None]:
    """Restore the warning filters, which sae-probes changes on import; hide scikit-learn's."""
    with warnings.catch_warnings():
        from sae_probes import run_sae_evals  # noqa: F401  the import changes the filters

        warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
        warnings.filterwarnings("ignore", category=FutureWarning, module="sklearn")
        yield


def _datasets(names: list[str]) -> list[str]:
    from sae_probes import DATASETS

    if names == [ALL]:
        return list(DATASETS)
    for name in names:
        if name not in DATASETS:
            near = difflib.get_close_matches(name, DATASETS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise EvaluationError(f"sae-probes has no data set {name!r}{hint}")
    if not names:
        raise EvaluationError(f"datasets is empty: name some, or give [{ALL}]")
    return list(dict.fromkeys(names))


def _make_activations(
    context: EvalContext,
    datasets: list[str],
    hook_name: str,
    length: int,
    settings: Settings,
    artifacts: Path,
) -> None:
    """Compute activations at the last token of every text, in sae-probes' file format."""
    from sae_probes.generate_model_activations import ensure_dataset_activations

    tokenizer: Any = context.model.tokenizer
    sides = tokenizer.truncation_side, tokenizer.padding_side
    try:
        ensure_dataset_activations(
            model_name=context.bench.model_label,
            dataset_short_names=datasets,
            hook_names=[hook_name],
            model_cache_path=artifacts / ACTIVATIONS,
            device=context.bench.device,
            max_seq_len=length,
            batch_size=settings.llm_batch_size,
            model=context.model,  # type: ignore[arg-type]
        )
    finally:
        tokenizer.truncation_side, tokenizer.padding_side = sides
    for file in (artifacts / ACTIVATIONS).rglob("*.pt"):
        activations = torch.load(file, weights_only=True)
        if activations.dtype != torch.float32:  # scikit-learn does not support bfloat16
            torch.save(activations.float(), file)


class _EncodeOnly:
    """An object with ``encode``, the only part of an SAE that sae-probes uses."""

    def __init__(self, encode: Encode) -> None:
        self.encode = encode


def _make_baselines(
    context: EvalContext, datasets: list[str], hook_name: str, settings: Settings, artifacts: Path
) -> None:
    """Run sae-probes' own baseline, and the k-sparse probe without an SAE."""
    from sae_probes import run_baseline_evals, run_sae_evals
    from sae_probes.run_sae_evals import DATASET_SIZES
    from sae_probes.utils_data import get_xy_traintest

    common: dict[str, Any] = {
        "model_name": context.bench.model_label,
        "hook_name": hook_name,
        "model_cache_path": artifacts / ACTIVATIONS,
        "seed": settings.seed,
    }
    run_baseline_evals(
        setting="normal",
        results_path=artifacts / LOGREG,
        datasets=datasets,
        device=context.bench.device,
        **common,
    )
    found: dict[str, Scores] = {"llm": {}, "pca": {}}
    for name in datasets:
        n_train = min(DATASET_SIZES[name] - 100, 1024)  # the split of sae-probes
        rows = get_xy_traintest(n_train, name, **common)[0]
        for kind, encode in (("llm", lambda x: x), ("pca", pca_encoder(rows))):
            results = artifacts / kind
            run_sae_evals(
                sae=_EncodeOnly(encode),  # type: ignore[arg-type]
                reg_type="l1",
                setting="normal",
                ks=settings.k_values,
                results_path=results,
                datasets=[name],
                device=context.bench.device,
                **common,
            )
            (file,) = results.rglob(f"{name}_{hook_name}_*.json")
            found[kind][name] = {
                f"{kind}_top_{entry['k']}_{score}": entry[key]
                for entry in json.loads(file.read_text())
                for key, score in SCORES.items()
            }
    write_json(artifacts / K_SPARSE, found)


def pca_encoder(rows: Float[Tensor, "n d"]) -> Encode:
    """A function that projects on the principal components of ``rows``, largest variance first."""
    rows = rows.cpu().double()
    centre = rows.mean(0)
    components = torch.linalg.svd(rows - centre, full_matrices=False).Vh
    return lambda x: ((x.cpu().double() - centre) @ components.T).float()


def _run_eval(
    context: EvalContext,
    settings: Settings,
    sae: Any,
    datasets: list[str],
    artifacts: Path,
    folder: Path,
) -> tuple[Scores, str]:
    """Run SAEBench on the SAE.

    Returns:
        Metrics by data set, and the name of SAEBench's result file.
    """
    from sae_bench.evals.sparse_probing_sae_probes import main
    from sae_bench.evals.sparse_probing_sae_probes.eval_config import (
        SparseProbingSaeProbesEvalConfig,
    )
    from sae_bench.evals.sparse_probing_sae_probes.eval_output import (
        SparseProbingSaeProbesEvalOutput,
    )

    results = folder / "results"
    shutil.copytree(artifacts / LOGREG, results)  # SAEBench reuses results that it finds
    config = SparseProbingSaeProbesEvalConfig(
        model_name=context.bench.model_label,
        random_seed=settings.seed,
        dataset_names=datasets,
        ks=settings.k_values,
        results_path=str(results),
        model_cache_path=str(artifacts / ACTIVATIONS),
    )
    main.run_eval(
        config, [(context.release, sae)], context.bench.device, str(folder), force_rerun=True
    )
    file = folder / f"{context.release}_custom_sae_eval_results.json"
    kept = keep_output(context, "sae_probes", file, SparseProbingSaeProbesEvalOutput)
    details = json.loads(file.read_text())["eval_result_details"]
    return {
        detail["dataset_name"]: {
            probe_name(name): value
            for name, value in detail.items()
            if "_test_" in name and value is not None
        }
        for detail in details
    }, kept
