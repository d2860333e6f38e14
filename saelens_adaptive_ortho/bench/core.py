"""SAEBench core on the held-out contexts: each corpus, and both together."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from saelens_adaptive_ortho.bench.patches import (
    errors_collected,
    model_served,
    state_kept,
    tokens_served,
)
from saelens_adaptive_ortho.evaluation import CoreSettings, EvalContext, EvaluationError, Outcome

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


def run(context: EvalContext, settings: CoreSettings) -> Outcome:
    """All of SAEBench core's scalar metrics, prefixed by ``forget/``, ``retain/``, ``pooled/``.

    Raises:
        EvaluationError: SAEBench failed (it logs and swallows errors; the reason is passed on).
    """
    metrics: dict[str, float | None] = {}
    files = {}
    for domain, contexts in _held_out(context, settings).items():
        scalars = _multiple_evals(context, settings, domain, contexts)
        for category in CATEGORIES:
            for name, value in scalars.get(category, {}).items():
                number = float(value)
                metrics[f"{domain}/{name}"] = number if math.isfinite(number) else None
        files[domain] = f"{_release(context, domain)}_custom_sae_eval_results.json"
    return Outcome(metrics, {"sae_bench_files": files})


def _held_out(context: EvalContext, settings: CoreSettings) -> dict[str, Tensor]:
    """Held-out contexts by domain, a whole number of batches each."""
    size = settings.batch_size_prompts
    parts = {c.domain: c.held_out[: settings.n_contexts] for c in context.corpora}
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


def _release(context: EvalContext, domain: str) -> str:
    """Unique per SAE and domain: SAEBench names its files by it and reuses those it finds."""
    return f"{context.variant}__seed{context.seed}__{domain}"


def _multiple_evals(
    context: EvalContext, settings: CoreSettings, domain: str, contexts: Tensor
) -> dict[str, Any]:
    from sae_bench.evals.core import main as core

    sae = context.load_sae()
    # Without it SAEBench's store refuses to be built.
    sae.cfg.metadata.prepend_bos = bool(context.cfg.prepend_bos)
    with contextlib.suppress(NotImplementedError):
        sae.fold_W_dec_norm()  # topk without rescaling refuses; SAEBench then only warns
    n_batches = len(contexts) // settings.batch_size_prompts
    output = io.StringIO()
    with (
        state_kept(),
        model_served(context.model),
        tokens_served(core, contexts),
        errors_collected(core.logger) as errors,
        contextlib.redirect_stdout(output),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        results = core.multiple_evals(
            [(_release(context, domain), sae)],
            n_eval_reconstruction_batches=n_batches,
            n_eval_sparsity_variance_batches=n_batches,
            eval_batch_size_prompts=settings.batch_size_prompts,
            # Both flags must be on, or SAEBench's own schema rejects its result.
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=True,
            dataset=f"held-out contexts: {domain}",
            context_size=context.cfg.context_size,
            output_folder=str(context.raw_dir / "core"),
            dtype=context.cfg.dtype,
            device=context.cfg.device,
            force_rerun=True,
        )
    if not results:
        raise EvaluationError(f"SAEBench core failed: {'; '.join(errors) or 'no reason given'}")
    return results[0]["metrics"]
