"""Which latents are clamped, and where: everything that is learned from training text.

The forget side is the forget corpus. The *retain side* is retain and the named retain corpora that
the SAE was trained on, mixed by their shares. Corpora with share 0 and ``forget_test`` are never
looked at here.

Three rules rank latents (``Settings.selection``):

- ``rate``: by firing rate on forget, among the latents that fire rarely on the retain side, or
  ``ratio`` times as often on forget (Farrell et al. 2024, arXiv 2410.19278).
- ``dsg``: by mean squared activation on forget, among the latents where it is ``ratio`` times that
  on the retain side (Dynamic SAE Guardrails, Muhamed et al. 2025, arXiv 2504.08192).
- ``coverage``: each next latent adds most to (share of forget tokens on which any chosen latent
  fires) - ratio * (the same share on the retain side). It stops when no latent adds anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.evaluations.contract import SEED
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.firing import Batch, Firings, accumulate, passes, two_sides
from saelens_adaptive_ortho.judging.unlearning.clamps import rank_latents
from saelens_adaptive_ortho.maths.erasure import Moments, mixed_moments

# SAEBench's retain thresholds.
PUBLISHED_THRESHOLDS = (0.001, 0.01)
GATE_PERCENTILE = 0.95  # of the retain side's contexts (DSG)
MOST_CANDIDATES = 1024  # latents of a ranking whose firings are looked at token by token


@dataclass(frozen=True)
class Statistics:
    """What one pass over training text of both sides measures.

    Args:
        forget_rate: firing rate of each latent on forget.
        retain_rate: firing rate of each latent on the retain side.
        forget_energy: mean squared activation of each latent on forget.
        retain_energy: mean squared activation of each latent on the retain side.
        scale: mean activation of each latent where it fires on forget.
        forget: moments of the activations at the hook on forget.
        retain: the same on the retain side.
    """

    forget_rate: Float[Tensor, " d_sae"]
    retain_rate: Float[Tensor, " d_sae"]
    forget_energy: Float[Tensor, " d_sae"]
    retain_energy: Float[Tensor, " d_sae"]
    scale: Float[Tensor, " d_sae"]
    forget: Moments
    retain: Moments


class Energies:
    """``E[f_i^2]`` per token of each corpus, and the moments of the activations at the hook."""

    def __init__(self, sae: SAE[Any], n_corpora: int) -> None:
        self.squares = torch.zeros(n_corpora, sae.cfg.d_sae, dtype=torch.float64, device=sae.device)
        self.n_tokens = torch.zeros(n_corpora, dtype=torch.int64)
        self.sums: list[Any] = [0.0] * n_corpora
        self.seconds: list[Any] = [0.0] * n_corpora

    def update(self, batch: Batch) -> None:
        acts, x = batch.feature_acts.clamp(min=0), batch.x.double()
        self.squares[batch.corpus] += acts.square().sum(0, dtype=torch.float64)
        self.n_tokens[batch.corpus] += len(x)
        self.sums[batch.corpus] += x.sum(0)
        self.seconds[batch.corpus] += x.T @ x

    def energies(self) -> Float[Tensor, "n_corpora d_sae"]:
        return self.squares / self.n_tokens.to(self.squares.device)[:, None]

    def moments(self, shares: dict[int, float]) -> Moments:
        """Moments of a mixture of corpora, given the share of each corpus by its number."""
        means = torch.stack([self.sums[c] / self.n_tokens[c] for c in shares]).cpu()
        seconds = torch.stack([self.seconds[c] / self.n_tokens[c] for c in shares]).cpu()
        return mixed_moments(means, seconds, torch.tensor(list(shares.values())).double())


def training_contexts(context: EvalContext, n: int) -> list[Int[Tensor, "n context"]]:
    """The first ``n`` training contexts of forget and of each corpus of the retain side."""
    return [c.train[:n] for c in context.trained]


def measure_statistics(
    context: EvalContext, sae: SAE[Any], settings: Settings, *others: Any
) -> Statistics:
    """Measure them in one pass over training text, in the model that is changed.

    Args:
        others: further accumulators that share the pass.

    Raises:
        EvaluationError: a corpus has no token that counts.
    """
    model = context.bench.language_model(settings.model_name)
    corpora = context.trained
    contexts = training_contexts(context, settings.n_select_contexts)
    firings, energies = Firings(sae, len(corpora)), Energies(sae, len(corpora))
    batches = passes(sae, model, contexts, settings.batch_size_prompts, "Measuring firing rates")
    accumulate(batches, firings, energies, *others)
    for corpus, n_tokens in zip(corpora, energies.n_tokens.tolist(), strict=True):
        if not n_tokens:
            raise EvaluationError(f"no token of the corpus {corpus.domain!r} counts")
    forget_rate, retain_rate = two_sides(firings.rates(), corpora)
    forget_energy, retain_energy = two_sides(energies.energies(), corpora)
    return Statistics(
        forget_rate,
        retain_rate,
        forget_energy,
        retain_energy,
        firings.scales()[0].float(),
        energies.moments({0: 1.0}),
        energies.moments({i: c.share for i, c in enumerate(corpora) if i > 0}),
    )


def published_rankings(found: Statistics) -> dict[float, Int[Tensor, " n"]]:
    """SAEBench's rankings: by firing rate on forget, below each threshold on the retain side."""
    return {t: rank_latents(found.forget_rate, found.retain_rate, t) for t in PUBLISHED_THRESHOLDS}


@dataclass(frozen=True)
class Patterns:
    """Where some latents fire, token by token, on training text of both sides.

    Args:
        latents: indices of the latents, rising.
        fires: for each corpus (forget first), whether each latent fires on each token.
        contexts: for each corpus, the context of each token.
        shares: share of each corpus in its side: 1, then those of the retain side.
    """

    latents: Int[Tensor, " n_latents"]
    fires: list[Bool[Tensor, "n n_latents"]]
    contexts: list[Int[Tensor, " n"]]
    shares: list[float]

    def columns(self, latents: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The columns of ``fires`` that hold these latents."""
        return torch.searchsorted(self.latents, latents)

    def gate(self, latents: Int[Tensor, " n"]) -> float:
        """The 95th percentile, over contexts of the retain side, of the share of firing tokens.

        A token fires if at least one of the latents fires on it.
        """
        columns = self.columns(latents)
        fires = [f[:, columns].any(1) for f in self.fires[1:]]
        return gate_of(fires, self.contexts[1:], self.shares[1:])


def gate_of(
    fires: Sequence[Bool[Tensor, " n"]],
    contexts: Sequence[Int[Tensor, " n"]],
    shares: Sequence[float],
) -> float:
    """The 95th percentile, over contexts of the retain side, of the share of firing tokens.

    Args:
        fires: for each corpus of the retain side, whether something fires on each token.
        contexts: for each corpus, the context of each token.
        shares: share of each corpus.
    """
    found, weights = [], []
    for own, context, share in zip(fires, contexts, shares, strict=True):
        n_tokens = torch.bincount(context)
        by_context = torch.bincount(context, own.double()) / n_tokens.clamp(min=1)
        by_context = by_context[n_tokens > 0]
        found.append(by_context)
        weights.append(torch.full_like(by_context, share / len(by_context)))
    order = torch.cat(found).sort()
    held = torch.cat(weights)[order.indices].cumsum(0)
    return float(order.values[int((held < GATE_PERCENTILE - 1e-9).sum())])


class _PatternSums:
    def __init__(self, latents: Tensor, n_corpora: int) -> None:
        self.latents = latents
        self.fires: list[list[Tensor]] = [[] for _ in range(n_corpora)]
        self.contexts: list[list[Tensor]] = [[] for _ in range(n_corpora)]

    def update(self, batch: Batch) -> None:
        self.fires[batch.corpus].append((batch.feature_acts[:, self.latents] > 0).cpu())
        self.contexts[batch.corpus].append(batch.rows[:, 0].cpu())


def measure_patterns(
    context: EvalContext, sae: SAE[Any], settings: Settings, latents: Int[Tensor, " n"]
) -> Patterns:
    """Measure them in a second pass over the text of :func:`measure_statistics`."""
    latents = latents.sort().values
    model = context.bench.language_model(settings.model_name)
    contexts = training_contexts(context, settings.n_select_contexts)
    sums = _PatternSums(latents, len(contexts))
    batches = passes(
        sae, model, contexts, settings.batch_size_prompts, "Looking where latents fire"
    )
    accumulate(batches, sums)
    return Patterns(
        latents.cpu(),
        [torch.cat(f) for f in sums.fires],
        [torch.cat(c) for c in sums.contexts],
        [c.share for c in context.trained],
    )


@dataclass(frozen=True)
class Selection:
    """The ranked latents, and where they may act.

    Args:
        statistics: the statistics of the training text.
        rankings: latents by the name of the rule that ranks them, best first.
        random: as many random latents as the largest count.
        patterns: where all these latents fire; None if a clamp may act everywhere.
    """

    statistics: Statistics
    rankings: dict[str, Int[Tensor, " n"]]
    random: Int[Tensor, " n"]
    patterns: Patterns | None

    @property
    def by_ratio(self) -> list[Int[Tensor, " n"]]:
        """The rankings that compare both sides, and not the retain side with a fixed rate."""
        return [r for name, r in self.rankings.items() if not name.startswith("retain <")]

    def gate(self, latents: Int[Tensor, " n"]) -> float | None:
        """The gate of a clamp of these latents; None if it may act everywhere."""
        return None if self.patterns is None else self.patterns.gate(latents.cpu())


def select(context: EvalContext, sae: SAE[Any], settings: Settings, found: Statistics) -> Selection:
    """Rank the latents by the rule of the settings.

    Raises:
        EvaluationError: no latent qualifies.
    """
    rankings = _rankings(found, settings)
    if settings.selection == "coverage" and any(len(r) for r in rankings.values()):
        candidates = torch.cat([r[:MOST_CANDIDATES] for r in rankings.values()]).unique()
        patterns = measure_patterns(context, sae, settings, candidates)
        most = max([*settings.counts, *settings.ranks])
        rankings = {
            f"covers forget, {ratio:g} x retain": cover(patterns, ratio, most).to(sae.device)
            for ratio in settings.specificities
        }
    if not any(len(r) for r in rankings.values()):
        raise EvaluationError(
            "no latent fires on the forget corpus and hardly on the retain one. Lower "
            f"unlearning.specificities={settings.specificities}, give corpora that differ more, or "
            "train the SAE longer or wider."
        )
    most = max(settings.counts)
    random = alive_in_random_order(found, SEED)[:most]
    gating = None
    if settings.gate == "sequence":
        clamped = torch.cat([random, *(r[:most] for r in rankings.values())]).unique()
        gating = measure_patterns(context, sae, settings, clamped)
    return Selection(found, rankings, random, gating)


def _rankings(found: Statistics, settings: Settings) -> dict[str, Int[Tensor, " n"]]:
    if settings.selection == "dsg":
        return {
            f"forget > {r:g} x retain, squared": rank_latents(
                found.forget_energy, found.retain_energy, found.forget_energy / r
            )
            for r in settings.specificities
        }
    ratios = {
        f"forget > {r:g} x retain": rank_latents(
            found.forget_rate, found.retain_rate, found.forget_rate / r
        )
        for r in settings.specificities
    }
    if settings.selection == "coverage":
        return ratios
    published = published_rankings(found).items()
    return {f"retain < {t:g}": ranking for t, ranking in published} | ratios


def cover(patterns: Patterns, ratio: float, most: int) -> Int[Tensor, " n"]:
    """Greedy union coverage.

    Each step adds the latent i with the largest
    ``P_F(i fires, no chosen one does) - ratio * P_R(i fires, no chosen one does)``, while this is
    above 0. If two latents are equal, the lower index comes first.

    Args:
        patterns: where the candidates fire.
        ratio: weight of a retain token against a forget token.
        most: largest number of latents.
    """
    weights = [1.0, *(-ratio * share for share in patterns.shares[1:])]
    fires = patterns.fires
    chosen: list[int] = []
    while len(chosen) < most:
        added = sum(
            w * f.sum(0).double() / len(own)
            for w, f, own in zip(weights, fires, patterns.fires, strict=True)
        )
        assert isinstance(added, Tensor)
        best = int(added.argmax())
        if float(added[best]) <= 1e-12:
            break
        chosen.append(best)
        # A token that is covered counts no more.
        fires = [f[~f[:, best]] for f in fires]
    return patterns.latents[torch.tensor(chosen, dtype=torch.int64)]


def alive_in_random_order(found: Statistics, seed: int) -> Int[Tensor, " n"]:
    """All latents that fire on either side, in an order that depends only on ``seed``."""
    alive = ((found.forget_rate > 0) | (found.retain_rate > 0)).nonzero().flatten()
    order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed))
    return alive[order.to(alive.device)]


def paths_of(
    rankings: Sequence[Int[Tensor, " n"]], counts: Sequence[int]
) -> list[Int[Tensor, " n"]]:
    """The distinct sets of the first ``count`` latents of each ranking."""
    paths: dict[tuple[int, ...], Tensor] = {}
    for ranking in rankings:
        for count in counts:
            chosen = ranking[:count]
            if len(chosen):
                paths.setdefault(tuple(chosen.tolist()), chosen)
    return list(paths.values())
