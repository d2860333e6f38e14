"""Selectivity with ground truth: which true features does clamping forget-selective latents remove?

In the ``domains`` world, every true feature belongs to the forget domain, the retain domain, or
both. Firing rates by domain select the forget-selective latents, as on language models. These
latents are clamped. Then a linear probe for each true feature measures how much of the feature is
left. One half of the held-out samples gives the firing rates and trains the probes. The other half
measures the damage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.maths import geometry
from saelens_adaptive_ortho.maths.directions import decoder_directions
from saelens_adaptive_ortho.maths.frontier import frontier
from saelens_adaptive_ortho.maths.grouping import (
    DOMAIN_NAMES,
    FORGET,
    RETAIN,
    SHARED,
    domain_groups,
)
from saelens_adaptive_ortho.synthetic.pool import Pool

RATIOS = (1.5, 2.0, 3.0, 5.0, 9.0, 20.0, 50.0, 100.0)
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
BUDGETS = torch.linspace(0, 0.2, 201)
AREA = (0.0, 0.1)
KEPT = 5  # a result file keeps every fifth budget
GROUP_RATIO = 9.0  # the plugin's default for assigning a latent to a domain
MIN_RATE = 1e-3
ENERGY = 0.9
DOMAINS = (FORGET, RETAIN)


class Probes(NamedTuple):
    """One linear probe per true feature, which fires where ``x @ weights > thresholds``."""

    weights: Float[Tensor, "d n_features"]
    thresholds: Float[Tensor, " n_features"]


@dataclass(frozen=True)
class Sample:
    """Samples of one domain: input activations, true feature activations, and which fire."""

    x: Float[Tensor, "n d"]
    features: Float[Tensor, "n n_features"]
    fires: Bool[Tensor, "n n_features"]


def fit_probes(x: Float[Tensor, "n d"], fires: Bool[Tensor, "n n_features"]) -> Probes:
    """``w_j = S_j^-1 (m_j1 - m_j0)``: Fisher's linear discriminant for each feature, in float64.

    ``m`` are the class means, and ``S`` is the pooled within-class covariance. The threshold lies
    halfway between the projected means. This assumes equal priors, because the score is balanced
    accuracy. The least-squares fit to the indicator has the same direction. So one solve with the
    total covariance gives the probes of all features.

    A feature that never fires, or always fires, gets a probe of zeros.
    """
    x = x.double()
    y = fires.double()
    mean, share = x.mean(0), y.mean(0)
    centred = x - mean
    covariance = centred.T @ centred / len(x)
    # The ridge makes a rank-deficient covariance invertible. It is too small to change a probe.
    ridge = 1e-9 * covariance.trace() / len(covariance)
    covariance += ridge * torch.eye(len(covariance), dtype=torch.float64)
    cross = centred.T @ (y - share) / len(x)
    weights = torch.linalg.solve(covariance, cross)
    usable = (share > 0) & (share < 1)
    safe = torch.where(usable, share, 0.5)
    # The class means, before projection, are m1 = E[x y] / p and m0 = (E[x] - p m1) / (1 - p).
    centre = (weights * mean[:, None]).sum(0)
    gap = (weights * cross).sum(0)
    midpoint = centre + gap * (1 / safe - 1 / (1 - safe)) / 2
    weights = torch.where(usable, weights, 0.0)
    return Probes(weights, torch.where(usable, midpoint, 0.0))


def probe_skill(
    probes: Probes, x: Float[Tensor, "n d"], fires: Bool[Tensor, "n n_features"]
) -> Float[Tensor, " n_features"]:
    """``2 * (balanced accuracy) - 1``: 1 for a perfect probe, and 0 at chance.

    It is NaN if the feature always fires or never fires.
    """
    return skill_of_predictions(x.double() @ probes.weights > probes.thresholds, fires)


def skill_of_predictions(
    predicted: Bool[Tensor, "n n_features"], fires: Bool[Tensor, "n n_features"]
) -> Float[Tensor, " n_features"]:
    """The skill of :func:`probe_skill`, from what the probes predict."""
    positives, hits = _count(fires), _count(predicted & fires)
    negatives, false_alarms = len(fires) - positives, _count(predicted) - hits
    return (hits / positives + (negatives - false_alarms) / negatives - 1).double()


@dataclass(frozen=True)
class Clamped:
    """One intervention.

    Args:
        latents: the clamped latents.
        ratio: firing-rate ratio that selected the latents.
        strength: distance of the clamp value below zero, in multiples of the mean activation.
    """

    latents: Int[Tensor, " n"]
    ratio: float
    strength: float


def clamp_effect(
    sae: SAE[Any],
    x: Float[Tensor, "n d"],
    acts: Float[Tensor, "n d_sae"],
    clamp: Clamped,
    scale: Float[Tensor, " d_sae"],
) -> Float[Tensor, "n d"]:
    """``x - decode(f) + decode(f')``: the reconstruction error of the SAE stays unchanged.

    ``f'`` is ``f`` with each clamped latent set to ``-strength * scale`` wherever it is active.
    ``scale`` is the latent's mean activation where it fires. Strength 0 ablates the latents.
    """
    chosen = acts[:, clamp.latents]
    target = -clamp.strength * scale[clamp.latents]
    change = torch.where(chosen > 0, target - chosen, 0.0)
    return x + change @ sae.W_dec.detach()[clamp.latents]


@torch.no_grad()
def domain_metrics(sae: SAE[Any], pool: Pool) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Selectivity of an exported SAE in a world with two domains.

    For each of ``RATIOS``, the interventions select all latents whose firing rate on the forget
    domain is at least this many times the rate on the retain domain. They clamp these latents at
    each of ``STRENGTHS``. For each intervention, two things are measured:

    - the loss of probe *skill* (:func:`probe_skill`), as a share of the clean skill, for forget
      features on forget samples, retain features on retain samples, and shared features on both;
    - the explained variance of the edited activations, ``1 - E||x - x'||^2 / Var(x)``, on forget
      and on retain samples (1 without intervention).

    The frontier at budget ``b`` is the largest mean loss of skill on forget features among
    interventions with a mean loss of at most ``b`` on retain and shared features. Its area is the
    mean over b in [0, 0.1]. An area of 1 is perfect: all forget features are lost, and no other
    feature is.

    Returns:
        The metrics, and details with every intervention, the frontier, and the geometry of the
        found groups and of the true groups.
    """
    first, second = halves(pool)
    first_acts = [sae.encode(s.x) for s in first]
    rates = torch.stack([(f > 0).double().mean(0) for f in first_acts])
    scale = mean_activation(torch.cat(first_acts))
    ratio = firing_ratio(rates, len(first[RETAIN].x))
    seen = rates[FORGET] >= MIN_RATE

    fitted = [fit_probes(s.x, s.fires) for s in first]
    clean = [probe_skill(p, s.x, s.fires) for p, s in zip(fitted, second, strict=True)]
    kept = probed_features(clean, pool.groups)
    second_acts = [sae.encode(s.x) for s in second]

    interventions, gains, costs, paths = [], [], [], []
    for number, min_ratio in enumerate(RATIOS):
        latents = ((ratio >= min_ratio) & seen).nonzero().flatten()
        for strength in STRENGTHS:
            clamp = Clamped(latents, min_ratio, strength)
            edited = [
                clamp_effect(sae, s.x, f, clamp, scale)
                for s, f in zip(second, second_acts, strict=True)
            ]
            skill = [
                probe_skill(p, e, s.fires) for p, e, s in zip(fitted, edited, second, strict=True)
            ]
            loss = skill_losses(clean, skill, kept)
            interventions.append(
                {
                    "ratio": min_ratio,
                    "latents": len(latents),
                    "strength": strength,
                    **{f"skill_lost_{n}": mean(v) for n, v in loss.items()},
                    **{
                        f"explained_variance_{DOMAIN_NAMES[d]}": _explained(second[d].x, edited[d])
                        for d in DOMAINS
                    },
                    **{f"accuracy_{n}": 0.5 + mean(_select(skill, kept[n])) / 2 for n in kept},
                }
            )
            gains.append(loss["forget"])
            costs.append(torch.cat([loss["retain"], loss["shared"]]))
            paths.append(number)
    curve = frontier(torch.stack(costs), torch.stack(gains), torch.tensor(paths), BUDGETS.double())
    area, replicates = curve.area(*AREA)
    band = curve.band()
    metrics: dict[str, float | None] = {
        "selectivity_area": area,
        "selectivity_at_0.02": curve.at(0.02)[0],
        "selectivity_at_0.05": curve.at(0.05)[0],
        "selectivity_at_0.1": curve.at(0.1)[0],
        **{f"probe_accuracy_{n}": 0.5 + mean(_select(clean, kept[n])) / 2 for n in kept},
    }
    found, geometry = _geometry(sae, pool, rates)
    details = {
        "interventions": interventions,
        "frontier": {
            "budgets": _rounded(curve.budgets[::KEPT]),
            "gain": _rounded(curve.gain[::KEPT]),
            "low": _rounded(band[0, ::KEPT]),
            "high": _rounded(band[1, ::KEPT]),
        },
        "selectivity_area_sd": float(replicates.std()),
        "geometry": geometry,
    }
    return {**metrics, **found}, details


def halves(pool: Pool) -> tuple[list[Sample], list[Sample]]:
    """The two halves of the held-out samples, one entry per domain."""
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for rows in pool.held_out:
        middle = rows.n_samples // 2
        for half, at in enumerate((torch.arange(middle), torch.arange(middle, rows.n_samples))):
            part = rows.take(at)
            features = part.dense(pool.n_features)
            parts[half].append(Sample(pool.activations(part), features, features > 0))
    return parts


def probed_features(
    clean: list[Float[Tensor, " n_features"]], groups: Int[Tensor, " n_features"]
) -> dict[str, list[Bool[Tensor, " n_features"]]]:
    """The features of each group that are probed on the samples of each domain.

    Forget features are probed on forget samples, retain features on retain samples, and shared
    features on both. Only features whose clean probe has a skill above 0.1 count. Without skill
    there is none to lose.

    Args:
        clean: skill of each domain's probes without intervention.
    """
    nothing = torch.zeros_like(groups, dtype=torch.bool)
    members = {
        "forget": [groups == FORGET, nothing],
        "retain": [nothing, groups == RETAIN],
        "shared": [groups == SHARED, groups == SHARED],
    }
    return {
        name: [m & (s > 0.1) for s, m in zip(clean, masks, strict=True)]
        for name, masks in members.items()
    }


def skill_losses(
    clean: list[Float[Tensor, " n_features"]],
    skill: list[Float[Tensor, " n_features"]],
    probed: dict[str, list[Bool[Tensor, " n_features"]]],
) -> dict[str, Float[Tensor, " n"]]:
    """The share of the clean skill that is lost, for each probed feature of each group.

    A skill below chance counts as 0.
    """
    return {
        name: 1 - _select(skill, masks).clamp(min=0) / _select(clean, masks)
        for name, masks in probed.items()
    }


def mean_activation(acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, " d_sae"]:
    """Mean activation of each latent where it fires; 0 for a latent that never fires."""
    return acts.clamp(min=0).sum(0) / (acts > 0).sum(0).clamp(min=1)


def firing_ratio(rates: Float[Tensor, "2 d_sae"], n_retain: int) -> Float[Tensor, " d_sae"]:
    """Firing rate on the forget domain, divided by the rate on the retain domain.

    A latent that never fires on these ``n_retain`` retain samples may still fire on others. Its
    rate counts as that of half a firing.
    """
    return rates[FORGET] / rates[RETAIN].clamp(min=0.5 / n_retain)


# ---------------------------------------------------------------------- parts


def _count(events: Bool[Tensor, "n n_features"]) -> Float[Tensor, " n_features"]:
    """Events by column. The sum of floats is exact up to 2^24, and faster than that of bools."""
    return events.float().sum(0)


def _select(
    values: list[Float[Tensor, " n_features"]], members: list[Bool[Tensor, " n_features"]]
) -> Float[Tensor, " n"]:
    return torch.cat([v[m] for v, m in zip(values, members, strict=True)])


def _explained(x: Float[Tensor, "n d"], edited: Float[Tensor, "n d"]) -> float:
    residual = (x - edited).square().sum(-1).mean()
    return float(1 - residual / (x - x.mean(0)).square().sum(-1).mean())


def _geometry(
    sae: SAE[Any], pool: Pool, rates: Float[Tensor, "2 d_sae"]
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Condition numbers and principal angles of the found groups, and of the true groups."""
    directions = decoder_directions(sae.W_dec.detach().double())
    ids = domain_groups(rates, GROUP_RATIO, MIN_RATE)
    metrics: dict[str, float | None] = {}
    details: dict[str, Any] = {}
    for which, rows, labels in (
        ("found", directions, ids),
        ("true", pool.directions.double(), pool.groups),
    ):
        groups = {name: rows[labels == code] for code, name in DOMAIN_NAMES.items()}
        numbers = {
            name: _finite(geometry.condition_number(part)) if len(part) > 1 else None
            for name, part in groups.items()
        }
        angles: list[float] = []
        if len(groups["forget"]) and len(groups["retain"]):
            angles = geometry.principal_angles(groups["forget"], groups["retain"], ENERGY).tolist()
        details[which] = {
            "sizes": {name: len(part) for name, part in groups.items()},
            "condition_numbers": numbers,
            "principal_angles_deg": [round(a, 3) for a in angles],
        }
        prefix = "" if which == "found" else "true_"
        metrics[f"{prefix}principal_angle_mean_deg"] = sum(angles) / len(angles) if angles else None
        metrics[f"{prefix}principal_angle_min_deg"] = angles[0] if angles else None
        for name in groups:
            metrics[f"{prefix}condition_number_{name}"] = numbers[name]
    for name, size in details["found"]["sizes"].items():
        metrics[f"{name}_latents"] = float(size)
    return metrics, details


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def mean(values: Float[Tensor, " n"]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _rounded(values: Float[Tensor, " n"]) -> list[float]:
    return [round(v, 5) for v in values.tolist()]
