"""SAEBench's unlearning evaluation for the models it accepts, and its result format for others."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.evaluations.unlearning import read_metrics
from saelens_adaptive_ortho.judging.contract import EvalContext
from saelens_adaptive_ortho.judging.isolation import model_served, replaced
from saelens_adaptive_ortho.judging.saebench.session import keep_output, prepared_sae, session
from saelens_adaptive_ortho.text.corpora import read_documents

ACCEPTED_MODELS = ("gemma-2-2b-it", "gemma-2-9b-it")
FORGET_FILE = Path("sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl")
RENAMED = {"wikitext": "Salesforce/wikitext"}  # today's hub library refuses the old id


def applies(model: HookedRootModule) -> bool:
    """Whether SAEBench can ask this model questions. It has prompts for two models only."""
    return getattr(getattr(model, "cfg", None), "model_name", None) in ACCEPTED_MODELS


def run(context: EvalContext, model: HookedRootModule) -> tuple[float | None, str]:
    """Run SAEBench's unlearning evaluation.

    The forget corpus is that of the workbench. The retain corpus, the questions and the sweep are
    SAEBench's own, from the hub.

    Returns:
        The score, and the name of SAEBench's result file.
    """
    from sae_bench.evals.unlearning import main as unlearning
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_bench.evals.unlearning.eval_output import UnlearningEvalOutput

    name = str(getattr(model.cfg, "model_name", ""))
    config = UnlearningEvalConfig(model_name=name, llm_batch_size=4, llm_dtype=context.bench.dtype)
    documents = list(read_documents(context.bench.texts["forget"], "ortho_corpora.forget"))
    with session(context) as folder, model_served(model), _hub_names_mapped():
        # SAEBench looks for its forget corpus relative to the working directory.
        file = folder / FORGET_FILE
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
        results = unlearning.run_eval(
            config,
            [(context.release, prepared_sae(context))],
            context.bench.device,
            str(folder / "results"),
            force_rerun=True,
            artifacts_path=str(folder / "artifacts"),
        )
        written = folder / "results" / f"{context.release}_custom_sae_eval_results.json"
        kept = keep_output(context, "unlearning", written, UnlearningEvalOutput)
    (result,) = results.values()
    return read_metrics(result["eval_result_metrics"])["score"], kept


def as_output(context: EvalContext, score: float, unstructured: dict[str, Any]) -> Any:
    """Our score in SAEBench's result format; None if SAEBench is not installed."""
    if importlib.util.find_spec("sae_bench") is None:
        return None
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_bench.evals.unlearning.eval_output import (
        UnlearningEvalOutput,
        UnlearningMetricCategories,
        UnlearningMetrics,
    )
    from sae_bench.sae_bench_utils import (
        get_eval_uuid,
        get_sae_bench_version,
        get_sae_lens_version,
    )

    return UnlearningEvalOutput(
        eval_config=UnlearningEvalConfig(
            model_name=context.bench.model_label,
            llm_batch_size=1,
            llm_dtype=context.bench.dtype,
        ),
        eval_id=get_eval_uuid(),
        datetime_epoch_millis=int(time.time() * 1000),
        eval_result_metrics=UnlearningMetricCategories(
            unlearning=UnlearningMetrics(unlearning_score=score)
        ),
        eval_result_details=[],
        sae_bench_commit_hash=get_sae_bench_version(),
        sae_lens_id="custom_sae",
        sae_lens_release_id=context.release,
        sae_lens_version=get_sae_lens_version(),
        sae_cfg_dict=context.load().cfg.to_dict(),
        eval_result_unstructured=unstructured,
    )


@contextmanager
def _hub_names_mapped() -> Iterator[None]:
    """Make SAEBench's feature selection load data sets by their present names."""
    from sae_bench.evals.unlearning.utils import feature_activation

    load = feature_activation.load_dataset

    def renamed(path: str, *args: Any, **kwargs: Any) -> Any:
        return load(RENAMED.get(path, path), *args, **kwargs)

    with replaced(feature_activation, "load_dataset", renamed):
        yield
