"""One pass over text: which latents fire where."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.HookedTransformer import HookedRootModule

from saelens_adaptive_ortho.maths import coactivation

SKETCH_SIZE = 256


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
