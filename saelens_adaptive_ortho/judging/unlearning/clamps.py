"""Interventions at an SAE's hook, and a model's results under many of them.

A :class:`Clamp` edits latents. The method is that of "Applying Sparse Autoencoders to Unlearn
Knowledge in Language Models" (Farrell et al. 2024, arXiv 2410.19278), as SAEBench implements it. It
selects latents that fire on the forget corpus and rarely on the retain corpus. Wherever such a
latent is active, it is set to a negative value. A :class:`Projection` and a :class:`Push` edit the
activations themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens import HookedRootModule, HookedTransformer

from saelens_adaptive_ortho.judging.firing import at_hook, uncounted_tokens
from saelens_adaptive_ortho.maths.erasure import Detector, Erasure
from saelens_adaptive_ortho.progress import progress

# Hooks at the end of a block: the later blocks need nothing but the activations there.
END_OF_BLOCK = re.compile(r"blocks\.(\d+)\.(?:hook_resid_post|hook_out)")
# Relative distance of logits up to which two ways to run a model count as the same, in any dtype.
SAME_LOGITS = 0.02


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
class Seen:
    """A batch of contexts, as an intervention sees it.

    Args:
        sae: the SAE.
        x: activations at the hook.
        counted: which positions count: not the first one, and no BOS, EOS, padding, or token that
            the SAE was trained without.
        tokens: the contexts, for an intervention that runs the model itself.
    """

    sae: SAE[Any]
    x: Float[Tensor, "batch context *d_in"]
    counted: Bool[Tensor, "batch context"]
    tokens: Int[Tensor, "batch context"] | None = None

    @cached_property
    def acts(self) -> Float[Tensor, "batch context d_sae"]:
        """Latent activations, with zeros at the first position."""
        return _encode_without_bos(self.sae, self.x)


class Edited(NamedTuple):
    """What an intervention does to a batch.

    Attributes:
        touched: the contexts that change.
        x: the activations of these contexts afterwards.
    """

    touched: Int[Tensor, " n_touched"]
    x: Float[Tensor, "n_touched context *d_in"]


class Intervention(Protocol):
    """A change of the activations at an SAE's hook."""

    def on(self, sae: SAE[Any]) -> Callable[[Seen], Edited]:
        """The change as a function of a batch. What does not depend on it is computed here."""
        ...


@dataclass(frozen=True)
class Clamp:
    """Set ``latents`` to ``values`` wherever they are active.

    Args:
        latents: indices of the latents, the most forget-specific first.
        values: the value of each latent, zero or negative.
        gate: act only in contexts where at least one of the latents fires on more than this share
            of the counted tokens; None to act in all contexts.
    """

    latents: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    gate: float | None = None

    def on(self, sae: SAE[Any]) -> Callable[[Seen], Edited]:
        rows = decoder_rows(sae, self.latents) if has_affine_decoder(sae) else None

        def edit(seen: Seen) -> Edited:
            chosen = seen.acts[..., self.latents]
            active = chosen > 0
            if self.gate is not None:
                share = firing_share(active.any(-1), seen.counted)
                active &= (share > self.gate)[:, None, None]
            touched = active.flatten(1).any(1).nonzero().flatten()
            x = seen.x[touched]
            if rows is None:
                return Edited(touched, clamped(sae, x, self))
            change = (self.values.to(chosen) - chosen[touched]) * active[touched]
            return Edited(touched, x + (change @ rows).view_as(x))

        return edit


def firing_share(
    fires: Bool[Tensor, "batch context"], counted: Bool[Tensor, "batch context"]
) -> Float[Tensor, " batch"]:
    """The share of each context's counted tokens on which something fires."""
    return (fires & counted).sum(1) / counted.sum(1).clamp(min=1)


@dataclass(frozen=True)
class Projection:
    """``x -> x - strength * (x - centre) P`` at every counted token.

    Args:
        erasure: the matrix P.
        centre: the point that the activations move to in the erased directions.
        strength: 1 removes the directions; a larger strength pushes beyond.
    """

    erasure: Erasure
    centre: Float[Tensor, " d_in"]
    strength: float

    def on(self, sae: SAE[Any]) -> Callable[[Seen], Edited]:
        matrices = Erasure(*(m.to(sae.device, sae.dtype) for m in self.erasure))
        centre = self.centre.to(matrices.into)

        def edit(seen: Seen) -> Edited:
            x = seen.x.flatten(2)
            moved = matrices.apply(x, centre, self.strength)
            moved = torch.where(seen.counted[..., None], moved, x).view_as(seen.x)
            return Edited(torch.arange(len(x), device=x.device), moved)

        return edit


@dataclass(frozen=True)
class Push:
    """``x -> x - strength * step`` at every counted token whose score is above ``threshold``.

    Args:
        detector: gives each token its score.
        threshold: the least score of a token that is pushed.
        step: what a strength of 1 subtracts.
        strength: multiple of ``step``.
        gate: as that of a :class:`Clamp`, for the tokens with a score above the threshold.
    """

    detector: Detector
    threshold: float
    step: Float[Tensor, " d_in"]
    strength: float
    gate: float | None = None

    def on(self, sae: SAE[Any]) -> Callable[[Seen], Edited]:
        detector = Detector(self.detector.weight.to(sae.device, sae.dtype), self.detector.bias)
        step = self.strength * self.step.to(detector.weight)

        def edit(seen: Seen) -> Edited:
            x = seen.x.flatten(2)
            found = (detector.score(x) > self.threshold) & seen.counted
            if self.gate is not None:
                found &= (firing_share(found, seen.counted) > self.gate)[:, None]
            touched = found.any(1).nonzero().flatten()
            moved = x[touched] - found[touched][..., None] * step
            return Edited(touched, moved.view_as(seen.x[touched]))

        return edit


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
    interventions: Sequence[Intervention],
    measure: Measure,
    batch_size: int,
    desc: str,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n_interventions n"]]:
    """``measure`` on each context, without intervention and under each intervention.

    For all interventions together, the model runs once up to the hook. The model does not run again
    on a context that an intervention does not touch.
    """
    edits = [i.on(sae) for i in interventions]
    ignored = torch.tensor(sorted(uncounted_tokens(sae, model)), dtype=torch.int64)
    probe = contexts[:2].long().to(next(model.parameters()).device)
    run = _run_from_hook(model, sae, probe, measure.positions[:2])
    plain, changed = [], []
    start = 0
    for tokens, x in hooked_batches(model, sae, contexts, batch_size, desc):
        numbers = torch.arange(start, start + len(tokens), device=x.device)
        start += len(tokens)
        positions = measure.positions[numbers.cpu()]
        before = measure.read(run(tokens, x, positions), numbers)
        after = before.repeat(len(edits), 1)
        counted = ~torch.isin(tokens, ignored.to(tokens.device))
        counted[:, 0] = False
        seen = Seen(sae, x, counted.to(x.device), tokens)
        for number, edit in enumerate(edits):
            touched, edited = edit(seen)
            if not len(touched):
                continue
            rows = touched.to(tokens.device)
            logits = run(tokens[rows], edited, positions[touched.cpu()])
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
    for tokens in progress(contexts.split(batch_size), desc, unit=" batches"):
        yield tokens.long().to(device), at_hook(sae, model, tokens)


class _Run(Protocol):
    """The model's logits at ``positions`` with ``x`` in place of the activations at the hook."""

    def __call__(
        self,
        tokens: Int[Tensor, "batch context"],
        x: Float[Tensor, "batch context d_in"],
        positions: Int[Tensor, "batch p"],
    ) -> Float[Tensor, "batch p d_vocab"]: ...


def _run_from_hook(
    model: HookedRootModule,
    sae: SAE[Any],
    tokens: Int[Tensor, "batch context"],
    positions: Int[Tensor, "batch p"],
) -> _Run:
    """The quickest way to run a model from an SAE's hook on.

    After a hook at the end of a block, only the later blocks run. Models differ in how their blocks
    are called. So the quick way is compared with a run of the whole model, and it is taken only if
    it gives the same logits.

    Args:
        tokens: two contexts or more for the comparison.
        positions: positions in these contexts.
    """
    hook = sae.cfg.metadata.hook_name
    whole = partial(_run_whole, model, hook, sae.cfg.metadata.hook_head_index)
    found = END_OF_BLOCK.fullmatch(hook)
    if found is None or not hasattr(model, "blocks"):
        return whole
    if isinstance(model, HookedTransformer):
        return partial(_run_from_layer, model, int(found[1]) + 1)
    x = -at_hook(sae, model, tokens)  # far from what the model itself computes
    expected = whole(tokens, x, positions).float()
    for as_tuple in (False, True):
        quick = partial(_run_skipping, model, int(found[1]) + 1, as_tuple)
        try:
            logits = quick(tokens, x, positions).float()
        except Exception:  # noqa: S112  a model that does not take such an output may raise anything
            continue
        if logits.shape == expected.shape:
            error = (logits - expected).norm() / expected.norm()
            if float(error) < SAME_LOGITS:
                return quick
    return whole


def _run_whole(
    model: HookedRootModule,
    hook_name: str,
    head: int | None,
    tokens: Int[Tensor, "batch context"],
    x: Float[Tensor, "batch context d_in"],
    positions: Int[Tensor, "batch p"],
) -> Float[Tensor, "batch p d_vocab"]:
    """Run the model with a hook that replaces the activations."""
    x = x.to(next(model.parameters()).dtype)
    replace = (hook_name, lambda whole, hook: _replaced(whole, x, head))  # noqa: ARG005
    logits = model.run_with_hooks(
        tokens, fwd_hooks=[replace], prepend_bos=False, return_type="logits"
    )
    return _select_positions(logits, positions)


def _run_from_layer(
    model: HookedTransformer,
    layer: int,
    tokens: Int[Tensor, "batch context"],  # noqa: ARG001  as the other ways to run
    x: Float[Tensor, "batch context d_in"],
    positions: Int[Tensor, "batch p"],
) -> Float[Tensor, "batch p d_vocab"]:
    """Start at a layer, as TransformerLens's own models can."""
    x = x.to(next(model.parameters()).dtype)
    last = model.cfg.n_layers - 1
    hooks: list[Any] = []
    if layer > last:
        x = _select_positions(x, positions)
    else:
        hooks.append(_pick(f"blocks.{last}.hook_resid_post", positions))
    return model.run_with_hooks(x, start_at_layer=layer, fwd_hooks=hooks, return_type="logits")


def _run_skipping(
    model: Any,
    layer: int,
    as_tuple: bool,
    tokens: Int[Tensor, "batch context"],
    x: Float[Tensor, "batch context d_in"],
    positions: Int[Tensor, "batch p"],
) -> Float[Tensor, "batch p d_vocab"]:
    """Run the model with blocks before ``layer`` that do nothing but return ``x``.

    Args:
        as_tuple: whether the model's blocks return a tuple.
    """
    x = x.to(next(model.parameters()).dtype)
    hooks = [_pick("unembed.hook_in", positions)]
    with _blocks_return((x,) if as_tuple else x, model.blocks[:layer]):
        return model.run_with_hooks(
            tokens, fwd_hooks=hooks, prepend_bos=False, return_type="logits"
        )


def _pick(hook_name: str, positions: Int[Tensor, "batch p"]) -> tuple[str, Callable[..., Tensor]]:
    """A hook that keeps some positions: the unembedding is a large matrix in a small model."""
    return hook_name, lambda x, hook: _select_positions(x, positions)  # noqa: ARG005


@contextmanager
def _blocks_return(output: Any, blocks: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Inside the ``with`` statement, the blocks return ``output``, whatever their input is."""
    before = [(block, vars(block).get("forward")) for block in blocks]
    try:
        for block, _ in before:
            vars(block)["forward"] = lambda *_, **__: output
        yield
    finally:
        for block, forward in before:
            del vars(block)["forward"]
            if forward is not None:
                vars(block)["forward"] = forward


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
