"""The geometry of one SAE, and the pairs of its latents worth reading, by one pass over text."""

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
)
from saelens_adaptive_ortho.maths import grouping, similar_pairs
from saelens_adaptive_ortho.maths.directions import decoder_directions
from saelens_adaptive_ortho.maths.similar_pairs import PairCounts, Pairs


@dataclass(frozen=True)
class Settings(subspace.Settings):
    """Those of the geometry, and of pairs.

    Args:
        min_cosine: similarity from which a pair is looked at.
        max_lift: co-firing, relative to chance, up to which a similar pair is a candidate.
        n_candidates: candidates kept, the most similar ones.
        n_texts: top-activating texts of each latent of a candidate.
    """

    min_cosine: float = 0.3
    max_lift: float = 0.25
    n_candidates: int = 20
    n_texts: int = 3


class Survey(NamedTuple):
    """What one pass over text says.

    Attributes:
        rates: firing rates by corpus.
        sketches: of the firing patterns.
        halves: firing rates in the first and the second half of each corpus's contexts.
        counts: firings of latents and co-firings of pairs.
        latents: those that belong to a pair.
        top: the largest activations of those latents.
        where: the corpus, context and position each of them fell on.
    """

    rates: Float[Tensor, "n_corpora d_sae"]
    sketches: Float[Tensor, "d_sae r"]
    halves: Float[Tensor, "2 n_corpora d_sae"]
    counts: PairCounts
    latents: Int[Tensor, " n_latents"]
    top: Float[Tensor, "n_texts n_latents"]
    where: Int[Tensor, "n_texts n_latents 3"]


def run(context: EvalContext, settings: Settings) -> Outcome:
    """The metrics of subspace, absorption candidates with their texts, and domain churn.

    Churn is the share of latents that the two halves of the text put into different groups.
    """
    corpora = context.need_corpora(1)
    sae = context.load()
    domains = [c.domain for c in corpora]
    directions = decoder_directions(sae.W_dec.detach()).to(sae.device)
    pairs = similar_pairs.similar_pairs(directions, settings.min_cosine)
    contexts = [as_trained(sae, context.model, c.train[: settings.n_contexts]) for c in corpora]
    seen = survey(context, sae, contexts, pairs, settings)
    metrics, details = geometry.describe(sae, domains, seen.rates, seen.sketches, settings)
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
        if x == x  # a pair of which one never fired has no lift
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
    if len(domains) == 2:
        first, second = (grouping.domain_groups(h, settings.domain_ratio) for h in seen.halves)
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
    """Rates, sketches, halves, pair counts and top texts, from one pass."""
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
    """The token and what stands around it, as text."""
    decode = tokenizer.decode
    ids = tokens.tolist()
    return {
        "before": decode(ids[max(0, position - width) : position]),
        "token": decode(ids[position : position + 1]),
        "after": decode(ids[position + 1 : position + 1 + width]),
    }
