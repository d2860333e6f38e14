"""SAEBench core on the held-out contexts of each corpus and of the trained corpora together."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from sae_lens.saes.transcoder import SkipTranscoder
from torch import Tensor

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.evaluations.core import TRAINED_L0, Settings, read_metrics
from saelens_adaptive_ortho.judging import geometry
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.firing import Firings, as_trained, passes
from saelens_adaptive_ortho.judging.isolation import errors_collected, tokens_served
from saelens_adaptive_ortho.judging.reconstruction import ExplainedVariance
from saelens_adaptive_ortho.judging.saebench.session import keep_output, prepared_sae, session
from saelens_adaptive_ortho.text.corpora import TokenisedCorpus


def run(context: EvalContext, settings: Settings) -> Outcome:
    """All of SAEBench core's scalar metrics, prefixed by the name of the corpus or ``pooled/``.

    The SAE is judged in float32, whatever its stored dtype is.

    ``explained_variance`` is our own number. SAEBench computes the variance as ``E[x^2]`` minus the
    square of ``E[x^2]``, where it should subtract the square of ``E[x]``. So its number depends on
    the scale of the activations, and exceeds 1 for large ones. SAEBench's number is kept as
    ``explained_variance_sae_bench``.

    Raises:
        EvaluationError: SAEBench failed. It logs errors and continues; the message holds them.
    """
    metrics: dict[str, float | None] = {}
    files = {}
    parts = held_out_contexts(context, settings)
    size = settings.batch_size_prompts
    for domain, contexts in whole_batches(parts, size, shares_of(context)).items():
        scalars, files[domain] = _multiple_evals(context, settings, domain, contexts)
        for name, value in read_metrics(scalars).items():
            metrics[f"{domain}/{name}"] = None if value is None else _finite(float(value))
    ours = own_measurements(context, settings, parts)
    for domain in files:
        metrics[f"{domain}/explained_variance"] = _finite(ours.explained_variance[domain])
    rates = geometry.rounded_rates(ours.domains, ours.rates)
    details = {"sae_bench_files": files, "firing_rates": rates}
    return Outcome(metrics, details | trained_l0(context.load()))


def trained_l0(sae: SAE[Any]) -> dict[str, float]:
    """L0 in training, or the k of TopK, if the files of the SAE tell it."""
    metadata = sae.cfg.metadata
    training = metadata.training_architecture_details or {}
    for value in (metadata.l0, training.get("k"), getattr(sae.cfg, "k", None)):
        if isinstance(value, int | float) and value > 0:
            return {TRAINED_L0: float(value)}
    return {}


def with_skip_in_decode(sae: SAE[Any]) -> SAE[Any]:
    """Make ``decode`` of an SAE with a skip connection add the skip of the last encoded input.

    SAEBench reconstructs by ``decode(encode(x))``. In SAELens's classes this omits the skip
    connection.
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


class OwnMeasurements(NamedTuple):
    """Our own measurements, on the same contexts as SAEBench's.

    Attributes:
        explained_variance: explained variance by domain.
        domains: the corpora, in the order of ``rates``.
        rates: firing rates on the contexts of each corpus.
    """

    explained_variance: dict[str, float]
    domains: list[str]
    rates: Float[Tensor, "n_corpora d_sae"]


def check(settings: Settings) -> None:
    """Refuse settings under which there is no batch.

    Raises:
        ConfigError: ``n_contexts`` is less than ``batch_size_prompts``.
    """
    if settings.n_contexts < settings.batch_size_prompts:
        rule = (
            f"is less than evals.core.batch_size_prompts={settings.batch_size_prompts}; raise the "
            "one or lower the other"
        )
        raise reject("n_contexts", settings.n_contexts, f"{rule}.")


def check_corpora(settings: Settings, corpora: Sequence[TokenisedCorpus]) -> None:
    """Refuse corpora whose held-out text is shorter than one batch.

    Raises:
        EvaluationError: a corpus has fewer contexts.
    """
    for corpus in corpora:
        if len(corpus.held_out) < settings.batch_size_prompts:
            raise EvaluationError(
                f"the {corpus.domain} corpus has {len(corpus.held_out)} held-out contexts, fewer "
                f"than evals.core.batch_size_prompts={settings.batch_size_prompts}; lower that or "
                "raise ortho_holdout_fraction or training_tokens"
            )


def held_out_contexts(
    context: EvalContext, settings: Settings
) -> dict[str, Int[Tensor, "n context"]]:
    """Held-out contexts of each corpus, with BOS or without it, as in the SAE's training.

    Raises:
        EvaluationError: a corpus has fewer contexts than one batch.
    """
    check(settings)
    check_corpora(settings, context.need_corpora(1))
    sae = context.load()
    return {
        c.domain: as_trained(sae, context.model, c.held_out[: settings.n_contexts])
        for c in context.need_corpora(1)
    }


def shares_of(context: EvalContext) -> dict[str, float]:
    """The share of each corpus in the training rows of its side."""
    return {c.domain: c.share for c in context.corpora}


def whole_batches(
    parts: dict[str, Tensor], size: int, shares: Mapping[str, float]
) -> dict[str, Tensor]:
    """Contexts by domain, cut to a whole number of batches.

    The domain ``pooled`` takes contexts of the forget and of the retain side in turn. On the retain
    side, retain and the named retain corpora take turns by their shares. A single corpus is only
    pooled.
    """
    places = _pooled_places(parts, shares)
    pooled = torch.stack([parts[domain][i] for domain, i in places])
    domains = parts if len(parts) > 1 else {}
    return {d: p[: len(p) // size * size] for d, p in {**domains, "pooled": pooled}.items()}


def _pooled_places(
    parts: Mapping[str, Tensor], shares: Mapping[str, float]
) -> list[tuple[str, int]]:
    """The domain and the number of each pooled context, as many as the shares allow."""
    trained = {domain: share for domain, share in shares.items() if share > 0}
    n = min(len(parts[domain]) / share for domain, share in trained.items())
    turns = [
        ((i + 0.5) / share, number, domain, i)
        for number, (domain, share) in enumerate(trained.items())
        for i in range(int(n * share + 1e-9))
    ]
    return [(domain, i) for _, _, domain, i in sorted(turns)]


def own_measurements(
    context: EvalContext, settings: Settings, parts: dict[str, Tensor]
) -> OwnMeasurements:
    """Measure the SAE in float32, in one pass over each corpus.

    The number of a corpus is over its first contexts, as many as make whole batches. The pooled
    number is over a share of each corpus, which may be longer or shorter. So the pass counts two
    pieces of each corpus separately: the contexts up to the shorter of the two lengths, and the
    contexts from there up to the longer one. Both numbers are sums of such pieces.
    """
    size = settings.batch_size_prompts
    sae = context.load().to(torch.float32)
    shares = shares_of(context)
    whole = whole_batches(parts, size, shares)
    pooled_from = Counter(d for d, _ in _pooled_places(parts, shares)[: len(whole["pooled"])])
    # For each corpus: the number of contexts in the corpus's number, and in the pooled number.
    in_own = [len(whole.get(domain, whole["pooled"])) for domain in parts]
    in_pooled = [pooled_from[domain] for domain in parts]
    pieces = []
    for contexts, lengths in zip(parts.values(), zip(in_own, in_pooled, strict=True), strict=True):
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
        n_in_own, n_in_pooled = in_own[number], in_pooled[number]
        values[domain] = explained(number, n_in_own > n_in_pooled).result()
        pooled = pooled + explained(number, n_in_pooled > n_in_own)
        chosen = slice(2 * number, 2 * number + 1 + int(n_in_own > n_in_pooled))
        rates.append(
            firings.fired[chosen].sum(0) / firings.n_tokens[chosen].sum().clamp(min=1).double()
        )
    return OwnMeasurements({**values, "pooled": pooled.result()}, list(parts), torch.stack(rates))


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _multiple_evals(
    context: EvalContext, settings: Settings, domain: str, contexts: Tensor
) -> tuple[dict[str, Any], str]:
    """SAEBench's scalar metrics on these contexts, and the name of its result file."""
    from sae_bench.evals.core import main as core
    from sae_bench.evals.core.eval_output import CoreEvalOutput

    # SAEBench sums squares in the SAE's dtype. In bf16 it reports explained variances above 1.
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
            # SAEBench's own schema rejects its result unless both flags are on.
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
