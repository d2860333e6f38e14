"""Which latents to clamp, the clamp, and running a model under many clamps.

Method of "Applying Sparse Autoencoders to Unlearn Knowledge in Language Models" (Farrell et al.
2024, arXiv 2410.19278), as SAEBench runs it: latents that fire on the forget corpus and hardly on
the retain corpus are set to a negative value wherever they are active.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformer_lens import HookedRootModule, HookedTransformer

from saelens_adaptive_ortho.judging.firing import at_hook


class Measure(NamedTuple):
    """A number for each context, read off the logits at some of its positions.

    Args:
        positions: of each context.
        read: from the logits at those positions, and the rows of ``positions`` they belong to.
    """

    positions: Int[Tensor, "n p"]
    read: Callable[[Float[Tensor, "batch p d_vocab"], Int[Tensor, " batch"]], Tensor]

    def of(self, logits: Float[Tensor, "batch context d_vocab"], rows: Tensor) -> Tensor:
        """From the logits at every position."""
        return self.read(_at(logits, self.positions[rows.cpu()]), rows)


@dataclass(frozen=True)
class Clamp:
    """Set ``latents`` to ``values`` wherever they are active.

    Args:
        latents: indices, the most forget-specific first.
        values: one per latent, zero or negative.
    """

    latents: Int[Tensor, " n"]
    values: Float[Tensor, " n"]


def rank_latents(
    forget_rate: Float[Tensor, " d_sae"],
    retain_rate: Float[Tensor, " d_sae"],
    limit: float | Float[Tensor, " d_sae"],
) -> Int[Tensor, " n"]:
    """Latents that fire on the forget corpus, and less than ``limit`` on the retain corpus.

    The most frequent on the forget corpus comes first (of equals, the one with the lower index).

    Args:
        forget_rate: share of the tokens of the forget corpus a latent fires on.
        retain_rate: likewise.
        limit: one rate (SAEBench's retain threshold), or one for each latent:
            ``forget_rate / 9`` asks for latents nine times as frequent on the forget corpus.
    """
    score = torch.where(retain_rate < limit, forget_rate, 0.0)
    order = torch.argsort(score, descending=True, stable=True)
    return order[: int((score > 0).sum())]


@torch.no_grad()
def clamped(
    sae: SAE[Any], x: Float[Tensor, "batch context d_in"], clamp: Clamp
) -> Float[Tensor, "batch context d_in"]:
    """``x - decode(f) + decode(f')``: what the SAE does not explain is kept as it is.

    ``f`` is the code of ``x``, with the first position (BOS) set to zero; ``f'`` is ``f`` with the
    latents of ``clamp`` at its values wherever ``f`` is positive.
    """
    acts = _code(sae, x)
    chosen = acts[..., clamp.latents]
    edited = acts.clone()
    edited[..., clamp.latents] = torch.where(chosen > 0, clamp.values.to(acts), chosen)
    reconstruction = sae.decode(acts)
    _code(sae, x)  # decoding after layer_norm uses up the input's statistics: leave them again
    return x - reconstruction + sae.decode(edited)


@torch.no_grad()
def decoder_rows(sae: SAE[Any], latents: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
    """What one unit of each latent adds to the output, for a decoder that is affine.

    With them, ``clamped(x) = x + (f' - f) @ rows``, at the cost of the latents clamped and not of
    the whole dictionary.
    """
    units = torch.zeros(len(latents) + 1, sae.cfg.d_sae, device=sae.device, dtype=sae.dtype)
    units[torch.arange(len(latents)), latents] = 1.0
    rows = sae.decode(units)
    return rows[:-1] - rows[-1]


def has_affine_decoder(sae: SAE[Any]) -> bool:
    """Whether an output depends on its code alone, and not on the norm of the input."""
    affine = ("none", "expected_average_only_in")  # the others rescale by each input's own norm
    return sae.cfg.normalize_activations in affine and sae.cfg.reshape_activations == "none"


def _code(sae: SAE[Any], x: Float[Tensor, "batch context d_in"]) -> Tensor:
    acts = sae.encode(x)
    acts[:, 0] = 0.0
    return acts


@torch.no_grad()
def measure_clamps(
    model: HookedRootModule,
    sae: SAE[Any],
    contexts: Int[Tensor, "n context"],
    clamps: list[Clamp],
    measure: Measure,
    batch_size: int,
    desc: str,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n_clamps n"]]:
    """``measure`` on each context, without intervention and under each clamp.

    The model runs once up to the hook for all clamps; a context in which no clamped latent is
    active is not run again, since nothing in it changes.
    """
    fast = has_affine_decoder(sae)
    rows_of = [decoder_rows(sae, c.latents) if fast else None for c in clamps]
    plain, changed = [], []
    start = 0
    for tokens, x in hooked_batches(model, sae, contexts, batch_size, desc):
        numbers = torch.arange(start, start + len(tokens), device=x.device)
        start += len(tokens)
        positions = measure.positions[numbers.cpu()]
        before = measure.read(_logits(model, sae, tokens, x, positions), numbers)
        after = before.repeat(len(clamps), 1)
        acts = _code(sae, x)
        for number, (clamp, rows) in enumerate(zip(clamps, rows_of, strict=True)):
            chosen = acts[..., clamp.latents]
            active = chosen > 0
            touched = active.flatten(1).any(1).nonzero().flatten()
            if not len(touched):
                continue
            if rows is None:
                edited = clamped(sae, x[touched], clamp)
            else:
                change = (clamp.values.to(chosen) - chosen[touched]) * active[touched]
                edited = x[touched] + change @ rows
            logits = _logits(model, sae, tokens[touched], edited, positions[touched.cpu()])
            after[number, touched] = measure.read(logits, numbers[touched])
        plain.append(before)
        changed.append(after)
    return torch.cat(plain).cpu(), torch.cat(changed, dim=1).cpu()


def hooked_batches(
    model: HookedRootModule,
    sae: SAE[Any],
    contexts: Int[Tensor, "n context"],
    batch_size: int,
    desc: str,
) -> Iterator[tuple[Int[Tensor, "batch context"], Float[Tensor, "batch context d_in"]]]:
    """Tokens and activations at the SAE's hook, batch by batch, with a progress bar."""
    device = next(model.parameters()).device
    for tokens in tqdm(contexts.split(batch_size), desc=desc, leave=False, unit=" batches"):
        yield tokens.long().to(device), at_hook(sae, model, tokens)


def _logits(
    model: HookedRootModule,
    sae: SAE[Any],
    tokens: Int[Tensor, "batch context"],
    x: Float[Tensor, "batch context d_in"],
    positions: Int[Tensor, "batch p"],
) -> Float[Tensor, "batch p d_vocab"]:
    """The model's logits at ``positions`` with ``x`` in place of the activations at the hook."""
    hook = sae.cfg.metadata.hook_name
    x = x.to(next(model.parameters()).dtype)
    if not _is_resid_post(model, hook):
        head = sae.cfg.metadata.hook_head_index
        replace = (hook, lambda whole, hook: _replaced(whole, x, head))  # noqa: ARG005
        logits = model.run_with_hooks(
            tokens, fwd_hooks=[replace], prepend_bos=False, return_type="logits"
        )
        return _at(logits, positions)
    # The unembedding is the largest matrix of a small model: only for the positions asked for.
    cfg: Any = model.cfg
    last, layer = cfg.n_layers - 1, _layer(hook)
    pick = (f"blocks.{last}.hook_resid_post", lambda x, hook: _at(x, positions))  # noqa: ARG005
    return model.run_with_hooks(
        _at(x, positions) if layer == last else x,
        start_at_layer=layer + 1,
        fwd_hooks=[pick] if layer < last else [],
        return_type="logits",
    )


def _replaced(whole: Tensor, x: Tensor, head: int | None) -> Tensor:
    """The activations at a hook with ``x`` in place of what :func:`at_hook` took from them."""
    if head is None or whole.ndim == 3:
        return x.view_as(whole)
    whole = whole.clone()
    whole[:, :, head] = x
    return whole


def _at(
    x: Float[Tensor, "batch context d"], positions: Int[Tensor, "batch p"]
) -> Float[Tensor, "batch p d"]:
    return x[torch.arange(len(x), device=x.device)[:, None], positions.to(x.device)]


def _is_resid_post(model: HookedRootModule, hook: str) -> bool:
    """Whether the rest of the model can be run from the activations at the hook alone."""
    return isinstance(model, HookedTransformer) and hook.endswith(".hook_resid_post")


def _layer(hook: str) -> int:
    return int(hook.split(".")[1])


def per_context_loss(tokens: Int[Tensor, "n context"], every: int = 1) -> Measure:
    """Mean next-token cross-entropy of each context, in nats, over every ``every``-th position."""
    n, context = tokens.shape
    positions = torch.arange(0, context - 1, every).expand(n, -1)
    targets = tokens.cpu()[:, 1::every].long()

    def read(logits: Tensor, rows: Tensor) -> Tensor:
        wanted = targets[rows.cpu()].to(logits.device)
        losses = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        return losses.view(wanted.shape).float().mean(1)

    return Measure(positions, read)
