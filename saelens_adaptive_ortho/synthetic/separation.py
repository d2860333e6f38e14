"""What forgetting costs, with ground truth: merged latents, and selectivity given coverage.

``selectivity_area`` of :mod:`.selectivity` selects latents by firing rates. A latent that serves a
forget and a retain feature equally is never selected. So that area counts the forget features that
have a latent of their own (*coverage*), and hardly sees what it costs to forget the others. This
module asks three separate questions:

1. Which latents serve which features (:func:`detection`, :func:`count_latents`)?
2. How many forget features have a latent of their own?
3. Among the forget features that some latent serves: how much of the other features is lost when
   an equal part of them is forgotten (:func:`selectivity_given_coverage`)?

Three dictionaries without any training are the measure's reference points
(:func:`reference_dictionaries`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.maths.frontier import envelope
from saelens_adaptive_ortho.maths.grouping import FORGET, RETAIN
from saelens_adaptive_ortho.synthetic.pool import Pool
from saelens_adaptive_ortho.synthetic.selectivity import (
    DOMAINS,
    MIN_RATE,
    Sample,
    firing_ratio,
    fit_probes,
    halves,
    mean,
    mean_activation,
    probed_features,
    skill_losses,
    skill_of_predictions,
)

SERVES = 0.5
STRENGTHS = (0.0, 1.0, 4.0)
STEPS = 20
FEWEST = 0.5
RANDOM_SEED = 7_919_000_017  # not that of a world, whose first directions would be the same
BUDGETS = torch.linspace(0, 1, 1001, dtype=torch.float64)


class Dictionary(NamedTuple):
    """The activations of some latents on the held-out samples, and their decoder directions.

    Args:
        first, second: activations on the two halves of the held-out samples, one per domain.
        directions: decoder directions.
    """

    first: list[Float[Tensor, "n d_sae"]]
    second: list[Float[Tensor, "n d_sae"]]
    directions: Float[Tensor, "d_sae d"]


@torch.no_grad()
def separation_metrics(
    sae: SAE[Any], pool: Pool, pairs: Int[Tensor, "n_pairs 2"]
) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
    """Merged latents, coverage, and selectivity given coverage, in a world with two domains.

    Args:
        pairs: indices of the forget and of the retain feature of each similar pair.

    Returns:
        The metrics of the SAE, and the same metrics of each reference dictionary. They are the
        counts of :func:`count_latents`, and the two values of :func:`selectivity_given_coverage`.
    """
    samples = halves(pool)
    first, second = ([sae.encode(s.x) for s in half] for half in samples)
    found = measure(Dictionary(first, second, sae.W_dec.detach()), samples, pool, pairs)
    references = reference_dictionaries(samples, pool, pairs)
    return found, {
        name: measure(dictionary, samples, pool, pairs) for name, dictionary in references.items()
    }


def measure(
    dictionary: Dictionary,
    samples: tuple[list[Sample], list[Sample]],
    pool: Pool,
    pairs: Int[Tensor, "n_pairs 2"],
) -> dict[str, float | None]:
    """The metrics of one dictionary: :func:`separation_metrics` names them."""
    first, second = samples
    skill = detection(
        torch.cat([acts > 0 for acts in (*dictionary.first, *dictionary.second)]),
        torch.cat([s.fires for s in (*first, *second)]),
    )
    return {
        **count_latents(skill, pool.groups, pairs),
        **selectivity_given_coverage(dictionary, samples, pool, (skill >= SERVES).any(0)),
    }


def detection(
    fires: Bool[Tensor, "n d_sae"], features: Bool[Tensor, "n n_features"]
) -> Float[Tensor, "d_sae n_features"]:
    """``s_ij = P(a_i > 0 | f_j > 0) - P(a_i > 0 | f_j = 0)``: firing as a detector of a feature.

    It is 1 for a perfect detector and 0 for a latent whose firing is independent of the feature,
    or for a feature that never fires or always fires.
    """
    a, f = fires.double(), features.double()
    together, present, active = a.T @ f, f.sum(0), a.sum(0)
    absent = len(f) - present
    usable = (present > 0) & (absent > 0)
    skill = together / present.clamp(min=1) - (active[:, None] - together) / absent.clamp(min=1)
    return torch.where(usable, skill, 0.0).float()


def count_latents(
    skill: Float[Tensor, "d_sae n_features"],
    groups: Int[Tensor, " n_features"],
    pairs: Int[Tensor, "n_pairs 2"],
) -> dict[str, float | None]:
    """Count latents and features by who serves whom.

    Latent i *serves* feature j if ``s_ij >= 1/2`` (:func:`detection`). A feature's *own* latent
    serves it, and serves no feature of another group.

    - ``coverage``: share of the forget features that have an own latent, so that clamping can
      reach them without another feature;
    - ``merged_latents``: latents that serve a forget feature and a retain feature;
    - ``merged_pairs``: similar pairs whose two features are served by one latent;
    - ``split_pairs``: similar pairs whose two features each have an own latent;
    - ``missed_forget``, ``missed_retain``: features that no latent serves.

    A merged pair whose features also have own latents counts as merged and as split.
    """
    serves = skill >= SERVES
    in_group = [serves[:, groups == group].any(1) for group in groups.unique()]
    pure = torch.stack(in_group).sum(0) == 1
    owned = serves[pure].any(0)
    forget, retain = groups == FORGET, groups == RETAIN
    both = serves[:, pairs[:, 0]] & serves[:, pairs[:, 1]]
    return {
        "coverage": float(owned[forget].double().mean()),
        "merged_latents": float((serves[:, forget].any(1) & serves[:, retain].any(1)).sum()),
        "merged_pairs": float(both.any(0).sum()),
        "split_pairs": float(owned[pairs].all(1).sum()),
        "missed_forget": float((~serves[:, forget].any(0)).sum()),
        "missed_retain": float((~serves[:, retain].any(0)).sum()),
    }


def selectivity_given_coverage(
    dictionary: Dictionary,
    samples: tuple[list[Sample], list[Sample]],
    pool: Pool,
    served: Bool[Tensor, " n_features"],
) -> dict[str, float | None]:
    """``S = 2 * area - 1`` of the frontier of forgetting over *all* costs from 0 to 1.

    The latents that fire on forget samples are ordered by the ratio of their firing rates on the
    forget and on the retain domain, the most forget-selective first. More and more of them are
    clamped, in ``STEPS`` steps and at each of ``STRENGTHS`` (as in ``selectivity.clamp_effect``),
    until all are. Each intervention has

        ``gain = mean loss of skill over the forget features that some latent serves``
        ``cost = max(mean loss over retain features, mean loss over shared features)``

    with the loss of probe skill as a share of the clean skill. The frontier F(b) is the largest
    gain at a cost of at most b, and ``area`` is the mean of F over b in [0, 1]. So S is

    - 1 if the forget features can be removed at no cost;
    - 0 if removing a part of them removes an equal part of the retain features, as it does if each
      latent serves a forget and a retain feature. Random directions are near 0, too.

    Forget features that no latent serves do not count: missing them is no loss of selectivity. If
    latents serve fewer than half of the forget features, all forget features count. Otherwise
    random directions would be judged by the few features that they fit by chance.

    Returns:
        ``selectivity_given_coverage``: S. ``cost_at_half``: the smallest b with ``F(b) >= 1/2``,
        the cost of forgetting half; None if no cost up to 1 buys that.
    """
    first, second = samples
    probes = [fit_probes(s.x, s.fires) for s in first]
    unchanged = [
        s.x.double() @ p.weights - p.thresholds for p, s in zip(probes, second, strict=True)
    ]
    clean = _skills(unchanged, second)
    probed = probed_features(clean, pool.groups)
    reached = [mask & served for mask in probed["forget"]]
    if _number(reached) >= FEWEST * _number(probed["forget"]):
        probed["forget"] = reached
    gains, costs, paths = [], [], []
    blocks = _blocks(dictionary)
    scale = mean_activation(torch.cat(dictionary.first))
    for path, strength in enumerate(STRENGTHS):
        scores = [s.clone() for s in unchanged]
        for block in blocks:
            for domain in DOMAINS:
                acts = dictionary.second[domain][:, block]
                change = torch.where(acts > 0, -strength * scale[block] - acts, 0.0)
                effect = dictionary.directions[block].double() @ probes[domain].weights
                scores[domain] += change.double() @ effect
            lost = skill_losses(clean, _skills(scores, second), probed)
            forget, retain, shared = (mean(lost[n]) for n in ("forget", "retain", "shared"))
            gains.append(forget)
            costs.append(max(retain, shared, 0.0))
            paths.append(path)
    curves, _ = envelope(
        torch.tensor([costs], dtype=torch.float64),
        torch.tensor([gains], dtype=torch.float64),
        torch.tensor(paths, dtype=torch.int64),
        BUDGETS,
    )
    curve = curves[0]
    enough = (curve >= 0.5).nonzero().flatten()
    return {
        "selectivity_given_coverage": 2 * float(torch.trapezoid(curve, BUDGETS)) - 1,
        "cost_at_half": float(BUDGETS[enough[0]]) if len(enough) else None,
    }


def reference_dictionaries(
    samples: tuple[list[Sample], list[Sample]], pool: Pool, pairs: Int[Tensor, "n_pairs 2"]
) -> dict[str, Dictionary]:
    """Three dictionaries that are built, not trained.

    - ``ideal``: a latent per true feature, with its direction and its activation;
    - ``merged``: the same, but one latent for each similar pair. Its direction is
      ``m = normalise(D_f + D_r)``, and it fires with ``<m, f_f D_f + f_r D_r>`` if either feature
      of the pair fires;
    - ``random``: as many random unit directions ``w_i`` as true features. In a sample, those with
      the k largest ``<w_i, x - b>`` fire, where k is the mean number of firing true features.
    """
    true = pool.directions
    paired = true[pairs]
    merged = torch.nn.functional.normalize(paired.sum(1), dim=1)
    share = (paired * merged[:, None]).sum(-1)
    alone = torch.ones(len(true), dtype=torch.bool)
    alone[pairs.flatten()] = False

    def both(features: Tensor) -> Tensor:
        return torch.cat([(features[:, pairs] * share).sum(-1), features[:, alone]], dim=1)

    drawn = torch.randn(true.shape, generator=torch.Generator().manual_seed(RANDOM_SEED))
    random = torch.nn.functional.normalize(drawn, dim=1)
    fires = [s.fires for half in samples for s in half]
    k = max(1, round(float(torch.cat(fires).sum(1).double().mean())))

    def largest(x: Tensor) -> Tensor:
        values, indices = ((x - pool.bias) @ random.T).topk(min(k, len(random)))
        return torch.zeros(len(x), len(random)).scatter(1, indices, values.clamp(min=0))

    def of(acts: Any, directions: Tensor) -> Dictionary:
        first, second = ([acts(s) for s in half] for half in samples)
        return Dictionary(first, second, directions)

    return {
        "ideal": of(lambda s: s.features, true),
        "merged": of(lambda s: both(s.features), torch.cat([merged, true[alone]])),
        "random": of(lambda s: largest(s.x), random),
    }


# ---------------------------------------------------------------------- parts


def _blocks(dictionary: Dictionary) -> list[Int[Tensor, " n"]]:
    """The latents that fire on forget samples, the most forget-selective first, in ``STEPS``."""
    rates = torch.stack([(acts > 0).double().mean(0) for acts in dictionary.first])
    order = firing_ratio(rates, len(dictionary.first[RETAIN])).argsort(descending=True, stable=True)
    order = order[rates[FORGET][order] >= MIN_RATE]
    return list(order.split(max(1, math.ceil(len(order) / STEPS)))) if len(order) else []


def _number(masks: list[Bool[Tensor, " n_features"]]) -> int:
    return sum(int(mask.sum()) for mask in masks)


def _skills(
    scores: list[Float[Tensor, "n n_features"]], samples: list[Sample]
) -> list[Float[Tensor, " n_features"]]:
    return [skill_of_predictions(v > 0, s.fires) for v, s in zip(scores, samples, strict=True)]
