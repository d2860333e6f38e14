"""The group half of controlled sharing: a latent of one corpus stays silent on the other.

The penalty on decoder directions decides how far two *latents* may share a direction. The penalty
here decides how far one *latent* may serve both corpora. Both have the weight

    w = 1 - alpha * s,

where ``s`` in [0, 1] is measured from firings: how far the pair, or the latent, has reason to
share. For a latent, ``s_i`` is the evenness of its firing rates; see :func:`corpus_sharing`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from saelens_adaptive_ortho.maths import device, typed
from saelens_adaptive_ortho.maths.sparse import Nonzeros


class CorpusRates(NamedTuple):
    """Exponentially decayed counts of firings on each corpus (entry 0 forget, entry 1 retain).

    Attributes:
        samples: rows seen.
        fired: firings of each latent.
    """

    samples: Float[Tensor, " 2"]
    fired: Float[Tensor, "2 d_sae"]

    def rates(self) -> Float[Tensor, "2 d_sae"]:
        """``P(i | corpus)``; zeros before the first batch."""
        return self.fired / self.samples.clamp(min=1e-8).unsqueeze(1)


@torch.no_grad()
def update_rates(
    counts: CorpusRates, acts: Float[Tensor, "batch d_sae"], forget_rows: int, decay: float
) -> CorpusRates:
    """Add the firings of one batch. Rows ``[0:forget_rows]`` come from the forget corpus.

    Raises:
        ValueError: ``forget_rows`` outside [0, batch].
    """
    n, d_sae = acts.shape
    _check_rows(forget_rows, n)
    samples = device.numbers([forget_rows, n - forget_rows], counts.samples)
    found = Nonzeros.known(acts)
    if found is None:
        parts = (acts[:forget_rows], acts[forget_rows:])
        fired = torch.stack([_firings(part) for part in parts])
    else:
        places = found.columns + d_sae * (found.rows >= forget_rows)
        fired = torch.bincount(places[found.values > 0], minlength=2 * d_sae).view(2, d_sae)
    return CorpusRates(counts.samples * decay + samples, counts.fired * decay + fired)


def _check_rows(forget_rows: int, n: int) -> None:
    if not 0 <= forget_rows <= n:
        raise ValueError(f"forget_rows must lie in [0, {n}], got {forget_rows}.")


def _firings(acts: Float[Tensor, "rows d_sae"]) -> Float[Tensor, " d_sae"]:
    """``(acts > 0).sum(0)``. On a CPU block by block, so that no second tensor is made."""
    if device.on_gpu(acts):
        return (acts > 0).sum(0, dtype=torch.float32)
    fired = torch.zeros(acts.shape[1], device=acts.device)
    for block in _blocks(acts):
        signs = block.clamp(min=0).sign_().to(fired.dtype)
        fired.addmv_(signs.T, signs.new_ones(len(signs)))
    return fired


def _blocks(x: Tensor, rows: int = 256) -> tuple[Tensor, ...]:
    """``x`` in blocks of rows that fit in the cache of a CPU; as a whole elsewhere."""
    return typed.blocks(x, rows) if x.device.type == "cpu" else (x,)


def corpus_sharing(rates: Float[Tensor, "2 d_sae"], ratio: float = 2.0) -> Float[Tensor, " d_sae"]:
    """``s_i = min(1, ratio * min(p_iF, p_iR) / max(p_iF, p_iR))``, in [0, 1].

    It says how far latent i may serve both corpora. ``p_iF`` and ``p_iR`` are the firing rates on
    forget and on retain rows. ``s_i`` is 0 for a latent that fires on one corpus only. It is 1 for
    a latent whose rates differ by at most the factor ``ratio``, and for one that never fires. A
    rate that is NaN gives NaN.

    Raises:
        ValueError: ``ratio`` below 1 or NaN.
    """
    if not ratio >= 1:
        raise ValueError(f"ratio must be at least 1, got {ratio}.")
    low, high = rates.min(0).values, rates.max(0).values
    return torch.where(high == 0, 1.0, ratio * low / high).clamp(max=1.0)


def leanings(
    rates: Float[Tensor, "2 d_sae"], alpha: float, ratio: float = 2.0
) -> Float[Tensor, " d_sae"]:
    """``l_i = sign(p_iF - p_iR) * (1 - alpha * s_i)``, in [-1, 1].

    The sign says which corpus a latent leans to: positive to forget, negative to retain. The
    magnitude is the weight of its penalty. With ``alpha = 0``, every latent that leans to one side
    has the full weight. With ``alpha = 1``, only a latent whose rates differ by more than the
    factor ``ratio`` has a weight, and the full weight needs a latent of one corpus alone. A latent
    with equal rates leans to no side. A rate that is NaN gives NaN.

    Raises:
        ValueError: alpha outside [0, 1], or ``ratio`` below 1 or NaN.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}.")
    return (rates[0] - rates[1]).sign() * (1.0 - alpha * corpus_sharing(rates, ratio))


def separation_penalty(
    acts: Float[Tensor, "batch d_sae"],
    leaning: Float[Tensor, " d_sae"],
    forget_rows: int,
    both_sides: bool = False,
) -> Float[Tensor, ""]:
    """``L_sep = 1/batch * sum_{b in retain rows} sum_i max(0, l_i) a_bi^2``.

    It charges latents that lean to the forget corpus for their activations on retain text. The
    activations ``a_bi`` belong to decoder rows of norm 1, so ``L_sep`` has the units of the squared
    reconstruction error. The gradient ``2 max(0, l_i) a_bi / batch`` reaches only firing latents.
    An empty batch costs 0.

    Args:
        acts: activations after the selection of the architecture (top-k, threshold, ...).
        leaning: ``l_i`` of :func:`leanings`.
        forget_rows: rows ``[0:forget_rows]`` come from the forget corpus, the rest from the retain
            corpus.
        both_sides: also charge latents that lean to the retain corpus for their activations on
            forget rows, with the weight ``max(0, -l_i)``.

    Raises:
        ValueError: ``forget_rows`` outside [0, batch].
    """
    _check_rows(forget_rows, len(acts))
    loss = _weighted_squares(acts, leaning.clamp(min=0), slice(forget_rows, None))
    if both_sides:
        loss = loss + _weighted_squares(acts, leaning.clamp(max=0).neg(), slice(forget_rows))
    return loss


def _weighted_squares(acts: Tensor, weights: Tensor, rows: slice) -> Tensor:
    """``1/batch * sum_{b in rows} sum_i w_i a_bi^2``."""
    found = Nonzeros.known(acts)
    return _WeightedSquares.apply(acts, weights, rows, found)  # type: ignore[no-any-return]


class _WeightedSquares(torch.autograd.Function):
    """Touches each entry once forward and once backward; only the non-zeros if they are known.

    With known non-zeros the gradient is a sparse tensor, which autograd adds in place to the
    gradient of the decoder.
    """

    @staticmethod
    def forward(
        ctx: Any, acts: Tensor, weights: Tensor, rows: slice, found: Nonzeros | None
    ) -> Tensor:
        start, end, _ = ctx.rows = rows.indices(len(acts))
        dtype = torch.promote_types(acts.dtype, torch.float32)
        ctx.known = found is not None
        if found is None:
            ctx.save_for_backward(acts, weights)
            chosen = _blocks(acts[start:end])
            sums = [(block.to(dtype).square() @ weights.to(dtype)).sum() for block in chosen]
            if not len(acts) or not sums:
                return acts.new_zeros((), dtype=dtype)
            return torch.stack(sums).sum() / len(acts)
        charged = weights[found.columns] > 0
        charged &= (found.rows >= start) & (found.rows < end)
        places = torch.stack([found.rows[charged], found.columns[charged]])
        values = found.values[charged].to(dtype)
        scaled = weights.to(dtype)[places[1]] * values
        ctx.shape, ctx.dtype = acts.shape, acts.dtype
        ctx.save_for_backward(places, scaled)
        return scaled.dot(values) / max(1, len(acts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        start, end, _ = ctx.rows
        if ctx.known:
            places, scaled = ctx.saved_tensors
            values = (scaled * (2 * gradient / ctx.shape[0])).to(ctx.dtype)
            return typed.coo_matrix(places, values, ctx.shape), None, None, None
        acts, weights = ctx.saved_tensors
        factors = (weights * (2 * gradient / len(acts))).to(acts.dtype)
        out = torch.empty_like(acts)
        out[:start], out[end:] = 0, 0
        torch.mul(acts[start:end], factors, out=out[start:end])
        return out, None, None, None
