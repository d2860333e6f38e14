"""What ``adaptive-ortho browse`` shows of each latent, from one pass over text.

Each measurement is an accumulator of :mod:`.firing`. Its memory does not grow with the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.judging.contract import EvalContext
from saelens_adaptive_ortho.judging.firing import (
    Batch,
    Halves,
    accumulate,
    as_trained,
    passes,
    two_sides,
)
from saelens_adaptive_ortho.maths import grouping, similar_pairs
from saelens_adaptive_ortho.maths.directions import decoder_directions
from saelens_adaptive_ortho.maths.neighbours import top_similar
from saelens_adaptive_ortho.maths.similar_pairs import PairCounts
from saelens_adaptive_ortho.text.corpora import TokenisedCorpus

# The bins of the histograms: four for each factor of two, from 2^-12 to 2^14.
PARTS, LOWEST, HIGHEST = 4, -12, 14
N_BINS = PARTS * (HIGHEST - LOWEST)
# A latent is a candidate for a merged one if it fires at least this many times as often on the
# forget side as on the retain side, and still belongs to both.
MERGED_LEAN = 2.0
# Firings, passages or logits that are handled at a time.
BLOCK = 2**16
LOGITS = 2**25
# What an SAE of these hooks writes is added to the residual stream, so the unembedding reads it.
RESIDUAL = re.compile(
    r"blocks\.\d+\.(?:hook_(?:resid_(?:pre|mid|post)|attn_out|mlp_out|in|out)"
    r"|(?:attn|mlp)\.hook_out)"
)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        n_contexts: training contexts read of each corpus.
        n_passages: passages kept for each latent and corpus.
        width: tokens of a passage on each side of its largest activation.
        n_neighbours: nearest latents kept for each latent.
        n_tokens: tokens kept that a latent promotes most, and that it suppresses most.
        domain_ratio: a latent belongs to one side if its firing rate there is at least this many
            times the rate on the other side.
        batch_size_prompts: contexts per forward pass.
    """

    n_contexts: int = 256
    n_passages: int = 5
    width: int = 16
    n_neighbours: int = 8
    n_tokens: int = 8
    domain_ratio: float = 9.0
    batch_size_prompts: int = 32


class Lens(NamedTuple):
    """The logit lens: the tokens that each latent promotes and suppresses most, strongest first.

    Attributes:
        promoted, suppressed: ids of the tokens.
        raised, lowered: their logits, relative to the mean over the vocabulary.
    """

    promoted: Int[Tensor, "d_sae n_tokens"]
    raised: Float[Tensor, "d_sae n_tokens"]
    suppressed: Int[Tensor, "d_sae n_tokens"]
    lowered: Float[Tensor, "d_sae n_tokens"]


class Survey(NamedTuple):
    """All measurements of one SAE.

    Attributes:
        corpora: names of the corpora.
        contexts: the contexts of each corpus, as the SAE sees them.
        n_tokens: tokens counted in each corpus.
        fired: number of tokens on which each latent fires, by corpus.
        largest: largest activation of each latent; 0 if it never fires.
        groups: forget, retain, shared or inactive (:mod:`.maths.grouping`); None for one corpus.
        lean: ``log2`` of how many times as often a latent fires on the forget side as on the
            retain side (:func:`lean`); None for one corpus.
        merged: whether a latent is a candidate for a merged one (:func:`merged`).
        changed: whether a latent is in one group by the first half of the text, and in another
            group by the second half.
        passages: the top passages.
        histograms: counts of activations by corpus, latent and bin.
        neighbours: the nearest latents, by the cosines of decoder directions.
        cosines: their cosines.
        lifts: their co-firing relative to chance; NaN if one of the two never fires.
        lens: the logit lens; None if the SAE does not write into the residual stream.
    """

    corpora: list[str]
    contexts: list[Int[Tensor, "n context"]]
    n_tokens: Int[Tensor, " n_corpora"]
    fired: Int[Tensor, "n_corpora d_sae"]
    largest: Float[Tensor, " d_sae"]
    groups: Int[Tensor, " d_sae"] | None
    lean: Float[Tensor, " d_sae"] | None
    merged: Tensor
    changed: Tensor
    passages: TopPassages
    histograms: Int[Tensor, "n_corpora d_sae n_bins"]
    neighbours: Int[Tensor, "d_sae m"]
    cosines: Float[Tensor, "d_sae m"]
    lifts: Float[Tensor, "d_sae m"]
    lens: Lens | None


def survey(context: EvalContext, settings: Settings) -> Survey:
    """Measure all latents of an SAE.

    Groups compare the forget side with the retain side, as everywhere
    (:func:`.firing.two_sides`). Corpora that are only evaluated have rates and passages, and no
    part in the groups.

    Raises:
        EvaluationError: there is no corpus.
    """
    corpora, sae = context.need_corpora(1), context.load()
    contexts = [as_trained(sae, context.model, c.train[: settings.n_contexts]) for c in corpora]
    directions = decoder_directions(sae.W_dec.detach()).to(sae.device)
    m = min(settings.n_neighbours, len(directions) - 1)
    neighbours, cosines = top_similar(directions, m)
    halves = Halves(sae, [len(c) for c in contexts])
    histograms = Histograms(sae, len(contexts))
    joint = JointFirings(neighbours)
    passages = TopPassages(sae, len(contexts), settings.n_passages, settings.width)
    size = settings.batch_size_prompts
    batches = passes(sae, context.model, contexts, size, "Reading activations")
    accumulate(batches, halves, histograms, joint, passages)
    first, second = halves.halves
    n_tokens, fired = first.n_tokens + second.n_tokens, first.fired + second.fired
    both = PairCounts(int(n_tokens.sum()), fired.sum(0), joint.both.flatten())
    itself = torch.arange(len(directions), device=neighbours.device).unsqueeze(1)
    pairs = torch.stack([itself.expand_as(neighbours), neighbours], -1).flatten(0, 1)
    sides = _Sides(corpora, settings.domain_ratio)
    groups = sides.groups(n_tokens, fired)
    leaning = sides.lean(n_tokens, fired)
    return Survey(
        corpora=[c.domain for c in corpora],
        contexts=contexts,
        n_tokens=n_tokens.flatten(),
        fired=fired,
        largest=passages.values.amax((0, 2)),
        groups=groups,
        lean=leaning,
        merged=merged(groups, leaning, fired),
        changed=_changed(
            sides.groups(first.n_tokens, first.fired), sides.groups(second.n_tokens, second.fired)
        )
        if groups is not None
        else torch.zeros_like(fired[0], dtype=torch.bool),
        passages=passages,
        histograms=histograms.counts,
        neighbours=neighbours,
        cosines=cosines,
        lifts=similar_pairs.lifts(both, pairs).view_as(cosines),
        lens=logit_lens(sae, context.model, settings.n_tokens),
    )


class _Sides:
    """Firing rates on the forget side and on the retain side, of the corpora that count."""

    def __init__(self, corpora: Sequence[TokenisedCorpus], ratio: float) -> None:
        self.ratio = ratio
        self.numbers = [n for n, c in enumerate(corpora) if c.share > 0]
        self.corpora = [corpora[n] for n in self.numbers]

    def rates(self, n_tokens: Tensor, fired: Tensor) -> Float[Tensor, "2 d_sae"] | None:
        if len(self.corpora) < 2:
            return None
        rates = fired[self.numbers].double() / n_tokens[self.numbers].clamp(min=1)
        return two_sides(rates, self.corpora)

    def groups(self, n_tokens: Tensor, fired: Tensor) -> Int[Tensor, " d_sae"] | None:
        rates = self.rates(n_tokens, fired)
        return None if rates is None else grouping.domain_groups(rates, self.ratio)

    def lean(self, n_tokens: Tensor, fired: Tensor) -> Float[Tensor, " d_sae"] | None:
        rates = self.rates(n_tokens, fired)
        if rates is None:
            return None
        one = 1 / n_tokens[self.numbers].double().clamp(min=1).flatten()
        return lean(rates, float(one[0]), float(one[1:].max()))


def lean(
    rates: Float[Tensor, "2 d_sae"], one_forget: float, one_retain: float
) -> Float[Tensor, " d_sae"]:
    """``log2 ((P(i | forget) + a) / (P(i | retain) + b))`` with one firing more on each side.

    ``a`` and ``b`` are the rates of one firing. So latents that fire on one side only are ordered
    by how often they fire.

    Args:
        rates: firing rates on the forget side and on the retain side.
        one_forget: a.
        one_retain: b.
    """
    return ((rates[0] + one_forget) / (rates[1] + one_retain)).log2()


def merged(
    groups: Int[Tensor, " d_sae"] | None,
    leaning: Float[Tensor, " d_sae"] | None,
    fired: Int[Tensor, "n_corpora d_sae"],
) -> Tensor:
    """Whether each latent is shared by both sides though it leans to the forget side.

    Such a latent may serve a meaning of the forget corpus and one of the retain corpus: a clamp on
    it costs the retain corpus. It leans if it fires :data:`MERGED_LEAN` times as often there.
    """
    if groups is None or leaning is None:
        return torch.zeros_like(fired[0], dtype=torch.bool)
    return (groups == grouping.SHARED) & (leaning.exp2() >= MERGED_LEAN)


def _changed(first: Tensor | None, second: Tensor | None) -> Tensor:
    """Whether the group by one half of the text differs from the other, where both have firings."""
    assert first is not None
    assert second is not None
    alive = (first != grouping.INACTIVE) & (second != grouping.INACTIVE)
    return (first != second) & alive


# ------------------------------------------------------------------ accumulators


class Histograms:
    """Number of activations in each bin of a logarithmic scale, by corpus and latent.

    Bin b counts ``edges[b] <= a < edges[b + 1]``. The first bin also counts all smaller positive
    activations, the last bin all larger ones.
    """

    def __init__(self, sae: SAE[Any], n_corpora: int) -> None:
        d_sae = int(sae.cfg.d_sae)
        self.inner = edges()[1:-1].to(sae.device)
        self.counts = torch.zeros(n_corpora, d_sae, N_BINS, dtype=torch.int32, device=sae.device)

    def update(self, batch: Batch) -> None:
        counts = self.counts[batch.corpus].view(-1)
        for rows, latents in _firings(batch):
            values = batch.feature_acts[rows, latents].float()
            places = latents * N_BINS + torch.bucketize(values, self.inner, right=True)
            counts.index_add_(0, places, torch.ones_like(places, dtype=torch.int32))


def edges() -> Float[Tensor, " n_edges"]:
    """The edges of the bins, ``2^(LOWEST + b / PARTS)``."""
    return torch.exp2(torch.arange(N_BINS + 1, dtype=torch.float64) / PARTS + LOWEST).float()


class JointFirings:
    """Number of tokens on which each latent fires together with each of its neighbours.

    Args:
        neighbours: the neighbours of each latent.
    """

    def __init__(self, neighbours: Int[Tensor, "d_sae m"]) -> None:
        self.neighbours = neighbours
        self.both = torch.zeros_like(neighbours)

    def update(self, batch: Batch) -> None:
        for rows, latents in _firings(batch):
            others = batch.feature_acts[rows.unsqueeze(1), self.neighbours[latents]]
            self.both.index_add_(0, latents, (others > 0).to(self.both.dtype))


def _firings(batch: Batch) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"]]]:
    """Row and latent of each firing, in blocks."""
    rows, latents = (batch.feature_acts > 0).nonzero(as_tuple=True)
    yield from zip(rows.split(BLOCK), latents.split(BLOCK), strict=True)


class TopPassages:
    """The contexts of each corpus in which each latent is most active.

    A context counts once, by its largest activation. Of equal activations, the first one counts.

    Args:
        sae: the SAE.
        n_corpora: number of corpora in the pass.
        n_passages: contexts kept for each latent and corpus.
        width: tokens on each side of the largest activation whose activations are kept.

    Attributes:
        values: the largest activation of each context, largest first; 0 where there is none.
        places: the context, and the position of the activation in it; -1 where there is none.
        windows: activations from ``width`` positions before to ``width`` positions after it; 0
            outside the context and at tokens that do not count.
    """

    def __init__(self, sae: SAE[Any], n_corpora: int, n_passages: int, width: int) -> None:
        size = (n_corpora, int(sae.cfg.d_sae), n_passages)
        self.values = torch.zeros(size, device=sae.device)
        self.places = torch.full((*size, 2), -1, dtype=torch.int64, device=sae.device)
        self.windows = torch.zeros(*size, 2 * width + 1, device=sae.device)
        self.width = width

    def update(self, batch: Batch) -> None:
        values, places, windows = (
            kept[batch.corpus] for kept in (self.values, self.places, self.windows)
        )
        n = values.shape[1]
        peaks, rows = self._peaks(batch)
        # The sort is stable: earlier contexts come before later ones of the same activation.
        best, order = torch.cat([values, peaks], 1).sort(dim=1, descending=True, stable=True)
        best, order = best[:, :n], order[:, :n]
        old = order.clamp(max=n - 1).unsqueeze(-1)
        places[:] = places.gather(1, old.expand_as(places))
        windows[:] = windows.gather(1, old.expand_as(windows))
        values[:] = best
        entering = ((order >= n) & (best > 0)).nonzero()
        for latents, slots in (part.unbind(1) for part in entering.split(BLOCK)):
            found = rows[latents, order[latents, slots] - n]
            places[latents, slots] = batch.rows[found]
            windows[latents, slots] = self._window(batch, found, latents)

    def _peaks(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "d_sae batch"], Int[Tensor, "d_sae batch"]]:
        """The largest activation in each context of the batch, and its row."""
        _, lengths = batch.rows[:, 0].unique_consecutive(return_counts=True)
        starts = lengths.cumsum(0) - lengths
        peaks = [part.max(0) for part in batch.feature_acts.split(lengths.tolist())]
        values = torch.stack([peak.values for peak in peaks], 1).float().clamp(min=0)
        return values, torch.stack([peak.indices for peak in peaks], 1) + starts

    def _window(
        self, batch: Batch, rows: Int[Tensor, " n"], latents: Int[Tensor, " n"]
    ) -> Float[Tensor, "n width"]:
        """The activations of latents around rows of the batch."""
        first, length = batch.rows[0, 0], batch.tokens.shape[1]
        row_of = batch.rows.new_full((int(batch.rows[-1, 0] - first) + 1, length), -1)
        everywhere = torch.arange(len(batch.rows), device=row_of.device)
        row_of[batch.rows[:, 0] - first, batch.rows[:, 1]] = everywhere
        offsets = torch.arange(-self.width, self.width + 1, device=row_of.device)
        positions = batch.rows[rows, 1].unsqueeze(1) + offsets
        found = row_of[(batch.rows[rows, 0] - first).unsqueeze(1), positions.clamp(0, length - 1)]
        counted = (found >= 0) & (positions >= 0) & (positions < length)
        acts = batch.feature_acts[found.clamp(min=0), latents.unsqueeze(1)].float().clamp(min=0)
        return torch.where(counted, acts, 0.0)


# ------------------------------------------------------------------ logit lens and text


@torch.no_grad()
def logit_lens(sae: SAE[Any], model: HookedRootModule, n: int) -> Lens | None:
    """The logits that the direction ``d_i`` adds, through the final norm and the unembedding.

    ``U(norm(c d_i)) - U(norm(0))`` minus its mean over the vocabulary, with ``c`` such that
    ``c d_i`` has a mean square of 1. The difference leaves out the biases of norm and unembedding.
    Layers between the hook and the end of the model are ignored.

    Args:
        sae: the SAE.
        model: its model.
        n: number of tokens on each end.

    Returns:
        None if the SAE does not write into the residual stream, or if the model has no final norm
        or no unembedding.
    """
    norm, unembed = getattr(model, "ln_final", None), getattr(model, "unembed", None)
    W, d_model = sae.W_dec.detach(), int(getattr(model.cfg, "d_model", 0))
    metadata = sae.cfg.metadata
    hook = metadata.get("hook_name_out") or metadata.hook_name
    if norm is None or unembed is None or not RESIDUAL.fullmatch(hook) or W.shape[1] != d_model:
        return None
    like = next(model.parameters())
    known = len(model.tokenizer)  # type: ignore[arg-type]  # a model may have further rows
    directions = decoder_directions(W) * d_model**0.5

    def logits(x: Tensor) -> Float[Tensor, "n vocabulary"]:
        return unembed(norm(x.to(like.device, like.dtype).unsqueeze(0)))[0, :, :known].float()

    nothing = logits(torch.zeros(1, d_model))
    n = min(n, nothing.shape[1])
    parts = []
    for block in directions.split(max(1, LOGITS // nothing.shape[1])):
        change = logits(block) - nothing
        change -= change.mean(1, keepdim=True)
        high, low = change.topk(n, 1), change.topk(n, 1, largest=False)
        parts.append((high.indices, high.values, low.indices, low.values))
    return Lens(*(torch.cat(part) for part in zip(*parts, strict=True)))


class Pieces:
    """The text of tokens, one by one.

    Args:
        tokenizer: the tokenizer of the model.
    """

    # A character has at most four bytes, and so at most four tokens.
    LONGEST = 4

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: dict[tuple[int, ...], str] = {}

    def of_token(self, *ids: int) -> str:
        """The text of a token, or of several.

        Some tokenizers drop the space in front of a text, so it is decoded behind another token.
        """
        if ids not in self.known:
            decode = self.tokenizer.decode
            anchor = ids[0]
            before = decode([anchor])
            both = decode([anchor, *ids])
            alone = decode(list(ids))
            behind = both.removeprefix(before) if both.startswith(before) else alone
            self.known[ids] = behind if behind.endswith(alone) else alone
        return self.known[ids]

    def of_text(self, ids: Sequence[int]) -> list[str]:
        """The text of each token of a text. Together they are the text.

        A character whose bytes are in several tokens belongs to the last one of them.
        """
        texts, start = [], 0
        for end in range(1, len(ids) + 1):
            text = self.of_token(*ids[start:end])
            cut = text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids)
            if cut and end - start < self.LONGEST:
                texts.append("")
                continue
            texts.append(text)
            start = end
        return texts
