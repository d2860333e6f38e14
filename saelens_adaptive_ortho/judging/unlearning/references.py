"""Ceilings and floors: what other directions reach on the same texts, at the same budgets.

The ceilings use no SAE. They are measured once for each model, hook, corpora and settings, and the
cache keeps them. Means and covariances are of training text; the retain side is mixed by shares.

- ``contrastive PCA`` (bounded): the leading eigenvectors of ``C_F - 2 C_R``, both about the mean of
  the retain side.
- ``difference of means`` (bounded): the direction between the two means.
- ``difference of means, pushed``: the same at any strength, at every token.
- ``LEACE`` (bounded): the closed form for two classes.
- ``detector``: where a logistic detector of the forget corpus fires, the activation is pushed back
  along the difference of means, or along the detector's direction by the same distance in its
  score. Thresholds are those that forget tokens pass 3, 10, ... times as often.
- ``detector, gated``: the same in contexts above a gate, if clamps have one.
- ``RMU`` and ``gradient ascent``, if asked for: the model itself is trained to forget
  (:mod:`~saelens_adaptive_ortho.judging.unlearning.retraining`).

The floors are per SAE: ``random latents``, as many as the chosen ones, drawn at random among those
that fire at all, and ``random latents, gated``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelens_adaptive_ortho.evaluations.contract import determining
from saelens_adaptive_ortho.evaluations.unlearning import GATED_RANDOM, RANDOM, Settings
from saelens_adaptive_ortho.files import made_once, read_cached, write_sealed
from saelens_adaptive_ortho.judging.firing import Batch
from saelens_adaptive_ortho.judging.unlearning import retraining
from saelens_adaptive_ortho.judging.unlearning.clamps import Intervention, Push
from saelens_adaptive_ortho.judging.unlearning.families import (
    BOUNDED_STRENGTHS,
    Family,
    erasures,
    gated,
    projections,
)
from saelens_adaptive_ortho.judging.unlearning.losses import Readings, Trial
from saelens_adaptive_ortho.judging.unlearning.questions import Question
from saelens_adaptive_ortho.judging.unlearning.selection import (
    Selection,
    Statistics,
    gate_of,
)
from saelens_adaptive_ortho.maths.erasure import (
    Erasure,
    contrastive_directions,
    leace,
    logistic_detector,
    lowest_threshold,
)
from saelens_adaptive_ortho.text.corpora import TokenisedCorpus

GATED_DETECTOR = "detector, gated"
PUSHES = (1.0, 2.0, 4.0, 8.0)  # multiples of the distance to the retain side's mean
DETECTOR_PUSHES = (0.5, 2.0, 8.0)  # multiples of the difference of means
DETECTOR_RATIOS = (3.0, 10.0, 30.0, 100.0, 300.0)
DETECTOR_TOKENS = 16_384  # of each side
# The frontiers beside which a reference stands. Without a gate there is no frontier ``token``.
FRONTIERS_OF = {
    "contrastive PCA": ("bounded",),
    "difference of means": ("bounded",),
    "difference of means, pushed": ("loss", "token"),
    "LEACE": ("bounded",),
    "detector": ("loss", "token"),
    GATED_DETECTOR: ("loss",),
    retraining.RMU: ("loss", "token"),
    retraining.ASCENT: ("loss", "token"),
    RANDOM: ("loss", "token"),
    GATED_RANDOM: ("loss",),
}


class Sample(NamedTuple):
    """Activations of some tokens of a corpus, for the detector.

    Attributes:
        x: activations.
        contexts: the context of each token.
        share: share of the corpus in its side.
    """

    x: Float[Tensor, "n d_in"]
    contexts: Int[Tensor, " n"]
    share: float


class Tokens:
    """Draws a :class:`Sample` of forget and of each corpus of the retain side.

    Each corpus gives every n-th token, about ``DETECTOR_TOKENS`` in all.
    """

    def __init__(self, corpora: Sequence[TokenisedCorpus], n_contexts: int) -> None:
        self.shares = [c.share for c in corpora]
        sizes = [c.train[:n_contexts].numel() for c in corpora]
        self.every = [max(1, n // DETECTOR_TOKENS) for n in sizes]
        self.kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in corpora]

    def update(self, batch: Batch) -> None:
        chosen = slice(None, None, self.every[batch.corpus])
        kept = batch.x[chosen].float().cpu(), batch.rows[chosen, 0].cpu()
        self.kept[batch.corpus].append(kept)

    def result(self) -> list[Sample]:
        return [
            Sample(torch.cat([x for x, _ in kept]), torch.cat([c for _, c in kept]), share)
            for kept, share in zip(self.kept, self.shares, strict=True)
        ]


def ceilings(found: Statistics, samples: Sequence[Sample], settings: Settings) -> dict[str, Family]:
    """The families of the ceilings.

    Args:
        found: moments of both sides.
        samples: tokens of forget, and of each corpus of the retain side.
        settings: settings of the evaluation.
    """
    centre = found.retain.mean
    difference = found.forget.mean - centre
    mean_direction = Erasure.onto((difference / difference.norm())[None])
    spread = (found.forget.about(centre) + found.retain.covariance) / 2
    eigenvectors = contrastive_directions(found.forget.about(centre), found.retain.covariance)
    families = {
        "contrastive PCA": projections([eigenvectors], settings.ranks, centre),
        "difference of means": erasures([mean_direction], centre, BOUNDED_STRENGTHS, 1.0),
        "difference of means, pushed": erasures([mean_direction], centre, PUSHES, max(PUSHES)),
        "LEACE": erasures([leace(difference, spread)], centre, BOUNDED_STRENGTHS, 1.0),
        "detector": detector_family(difference, samples, with_gate=False),
    }
    if settings.gate == "sequence":
        families[GATED_DETECTOR] = detector_family(difference, samples, with_gate=True)
    return families


def detector_family(
    difference: Float[Tensor, " d_in"], samples: Sequence[Sample], with_gate: bool
) -> Family:
    """Where a detector fires, push along the difference of means or along its own direction.

    Args:
        difference: mean of forget minus mean of the retain side.
        samples: tokens of forget, and of each corpus of the retain side.
        with_gate: whether pushes have a gate as that of a clamp.
    """
    x = torch.cat([s.x for s in samples]).double()
    is_forget = torch.zeros(len(x), dtype=torch.bool)
    is_forget[: len(samples[0].x)] = True
    weights = torch.cat([torch.full((len(s.x),), s.share / len(s.x)) for s in samples])
    detector = logistic_detector(x, is_forget, weights.double() / 2)
    scores = [detector.score(s.x.double()) for s in samples]
    w = detector.weight
    own = w * (w @ difference) / (w @ w)
    found = {
        lowest_threshold(scores[0], torch.cat(scores[1:]), weights[~is_forget], ratio)
        for ratio in DETECTOR_RATIOS
    }

    def path(threshold: float, step: Tensor, gate: float | None) -> Callable[[float], Intervention]:
        return lambda strength: Push(detector, threshold, step, strength, gate)

    paths = []
    for threshold in sorted(t for t in found if t is not None):
        gate = None
        if with_gate:
            fires = [score > threshold for score in scores[1:]]
            retain = samples[1:]
            gate = gate_of(fires, [s.contexts for s in retain], [s.share for s in retain])
        paths += [path(threshold, step, gate) for step in (difference, own)]
    return Family(paths, DETECTOR_PUSHES)


def floors(selection: Selection, settings: Settings) -> dict[str, Family]:
    """Random latents: drawn among those of each SAE that fire, from a fixed seed."""
    latents, strengths = [selection.random], settings.strengths
    found = {RANDOM: gated(selection, latents, strengths, everywhere=True)}
    if settings.gate == "sequence":
        found[GATED_RANDOM] = gated(selection, latents, strengths)
    return found


def as_json(
    name: str, losses: Mapping[str, Readings], accuracies: Mapping[str, Readings]
) -> dict[str, Any]:
    """What a result keeps of a reference: its metrics and frontiers, of loss and of accuracy."""
    found = {part: losses[name] for part in FRONTIERS_OF[name] if part in losses}
    if name in accuracies:
        found["mcq"] = accuracies[name]
    return {
        "metrics": {f"{part}/{k}": v for part, r in found.items() for k, v in r.metrics.items()},
        "frontiers": {p: {k: r.frontier[k] for k in ("x", "y")} for p, r in found.items()},
    }


def details(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The metrics of each reference, and its frontiers beside those that they belong to."""
    curves: dict[str, dict[str, Any]] = {}
    for name, reference in found.items():
        for part, frontier in reference["frontiers"].items():
            curves.setdefault(part, {})[name] = frontier
    return {
        "references": {name: reference["metrics"] for name, reference in found.items()},
        "reference_frontiers": curves,
    }


class Cache:
    """The ceilings of a model, hook, corpora, questions and settings, in the workbench's cache."""

    def __init__(self, trial: Trial, known: Mapping[str, list[Question]] | None) -> None:
        context, settings = trial.context, trial.settings
        bench, metadata = context.bench, trial.sae.cfg.metadata
        window = list(metadata.seqpos_slice) if metadata.seqpos_slice is not None else None
        ignored = {"questions", "template", "counts", "selection", "specificities"}
        parts = [
            bench.model_digest,
            settings.model_name,
            [metadata.hook_name, metadata.hook_head_index, metadata.prepend_bos, window],
            metadata.exclude_special_tokens,
            [[c.domain, c.fingerprint, c.share] for c in context.corpora],
            bench.context_size,
            bench.dtype,
            {k: v for k, v in determining(settings).items() if k not in ignored},
            known and [settings.template, {d: [vars(q) for q in qs] for d, qs in known.items()}],
        ]
        text = json.dumps(parts, sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.file = bench.cache / "unlearning" / f"ceilings-{name}.json"

    def made_once(self) -> AbstractContextManager[dict[str, dict[str, Any]] | None]:
        """The ceilings; None if this process shall measure them in the block and keep them.

        Other processes that need them wait for it.
        """
        return made_once(self.file, self._read)

    def _read(self) -> dict[str, dict[str, Any]] | None:
        found = read_cached(self.file)
        return found if isinstance(found, dict) else None

    def write(self, found: dict[str, dict[str, Any]]) -> None:
        """Keep the ceilings."""
        write_sealed(self.file, found)
