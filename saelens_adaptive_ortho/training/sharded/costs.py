"""What an SAE costs that is divided among processes, by arithmetic alone.

Nothing is loaded or measured, so the costs are the same on any machine. ``adaptive-ortho plan``
shows them, and docs/sharding.md has their tables for one SAE. There is no estimate of time, which
depends on the cards and on what connects them.

In the formulas, ``n`` is the number of latents of a process, ``d`` the width of the activations,
and ``batch`` the number of tokens of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saelens_adaptive_ortho.host.config import ortho_coefficient
from saelens_adaptive_ortho.host.penalty_mixin import CHECK_EVERY, CHECKED_LATENTS
from saelens_adaptive_ortho.maths.coactivation import MOST_FIRINGS, MOST_PER_LATENT
from saelens_adaptive_ortho.training.lockstep import KEPT_CHECKPOINTS
from saelens_adaptive_ortho.training.memory import itemsize
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig
from saelens_adaptive_ortho.training.sharded.selection import rounds_of_counts

PER_PAIR = 24  # bytes of a candidate pair: its latent (8), four counts and sums in float32
PER_LATENT = 48  # bytes of a latent: firings of two corpora, two sums, group, domain, chosen pair
ACTIVATIONS = 6  # tensors of a batch of activations: before and after the top-k, their gradients
AUXILIARY = 3  # more of them in the auxiliary loss
FIRING = 12  # bytes of a firing: its place (8) and its activation


@dataclass(frozen=True)
class Term:
    """One part of the costs.

    Args:
        what: what needs it.
        how: its formula, or how it is exchanged.
        size: bytes of one process.
        brief: of memory: it is needed for a moment, when no other brief term is.
        every: of an exchange: steps from one time to the next, at least.
    """

    what: str
    how: str
    size: int
    brief: bool = False
    every: int = 1


@dataclass(frozen=True)
class ShardedCosts:
    """The costs of one SAE that is divided among processes. Bytes are bytes, not GB.

    Args:
        processes: number of processes.
        latents: number of latents of a process.
        memory: what the card of a process holds.
        exchanged: what a process sends to the others.
        checkpoint: disk space of a checkpoint, of all processes together.
        checkpoints: largest number of checkpoints that are there at a time.
        export: disk space of the finished SAE.
        host: memory of the host that a process needs at the start.
    """

    processes: int
    latents: int
    memory: Sequence[Term]
    exchanged: Sequence[Term]
    checkpoint: int
    checkpoints: int
    export: int
    host: int

    @property
    def peak(self) -> int:
        """Largest memory of a card. Of the brief terms, only the largest counts."""
        lasting = sum(term.size for term in self.memory if not term.brief)
        return lasting + max((term.size for term in self.memory if term.brief), default=0)

    @property
    def per_step(self) -> int:
        """Bytes that a process sends in a step, on average, at most."""
        return round(sum(term.size / term.every for term in self.exchanged))


def sharded_costs(cfg: AdaptiveOrthoRunnerConfig, model: int | None) -> ShardedCosts:
    """The costs of training one SAE in ``cfg.ortho_shards`` processes.

    Args:
        cfg: the config, which :func:`.runner.check_sharded` accepts.
        model: bytes of the language model's weights; None if they are not known.
    """
    sizes = _Sizes.of(cfg)
    penalty = cfg.sae.ortho_mode != "off"
    memory = [*_training_memory(sizes), *(_penalty_memory(sizes) if penalty else [])]
    memory += _text_memory(cfg, sizes, model)
    lists = _lists(sizes).size if penalty else 0
    saves = cfg.n_checkpoints or cfg.checkpoint_every_minutes
    return ShardedCosts(
        processes=sizes.shards,
        latents=sizes.n,
        memory=memory,
        exchanged=[*_training_exchange(sizes), *(_penalty_exchange(sizes) if penalty else [])],
        checkpoint=sizes.shards * (3 * sizes.weights + lists),
        checkpoints=KEPT_CHECKPOINTS + 1 if saves else 0,
        export=sizes.shards * sizes.weights,
        host=2 * sizes.weights,
    )


@dataclass(frozen=True)
class _Sizes:
    """The numbers in the formulas.

    Args:
        sae: config of the SAE.
        shards: number of processes.
        n: latents of a process.
        d: width of the activations.
        batch: tokens of a step.
        bytes: bytes of a number of the SAE.
        precise: bytes of a number in sums of several processes, and in the penalty.
        compared: bytes of a number of the directions that are compared with each other.
        k: latents that fire on a token; None if nothing but the text decides.
    """

    sae: Any
    shards: int
    n: int
    d: int
    batch: int
    bytes: int
    precise: int
    compared: int
    k: float | None

    @classmethod
    def of(cls, cfg: AdaptiveOrthoRunnerConfig) -> _Sizes:
        size = itemsize(cfg)
        precise = max(size, 4)
        return cls(
            sae=cfg.sae,
            shards=cfg.ortho_shards,
            n=cfg.sae.d_sae // cfg.ortho_shards,
            d=cfg.sae.d_in,
            batch=cfg.train_batch_size_tokens,
            bytes=size,
            precise=precise,
            compared=2 if _is_on_card(cfg.device) else precise,
            k=getattr(cfg.sae, "k", None),
        )

    @property
    def weights(self) -> int:
        """Bytes of the encoder and the decoder of a process."""
        return 2 * self.n * self.d * self.bytes

    @property
    def chooses(self) -> bool:
        """Whether pairs of latents are chosen and charged."""
        return ortho_coefficient(self.sae) > 0

    def from_others(self, size: int) -> int:
        """The part of a gathered tensor of ``size`` bytes that comes from other processes."""
        return size - size // self.shards


# -------------------------------------------------------------------------- memory


def _training_memory(s: _Sizes) -> list[Term]:
    tensor = s.batch * s.n * s.bytes
    terms = [
        Term("encoder and decoder", f"2 n d · {s.bytes} bytes", s.weights),
        Term("their gradients", "the same", s.weights),
        Term("moments of Adam", "twice the same", 2 * s.weights),
        Term(
            "pre-activations, activations and their gradients",
            f"about {ACTIVATIONS} tensors of batch · n · {s.bytes} bytes",
            ACTIVATIONS * tensor,
        ),
    ]
    if s.k is not None:
        how = f"about {AUXILIARY} more of them"
        terms.append(Term("the auxiliary loss, if latents are dead", how, AUXILIARY * tensor))
    return terms


def _lists(s: _Sizes) -> Term:
    m, r = s.sae.ortho_neighbours, s.sae.ortho_sketch_size
    how = f"n ({m} · {PER_PAIR} + {r} · 4 + {PER_LATENT}) bytes"
    size = s.n * (m * PER_PAIR + r * 4 + PER_LATENT)
    return Term("lists and statistics of the penalty", how, size)


def _penalty_memory(s: _Sizes) -> list[Term]:
    searched = Term(
        "search of neighbours, for a moment",
        f"3 blocks of n d · {s.compared} bytes",
        3 * s.n * s.d * s.compared,
        brief=True,
    )
    if not s.chooses:
        return [_lists(s), searched]
    m = s.sae.ortho_neighbours
    partners = Term(
        "rows of the partners of other cards, for a moment",
        f"at most 3 n d · {s.precise} bytes",
        3 * s.n * s.d * s.precise,
        brief=True,
    )
    choice = Term(
        "choice of pairs, for a moment",
        f"counts of all pairs, d_sae · {m} · {PER_PAIR} bytes, and intermediate results (twice "
        "as much)",
        3 * s.shards * s.n * m * PER_PAIR,
        brief=True,
    )
    return [_lists(s), partners, choice, searched]


def _text_memory(cfg: AdaptiveOrthoRunnerConfig, s: _Sizes, model: int | None) -> list[Term]:
    """Shuffled activations and the language model, as far as they are on the device of the SAE."""
    terms = []
    if _shares_device(cfg, cfg.act_store_device):
        tokens = cfg.n_batches_in_buffer * cfg.store_batch_size_prompts * cfg.context_size
        how = f"2 · {tokens:,} tokens · d · {s.bytes} bytes"
        terms.append(Term("shuffled activations", how, 2 * tokens * s.d * s.bytes))
    if model is not None and _shares_device(cfg, cfg.llm_device):
        terms.append(Term(f"language model ({cfg.model_name})", "every card has all of it", model))
    return terms


def _shares_device(cfg: AdaptiveOrthoRunnerConfig, other: str | None) -> bool:
    return other in (None, "with_model") or _is_on_card(str(other)) == _is_on_card(cfg.device)


def _is_on_card(device: str) -> bool:
    return torch.device(device).type == "cuda"


# ------------------------------------------------------------------------ exchange


def _training_exchange(s: _Sizes) -> list[Term]:
    batch = s.batch * s.d * s.precise
    how = f"each card runs the language model on 1/{s.shards} of the text and sends it to the rest"
    terms = [Term("activations of the batch", how, s.batch * s.d * s.bytes)]
    if s.k is not None:
        # BatchTopK takes all rows as one.
        rows = s.batch if s.sae.architecture().endswith("ortho_topk") else 1
        how, size = _histograms(rows)
        terms.append(Term("threshold of the top-k", how, size))
    terms.append(Term("reconstruction", f"all-reduce of batch · d · {s.precise} bytes", batch))
    if s.k is not None:
        how, size = _histograms(s.batch)
        how = f"the same, and the largest d / 2 of each row: {how}"
        terms.append(Term("auxiliary loss, if latents are dead", how, batch + size))
    terms.append(Term("gradient of `b_dec`, norm of the gradient", "all-reduce", s.d * s.bytes))
    return terms


def _histograms(rows: int) -> tuple[str, int]:
    """How the k-th largest values of some rows are found, in words and in bytes."""
    rounds, counts = rounds_of_counts(rows)
    of_row = " a row" if rows > 1 else ""
    return f"{rounds} summed histograms of {counts:,} counts{of_row}", 4 * rounds * counts * rows


def _penalty_exchange(s: _Sizes) -> list[Term]:
    cfg, ring = s.sae, s.from_others(s.shards * s.n * s.d * s.compared)
    counted = cfg.ortho_statistics_every
    terms = [
        Term(
            "firings of the batch",
            f"all-gather of {FIRING} bytes for each",
            FIRING * _most_firings(s),
            every=counted,
        )
    ]
    in_a_ring = f"the directions in a ring, {s.compared} bytes for a number"
    if s.chooses:
        partners = Term(
            "penalty: rows of partners on other cards, and their gradients back",
            "all-to-all, at most; only pairs that cost something, each partner once",
            2 * s.from_others(s.n * s.d * s.precise),
        )
        counts = s.from_others(s.shards * s.n * cfg.ortho_neighbours * PER_PAIR)
        how = f"counts of all pairs; {in_a_ring}"
        terms = [partners, *terms, Term("choice of pairs", how, counts + ring, every=counted)]
    if cfg.ortho_min_captured:
        size = CHECKED_LATENTS * (s.d * s.compared + 8 * cfg.ortho_neighbours)
        every = min(CHECK_EVERY, cfg.ortho_refresh_every)
        how = f"directions of {CHECKED_LATENTS} latents"
        terms.append(Term("check of the lists", how, size, every=every))
    search = "search of neighbours, earlier if lists get old"
    terms.append(Term(search, in_a_ring, ring, every=cfg.ortho_refresh_every))
    return terms


def _most_firings(s: _Sizes) -> int:
    """Firings of a batch that are counted, at most (:func:`.coactivation.counted_stride`)."""
    most = max(MOST_FIRINGS, MOST_PER_LATENT * s.shards * s.n)
    return most if s.k is None else min(most, round(s.k * s.batch))
