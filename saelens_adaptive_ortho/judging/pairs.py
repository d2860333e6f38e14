"""One pass over text for the geometry of an SAE and its pairs of similar latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.evaluations import subspace
from saelens_adaptive_ortho.judging import geometry
from saelens_adaptive_ortho.judging.contract import EvalContext, Outcome
from saelens_adaptive_ortho.judging.firing import (
    Firings,
    Halves,
    PairFirings,
    Sketches,
    TopTexts,
    accumulate,
    as_trained,
    passes,
    two_sides,
)
from saelens_adaptive_ortho.maths import grouping, similar_pairs
from saelens_adaptive_ortho.maths.directions import decoder_directions
from saelens_adaptive_ortho.maths.similar_pairs import PairCounts, Pairs


@dataclass(frozen=True)
class Settings(subspace.Settings):
    """Settings of the geometry and of the pairs.

    Args:
        min_cosine: lowest cosine of a similar pair.
        max_lift: highest co-firing, relative to chance, of a similar pair that is an absorption
            candidate.
        n_candidates: number of candidates kept, the most similar ones.
        n_texts: number of top-activating texts for each latent of a candidate.
    """

    min_cosine: float = 0.3
    max_lift: float = 0.25
    n_candidates: int = 20
    n_texts: int = 3


class Survey(NamedTuple):
    """The measurements of one pass over text.

    Attributes:
        rates: firing rates by corpus.
        sketches: sketches of the firing patterns.
        halves: firing rates in the first and in the second half of each corpus's contexts.
        counts: firings of latents and co-firings of pairs.
        latents: latents that belong to a pair.
        top: the largest activations of ``latents``.
        where: corpus, context and position of each activation in ``top``.
    """

    rates: Float[Tensor, "n_corpora d_sae"]
    sketches: Float[Tensor, "d_sae r"]
    halves: Float[Tensor, "2 n_corpora d_sae"]
    counts: PairCounts
    latents: Int[Tensor, " n_latents"]
    top: Float[Tensor, "n_texts n_latents"]
    where: Int[Tensor, "n_texts n_latents 3"]


def run(context: EvalContext, settings: Settings) -> Outcome:
    """The metrics of the subspace evaluation, absorption candidates with texts, and domain churn.

    Domain churn is the share of latents that are in one group by the first half of the text and in
    another group by the second half. It counts the latents that are active in both halves.
    Corpora that are only evaluated take no part.
    """
    context.need_corpora(1)
    corpora = context.trained
    sae = context.load()
    domains = [c.domain for c in corpora]
    directions = decoder_directions(sae.W_dec.detach()).to(sae.device)
    pairs = similar_pairs.similar_pairs(directions, settings.min_cosine)
    contexts = [as_trained(sae, context.model, c.train[: settings.n_contexts]) for c in corpora]
    seen = survey(context, sae, contexts, pairs, settings)
    rates = two_sides(seen.rates, corpora)
    metrics, details = geometry.describe(sae, domains[:2], rates, seen.sketches, settings)
    kept = similar_pairs.absorption_candidates(seen.counts, pairs, settings.max_lift)
    lift = similar_pairs.lifts(seen.counts, pairs.indices)
    metrics |= {
        "similar_pairs_examined": float(len(pairs.indices)),
        "absorption_candidates": float(len(kept)),
    }
    details["similar_pairs"] = [
        [i, j, round(c, 4), round(x, 4)]
        for (i, j), c, x in zip(
            pairs.indices.tolist(), pairs.cosines.tolist(), lift.tolist(), strict=True
        )
        if x == x  # the lift is NaN if one latent of the pair never fires
    ]
    column = {latent: place for place, latent in enumerate(seen.latents.tolist())}

    def texts(latent: int) -> list[dict[str, Any]]:
        at = column[latent]
        return [
            {
                "activation": value,
                "corpus": domains[corpus],
                **_window(context.model.tokenizer, contexts[corpus][row], position),
            }
            for value, (corpus, row, position) in zip(
                seen.top[:, at].tolist(), seen.where[:, at].tolist(), strict=True
            )
            if value > 0
        ]

    details["absorption_candidates"] = [
        {**c._asdict(), "texts": {"frequent": texts(c.frequent), "rare": texts(c.rare)}}
        for c in kept[: settings.n_candidates]
    ]
    if len(domains) > 1:
        first, second = (
            grouping.domain_groups(two_sides(half, corpora), settings.domain_ratio)
            for half in seen.halves
        )
        alive = (first != grouping.INACTIVE) & (second != grouping.INACTIVE)
        moved = (first != second) & alive
        metrics["domain_churn"] = float(moved.sum() / alive.sum().clamp(min=1))
    return Outcome(metrics, details)


def survey(
    context: EvalContext,
    sae: SAE[Any],
    contexts: list[Int[Tensor, "n context"]],
    pairs: Pairs,
    settings: Settings,
) -> Survey:
    """Make all measurements of a :class:`Survey` in one pass."""
    latents = pairs.indices.unique()
    firings, sketches = Firings(sae, len(contexts)), Sketches(sae, len(contexts))
    halves = Halves(sae, [len(c) for c in contexts])
    both, top = PairFirings(sae, pairs.indices), TopTexts(sae, latents, settings.n_texts)
    size = settings.batch_size_prompts
    batches = passes(sae, context.model, contexts, size, "Measuring firing rates")
    accumulate(batches, firings, sketches, halves, both, top)
    return Survey(
        firings.rates(),
        sketches.result(),
        halves.rates(),
        both.result(),
        latents,
        top.values,
        top.places,
    )


def _window(tokenizer: Any, tokens: Tensor, position: int, width: int = 10) -> dict[str, str]:
    """The token at ``position``, and ``width`` tokens before and after it, as text."""
    decode = tokenizer.decode
    ids = tokens.tolist()
    return {
        "before": decode(ids[max(0, position - width) : position]),
        "token": decode(ids[position : position + 1]),
        "after": decode(ids[position + 1 : position + 1 + width]),
    }
