"""Models that were trained to forget, without an SAE: what a frontier is worth beside them.

- ``RMU`` (Representation Misdirection for Unlearning; Li et al. 2024, arXiv 2403.03218) moves the
  activations of forget text at the hook to a random point, and keeps those of retain text::

      |h(x_F) - c u|^2 + alpha |h(x_R) - h_0(x_R)|^2,      c = beta * mean |h_0(x_F)|

  u is a random unit vector, h_0 the frozen model. That c follows the norm of the activations is
  from adaptive RMU (Dang et al. 2025, arXiv 2408.06223). Both terms are means over tokens, relative
  to the mean squared norm of forget activations.
- ``gradient ascent`` raises the loss on forget text and keeps that on retain text (gradient
  difference; Liu, Liu and Stone 2022, arXiv 2203.12817)::

      -loss(x_F) + gamma * loss(x_R)

Both change the last matrix of the MLP in the hook's block and the two blocks before it, as RMU
does. A change ``D`` of the weights ``W`` at strength s is ``W + s D``. So a training gives a path
of a family, and its frontier is found as that of a clamp. Steps of Adam are a fixed share of the
root mean square of each matrix, so that one setting serves models of any size.

The hook must be at the end of a block. All changed weights are before it, so the changed model is
the model itself with other activations at the hook.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho.evaluations.contract import SEED
from saelens_adaptive_ortho.judging.contract import EvalContext
from saelens_adaptive_ortho.judging.firing import at_hook
from saelens_adaptive_ortho.judging.unlearning.clamps import (
    END_OF_BLOCK,
    Edited,
    Intervention,
    Seen,
)
from saelens_adaptive_ortho.judging.unlearning.families import Family
from saelens_adaptive_ortho.progress import progress

RMU, ASCENT = "RMU", "gradient ascent"
METHODS = {"rmu": RMU, "gradient_ascent": ASCENT}  # by the names in settings
BETAS, ALPHAS = (1.0, 4.0), (10.0, 100.0)  # of RMU
GAMMAS = (1.0, 4.0)  # of gradient ascent
BLOCKS = 3  # the hook's block, and those before it
STEP = 0.01  # of a matrix's root mean square
STEPS = {RMU: 150, ASCENT: 60}
BATCH = 8  # contexts of each side
STRENGTHS, LARGEST = (0.25, 0.5, 1.0), 2.0

Weights = dict[str, Tensor]


class Loss(NamedTuple):
    """One loss of a training.

    Attributes:
        method: :data:`RMU` or :data:`ASCENT`.
        of: loss of a batch of forget and a batch of retain contexts.
    """

    method: str
    of: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Retrained:
    """The activations at the hook under the weights ``W + strength * D``.

    Args:
        model: the model.
        change: D, by the name of the weight.
        strength: a multiple of the change.
    """

    model: HookedRootModule
    change: Mapping[str, Tensor]
    strength: float

    def on(self, sae: SAE[Any]) -> Callable[[Seen], Edited]:
        def edit(seen: Seen) -> Edited:
            weights = dict(self.model.named_parameters())
            values = {n: weights[n].data + self.strength * d for n, d in self.change.items()}
            assert seen.tokens is not None
            with holding(self.model, values):
                x = at_hook(sae, self.model, seen.tokens)
            return Edited(torch.arange(len(x), device=x.device), x)

        return edit


@contextmanager
def holding(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other values of some weights inside the ``with`` statement."""
    weights = dict(model.named_parameters())
    before = {name: weights[name].data for name in values}
    try:
        for name, value in values.items():
            weights[name].data = value.to(before[name].dtype)
        yield
    finally:
        for name, data in before.items():
            weights[name].data = data


def trainable(model: nn.Module, hook_name: str) -> list[str]:
    """Names of the last matrix of the MLP in each of the last blocks up to the hook.

    The list is empty if the hook is not at the end of a block, or the model has no such blocks.
    """
    found = END_OF_BLOCK.fullmatch(hook_name)
    blocks: Any = getattr(model, "blocks", None)
    if found is None or blocks is None:
        return []
    names = {id(weight): name for name, weight in model.named_parameters()}
    last = int(found[1])
    chosen = []
    for block in blocks[max(0, last - BLOCKS + 1) : last + 1]:
        mlp: Any = getattr(block, "mlp", None)
        matrices = [w for w in mlp.parameters() if w.ndim == 2] if mlp is not None else []
        chosen += [names[id(w)] for w in matrices[-1:] if id(w) in names]
    return chosen


def families(
    context: EvalContext, model: HookedRootModule, sae: SAE[Any], methods: Sequence[str]
) -> dict[str, Family]:
    """Train the model once for each setting of each method; a path of a family for each training.

    Training contexts of the forget corpus, and of the retain side by shares. The model is the same
    afterwards.

    Args:
        context: the corpora.
        model: the model.
        sae: its hook is where RMU acts; nothing else of it is used.
        methods: :data:`RMU`, :data:`ASCENT`.
    """
    names = trainable(model, sae.cfg.metadata.hook_name)
    if not names:
        return {}
    found: dict[str, list[Callable[[float], Intervention]]] = {name: [] for name in methods}
    for loss in _losses(context, model, sae, names, methods):
        change = train(context, model, names, loss)
        found[loss.method].append(lambda s, d=change: Retrained(model, d, s))
    return {name: Family(paths, STRENGTHS, LARGEST) for name, paths in found.items()}


def train(
    context: EvalContext, model: HookedRootModule, names: Sequence[str], loss: Loss
) -> Weights:
    """The change of the named weights after a training with Adam; the model stays the same."""
    weights = {name: w for name, w in model.named_parameters() if name in names}
    needed = [(w, w.requires_grad) for w in model.parameters()]
    start = {name: w.data for name, w in weights.items()}
    own = {name: w.data.float().clone() for name, w in weights.items()}
    groups = [{"params": [w], "lr": STEP * float(w.square().mean().sqrt())} for w in own.values()]
    adam = torch.optim.Adam(groups)
    steps = STEPS[loss.method]
    bar = progress(_batches(context, steps), loss.method, steps, unit=" steps")
    try:
        model.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        with torch.enable_grad(), holding(model, start):
            for forget, retain in bar:
                grads = torch.autograd.grad(loss.of(forget, retain), list(weights.values()))
                for name, grad in zip(weights, grads, strict=True):
                    own[name].grad = grad.float()
                adam.step()
                for name, weight in weights.items():
                    weight.data = own[name].to(weight.dtype)
    finally:
        for weight, before in needed:
            weight.requires_grad_(before)
    return {name: own[name] - start[name].float() for name in weights}


def _losses(
    context: EvalContext,
    model: HookedRootModule,
    sae: SAE[Any],
    names: Sequence[str],
    methods: Sequence[str],
) -> Iterator[Loss]:
    if RMU in methods:
        forget, _ = next(_batches(context, 1))
        with torch.no_grad():
            before = _activations(model, sae, forget)
        norm, power = before.norm(dim=-1).mean(), before.square().sum(-1).mean()
        direction = torch.randn(before.shape[-1], generator=torch.Generator().manual_seed(SEED))
        u = (direction / direction.norm()).to(before)
        start = {name: w.data for name, w in model.named_parameters() if name in names}
        for beta, alpha in itertools.product(BETAS, ALPHAS):
            yield Loss(RMU, _rmu(model, sae, start, beta * norm * u, alpha, power))
    if ASCENT in methods:
        for gamma in GAMMAS:
            yield Loss(ASCENT, _ascent(model, gamma))


def _rmu(
    model: HookedRootModule,
    sae: SAE[Any],
    start: Weights,
    target: Float[Tensor, " d_in"],
    alpha: float,
    power: Tensor,
) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(forget: Tensor, retain: Tensor) -> Tensor:
        with torch.no_grad(), holding(model, start):
            frozen = _activations(model, sae, retain)
        away = (_activations(model, sae, forget) - target).square().sum(-1).mean()
        stay = (_activations(model, sae, retain) - frozen).square().sum(-1).mean()
        return (away + alpha * stay) / power

    return loss


def _ascent(model: HookedRootModule, gamma: float) -> Callable[[Tensor, Tensor], Tensor]:
    def next_token(tokens: Int[Tensor, "batch context"]) -> Tensor:
        logits = model(tokens, prepend_bos=False, return_type="logits")[:, :-1]
        return cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    return lambda forget, retain: gamma * next_token(retain) - next_token(forget)


def _activations(
    model: HookedRootModule, sae: SAE[Any], tokens: Int[Tensor, "batch context"]
) -> Float[Tensor, "batch context d_in"]:
    """Activations at the hook, in float32, with their gradient."""
    hook_name = sae.cfg.metadata.hook_name
    seen: list[Tensor] = []
    model.run_with_hooks(
        tokens,
        fwd_hooks=[(hook_name, lambda x, hook: seen.append(x))],  # noqa: ARG005
        stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook_name),
        prepend_bos=False,
    )
    return seen[0].float()


def _batches(context: EvalContext, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Forget and retain contexts of each step: a fixed draw with replacement."""
    generator = torch.Generator().manual_seed(SEED)
    device = next(context.model.parameters()).device
    forget, *retain = context.trained
    shares = torch.tensor([float(c.share) for c in retain])  # a share may be the int 1
    for _ in range(steps):
        chosen = torch.multinomial(shares, BATCH, replacement=True, generator=generator)
        rows = [_draw(retain[i].train, 1, generator) for i in chosen.tolist()]
        batch = _draw(forget.train, BATCH, generator), torch.cat(rows)
        yield tuple(tokens.long().to(device) for tokens in batch)  # type: ignore[misc]


def _draw(contexts: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return contexts[torch.randint(len(contexts), (n,), generator=generator)]
