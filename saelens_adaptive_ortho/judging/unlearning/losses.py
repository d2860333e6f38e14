"""Loss frontiers of families of interventions, on the same texts and at the same budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.evaluations.contract import SEED
from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.judging.contract import EvalContext
from saelens_adaptive_ortho.judging.unlearning.clamps import (
    Measure,
    measure_clamps,
    per_context_loss,
)
from saelens_adaptive_ortho.judging.unlearning.families import Family, Setting
from saelens_adaptive_ortho.maths import frontier as frontiers
from saelens_adaptive_ortho.text import mixture
from saelens_adaptive_ortho.text.corpora import TokenisedCorpus

RETAIN_COSTS = (0.05, 0.10, 0.20)  # nats
LOSS_BUDGETS = torch.linspace(0, 0.25, 26)
FIXED_DAMAGE = 2.0  # nats of forget damage, at which the damage on all other corpora is read
MOST_COST = 0.5  # nats of retain damage; a fixed forget damage that costs more is not looked for
TRANSFER = "transfer"  # name of the damage on forget_test


@dataclass(frozen=True)
class Trial:
    """An SAE in a model, and the texts it is judged on.

    Args:
        context: the SAE and its workbench.
        settings: settings of the evaluation.
        model: the model that is changed: the workbench's model, or ``settings.model_name``.
        sae: the SAE.
    """

    context: EvalContext
    settings: Settings
    model: HookedRootModule
    sae: SAE[Any]

    def measure(
        self, tokens: Int[Tensor, "n context"], sweep: list[Setting], measure: Measure, desc: str
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n_settings n"]]:
        """``measure`` on each row, without intervention and under each setting."""
        return measure_clamps(
            self.model,
            self.sae,
            tokens,
            [s.intervention for s in sweep],
            measure,
            self.settings.batch_size_prompts,
            f"{desc} ({self.context.release})",
        )

    def loss_increase(
        self, corpus: TokenisedCorpus, part: str, n: int, sweep: list[Setting]
    ) -> Float[Tensor, "n_settings n"]:
        """Rise of the loss on each of the first ``n`` contexts of a part of a corpus."""
        contexts = getattr(corpus, part)[:n]
        loss = per_context_loss(contexts, self.settings.loss_every)
        before, after = self.measure(
            contexts, sweep, loss, f"Intervening on {corpus.domain}, {part}"
        )
        return after - before


@dataclass(frozen=True)
class Readings:
    """What the frontier of a family says.

    Args:
        metrics: values by name, without the name of the frontier before them.
        replicates: bootstrap replicates of some metrics.
        frontier: x, y and the band of the frontier.
        points: cost and gain of each setting.
        interventions: number of latents or directions, strength and gate of each setting.
    """

    metrics: dict[str, float | None]
    replicates: dict[str, Tensor]
    frontier: dict[str, list[float]]
    points: list[list[float]]
    interventions: list[list[float | None]]


def loss_frontiers(
    trial: Trial, families: Mapping[str, Family], n_contexts: int
) -> dict[str, Readings]:
    """The frontiers of several families.

    Training text of the forget corpus and of the retain side chooses the settings: those near the
    frontier for the mean cost of the retain side, and for the largest cost of its corpora. The
    first ``n_contexts`` held-out contexts of every corpus measure them. One run of the model up to
    the hook serves all families.
    """
    settings, context = trial.settings, trial.context
    sweeps = {name: family.coarse for name, family in families.items()}
    whole = [s for sweep in sweeps.values() for s in sweep]
    means = [
        trial.loss_increase(c, "train", settings.n_choose_contexts, whole).mean(1)
        for c in context.trained
    ]
    gain = means[0].split([len(s) for s in sweeps.values()])
    kept = context.trained[1:]
    mixed = torch.stack([c.share * m for c, m in zip(kept, means[1:], strict=True)]).sum(0)
    costs = [mixed] if len(kept) == 1 else [mixed, torch.stack(means[1:]).amax(0)]
    found: dict[str, dict[tuple[int, float], Setting]] = {name: {} for name in sweeps}
    for cost in costs:
        parts = cost.split([len(s) for s in sweeps.values()])
        for name, c, g in zip(sweeps, parts, gain, strict=True):
            near = families[name].near_frontier(c, g, budgets_for(sweeps[name], c, g))
            found[name] |= {(setting.path, setting.strength): setting for setting in near}
    fine = {name: [near[key] for key in sorted(near)] for name, near in found.items()}
    sizes = [len(s) for s in fine.values()]
    whole = [s for sweep in fine.values() for s in sweep]
    increases = {
        c.domain: trial.loss_increase(c, "held_out", n_contexts, whole).split(sizes)
        for c in context.corpora
    }
    domains = [c.domain for c in kept]
    return {
        name: read(sweep, {d: p[i] for d, p in increases.items()}, settings.replicates, domains)
        for i, (name, sweep) in enumerate(fine.items())
    }


def budgets_for(
    sweep: list[Setting], cost: Float[Tensor, " n"], gain: Float[Tensor, " n"]
) -> list[float]:
    """The budgets, and the cost of :data:`FIXED_DAMAGE` if the sweep reaches it at a low cost."""
    paths = torch.tensor([s.path for s in sweep])
    target = torch.tensor([FIXED_DAMAGE], dtype=cost.dtype)
    price = float(frontiers.cheapest(cost[None], gain[None], paths, target)[0])
    return [*RETAIN_COSTS, *([price] if 0 < price <= MOST_COST else [])]


def read(
    sweep: list[Setting],
    increases: Mapping[str, Float[Tensor, "n_settings n"]],
    replicates: int,
    kept: Sequence[str] = (),
) -> Readings:
    """The frontier of a sweep, and the damage on every other corpus at the frontier's points.

    The bootstrap draws are the same for every SAE, so the replicates of two SAEs are paired.

    Args:
        sweep: the settings; those of one path in order of strength.
        increases: rise of the loss under each setting on each passage of each corpus, forget and
            retain first.
        replicates: number of bootstrap replicates.
        kept: names of the corpora of the retain side. If there are several, there is also a
            frontier whose cost is the damage on the one that loses most. Between two settings, the
            larger damage is at most the straight line that the frontier assumes.
    """
    cost, gain = increases[mixture.RETAIN], increases[mixture.FORGET]
    paths = torch.tensor([s.path for s in sweep])
    found = frontiers.frontier(cost, gain, paths, LOSS_BUDGETS, replicates, SEED)
    means = {
        TRANSFER if domain == mixture.FORGET_TEST else domain: frontiers.resampled_means(
            values, replicates, SEED + number
        )
        for number, (domain, values) in enumerate(increases.items())
    }
    # The frontier draws costs with the first seed, and gains with the second one.
    means[mixture.RETAIN] = frontiers.resampled_means(cost, replicates, SEED)
    means[mixture.FORGET] = frontiers.resampled_means(gain, replicates, SEED + 1)
    others = [name for name in means if name not in (mixture.FORGET, mixture.RETAIN)]
    values: dict[str, Tensor] = {}  # the value of the data, then the replicates
    for budget in RETAIN_COSTS:
        column = int((LOSS_BUDGETS - budget).abs().argmin())
        damage = torch.cat([found.gain[column, None], found.replicates[:, column]])
        values[f"forget_damage_at_{budget:.2f}"] = damage
        for name in others:
            other = found.points.read(means[name])[:, column]
            values[f"{name}_damage_at_{budget:.2f}"] = other
            values[f"{name}_per_forget_damage_at_{budget:.2f}"] = other / damage
    target = torch.tensor([FIXED_DAMAGE], dtype=torch.float64)
    price, points = frontiers.cheapest(means[mixture.RETAIN], means[mixture.FORGET], paths, target)
    if float(price[0]) <= MOST_COST:
        for name in (mixture.RETAIN, *others):
            other = torch.where(price[:, 0] < torch.inf, points.read(means[name])[:, 0], torch.nan)
            values[f"{name}_damage_at_forget_{FIXED_DAMAGE:g}"] = other
    if len(kept) > 1:
        worst = torch.stack([means[name] for name in kept]).amax(0)
        limits = torch.tensor(RETAIN_COSTS, dtype=torch.float64)
        damages, _ = frontiers.envelope(worst, means[mixture.FORGET], paths, limits)
        for budget, damage in zip(RETAIN_COSTS, damages.T, strict=True):
            values[f"kept_forget_damage_at_{budget:.2f}"] = damage
        price, _ = frontiers.cheapest(worst, means[mixture.FORGET], paths, target)
        if float(price[0]) <= MOST_COST:
            values[f"kept_damage_at_forget_{FIXED_DAMAGE:g}"] = price[:, 0]
    metrics: dict[str, float | None] = {}
    drawn: dict[str, Tensor] = {}
    for key, value in values.items():
        if not value[0].isfinite():  # a ratio to no damage at all
            continue
        metrics[key] = float(value[0])
        if value.isfinite().all():
            drawn[key] = value[1:]
            metrics[f"{key}_halfwidth"] = halfwidth(value[1:])
    metrics["area"], drawn["area"] = found.area(0, RETAIN_COSTS[-1])
    return Readings(
        metrics,
        drawn,
        plain_frontier(found.budgets, found.gain, found.band()),
        torch.stack([cost.mean(1), gain.mean(1)], 1).tolist(),
        [setting.plain() for setting in sweep],
    )


def halfwidth(replicates: Float[Tensor, " b"]) -> float:
    """Half the width of the bootstrap interval."""
    low, high = frontiers.interval(replicates).tolist()
    return (high - low) / 2


def rounded(values: Tensor) -> list[float]:
    """Four significant digits of each value."""
    return [float(f"{v:.4g}") for v in values.tolist()]


def plain_frontier(x: Tensor, y: Tensor, band: Tensor) -> dict[str, list[float]]:
    """A frontier as a result file holds it."""
    return {k: rounded(v) for k, v in {"x": x, "y": y, "low": band[0], "high": band[1]}.items()}
