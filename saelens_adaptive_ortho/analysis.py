"""Which latents serve which corpus, and the geometry of those groups of decoder directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.HookedTransformer import HookedRootModule

from saelens_adaptive_ortho import coactivation, grouping, subspace
from saelens_adaptive_ortho.evaluation import EvalContext, Outcome
from saelens_adaptive_ortho.grouping import DOMAIN_NAMES, FORGET, RETAIN
from saelens_adaptive_ortho.penalty import decoder_directions

SKETCH_SIZE = 256
GROUP_THRESHOLD = 0.5


@dataclass(frozen=True)
class Settings:
    """Geometry of forget, retain and shared groups.

    Args:
        n_contexts: training contexts per corpus in the pass that measures firing rates.
        domain_ratio: firing-rate ratio from which a latent belongs to one corpus.
        energy: share of squared singular values a group's subspace keeps for principal angles.
        batch_size_prompts: contexts per forward pass.
    """

    n_contexts: int = 256
    domain_ratio: float = 9.0
    energy: float = 0.9
    batch_size_prompts: int = 32


class Firing(NamedTuple):
    """What a pass over text says about latents."""

    rates: Float[Tensor, "n_corpora d_sae"]
    sketches: Float[Tensor, "d_sae r"]


@torch.no_grad()
def hooked_rows(
    sae: SAE[Any],
    model: HookedRootModule,
    tokens: Int[Tensor, "batch context"],
    seqpos_slice: tuple[int | None, ...] = (None,),
) -> Float[Tensor, "n d_in"]:
    """Activations at the SAE's hook, context by context, for the positions of ``seqpos_slice``."""
    hook, head = sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_head_index
    acts = model.run_with_cache(
        tokens.long().to(next(model.parameters()).device),
        names_filter=[hook],
        stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook),
        prepend_bos=False,
    )[1][hook][:, slice(*seqpos_slice)]
    if acts.ndim > 3:
        acts = acts[:, :, head] if head is not None else acts.flatten(2)
    return acts.flatten(0, 1).to(sae.device, sae.dtype)


@torch.no_grad()
def explained_variance(
    sae: SAE[Any],
    model: HookedRootModule,
    contexts: Int[Tensor, "n context"],
    ignore: set[int],
    batch_size: int = 32,
) -> float:
    """``1 - sum_t ||x_t - x_hat_t||^2 / sum_t ||x_t - mean(x)||^2`` over all tokens, in float64.

    0 is what the mean explains, so that activations far from the origin earn nothing for it.

    Args:
        ignore: tokens that do not count (BOS, EOS, padding).
    """
    device = sae.device
    n, error, square = 0, 0.0, 0.0
    total = torch.zeros(sae.cfg.d_in, dtype=torch.float64, device=device)
    ignored = torch.tensor(sorted(ignore), device=device)
    for tokens in contexts.split(batch_size):
        x = hooked_rows(sae, model, tokens)
        out = sae(x.view(*tokens.shape, -1)).flatten(0, 1)
        counted = ~torch.isin(tokens.flatten().to(device), ignored)
        x, out = x[counted].double(), out[counted].double()
        n += len(x)
        total += x.sum(0)
        square += float(x.square().sum())
        error += float((x - out).square().sum())
    return 1 - error / (square - float(total.square().sum()) / n)


@torch.no_grad()
def measure_firing(
    sae: SAE[Any],
    model: HookedRootModule,
    corpora: list[Int[Tensor, "n context"]],
    batch_size: int = 32,
    seqpos_slice: tuple[int | None, ...] = (None,),
) -> Firing:
    """Firing rates ``P(i | corpus)`` per token, and centred firing sketches over all corpora.

    Every token position in ``seqpos_slice`` counts, including special tokens.
    """
    states = []
    empty = torch.empty(sae.cfg.d_sae, 0, dtype=torch.int64, device=sae.device)
    n_batches = sum(-(-len(c) // batch_size) for c in corpora)
    with tqdm(total=n_batches, desc="Measuring firing rates", leave=False) as bar:
        for number, contexts in enumerate(corpora):
            state = coactivation.empty_state(sae.cfg.d_sae, 0, SKETCH_SIZE, device=sae.device)
            for step, tokens in enumerate(contexts.split(batch_size)):
                rows = hooked_rows(sae, model, tokens, seqpos_slice)
                fires = sae.encode(rows)
                signs = coactivation.random_signs(len(rows), SKETCH_SIZE, number, step)
                state = coactivation.update(state, fires, empty, signs.to(sae.device), decay=1.0)
                bar.update()
            states.append(state)
    rates = torch.stack([coactivation.firing_rates(s) for s in states])
    total = states[0]
    for state in states[1:]:
        total = coactivation.CoactivationState(*(a + b for a, b in zip(total, state, strict=True)))
    return Firing(rates, coactivation.sketch_directions(total))


def run(context: EvalContext, settings: Settings) -> Outcome:
    """Condition numbers, effective ranks and principal angles of an exported SAE's groups.

    Groups are found the same way for every variant, by one pass over training text: forget,
    retain and shared by firing rate where there are two corpora, and co-activation groups.
    """
    corpora = context.need_corpora(1)
    sae = context.load()
    directions = decoder_directions(sae.W_dec.detach().double()).cpu()
    contexts = [c.train[: settings.n_contexts] for c in corpora]
    firing = measure_firing(
        sae, context.model, contexts, settings.batch_size_prompts, context.bench.seqpos_slice
    )
    metrics: dict[str, float | None] = {"mean_max_cosine": subspace.mean_max_cosine(directions)}
    edges, counts = subspace.cosine_histogram(directions)
    details: dict[str, Any] = {
        "cosine_histogram": {"edges": edges, "counts": counts},
        "group_sizes": {},
    }
    group_ids = grouping.coactivation_groups(firing.sketches, GROUP_THRESHOLD).cpu()
    _describe_coactivation(metrics, details, directions, group_ids)
    alive = firing.rates.sum(0).cpu() > 0
    _describe_group(metrics, details, "all", directions[alive])
    if context.has_domains:
        ids = grouping.domain_groups(firing.rates, settings.domain_ratio).cpu()
        _describe_domains(metrics, details, directions, ids, settings.energy)
        details["firing_rates"] = {
            c.domain: [float(f"{r:.4g}") for r in rates.tolist()]
            for c, rates in zip(corpora, firing.rates, strict=True)
        }
    return Outcome(metrics, details)


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
    angles = subspace.principal_angles(forget, retain, energy)
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
    """Counts of co-activation groups (of two or more) and their typical conditioning."""
    labels, sizes = group_ids.unique(return_counts=True)
    real = labels[sizes > 1]
    numbers = [subspace.condition_number(directions[group_ids == g]) for g in real]
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
    number = subspace.condition_number(rows)
    # Infinity (dependent rows) is not JSON; null, with the reason beside it.
    metrics[f"condition_number/{name}"] = number if math.isfinite(number) else None
    if not math.isfinite(number):
        details[f"condition_number/{name}"] = "infinite: the directions are linearly dependent"
    metrics[f"effective_rank/{name}"] = subspace.effective_rank(rows)
