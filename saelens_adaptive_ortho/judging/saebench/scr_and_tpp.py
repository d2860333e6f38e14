"""Shared parts of TPP and SCR."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sae_lens.saes.sae import SAE
from safetensors import safe_open
from safetensors.torch import save

from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.isolation import replaced
from saelens_adaptive_ortho.judging.saebench.session import keep_output
from saelens_adaptive_ortho.judging.saebench.tasks import artifacts_of_model, entry_set

OWN_SIZES = (300, 100)  # training and test texts of each class
N_VALUES = (2, 5, 10, 20, 50, 100, 500)  # numbers of ablated latents in SAEBench's results
PROBES = "_probes.safetensors"  # end of the names of the files with the probes
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
        PROBES,
    ]
    with _no_pickle(context.bench.device):
        artifacts = artifacts_of_model(context, name, sae.cfg.metadata.hook_name, make, *parts)
        result = evaluate(n_values(sae), artifacts, scratch)
    file = scratch / name / f"{context.release}_custom_sae_eval_results.json"
    accuracies = {}
    for probes in sorted(artifacts.rglob(f"*{PROBES}")):
        with safe_open(probes, framework="pt") as opened:
            accuracies[probes.name.removesuffix(PROBES)] = json.loads(
                opened.metadata()["accuracies"]
            )
    return result, accuracies, keep_output(context, name, file, schema)


@contextmanager
def _no_pickle(device: str) -> Iterator[None]:
    """Inside the block, SAEBench writes and reads its probes as safetensors.

    It would pickle them, and a pickle from a run folder could run any code.
    """
    from sae_bench.evals.scr_and_tpp import main

    def opened(path: str, mode: str = "r", **options: Any) -> Any:
        return open(path.replace("_probes.pkl", PROBES), mode, **options)

    with (
        replaced(main, "pickle", _ProbeFiles(device)),
        entry_set(main.__dict__, "open", opened),
    ):
        yield


class _ProbeFiles:
    """Replaces ``pickle`` in code that stores only linear probes and their accuracies."""

    def __init__(self, device: str) -> None:
        self._device = device

    def dump(self, content: dict[str, Any], file: BinaryIO) -> None:
        probes, accuracies = content["llm_probes"], content["llm_test_accuracies"]
        tensors = {
            f"{number}.{name}": tensor.contiguous()
            for number, probe in enumerate(probes.values())
            for name, tensor in probe.state_dict().items()
        }
        metadata = {"classes": json.dumps(list(probes)), "accuracies": json.dumps(accuracies)}
        file.write(save(tensors, metadata))

    def load(self, file: BinaryIO) -> dict[str, Any]:
        from sae_bench.evals.sparse_probing.probe_training import Probe

        probes = {}
        with safe_open(file.name, framework="pt", device=self._device) as opened:
            metadata = opened.metadata()
            for number, name in enumerate(json.loads(metadata["classes"])):
                weight = opened.get_tensor(f"{number}.net.weight")
                probe = Probe(weight.shape[1], weight.dtype).to(self._device)
                bias = opened.get_tensor(f"{number}.net.bias")
                probe.load_state_dict({"net.weight": weight, "net.bias": bias})
                probes[name] = probe
        return {
            "llm_probes": probes,
            "llm_test_accuracies": json.loads(metadata["accuracies"]),
        }
