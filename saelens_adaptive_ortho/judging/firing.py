"""One pass over text measures which latents fire where, and how strongly.

Every evaluation and ``adaptive-ortho analyse`` take their numbers about firing from
:func:`passes`. So all these numbers count the same tokens:

- **Contexts.** Each SAE sees contexts of the kind it was trained on: with BOS in front or without
  it (:func:`as_trained`).
- **Positions.** Only the positions in the SAE's ``seqpos_slice`` count. If the hook has heads, the
  SAE reads its own head.
- **Tokens.** BOS, EOS and padding never count, because their activations say nothing about the
  text. So SAEs that were trained with them and without them stay comparable. The tokens in the
  SAE's ``exclude_special_tokens`` do not count either.

Each measurement is an accumulator: ``update`` counts one batch, and ``result`` gives the
measurement. Several accumulators can share one pass (:func:`accumulate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from sae_lens.saes.transcoder import SkipTranscoder
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name, get_special_token_ids
from torch import Tensor
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.maths import coactivation, similar_pairs
from saelens_adaptive_ortho.maths.similar_pairs import PairCounts
from saelens_adaptive_ortho.progress import progress
from saelens_adaptive_ortho.text import models
from saelens_adaptive_ortho.text.corpora import TokenisedCorpus

SKETCH_SIZE = 256


class Batch(NamedTuple):
    """A batch of contexts of one corpus, and the SAE's latent activations on it.

    Attributes:
        corpus: index of the corpus.
        tokens: the tokens that the model read.
        rows: the context (its index in the corpus) and the position of each token that counts.
        x: activations of the counted tokens at the hook.
        feature_acts: latent activations of the counted tokens.
        output: reconstructions of the counted tokens; None if the pass does not reconstruct.
    """

    corpus: int
    tokens: Int[Tensor, "batch context"]
    rows: Int[Tensor, "n 2"]
    x: Float[Tensor, "n d_in"]
    feature_acts: Float[Tensor, "n d_sae"]
    output: Float[Tensor, "n d_in"] | None = None


class Accumulator(Protocol):
    """A measurement that is made batch by batch."""

    def update(self, batch: Batch) -> None:
        """Count one batch."""
        ...


def uncounted_tokens(sae: SAE[Any], model: HookedRootModule) -> set[int]:
    """Ids of BOS, EOS, padding, and the special tokens that the SAE was trained without."""
    excluded = sae.cfg.metadata.exclude_special_tokens
    if excluded is True:
        tokenizer: Any = model.tokenizer
        excluded = get_special_token_ids(tokenizer)
    return models.special_tokens(model) | set(excluded or ())


def as_trained(
    sae: SAE[Any], model: HookedRootModule, contexts: Int[Tensor, "n context"]
) -> Int[Tensor, "n length"]:
    """The contexts with BOS in front, or without it, as the SAE's ``prepend_bos`` says.

    Adding BOS removes the last token, so the length stays the same. Removing BOS makes the
    contexts one token shorter. If ``prepend_bos`` is None, the contexts stay as they are. The
    contexts count as tokenised with BOS only if all of them begin with it, because a separator
    can be the first token of a single context by chance.
    """
    tokenizer: Any = model.tokenizer
    wanted, bos = sae.cfg.metadata.prepend_bos, tokenizer.bos_token_id
    if wanted is None or bos is None or not len(contexts):
        return contexts
    begins = contexts[:, :1] == bos
    if not wanted:
        return contexts[:, 1:] if bool(begins.all()) else contexts
    pushed = torch.cat([torch.full_like(contexts[:, :1], bos), contexts[:, :-1]], dim=1)
    return torch.where(begins, contexts, pushed)


@torch.no_grad()
def at_hook(
    sae: SAE[Any], model: HookedRootModule, tokens: Int[Tensor, "batch context"]
) -> Float[Tensor, "batch context *d_in"]:
    """Activations at the SAE's hook, in the shape that its ``encode`` takes.

    The model runs only up to the hook's layer. If the hook has heads, the result holds the SAE's
    own head, or all heads concatenated.
    """
    hook, head = sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_head_index
    acts = model.run_with_cache(
        tokens.long().to(next(model.parameters()).device),
        names_filter=[hook],
        stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook),
        prepend_bos=False,
    )[1][hook]
    if acts.ndim > 3 and head is not None:
        acts = acts[:, :, head]
    elif acts.ndim > 3 and not getattr(sae, "hook_z_reshaping_mode", False):
        acts = acts.flatten(2)
    return acts.to(sae.device, sae.dtype)


@torch.no_grad()
def passes(
    sae: SAE[Any],
    model: HookedRootModule,
    corpora: Sequence[Int[Tensor, "n context"]],
    batch_size: int = 32,
    desc: str = "Reading activations",
    reconstruct: bool = False,
) -> Iterator[Batch]:
    """Tokens, activations and latent activations, corpus by corpus.

    The docstring of the module says which tokens count.

    Args:
        corpora: contexts of each corpus.
        batch_size: contexts per forward pass.
        desc: label of the progress bar.
        reconstruct: whether batches hold reconstructions.
    """
    ignored = torch.tensor(sorted(uncounted_tokens(sae, model)), dtype=torch.int64)
    window = slice(*(sae.cfg.metadata.seqpos_slice or (None,)))
    n_batches = sum(-(-len(c) // batch_size) for c in corpora)
    with progress(total=n_batches, desc=desc, unit=" batches") as bar:
        for number, contexts in enumerate(corpora):
            contexts = as_trained(sae, model, contexts)
            for first in range(0, len(contexts), batch_size):
                tokens = contexts[first : first + batch_size]
                counted = torch.zeros(tokens.shape, dtype=torch.bool)
                counted[:, window] = True
                counted &= ~torch.isin(tokens.cpu().long(), ignored)
                rows = counted.nonzero().to(sae.device)
                if len(rows):
                    inputs = at_hook(sae, model, tokens)[rows[:, 0], rows[:, 1]]
                    acts = sae.encode(inputs)
                    output = _decoded(sae, inputs, acts) if reconstruct else None
                    rows[:, 0] += first
                    yield Batch(number, tokens, rows, inputs.flatten(1), acts, output)
                bar.update()


def _decoded(sae: SAE[Any], inputs: Tensor, feature_acts: Tensor) -> Float[Tensor, "n d_in"]:
    """``sae(inputs)``, without encoding again.

    Call it right after ``encode``: ``decode`` undoes the normalisation of the input that the SAE
    encoded last.
    """
    output = sae.decode(feature_acts)
    if isinstance(sae, SkipTranscoder):
        output = output + inputs @ sae.W_skip.T
    return output.flatten(1)


def accumulate(batches: Iterable[Batch], *accumulators: Accumulator) -> None:
    """Count every batch in every accumulator."""
    for batch in batches:
        for accumulator in accumulators:
            accumulator.update(batch)


class Firings:
    """``P(i fires | corpus)`` per token, and ``E[f_i | i fires, corpus]``, for each latent i.

    Args:
        sae: the SAE.
        n_corpora: number of corpora in the pass.
    """

    def __init__(self, sae: SAE[Any], n_corpora: int) -> None:
        size = (n_corpora, sae.cfg.d_sae)
        self.n_tokens = torch.zeros(n_corpora, 1, dtype=torch.int64, device=sae.device)
        self.fired = torch.zeros(size, dtype=torch.int64, device=sae.device)
        self.total = torch.zeros(size, dtype=torch.float64, device=sae.device)

    def update(self, batch: Batch) -> None:
        acts = batch.feature_acts
        self.n_tokens[batch.corpus] += len(acts)
        self.fired[batch.corpus] += (acts > 0).sum(0)
        self.total[batch.corpus] += acts.clamp(min=0).sum(0, dtype=torch.float64)

    def rates(self) -> Float[Tensor, "n_corpora d_sae"]:
        """Share of the tokens on which each latent fires; zero if the corpus has no token."""
        return self.fired.double() / self.n_tokens.clamp(min=1)

    def scales(self) -> Float[Tensor, "n_corpora d_sae"]:
        """Mean activation of each latent where it fires; zero if it never fires."""
        return self.total / self.fired.clamp(min=1)


def two_sides(
    rates: Float[Tensor, "n_corpora d_sae"], corpora: Sequence[TokenisedCorpus]
) -> Float[Tensor, "n_sides d_sae"]:
    """Firing rates on the forget corpus, and ``sum_c share_c rate_c`` over the retain corpora c.

    These are retain and the named retain corpora, mixed by their shares as in training. A corpus
    with share 0 changes nothing. A single corpus has one side.

    Args:
        rates: firing rates on each corpus.
        corpora: the corpora of ``rates``: forget first, then those of the retain side.
    """
    if len(corpora) == 1:
        return rates
    shares = torch.tensor([c.share for c in corpora[1:]], dtype=rates.dtype, device=rates.device)
    return torch.stack([rates[0], (shares[:, None] * rates[1:]).sum(0)])


class Halves:
    """Firing rates in the first and in the second half of each corpus's contexts.

    Args:
        sae: the SAE.
        sizes: number of contexts of each corpus; if it is odd, the second half has one more.
    """

    def __init__(self, sae: SAE[Any], sizes: Sequence[int]) -> None:
        self.middles = [size // 2 for size in sizes]
        self.halves = [Firings(sae, len(sizes)) for _ in range(2)]

    def update(self, batch: Batch) -> None:
        second = batch.rows[:, 0] >= self.middles[batch.corpus]
        for half, chosen in zip(self.halves, (~second, second), strict=True):
            half.update(batch._replace(feature_acts=batch.feature_acts[chosen]))

    def rates(self) -> Float[Tensor, "2 n_corpora d_sae"]:
        return torch.stack([half.rates() for half in self.halves])


class Sketches:
    """Unit-norm sketches of the centred firing patterns over all corpora.

    :func:`.coactivation.sketch_directions` gives the formula.
    """

    def __init__(self, sae: SAE[Any], n_corpora: int) -> None:
        self.state = coactivation.empty_state(sae.cfg.d_sae, 0, SKETCH_SIZE, device=sae.device)
        self.steps = [0] * n_corpora
        self.no_pairs = torch.empty(sae.cfg.d_sae, 0, dtype=torch.int64, device=sae.device)

    def update(self, batch: Batch) -> None:
        acts, step = batch.feature_acts, self.steps[batch.corpus]
        signs = coactivation.random_signs(len(acts), SKETCH_SIZE, batch.corpus, step)
        self.state = coactivation.update(
            self.state, acts, self.no_pairs, signs.to(acts.device), decay=1.0
        )
        self.steps[batch.corpus] += 1

    def result(self) -> Float[Tensor, "d_sae r"]:
        return coactivation.sketch_directions(self.state)


class PairFirings:
    """Number of tokens on which each latent fires, and on which both latents of a pair fire.

    The counts are over all corpora.

    Args:
        sae: the SAE.
        pairs: pairs of latents.
    """

    def __init__(self, sae: SAE[Any], pairs: Int[Tensor, "n_pairs 2"]) -> None:
        self.pairs = pairs
        self.counts = PairCounts(
            0,
            torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=sae.device),
            torch.zeros(len(pairs), dtype=torch.int64, device=sae.device),
        )

    def update(self, batch: Batch) -> None:
        self.counts = similar_pairs.count_pairs(self.counts, batch.feature_acts > 0, self.pairs)

    def result(self) -> PairCounts:
        return self.counts


class TopTexts:
    """The largest activations of some latents, and the tokens they fall on.

    Args:
        sae: the SAE.
        latents: indices of the latents.
        n_texts: number of activations kept for each latent.

    Attributes:
        values: activations, largest first; zero where a latent has fewer than ``n_texts``.
        places: corpus, context and position of each activation, in the contexts that
            :func:`as_trained` returns; -1 where there is no activation.
    """

    def __init__(self, sae: SAE[Any], latents: Int[Tensor, " n_latents"], n_texts: int) -> None:
        self.latents = latents
        self.values = torch.zeros(n_texts, len(latents), device=sae.device)
        self.places = torch.full((n_texts, len(latents), 3), -1, device=sae.device)

    def update(self, batch: Batch) -> None:
        n_texts, n_latents = self.values.shape
        if not n_texts or not n_latents:
            return
        n = min(n_texts, len(batch.feature_acts))
        values, tops = batch.feature_acts[:, self.latents].float().topk(n, dim=0)
        corpus = torch.full_like(tops, batch.corpus).unsqueeze(-1)
        places = torch.cat([corpus, batch.rows[tops]], dim=-1)
        self.values, order = torch.cat([self.values, values]).topk(n_texts, dim=0)
        order = order.unsqueeze(-1).expand(-1, -1, 3)
        self.places = torch.cat([self.places, places]).gather(0, order)
