"""Domain-stratified activation batches.

Batch ``t`` is a pure function of the configuration and ``t``. Contexts are permuted in each epoch,
and activations are shuffled within chunks of a few batches. The seed of each permutation depends
only on the run's seed, the domain, and the epoch or chunk. A run can therefore resume at any step
without replaying earlier steps, and its buffer need not be saved.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.errors import Explained, reject
from saelens_adaptive_ortho.files import check_writable, remove_litter, write_json
from saelens_adaptive_ortho.locks import write_lock
from saelens_adaptive_ortho.progress import progress
from saelens_adaptive_ortho.rng import mix
from saelens_adaptive_ortho.text import mixture
from saelens_adaptive_ortho.text.activation_cache import (
    FOLDER_VARIABLE,
    CachedCorpus,
    fill,
    model_digest,
    setup_folder,
)
from saelens_adaptive_ortho.text.corpora import TokenisedCorpus
from saelens_adaptive_ortho.text.shared_reads import SharedReads


class NonFiniteActivationsError(Explained, RuntimeError):
    """The language model produced NaN or infinity. The message names corpus and batches."""


# ---------------------------------------------------------------- activations


class _Rows(NamedTuple):
    """Consecutive activation rows: the contexts, and how many of their first rows to skip."""

    contexts: Int[Tensor, " n"]
    skip: int


class CacheSize(NamedTuple):
    """Bytes of the cached activations of a run, and how many of them are not on disk."""

    total: int
    missing: int


class DomainRows:
    """Random access to the infinite sequence of a corpus's usable token positions.

    Epoch ``e`` visits the contexts in a permutation seeded by ``(seed, domain, e)``. Within a
    context only positions in ``usable`` count (the sequence slice without excluded tokens).
    """

    def __init__(
        self, tokens: Int[Tensor, "n context"], usable: Bool[Tensor, "n context"], seed: int
    ) -> None:
        self.tokens = tokens
        self.usable = usable
        self._counts = usable.sum(1)
        self.rows_per_epoch = int(self._counts.sum())
        self._seed = seed
        self._epoch: tuple[int, Tensor, Tensor] | None = None

    def locate(self, start: int, n: int) -> list[_Rows]:
        """Contexts of rows ``start .. start + n`` of the infinite sequence, one item per epoch."""
        out = []
        while n > 0:
            epoch, offset = divmod(start, self.rows_per_epoch)
            order, ends = self._order(epoch)
            take = min(n, self.rows_per_epoch - offset)
            first = int(torch.searchsorted(ends, offset, right=True))
            last = int(torch.searchsorted(ends, offset + take - 1, right=True))
            skip = offset - (int(ends[first - 1]) if first else 0)
            out.append(_Rows(order[first : last + 1], skip))
            start, n = start + take, n - take
        return out

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self._seed, epoch))
            order = torch.randperm(len(self._counts), generator=generator)
            self._epoch = (epoch, order, self._counts[order].cumsum(0))
        return self._epoch[1], self._epoch[2]


class StratifiedActivationsStore(ActivationsStore):
    """SAELens's store with domain-stratified batches from one or more corpora.

    Rows ``[0:forget_rows]`` of each batch come from the forget corpus. The rows of the retain
    corpus follow, then those of each named retain corpus, in the order of the config. Corpora with
    share 0 take no part. Iteration yields batches ``position, position + 1, ...``; :meth:`seek`
    sets the position. The inherited token interface (``get_batch_tokens``, used by evaluations)
    returns the held-out contexts of these corpora, interleaved.

    Attributes:
        corpora: the corpora that are trained on.
        rows_per_batch: rows of a batch that come from each of them.
        cached: the activations of each corpus on disk, if the run has ``ortho_cache_activations``
            (:mod:`~saelens_adaptive_ortho.text.activation_cache`); otherwise empty. Batches are
            the same, up to the rounding with which the model reads other groups of contexts.
    """

    corpora: list[TokenisedCorpus]
    rows_per_batch: list[int]
    position: int
    cached: list[CachedCorpus]

    @classmethod
    def build(
        cls,
        model: HookedRootModule,
        cfg: Any,
        corpora: list[TokenisedCorpus],
        seed: int,
        reads: SharedReads | None = None,
    ) -> StratifiedActivationsStore:
        """A store for a runner config and its tokenised corpora.

        Args:
            model: the language model.
            cfg: the runner config.
            corpora: the corpora. Some of them may only be evaluated.
            seed: seed of the permutations.
            reads: the same model, if it reads several hooks at once for several stores.

        Raises:
            ConfigError: there is no usable token position, or a batch has no row of a corpus.
        """
        corpora = [c for c in corpora if c.share > 0]
        with warnings.catch_warnings():
            # There are intentionally fewer held-out contexts than training tokens.
            warnings.filterwarnings("ignore", message="The training dataset contains fewer")
            read: Any = model if reads is None else reads
            store = cls.from_config(read, cfg, override_dataset=held_out_dataset(corpora))
        assert isinstance(store, StratifiedActivationsStore)
        store._set_corpora(corpora, rows_per_batch(cfg), seed)
        if cfg.ortho_cache_activations:
            store._set_cache(cfg.model_name, model)
        return store

    def _set_corpora(
        self, corpora: list[TokenisedCorpus], rows_per_batch: list[int], seed: int
    ) -> None:
        self.corpora = corpora
        self.position = 0
        self.rows_per_batch = rows_per_batch
        self._domains = [
            DomainRows(c.train, self._usable(c), mix(seed, i)) for i, c in enumerate(corpora)
        ]
        self._seed = seed
        buffer_tokens = (
            self.n_batches_in_buffer * self.store_batch_size_prompts * self.training_context_size
        )
        self.batches_per_chunk = max(1, buffer_tokens // sum(rows_per_batch))
        self._chunk: tuple[int, list[Tensor]] | None = None
        self.cached = []

    def _set_cache(self, model_name: str, model: HookedRootModule) -> None:
        positions = len(range(self.context_size)[slice(*self.seqpos_slice)])
        setup = {
            "model": model_digest(model),
            "hook_name": self.hook_name,
            "hook_head_index": self.hook_head_index,
            "seqpos_slice": self.seqpos_slice,
            "dtype": str(self.dtype),
            "autocast_lm": self.autocast_lm,
            "model_kwargs": self.model_kwargs,
            "device": next(self.model.parameters()).device.type,
        }
        self._cache_setup = {"model_name": model_name, **setup}
        self.cached = [
            CachedCorpus(
                setup_folder(setup),
                domain.tokens,
                self.store_batch_size_prompts,
                (positions, self.d_in),
                self.dtype,
                partial(self.compute, d),
                _narrower(next(self.model.parameters()).dtype, self.dtype),
            )
            for d, domain in enumerate(self._domains)
        ]

    def describe_cache(self) -> None:
        """Write beside the cached activations what they belong to."""
        folder = self.cached[0].folder
        file = folder / "setup.json"
        with write_lock(file):
            remove_litter([folder])  # whoever writes a temporary file here has this lock
            write_json(file, json.loads(json.dumps(self._cache_setup, default=str)))

    def cache_size(self) -> CacheSize:
        """How large the cached activations are; zero without a cache."""
        total = missing = 0
        for cached in self.cached:
            total += len(cached.tokens) * cached.bytes_per_context
            missing += cached.n_contexts(cached.missing()) * cached.bytes_per_context
        return CacheSize(total, missing)

    def _usable(self, corpus: TokenisedCorpus) -> Bool[Tensor, "n context"]:
        usable = torch.zeros(corpus.train.shape, dtype=torch.bool)
        usable[:, slice(*self.seqpos_slice)] = True
        if self.exclude_special_tokens is not None:
            usable &= ~torch.isin(corpus.train, self.exclude_special_tokens.cpu())
        if not usable.any():
            sliced = self.seqpos_slice != (None,)
            field = "seqpos_slice" if sliced else "exclude_special_tokens"
            value = self.seqpos_slice if sliced else True
            rule = f"leaves no token of the {corpus.domain} corpus to train on."
            raise reject(field, value, rule)
        return usable

    def seek(self, position: int) -> None:
        """Set the position of the next batch."""
        self.position = position

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        chunk, slot = divmod(self.position, self.batches_per_chunk)
        if self._chunk is None or self._chunk[0] != chunk:
            self._chunk = None  # frees the old chunk before the new one is computed
            self._chunk = (chunk, [self._fill(d, chunk) for d in range(len(self._domains))])
        self.position += 1
        return torch.cat(
            [
                rows[slot * n : (slot + 1) * n]
                for rows, n in zip(self._chunk[1], self.rows_per_batch, strict=True)
            ]
        )

    def _fill(self, d: int, chunk: int) -> Float[Tensor, "rows d_in"]:
        """Shuffled activations of one corpus for a whole chunk."""
        n = self.rows_per_batch[d] * self.batches_per_chunk
        start, pieces = chunk * n, []
        for piece in self._domains[d].locate(start, n):
            rows = self._activations(d, piece.contexts, chunk)
            pieces.append(rows[piece.skip : piece.skip + n - sum(map(len, pieces))])
        rows = torch.cat(pieces)
        generator = torch.Generator().manual_seed(mix(self._seed, d, chunk, 1))
        return rows[torch.randperm(n, generator=generator).to(rows.device)]

    def _activations(
        self, d: int, contexts: Int[Tensor, " n"], chunk: int
    ) -> Float[Tensor, "rows d_in"]:
        domain = self._domains[d]
        sliced = slice(*self.seqpos_slice)
        first = chunk * self.batches_per_chunk
        served = f" (batches {first} to {first + self.batches_per_chunk - 1})"
        out = []
        for batch in contexts.split(self.store_batch_size_prompts):
            if self.cached:
                acts = self.cached[d].read(batch).to(self.device)
            else:
                acts = self.compute(d, batch, served)
            out.append(acts[domain.usable[batch][:, sliced].to(acts.device)])
        return torch.cat(out)

    def compute(
        self, d: int, contexts: Int[Tensor, " n"], served: str = ""
    ) -> Float[Tensor, "n positions d_in"]:
        """Run the model on some contexts of a corpus.

        Args:
            d: number of the corpus in ``corpora``.
            contexts: numbers of the contexts.
            served: the batches that need these contexts, for the error.
        """
        tokens = self._domains[d].tokens[contexts].long()
        acts = self.get_activations(tokens.to(next(self.model.parameters()).device))
        acts = acts.to(self.device, self.dtype)
        if not torch.isfinite(acts).all():
            bad = contexts[(~torch.isfinite(acts)).flatten(1).any(1).cpu()].tolist()
            raise NonFiniteActivationsError(
                f"The {self.corpora[d].domain} corpus gives NaN or infinite activations at "
                f"{self.hook_name}, in contexts {bad[:5]}{'...' if len(bad) > 5 else ''}{served}. "
                "Load the model in a wider dtype (bfloat16 or float32 rather than float16), or "
                "check its weights."
            )
        return acts

    def epochs(self, n_steps: int) -> dict[str, float]:
        """Number of epochs of each corpus in ``n_steps`` batches."""
        return {
            c.domain: n * n_steps / d.rows_per_epoch
            for c, d, n in zip(self.corpora, self._domains, self.rows_per_batch, strict=True)
        }


def fill_caches(stores: Sequence[StratifiedActivationsStore]) -> None:
    """Compute the activations of all contexts that are not in the caches of these stores, if any.

    The stores have the same corpora, and differ in the hook. Blocks of the same text are computed
    one after the other, so stores that share their reads of the model read each text once.

    Raises:
        ConfigError: the folder of a cache cannot be written, or its disk is too small.
        StorageError: activations could not be written. Those written before are intact.
        NonFiniteActivationsError: an activation is NaN or infinite.
    """
    sizes = [(store, store.cache_size().missing) for store in stores]
    lacking = [store for store, size in sizes if size]
    for cached in (cached for store in stores for cached in store.cached):
        cached.remove_left_locks()
    if not lacking:
        return
    missing = sum(size for _, size in sizes)
    for store in lacking:
        check_writable(FOLDER_VARIABLE, store.cached[0].folder)
    folder = lacking[0].cached[0].folder
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise reject(
            "ortho_cache_activations",
            True,
            f"needs {missing / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are "
            f"free. Set {FOLDER_VARIABLE} to a folder on another disk, or switch it off.",
        )
    for store in lacking:
        store.describe_cache()
    left = sum(c.n_contexts(c.missing()) for store in lacking for c in store.cached)
    with progress(total=left, desc="Caching activations", unit=" contexts") as bar:
        for same_text in zip(*(store.cached for store in lacking), strict=True):
            fill(same_text, bar.update)


def _narrower(of_model: torch.dtype, of_run: torch.dtype) -> torch.dtype:
    """The type in which the activations of a model need the least space."""
    return of_model if of_model.itemsize < of_run.itemsize else of_run


def held_out_dataset(corpora: list[TokenisedCorpus]) -> Dataset:
    """The held-out contexts of all corpora, interleaved, with equal numbers from each."""
    n = min(len(c.held_out) for c in corpora)
    interleaved = torch.stack([c.held_out[:n] for c in corpora], dim=1).flatten(0, 1)
    return Dataset.from_dict({"tokens": interleaved.tolist()})


def rows_per_batch(cfg: Any) -> list[int]:
    """Number of rows of a batch that come from each corpus that is trained on.

    Forget gets ``ortho_forget_fraction`` of the batch. A named retain corpus gets its share of the
    other rows, and retain gets the rest. Numbers are rounded to the nearest row.

    Raises:
        ConfigError: a share leaves a corpus without a row. The message names a sufficient batch.
    """
    batch, fraction = cfg.train_batch_size_tokens, cfg.ortho_forget_fraction
    corpora = cfg.corpora()
    if len(corpora) == 1:
        return [batch]
    n_forget = _rounded(batch * fraction)
    n_others = batch - n_forget
    if not n_forget or not n_others:
        raise reject(
            "ortho_forget_fraction",
            fraction,
            f"a batch of {batch} needs at least one row of each corpus.",
        )
    share = mixture.shares(mixture.trained(corpora))
    named = {name: s for name, s in share.items() if name not in mixture.ROLES}
    rows = {name: _rounded(n_others * s) for name, s in named.items()}
    rows = {mixture.RETAIN: n_others - sum(rows.values()), **rows}
    for name, n in rows.items():
        if n < 1:
            # Each rounding moves at most half a row: that of forget, and those of named corpora.
            needed = math.ceil(((1 + len(named) / 2) / share[name] + 0.5) / (1 - fraction))
            raise reject(
                cfg.corpus_field(name) + (".share" if name in named else ""),
                share[name],
                f"leaves no row of {name} in a batch of {batch}; "
                f"raise train_batch_size_tokens to {needed}, or give it a larger share.",
            )
    return [n_forget, *rows.values()]


def _rounded(number: float) -> int:
    return math.floor(number + 0.5)
