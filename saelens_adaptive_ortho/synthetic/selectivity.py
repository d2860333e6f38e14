"""Knowledge separation with ground truth: what clamping forget-selective latents removes.

In the ``domains`` world every true feature is known to belong to the forget domain, the retain
domain, or both. Forget-selective latents are found from firing rates by domain, as on language
models, and clamped. A linear probe per true feature then says how much of that feature is left.
Rates and probes are measured on one half of the held-out samples, damage on the other.
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
GROUP_RATIO = 9.0  # the plugin's own default for naming a latent's domain
MIN_RATE = 1e-3
ENERGY = 0.9
DOMAINS = (FORGET, RETAIN)


class Probes(NamedTuple):
    """One linear detector per true feature: it fires where ``x @ weights > thresholds``."""

    weights: Float[Tensor, "d n_features"]
    thresholds: Float[Tensor, " n_features"]


@dataclass(frozen=True)
class Sample:
    """Samples of one domain: activations, and which true features fire."""

    x: Float[Tensor, "n d"]
    fires: Bool[Tensor, "n n_features"]


def fit_probes(x: Float[Tensor, "n d"], fires: Bool[Tensor, "n n_features"]) -> Probes:
    """Fisher's linear discriminant for each feature, in float64.

    ``w_j = S_j^-1 (m_j1 - m_j0)`` with the class means m and the pooled within-class covariance S,
    and the threshold halfway between the projected means (equal priors: what is scored is
    balanced accuracy). As the least-squares fit to the indicator has the same direction, all
    features are solved at once from the total covariance.

    A feature that never (or always) fires gets a probe of zeros.
    """
    x = x.double()
    y = fires.double()
    mean, share = x.mean(0), y.mean(0)
    centred = x - mean
    covariance = centred.T @ centred / len(x)
    # Enough to invert the covariance of a subspace, far too little to move a probe.
    ridge = 1e-9 * covariance.trace() / len(covariance)
    covariance += ridge * torch.eye(len(covariance), dtype=torch.float64)
    cross = centred.T @ (y - share) / len(x)
    weights = torch.linalg.solve(covariance, cross)
    usable = (share > 0) & (share < 1)
    safe = torch.where(usable, share, 0.5)
    # Class means, projected: m1 = E[x y] / p, m0 = (E[x] - p m1) / (1 - p).
    centre = (weights * mean[:, None]).sum(0)
    gap = (weights * cross).sum(0)
    midpoint = centre + gap * (1 / safe - 1 / (1 - safe)) / 2
    weights = torch.where(usable, weights, 0.0)
    return Probes(weights, torch.where(usable, midpoint, 0.0))


def probe_skill(
    probes: Probes, x: Float[Tensor, "n d"], fires: Bool[Tensor, "n n_features"]
) -> Float[Tensor, " n_features"]:
    """``2 * (balanced accuracy) - 1``: 1 for a perfect probe, 0 at chance; NaN without examples."""
    said = x.double() @ probes.weights > probes.thresholds
    positives, negatives = fires.sum(0), (~fires).sum(0)
    hit = (said & fires).sum(0) / positives
    correct_rejection = (~said & ~fires).sum(0) / negatives
    return (hit + correct_rejection - 1).double()


@dataclass(frozen=True)
class Clamped:
    """One intervention: which latents, and how far below zero they are set where they fire."""

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
    """``x - decode(f) + decode(f')``: what the SAE does not explain is kept.

    ``f'`` is ``f`` with each of the clamp's latents at ``-strength * scale`` wherever it is active;
    ``scale`` is the latent's mean activation where it fires. Strength 0 ablates.
    """
    chosen = acts[:, clamp.latents]
    target = -clamp.strength * scale[clamp.latents]
    change = torch.where(chosen > 0, target - chosen, 0.0)
    return x + change @ sae.W_dec.detach()[clamp.latents]


@torch.no_grad()
def domain_metrics(sae: SAE[Any], pool: Pool) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Selectivity of an exported SAE in a world of two domains.

    Interventions: for each of ``RATIOS``, all latents whose firing rate on the forget domain is
    that many times the one on the retain domain, clamped at each of ``STRENGTHS``. For each:

    - the probe *skill* (:func:`probe_skill`) that is left of the clean skill, for forget features
      on forget samples, retain features on retain samples, and shared features on both;
    - the explained variance of the edited activations, ``1 - E||x - x'||^2 / Var(x)``, on forget
      and on retain samples (1 without intervention).

    The frontier is the largest mean loss of skill on forget features at a mean loss of at most
    ``b`` on retain and shared ones, as shares of the clean skill; its area is the mean over b in
    [0, 0.1] (1 is perfect: all is forgotten and nothing else suffers).

    Returns:
        metrics, and details with every intervention, the frontier, and the geometry of the groups
        that were found beside that of the true ones.
    """
    first, second = _halves(pool)
    codes = [sae.encode(s.x) for s in first]
    rates = torch.stack([(f > 0).double().mean(0) for f in codes])
    fired = torch.cat([f for f in codes])
    scale = fired.clamp(min=0).sum(0) / (fired > 0).sum(0).clamp(min=1)
    # A latent that was never seen on retain samples may still fire there: half a sample.
    ratio = rates[FORGET] / rates[RETAIN].clamp(min=0.5 / len(first[RETAIN].x))
    seen = rates[FORGET] >= MIN_RATE

    members = _members(pool)
    fitted = [fit_probes(s.x, s.fires) for s in first]
    clean = [probe_skill(p, s.x, s.fires) for p, s in zip(fitted, second, strict=True)]
    kept = {name: _usable(clean, group) for name, group in members.items()}
    second_codes = [sae.encode(s.x) for s in second]

    interventions, gains, costs, paths = [], [], [], []
    for number, least in enumerate(RATIOS):
        latents = ((ratio >= least) & seen).nonzero().flatten()
        for strength in STRENGTHS:
            clamp = Clamped(latents, least, strength)
            edited = [
                clamp_effect(sae, s.x, f, clamp, scale)
                for s, f in zip(second, second_codes, strict=True)
            ]
            skill = [
                probe_skill(p, e, s.fires) for p, e, s in zip(fitted, edited, second, strict=True)
            ]
            loss = {name: _losses(clean, skill, kept[name]) for name in kept}
            interventions.append(
                {
                    "ratio": least,
                    "latents": len(latents),
                    "strength": strength,
                    **{f"skill_lost_{n}": _mean(v) for n, v in loss.items()},
                    **{
                        f"explained_variance_{DOMAIN_NAMES[d]}": _explained(second[d].x, edited[d])
                        for d in DOMAINS
                    },
                    **{f"accuracy_{n}": 0.5 + _mean(_of(skill, kept[n])) / 2 for n in kept},
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
        **{f"probe_accuracy_{n}": 0.5 + _mean(_of(clean, kept[n])) / 2 for n in kept},
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


# ---------------------------------------------------------------------- parts


def _halves(pool: Pool) -> tuple[list[Sample], list[Sample]]:
    halves: tuple[list[Sample], list[Sample]] = ([], [])
    for rows in pool.held_out:
        middle = rows.n_samples // 2
        for half, at in enumerate((torch.arange(middle), torch.arange(middle, rows.n_samples))):
            part = rows.take(at)
            halves[half].append(Sample(pool.activations(part), part.dense(pool.n_features) > 0))
    return halves


def _members(pool: Pool) -> dict[str, list[Bool[Tensor, " n_features"]]]:
    """Which features are probed on which domain's samples, by group."""
    nothing = torch.zeros_like(pool.groups, dtype=torch.bool)
    return {
        "forget": [pool.groups == FORGET, nothing],
        "retain": [nothing, pool.groups == RETAIN],
        "shared": [pool.groups == SHARED, pool.groups == SHARED],
    }


def _usable(
    clean: list[Float[Tensor, " n_features"]], members: list[Bool[Tensor, " n_features"]]
) -> list[Bool[Tensor, " n_features"]]:
    """Members whose probe works at all: losing a skill that is not there means nothing."""
    return [m & (s > 0.1) for s, m in zip(clean, members, strict=True)]


def _of(
    values: list[Float[Tensor, " n_features"]], members: list[Bool[Tensor, " n_features"]]
) -> Float[Tensor, " n"]:
    return torch.cat([v[m] for v, m in zip(values, members, strict=True)])


def _losses(
    clean: list[Float[Tensor, " n_features"]],
    skill: list[Float[Tensor, " n_features"]],
    members: list[Bool[Tensor, " n_features"]],
) -> Float[Tensor, " n"]:
    """Share of the clean skill that is lost; below chance nothing more is lost."""
    return 1 - (_of(skill, members).clamp(min=0) / _of(clean, members))


def _explained(x: Float[Tensor, "n d"], edited: Float[Tensor, "n d"]) -> float:
    residual = (x - edited).square().sum(-1).mean()
    return float(1 - residual / (x - x.mean(0)).square().sum(-1).mean())


def _geometry(
    sae: SAE[Any], pool: Pool, rates: Float[Tensor, "2 d_sae"]
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Condition numbers and principal angles of the found groups, and of the true ones."""
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


def _mean(values: Float[Tensor, " n"]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _rounded(values: Float[Tensor, " n"]) -> list[float]:
    return [round(v, 5) for v in values.tolist()]
