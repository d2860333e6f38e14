"""SAEBench core on the held-out contexts: each corpus, and both together."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from sae_lens.saes.transcoder import SkipTranscoder
from torch import Tensor

from saelens_adaptive_ortho.evaluations.core import Settings
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.isolation import errors_collected, tokens_served
from saelens_adaptive_ortho.judging.reconstruction import explained_variance
from saelens_adaptive_ortho.judging.saebench.session import keep_output, prepared_sae, session
from saelens_adaptive_ortho.text import models

# Categories of SAEBench's core output whose metrics are reported under their own names.
CATEGORIES = (
    "model_behavior_preservation",
    "model_performance_preservation",
    "reconstruction_quality",
    "shrinkage",
    "sparsity",
    "misc_metrics",
    "token_stats",
)


def run(context: EvalContext, settings: Settings) -> Outcome:
    """All of SAEBench core's scalar metrics, prefixed by ``forget/``, ``retain/``, ``pooled/``.

    The SAE is judged in float32 whatever it is stored in. ``explained_variance`` is our own:
    SAEBench takes from the mean squared activation not the squared mean but the squared mean
    square, so that its number depends on the activations' scale and passes 1 where they are large.
    It is kept as ``explained_variance_sae_bench``.

    Raises:
        EvaluationError: SAEBench failed (it logs and swallows errors; the reason is passed on).
    """
    metrics: dict[str, float | None] = {}
    files = {}
    for domain, contexts in held_out_contexts(context, settings).items():
        scalars, files[domain] = _multiple_evals(context, settings, domain, contexts)
        for category in CATEGORIES:
            for name, value in scalars.get(category, {}).items():
                number = float(value)
                name = "explained_variance_sae_bench" if name == "explained_variance" else name
                metrics[f"{domain}/{name}"] = number if math.isfinite(number) else None
        metrics[f"{domain}/explained_variance"] = exact_explained_variance(
            context, contexts, settings.batch_size_prompts
        )
    return Outcome(metrics, {"sae_bench_files": files})


def with_skip_in_decode(sae: SAE[Any]) -> SAE[Any]:
    """An SAE with a skip connection whose ``decode`` adds it, for the input last encoded.

    SAEBench reconstructs by ``decode(encode(x))``, which in SAELens's classes leaves it out.
    """
    if not isinstance(sae, SkipTranscoder):
        return sae
    encode, decode = sae.encode, sae.decode
    inputs: list[Tensor] = []

    def remembering(x: Tensor) -> Tensor:
        inputs[:] = [x]
        return encode(x)

    def complete(feature_acts: Tensor) -> Tensor:
        return decode(feature_acts) + inputs[0].to(sae.dtype) @ sae.W_skip.T

    sae.encode, sae.decode = remembering, complete
    return sae


def exact_explained_variance(context: EvalContext, contexts: Tensor, batch_size: int) -> float:
    """Of the SAE in float32, without special tokens; see :func:`.explained_variance`."""
    model = context.bench.model
    sae, ignored = context.load().to(torch.float32), models.special_tokens(model)
    return explained_variance(sae, model, contexts, ignored, batch_size)


def held_out_contexts(context: EvalContext, settings: Settings) -> dict[str, Tensor]:
    """Held-out contexts by domain, a whole number of batches each."""
    size = settings.batch_size_prompts
    parts = {c.domain: c.held_out[: settings.n_contexts] for c in context.need_corpora(1)}
    if context.has_domains:
        n = min(len(p) for p in parts.values())
        parts["pooled"] = torch.stack([p[:n] for p in parts.values()], dim=1).flatten(0, 1)
    else:
        parts = {"pooled": next(iter(parts.values()))}
    whole = {domain: p[: len(p) // size * size] for domain, p in parts.items()}
    for domain, contexts in whole.items():
        if not len(contexts):
            raise EvaluationError(
                f"the {domain} corpus has {len(parts[domain])} held-out contexts, fewer than "
                f"evals.core.batch_size_prompts={size}; lower that or raise "
                "ortho_holdout_fraction"
            )
    return whole


def _multiple_evals(
    context: EvalContext, settings: Settings, domain: str, contexts: Tensor
) -> tuple[dict[str, Any], str]:
    """SAEBench's scalar metrics on these contexts, and the name of its result file."""
    from sae_bench.evals.core import main as core
    from sae_bench.evals.core.eval_output import CoreEvalOutput

    # SAEBench sums squares in the SAE's dtype: in bf16 it reports explained variances above 1.
    sae = with_skip_in_decode(prepared_sae(context, torch.float32))
    n_batches = len(contexts) // settings.batch_size_prompts
    release = f"{context.release}__{domain}"
    with (
        session(context) as folder,
        tokens_served(core, contexts),
        errors_collected(core.logger) as errors,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        results = core.multiple_evals(
            [(release, sae)],
            n_eval_reconstruction_batches=n_batches,
            n_eval_sparsity_variance_batches=n_batches,
            eval_batch_size_prompts=settings.batch_size_prompts,
            # Both flags must be on, or SAEBench's own schema rejects its result.
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=True,
            dataset=f"held-out contexts: {domain}",
            context_size=context.bench.context_size,
            output_folder=str(folder),
            dtype=context.bench.dtype,
            device=context.bench.device,
            force_rerun=True,
        )
        if not results:
            raise EvaluationError(f"SAEBench core failed: {'; '.join(errors) or 'no reason given'}")
        file = folder / f"{release}_custom_sae_eval_results.json"
        kept = keep_output(context, "core", file, CoreEvalOutput)
    return results[0]["metrics"], kept
