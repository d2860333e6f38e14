"""SAEBench core on the held-out contexts: each corpus, and both together."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from sae_lens.saes.transcoder import SkipTranscoder
from torch import Tensor

from saelens_adaptive_ortho.evaluations.core import Settings
from saelens_adaptive_ortho.judging import geometry
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.firing import Firings, as_trained, passes
from saelens_adaptive_ortho.judging.isolation import errors_collected, tokens_served
from saelens_adaptive_ortho.judging.reconstruction import ExplainedVariance
from saelens_adaptive_ortho.judging.saebench.session import keep_output, prepared_sae, session

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
    parts = held_out_contexts(context, settings)
    for domain, contexts in whole_batches(parts, settings.batch_size_prompts).items():
        scalars, files[domain] = _multiple_evals(context, settings, domain, contexts)
        for category in CATEGORIES:
            for name, value in scalars.get(category, {}).items():
                name = "explained_variance_sae_bench" if name == "explained_variance" else name
                metrics[f"{domain}/{name}"] = _finite(float(value))
    own = own_measurements(context, settings, parts)
    for domain in files:
        metrics[f"{domain}/explained_variance"] = _finite(own.explained_variance[domain])
    rates = geometry.rounded_rates(own.domains, own.rates)
    return Outcome(metrics, {"sae_bench_files": files, "firing_rates": rates})


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


class Own(NamedTuple):
    """What is measured beside SAEBench, on the same contexts.

    Attributes:
        explained_variance: by domain.
        domains: corpora in the order of ``rates``.
        rates: firing rates on the contexts of each corpus.
    """

    explained_variance: dict[str, float]
    domains: list[str]
    rates: Float[Tensor, "n_corpora d_sae"]


def held_out_contexts(
    context: EvalContext, settings: Settings
) -> dict[str, Int[Tensor, "n context"]]:
    """Held-out contexts of each corpus, with BOS or without it as the SAE was trained.

    Raises:
        EvaluationError: fewer than a batch.
    """
    size, sae = settings.batch_size_prompts, context.load()
    parts = {
        c.domain: as_trained(sae, context.model, c.held_out[: settings.n_contexts])
        for c in context.need_corpora(1)
    }
    for domain, contexts in parts.items():
        if len(contexts) < size:
            raise EvaluationError(
                f"the {domain} corpus has {len(contexts)} held-out contexts, fewer than "
                f"evals.core.batch_size_prompts={size}; lower that or raise "
                "ortho_holdout_fraction"
            )
    return parts


def whole_batches(parts: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Contexts by domain, a whole number of batches each; pooled takes both corpora in turn."""
    pooled = next(iter(parts.values()))
    domains = {}
    if len(parts) == 2:
        n = min(len(p) for p in parts.values())
        pooled = torch.stack([p[:n] for p in parts.values()], dim=1).flatten(0, 1)
        domains = parts
    return {d: p[: len(p) // size * size] for d, p in {**domains, "pooled": pooled}.items()}


def own_measurements(context: EvalContext, settings: Settings, parts: dict[str, Tensor]) -> Own:
    """Of the SAE in float32, by one pass over each corpus: pooled is the sum of both.

    A corpus's own number is of its first contexts, as many as are whole batches; its share in
    pooled may be longer or shorter. So the contexts up to the shorter of the two lengths, and those
    from there to the longer one, are counted apart.
    """
    size = settings.batch_size_prompts
    sae = context.load().to(torch.float32)
    whole = whole_batches(parts, size)
    n_pooled = len(whole["pooled"])
    # Of each corpus: the contexts that its own number is of, and those that pooled is of.
    own = [len(whole.get(domain, whole["pooled"])) for domain in parts]
    shared = [-(-(n_pooled - number) // len(parts)) for number in range(len(parts))]
    pieces = []
    for contexts, lengths in zip(parts.values(), zip(own, shared, strict=True), strict=True):
        pieces += [contexts[: min(lengths)], contexts[min(lengths) : max(lengths)]]
    firings = Firings(sae, len(pieces))
    variances = [ExplainedVariance(sae) for _ in pieces]
    for batch in passes(sae, context.model, pieces, size, "Reconstructing", reconstruct=True):
        firings.update(batch)
        variances[batch.corpus].update(batch)

    def explained(number: int, whole: bool) -> ExplainedVariance:
        first, rest = variances[2 * number : 2 * number + 2]
        return first + rest if whole else first

    values: dict[str, float] = {}
    pooled, rates = ExplainedVariance(sae), []
    for number, domain in enumerate(parts):
        n_own, n_shared = own[number], shared[number]
        values[domain] = explained(number, n_own > n_shared).result()
        pooled = pooled + explained(number, n_shared > n_own)
        chosen = slice(2 * number, 2 * number + 1 + int(n_own > n_shared))
        rates.append(
            firings.fired[chosen].sum(0) / firings.n_tokens[chosen].sum().clamp(min=1).double()
        )
    return Own({**values, "pooled": pooled.result()}, list(parts), torch.stack(rates))


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


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
            context_size=contexts.shape[1],
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
