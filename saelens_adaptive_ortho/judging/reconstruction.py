"""How much of the activations' variance an SAE explains."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens.HookedTransformer import HookedRootModule

from saelens_adaptive_ortho.judging.firing import hooked_rows


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
