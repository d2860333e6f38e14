"""Shared parts of TPP and SCR."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.isolation import replaced
from saelens_adaptive_ortho.judging.saebench.session import keep_output
from saelens_adaptive_ortho.judging.saebench.tasks import made_once

OWN_SIZES = (300, 100)  # training and test texts of each class
N_VALUES = (2, 5, 10, 20, 50, 100, 500)  # numbers of ablated latents in SAEBench's results
CAVEAT = (
    "'Are Sparse Autoencoder Benchmarks Reliable?' (arXiv 2605.18229) found that TPP and SCR "
    "should not be used to evaluate SAEs; they are shown for completeness."
)


def n_values(sae: SAE[Any]) -> list[int]:
    """SAEBench's numbers of ablated latents, up to the number of latents of the SAE.

    Raises:
        EvaluationError: the SAE has fewer latents than the smallest number.
    """
    fitting = [n for n in N_VALUES if n <= sae.cfg.d_sae]
    if not fitting:
        raise EvaluationError(f"the SAE has {sae.cfg.d_sae} latents, fewer than {N_VALUES[0]}")
    return fitting


def run_eval(
    context: EvalContext, config: Any, sae: SAE[Any], scratch: Path, schema: type, texts: Any
) -> tuple[dict[str, Any], dict[str, dict[str, float]], str]:
    """Run SAEBench's evaluation on one SAE. Activations and probes are made once for all SAEs.

    Args:
        config: SAEBench's config.
        sae: the SAE to judge.
        scratch: an empty folder.
        schema: schema class of SAEBench's result.
        texts: the texts of a data set that is not published, or None. They are part of the
            artifacts' key, because the data set's name does not identify them.

    Returns:
        SAEBench's result, the accuracies of the probes without ablation by data set, and the name
        of the result file.
    """
    from sae_bench.evals.scr_and_tpp import main

    name = "scr" if config.perform_scr else "tpp"

    def evaluate(values: list[int], artifacts: Path, output: Path) -> dict[str, Any]:
        config.n_values = values
        (result,) = main.run_eval(
            config,
            [(context.release, sae)],
            context.bench.device,
            str(output),
            force_rerun=True,
            artifacts_path=str(artifacts),
        ).values()
        return result

    def make(folder: Path) -> None:
        # This runs everything except the part that needs the SAE.
        with replaced(main, "get_all_node_effects_for_one_sae", lambda *_: {}):
            evaluate([], folder, scratch / "nothing")

    parts = [
        {name: config.column1_vals_lookup.get(name) for name in config.dataset_names},
        config.random_seed,
        config.train_set_size,
        config.test_set_size,
        config.context_length,
        config.llm_batch_size,
        texts,
    ]
    artifacts = made_once(context, name, sae.cfg.metadata.hook_name, make, *parts)
    result = evaluate(n_values(sae), artifacts, scratch)
    file = scratch / name / f"{context.release}_custom_sae_eval_results.json"
    accuracies = {}
    for probes in sorted(artifacts.rglob("*_probes.pkl")):
        content = pickle.loads(probes.read_bytes())
        accuracies[probes.name.removesuffix("_probes.pkl")] = content["llm_test_accuracies"]
    return result, accuracies, keep_output(context, name, file, schema)
