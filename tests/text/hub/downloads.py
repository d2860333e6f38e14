"""A process that downloads the needs of an experiment by real names and unmodified libraries.

Usage: ``python downloads.py ROOT OUT [compare]``
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from tests.text.hub.client import CONFIG, Client, options
from tests.text.hub.server import MEMBER

GATED = "cais/wmdp-bio-forget-corpus"
MODEL = "pythia-70m-deduped"
UNLISTED = "somebody/model"  # not in TransformerLens's list
RELEASE, SAE_ID = "pythia-70m-deduped-res-sm", "blocks.3.hook_resid_post"


def main() -> None:
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    client = Client(root, out, [GATED], HF_TOKEN=MEMBER)
    if sys.argv[3:] == ["compare"]:
        client.step("compare", compare)
        return
    for action in (
        model,
        unlisted,
        sae,
        corpora,
        evaluate,
        core,
        probing,
        questions,
        sae_lens,
        check,
    ):
        client.step(action.__name__, action)


def model() -> dict[str, Any]:
    import torch

    from saelens_adaptive_ortho.text.models import load_language_model

    hub, local = load_language_model(MODEL), load_language_model("demo:model")
    tokens = torch.arange(60)[None]
    return {
        "layers": hub.cfg.n_layers,
        "width": hub.cfg.d_model,
        "vocabulary": len(hub.tokenizer),
        "as_local": torch.equal(hub(tokens), local(tokens)),
    }


def unlisted() -> dict[str, Any]:
    import torch

    from saelens_adaptive_ortho.text.models import hook_width, load_language_model

    hub, local = load_language_model(UNLISTED), load_language_model("demo:model")
    tokens = torch.arange(60)[None]
    return {
        "class": type(hub).__name__,
        "width": hook_width(UNLISTED, "blocks.0.hook_resid_post"),
        "as_local": torch.allclose(hub(tokens), local(tokens), atol=1e-4),
    }


def sae() -> dict[str, Any]:
    from sae_lens import SAE

    sae = SAE.from_pretrained(RELEASE, SAE_ID)
    return {
        "hook_name": sae.cfg.metadata.hook_name,
        "model_name": sae.cfg.metadata.model_name,
        "shape": list(sae.W_dec.shape),
        "first": sae.W_dec[0, 0].item(),
    }


def corpora() -> dict[str, list[str]]:
    from saelens_adaptive_ortho.text.corpora import CorpusConfig, read_documents

    asked = {
        GATED: CorpusConfig(path=GATED),
        "cais/wmdp-corpora": CorpusConfig(path="cais/wmdp-corpora", name="bio-retain-corpus"),
        "wikitext-103-raw-v1": CorpusConfig(path="Salesforce/wikitext", name="wikitext-103-raw-v1"),
        "wikitext-2-raw-v1": CorpusConfig(
            path="Salesforce/wikitext", name="wikitext-2-raw-v1", split="test", max_documents=50
        ),
    }
    return {name: list(read_documents(corpus, "corpus")) for name, corpus in asked.items()}


def evaluate() -> dict[str, Any]:
    from saelens_adaptive_ortho.commands.cli import main

    small = ["--context-size", "32"]
    for setting in ("core.n_contexts=4", "core.batch_size_prompts=4"):
        small += ["--set", setting]
    text = ["--forget", GATED, "--retain", "NeelNanda/pile-10k"]
    arguments = [f"{RELEASE}:{SAE_ID}", "--model", MODEL, "--evals", "core", *text, *small]
    status = main(["eval", *arguments, "--out", "judged"])
    return {"status": status, "results": results("judged")}


def core() -> dict[str, Any]:
    from sae_bench.evals.core import main

    results = main.multiple_evals(
        [(RELEASE, SAE_ID)],
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=1,
        eval_batch_size_prompts=4,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
        dataset="Skylion007/openwebtext",
        context_size=32,
        output_folder="core",
        device="cpu",
    )
    return results[0]["metrics"]["model_performance_preservation"]


def probing() -> dict[str, Any]:
    import jaxtyping
    from sae_bench.evals.sparse_probing import main
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig

    # SAEBench violates one of its own annotations, and recent type checkers notice it.
    jaxtyping.config.update("jaxtyping_disable", True)
    config = SparseProbingEvalConfig(
        dataset_names=["fancyzhx/ag_news"],
        probe_train_set_size=80,
        probe_test_set_size=40,
        context_length=32,
        llm_batch_size=40,
        llm_dtype="float32",
        model_name=MODEL,
        k_values=[1],
    )
    arguments = {"force_rerun": True, "clean_up_activations": True, "save_activations": False}
    results = main.run_eval(
        config, [(RELEASE, SAE_ID)], "cpu", "probing", artifacts_path="artifacts", **arguments
    )
    return next(iter(results.values()))["eval_result_metrics"]


def questions() -> dict[str, Any]:
    from datasets import load_dataset

    return {
        "cais/wmdp": load_dataset("cais/wmdp", "wmdp-bio", split="test")[1],
        "cais/mmlu": load_dataset("cais/mmlu", "high_school_us_history", split="test")[1],
    }


def sae_lens() -> dict[str, Any]:
    """The example of the README, smaller."""
    from sae_lens import (
        SAE,
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
    )

    import saelens_adaptive_ortho as ortho

    config = LanguageModelSAERunnerConfig(
        sae=ortho.AdaptiveOrthoBatchTopKConfig(
            d_in=96, d_sae=64, k=4, normalize_activations="expected_average_only_in"
        ),
        model_name=MODEL,
        hook_name=SAE_ID,
        dataset_path="NeelNanda/pile-small-tokenized-2b",
        context_size=32,
        training_tokens=512,
        train_batch_size_tokens=128,
        store_batch_size_prompts=4,
        n_batches_in_buffer=4,
        n_batches_for_norm_estimate=2,
        device="cpu",
        output_path="my_sae",
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
    )
    LanguageModelSAETrainingRunner(config).run()
    return {"architecture": SAE.load_from_disk("my_sae").cfg.architecture()}


def check() -> int:
    from saelens_adaptive_ortho.commands.cli import main

    return main(["check", str(CONFIG), *options(output_path="run")])


def compare() -> dict[str, Any]:
    from saelens_adaptive_ortho.commands.cli import main

    # After eight steps, no latent is specific by the default ratios.
    changes = options(output_path="run", evals__unlearning__specificities=[1.0])
    status = main(["compare", str(CONFIG), *changes])
    return {"status": status, "results": results("run")}


def results(root: str) -> list[dict[str, Any]]:
    from saelens_adaptive_ortho.results import load_results

    return [dataclasses.asdict(result) for result in load_results(Path(root))]


if __name__ == "__main__":
    main()
