"""SAEBench sparse probing: can a few latents distinguish classes of texts?

There are three baselines with the same selection and the same probe: all of the model's
activations, single dimensions of them, and their principal components. Every probe is trained from
the same seed. So an SAE's numbers do not depend on what was evaluated before it.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelens_adaptive_ortho.evaluations.contract import probe_name
from saelens_adaptive_ortho.evaluations.sparse_probing import Settings
from saelens_adaptive_ortho.files import read_cached, write_json
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.isolation import replaced
from saelens_adaptive_ortho.judging.saebench.session import keep_output, prepared_sae, session
from saelens_adaptive_ortho.judging.saebench.tasks import (
    Task,
    context_length,
    file_texts,
    labelled_task,
    shared_artifacts,
)

K_VALUES = (1, 2, 5, 10, 20, 50, 100)  # SAEBench's result has fields for these
PCA_FILE = "pca.json"
OWN_SIZES = (300, 200)  # training and test texts of each class

Activations = dict[str, Tensor]  # by class
Accuracies = dict[str, dict[str, float]]  # by metric, then class


def check(settings: Settings) -> None:
    """Read the labelled texts, if they are in a file.

    Raises:
        EvaluationError: the file cannot be read, or has too few classes or texts.
    """
    file_texts(settings, OWN_SIZES)


def run(context: EvalContext, settings: Settings) -> Outcome:
    """Accuracies of one class against the others, averaged over classes and data sets.

    Chance is 0.5. ``sae_top_{k}_accuracy`` is the accuracy of a probe on the ``k`` latents whose
    means differ most. ``sae_accuracy`` is that of a probe on all latents. ``llm_`` and ``pca_`` are
    the baselines.

    Raises:
        EvaluationError: there are no labelled texts or too few, or SAEBench's result has no field
            for a ``k``.
    """
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    unknown = set(settings.k_values) - set(K_VALUES)
    if unknown or not settings.k_values:
        raise EvaluationError(f"k_values must be some of {list(K_VALUES)}, not {settings.k_values}")
    published = SparseProbingEvalConfig().dataset_names
    task = labelled_task(context, settings, published, OWN_SIZES)
    by_dataset, file = _run_eval(context, settings, task)
    means = [{m: _mean(v.values()) for m, v in a.items()} for a in by_dataset.values()]
    details = {
        "source": task.source,
        "train_size": task.train_size,
        "test_size": task.test_size,
        "accuracy_by_class": by_dataset,
        "sae_bench_file": file,
    }
    return Outcome({m: _mean(d[m] for d in means) for m in means[0]}, details)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _run_eval(
    context: EvalContext, settings: Settings, task: Task
) -> tuple[dict[str, Accuracies], str]:
    """Run SAEBench on the SAE.

    Returns:
        Accuracies by data set, and the name of SAEBench's result file.
    """
    from sae_bench.evals.sparse_probing import main, probe_training
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
    from sae_bench.evals.sparse_probing.eval_output import SparseProbingEvalOutput

    config = SparseProbingEvalConfig(
        random_seed=settings.seed,
        dataset_names=task.datasets,
        # SAEBench's sizes count the texts of both classes of a binary task.
        probe_train_set_size=2 * task.train_size,
        probe_test_set_size=2 * task.test_size,
        context_length=context_length(context, settings.context_length, task.texts),
        sae_batch_size=settings.sae_batch_size,
        llm_batch_size=settings.llm_batch_size,
        llm_dtype=context.bench.dtype,
        model_name=context.bench.model_label,
        k_values=settings.k_values,
    )
    sae = prepared_sae(context)
    parts = (dataclasses.asdict(config), task.texts)
    train = _seeded(probe_training.train_probe_on_activations, settings.seed)
    with (
        session(context) as folder,
        warnings.catch_warnings(),
        replaced(probe_training, "train_probe_on_activations", train),
        task.served(),
        shared_artifacts(
            context, "sparse_probing", sae.cfg.metadata.hook_name, *parts
        ) as artifacts,
    ):
        warnings.filterwarnings("ignore", category=FutureWarning, module="sklearn")
        main.run_eval(
            config,
            [(context.release, sae)],
            context.bench.device,
            str(folder),
            force_rerun=True,
            artifacts_path=str(artifacts),
        )
        pca = _pca_baseline(artifacts, config, train)
        result = folder / f"{context.release}_custom_sae_eval_results.json"
        file = keep_output(context, "sparse_probing", result, SparseProbingEvalOutput)
        found = json.loads(result.read_text())["eval_result_unstructured"]
    return {
        name: {
            probe_name(metric): by_class
            for metric, by_class in (found[f"{name}_results"] | pca[name]).items()
        }
        for name in task.datasets
    }, file


def _seeded(train: Callable[..., Any], seed: int) -> Callable[..., Any]:
    """``train``, with torch's generator set to ``seed`` before each call."""

    def seeded(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(seed)
        return train(*args, **kwargs)

    return seeded


def _pca_baseline(artifacts: Path, config: Any, train: Callable[..., Any]) -> dict[str, Accuracies]:
    """Accuracies of the k-sparse probe on principal components, by data set.

    The artifacts keep them for the next SAE.
    """
    from sae_bench.sae_bench_utils.activation_collection import create_meaned_model_activations

    file = artifacts / PCA_FILE
    if (kept := read_cached(file)) is not None:
        return kept
    found: dict[str, Accuracies] = {}
    for name in config.dataset_names:
        (saved,) = artifacts.rglob(f"{name.replace('/', '_')}_activations.pt")
        activations = torch.load(saved, map_location="cpu", weights_only=True)
        rotated = in_pca_basis(
            *(create_meaned_model_activations(activations[part]) for part in ("train", "test"))
        )
        found[name] = {
            f"pca_top_{k}_test_accuracy": train(*rotated, select_top_k=k)[1]
            for k in config.k_values
        }
    write_json(file, found)
    return found


def in_pca_basis(train: Activations, test: Activations) -> tuple[Activations, Activations]:
    """Project activations on the principal components of all training rows.

    Args:
        train: activations (n, d) by class.
        test: activations (m, d) by class.

    Returns:
        Both in the basis of the components, largest variance first, with ``min(n_rows, d)``
        columns. The mean of the training rows is subtracted.
    """
    rows: Float[Tensor, "n_rows d"] = torch.cat(list(train.values())).double()
    centre = rows.mean(0)
    components = torch.linalg.svd(rows - centre, full_matrices=False).Vh

    def rotate(part: Activations) -> Activations:
        return {c: ((x.double() - centre) @ components.T).float() for c, x in part.items()}

    return rotate(train), rotate(test)
