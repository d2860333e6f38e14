"""Choose the latents to clamp, clamp them, and run a model under many clamps.

The method is that of "Applying Sparse Autoencoders to Unlearn Knowledge in Language Models"
(Farrell et al. 2024, arXiv 2410.19278), as SAEBench implements it. It selects latents that fire on
the forget corpus and rarely on the retain corpus. Wherever such a latent is active, it is set to a
negative value.
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
    """A number for each context, computed from the logits at some of its positions.

    Args:
        positions: the positions in each context.
        read: computes the numbers of a batch from the logits at these positions and the rows of
            ``positions`` that the batch holds.
    """

    positions: Int[Tensor, "n p"]
    read: Callable[[Float[Tensor, "batch p d_vocab"], Int[Tensor, " batch"]], Tensor]

    def of(self, logits: Float[Tensor, "batch context d_vocab"], rows: Tensor) -> Tensor:
        """The numbers of a batch, from the logits at all positions."""
        return self.read(_select_positions(logits, self.positions[rows.cpu()]), rows)


@dataclass(frozen=True)
class Clamp:
    """Set ``latents`` to ``values`` wherever they are active.

    Args:
        latents: indices of the latents, the most forget-specific first.
        values: the value of each latent, zero or negative.
    """

    latents: Int[Tensor, " n"]
    values: Float[Tensor, " n"]


def rank_latents(
    forget_rate: Float[Tensor, " d_sae"],
    retain_rate: Float[Tensor, " d_sae"],
    limit: float | Float[Tensor, " d_sae"],
) -> Int[Tensor, " n"]:
    """Latents that fire on the forget corpus, and less than ``limit`` on the retain corpus.

    They are sorted by firing rate on the forget corpus, highest first. If two rates are equal, the
    lower index comes first.

    Args:
        forget_rate: firing rate of each latent on the forget corpus.
        retain_rate: firing rate of each latent on the retain corpus.
        limit: one rate for all latents (SAEBench's retain threshold), or one rate per latent. The
            limit ``forget_rate / 9`` selects latents that fire more than nine times as often on
            the forget corpus as on the retain corpus.
    """
    score = torch.where(retain_rate < limit, forget_rate, 0.0)
    order = torch.argsort(score, descending=True, stable=True)
    return order[: int((score > 0).sum())]


@torch.no_grad()
def clamped(
    sae: SAE[Any], x: Float[Tensor, "batch context d_in"], clamp: Clamp
) -> Float[Tensor, "batch context d_in"]:
    """``x - decode(f) + decode(f')``: the reconstruction error of the SAE stays unchanged.

    ``f`` are the latent activations of ``x``, set to zero at the first position (BOS). ``f'`` is
    ``f`` with the latents of ``clamp`` set to the clamp's values wherever ``f`` is positive.
    """
    acts = _encode_without_bos(sae, x)
    chosen = acts[..., clamp.latents]
    edited = acts.clone()
    edited[..., clamp.latents] = torch.where(chosen > 0, clamp.values.to(acts), chosen)
    reconstruction = sae.decode(acts)
    _encode_without_bos(sae, x)  # the second decode needs the input's layer_norm statistics again
    return x - reconstruction + sae.decode(edited)


@torch.no_grad()
def decoder_rows(sae: SAE[Any], latents: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
    """``decode(e_i) - decode(0)`` for each latent i of an affine decoder.

    With these rows, ``clamped(x) = x + (f' - f) @ rows``. The cost then grows with the number of
    clamped latents and not with d_sae.
    """
    units = torch.zeros(len(latents) + 1, sae.cfg.d_sae, device=sae.device, dtype=sae.dtype)
    units[torch.arange(len(latents)), latents] = 1.0
    rows = sae.decode(units)
    return rows[:-1] - rows[-1]


def has_affine_decoder(sae: SAE[Any]) -> bool:
    """Whether the decoder's output depends on the latent activations alone, not on the input."""
    affine = ("none", "expected_average_only_in")  # the other modes rescale by each input's norm
    return sae.cfg.normalize_activations in affine and sae.cfg.reshape_activations == "none"


def _encode_without_bos(sae: SAE[Any], x: Float[Tensor, "batch context d_in"]) -> Tensor:
    """Latent activations, with zeros at the first position."""
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

    For all clamps together, the model runs once up to the hook. A context without an active
    clamped latent does not change, so the model does not run on it again.
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
        acts = _encode_without_bos(sae, x)
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
    """Yield tokens and activations at the SAE's hook, batch by batch, with a progress bar."""
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
        return _select_positions(logits, positions)
    # The unembedding is the largest matrix of a small model. It runs only on these positions.
    cfg: Any = model.cfg
    last, layer = cfg.n_layers - 1, _layer(hook)
    pick = (
        f"blocks.{last}.hook_resid_post",
        lambda x, hook: _select_positions(x, positions),  # noqa: ARG005
    )
    return model.run_with_hooks(
        _select_positions(x, positions) if layer == last else x,
        start_at_layer=layer + 1,
        fwd_hooks=[pick] if layer < last else [],
        return_type="logits",
    )


def _replaced(whole: Tensor, x: Tensor, head: int | None) -> Tensor:
    """The activations at a hook, with ``x`` in the place that :func:`at_hook` read."""
    if head is None or whole.ndim == 3:
        return x.view_as(whole)
    whole = whole.clone()
    whole[:, :, head] = x
    return whole


def _select_positions(
    x: Float[Tensor, "batch context d"], positions: Int[Tensor, "batch p"]
) -> Float[Tensor, "batch p d"]:
    return x[torch.arange(len(x), device=x.device)[:, None], positions.to(x.device)]


def _is_resid_post(model: HookedRootModule, hook: str) -> bool:
    """Whether the rest of the model can run from the activations at this hook alone."""
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
