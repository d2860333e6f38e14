"""Groups of latents by the corpus they fire on, and the geometry of their decoder directions."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho.evaluations.subspace import Settings
from saelens_adaptive_ortho.judging.contract import EvalContext, Outcome
from saelens_adaptive_ortho.judging.firing import (
    Firings,
    Sketches,
    accumulate,
    passes,
    two_sides,
)
from saelens_adaptive_ortho.maths import geometry, grouping
from saelens_adaptive_ortho.maths.directions import decoder_directions
from saelens_adaptive_ortho.maths.grouping import DOMAIN_NAMES, FORGET, RETAIN

GROUP_THRESHOLD = 0.5


def run(context: EvalContext, settings: Settings) -> Outcome:
    """Condition numbers, effective ranks and principal angles of an exported SAE's groups.

    One pass over training text finds the groups, in the same way for every variant. The forget
    corpus stands against retain and the named retain corpora, mixed by their shares. Corpora that
    are only evaluated take no part.
    """
    context.need_corpora(1)
    corpora = context.trained
    sae = context.load()
    firings, sketches = Firings(sae, len(corpora)), Sketches(sae, len(corpora))
    contexts = [c.train[: settings.n_contexts] for c in corpora]
    accumulate(
        passes(sae, context.model, contexts, settings.batch_size_prompts, "Measuring firing rates"),
        firings,
        sketches,
    )
    sides = [c.domain for c in corpora[:2]]
    rates = two_sides(firings.rates(), corpora)
    return describe(sae, sides, rates, sketches.result(), settings)


def describe(
    sae: SAE[Any],
    sides: list[str],
    rates: Float[Tensor, "n_sides d_sae"],
    sketches: Float[Tensor, "d_sae r"],
    settings: Settings,
) -> Outcome:
    """The geometry of an SAE's groups of latents.

    There are co-activation groups. With a forget and a retain side, there are also forget, retain
    and shared groups, by firing rate.

    Args:
        sides: ``forget`` and ``retain``, or the name of a single corpus.
        rates: firing rates on each side, of :func:`.firing.two_sides`.
    """
    directions = decoder_directions(sae.W_dec.detach().double()).cpu()
    metrics: dict[str, float | None] = {"mean_max_cosine": geometry.mean_max_cosine(directions)}
    edges, counts = geometry.cosine_histogram(directions)
    details: dict[str, Any] = {
        "cosine_histogram": {"edges": edges, "counts": counts},
        "group_sizes": {},
    }
    group_ids = grouping.coactivation_groups(sketches, GROUP_THRESHOLD).cpu()
    _describe_coactivation(metrics, details, directions, group_ids)
    alive = rates.sum(0).cpu() > 0
    _describe_group(metrics, details, "all", directions[alive])
    if len(sides) == 2:
        ids = grouping.domain_groups(rates, settings.domain_ratio).cpu()
        _describe_domains(metrics, details, directions, ids, settings.energy)
        details["firing_rates"] = rounded_rates(sides, rates)
    return Outcome(metrics, details)


def rounded_rates(
    domains: list[str], rates: Float[Tensor, "n_corpora d_sae"]
) -> dict[str, list[float]]:
    """Firing rates of each corpus, rounded for a result file."""
    return {
        domain: [float(f"{r:.4g}") for r in domain_rates.tolist()]
        for domain, domain_rates in zip(domains, rates, strict=True)
    }


def _describe_domains(
    metrics: dict[str, float | None],
    details: dict[str, Any],
    directions: Float[Tensor, "d_sae d_in"],
    ids: Int[Tensor, " d_sae"],
    energy: float,
) -> None:
    groups = {name: directions[ids == code] for code, name in DOMAIN_NAMES.items()}
    for name, rows in groups.items():
        metrics[f"n_{name}"] = float(len(rows))
        _describe_group(metrics, details, name, rows)
    forget, retain = groups[DOMAIN_NAMES[FORGET]], groups[DOMAIN_NAMES[RETAIN]]
    _describe_group(metrics, details, "forget+retain", torch.cat([forget, retain]))
    if not len(forget) or not len(retain):
        for key in ("min_deg", "mean_deg"):
            metrics[f"principal_angle/{key}"] = None
        metrics["border_max_cosine"] = None
        details["principal_angles_reason"] = "no latent belongs to one of the corpora alone"
        return
    angles = geometry.principal_angles(forget, retain, energy)
    metrics["principal_angle/min_deg"] = float(angles[0])
    metrics["principal_angle/mean_deg"] = float(angles.mean())
    metrics["border_max_cosine"] = float((forget @ retain.T).max(1).values.mean())
    details["principal_angles_deg"] = angles.tolist()


def _describe_coactivation(
    metrics: dict[str, float | None],
    details: dict[str, Any],
    directions: Float[Tensor, "d_sae d_in"],
    group_ids: Int[Tensor, " d_sae"],
) -> None:
    """Add the number of co-activation groups (of two or more) and their median condition number."""
    labels, sizes = group_ids.unique(return_counts=True)
    real = labels[sizes > 1]
    numbers = [geometry.condition_number(directions[group_ids == g]) for g in real]
    finite = torch.tensor([n for n in numbers if math.isfinite(n)], dtype=torch.float64)
    metrics["n_coactivation_groups"] = float(len(real))
    metrics["condition_number/coactivation_median"] = (
        float(finite.median()) if len(finite) else None
    )
    details["group_sizes"]["coactivation"] = sorted(sizes[sizes > 1].tolist(), reverse=True)


def _describe_group(
    metrics: dict[str, float | None],
    details: dict[str, Any],
    name: str,
    rows: Float[Tensor, "n d_in"],
) -> None:
    details["group_sizes"][name] = len(rows)
    if len(rows) < 2:
        metrics[f"condition_number/{name}"] = None
        metrics[f"effective_rank/{name}"] = None
        return
    number = geometry.condition_number(rows)
    # JSON has no infinity. The metric is null, and the details give the reason.
    metrics[f"condition_number/{name}"] = number if math.isfinite(number) else None
    if not math.isfinite(number):
        details[f"condition_number/{name}"] = "infinite: the directions are linearly dependent"
    metrics[f"effective_rank/{name}"] = geometry.effective_rank(rows)
