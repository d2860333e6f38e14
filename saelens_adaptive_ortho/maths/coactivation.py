"""Co-activation statistics: which latents fire together, and how strongly.

The update is a pure function ``state -> state``. Memory is linear in d_sae. Joint counts are kept
only for the candidate pairs of the neighbour list ([d_sae, m]). For groups, a random sketch of each
latent's firing pattern ([d_sae, r]) replaces the full co-activation matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from saelens_adaptive_ortho.maths import device, typed
from saelens_adaptive_ortho.maths.neighbours import carry_over
from saelens_adaptive_ortho.maths.sparse import Nonzeros, estimated_nonzeros

# Number of firings whose neighbours are looked up at a time.
FIRINGS_PER_BLOCK = 2**14
GPU_FIRINGS_PER_BLOCK = 2**17  # few kernels, and less than 100 MiB
# If a batch has more firings than both limits, only every n-th row is counted. This many firings
# are enough for the statistics, and in an untrained dense SAE half of all latents fire.
MOST_FIRINGS = 2**17
MOST_PER_LATENT = 8


class CoactivationState(NamedTuple):
    """Exponentially decayed counts. Each update multiplies old counts by ``decay``.

    Attributes:
        samples: rows seen, per domain (entry 0 forget, entry 1 retain; one entry without domains).
        fired: firings of each latent, per domain.
        joint: number of rows on which latent i and its a-th neighbour both fire.
        joint_samples: rows over which ``joint`` was counted. A pair that enters the neighbour
            list late has fewer rows.
        sketch: ``sum_b F[b, i] * R[b]`` with random signs ``R[b]`` in {-1, 1}^r, so that
            ``<sketch_i, sketch_j> / r`` estimates the joint count of *any* pair.
        sketch_total: ``sum_b R[b]``, used to centre the sketch.
        total: sum of the activations ``a_i`` of each latent, for decoder rows of unit norm.
        squares: sum of ``a_i^2``.
        joint_own: sum of ``a_i`` over the joint firings that ``joint`` counts.
        joint_other: sum of the a-th neighbour's ``a_j`` over the same joint firings.
    """

    samples: Float[Tensor, " n_domains"]
    fired: Float[Tensor, "n_domains d_sae"]
    joint: Float[Tensor, "d_sae m"]
    joint_samples: Float[Tensor, "d_sae m"]
    sketch: Float[Tensor, "d_sae r"]
    sketch_total: Float[Tensor, " r"]
    total: Float[Tensor, " d_sae"]
    squares: Float[Tensor, " d_sae"]
    joint_own: Float[Tensor, "d_sae m"]
    joint_other: Float[Tensor, "d_sae m"]


def empty_state(
    d_sae: int,
    m: int,
    sketch_size: int,
    n_domains: int = 1,
    device: torch.device | str = "cpu",
) -> CoactivationState:
    """All counts zero, in float32 (bf16 loses counts above 256)."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=device)

    return CoactivationState(
        samples=zeros(n_domains),
        fired=zeros(n_domains, d_sae),
        joint=zeros(d_sae, m),
        joint_samples=zeros(d_sae, m),
        sketch=zeros(d_sae, sketch_size),
        sketch_total=zeros(sketch_size),
        total=zeros(d_sae),
        squares=zeros(d_sae),
        joint_own=zeros(d_sae, m),
        joint_other=zeros(d_sae, m),
    )


def random_signs(n: int, r: int, seed: int, step: int) -> Float[Tensor, "n r"]:
    """Signs in {-1, 1}: a pure function of ``(seed, step)`` that leaves the global RNG alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step + 7_919) % 2**63)
    return torch.randint(0, 2, (n, r), generator=generator, dtype=torch.int8).float() * 2 - 1


@torch.no_grad()
def update(
    state: CoactivationState,
    acts: Float[Tensor, "batch d_sae"],
    neighbours: Int[Tensor, "d_sae m"],
    signs: Float[Tensor, "batch r"],
    decay: float,
    forget_rows: int = 0,
    norms: Float[Tensor, " d_sae"] | None = None,
) -> CoactivationState:
    """Add the firings of one batch to the counts.

    The function works on the list of firings. Only one pass over ``acts`` costs
    ``batch * d_sae``. If a batch has more firings than :data:`MOST_FIRINGS` and more than
    :data:`MOST_PER_LATENT` times d_sae, only every n-th row is counted. Forget and retain rows then
    keep their shares.

    Args:
        acts: activations. A latent fires where its activation is positive.
        neighbours: candidate pairs, as in the state.
        signs: :func:`random_signs` of this batch.
        decay: factor on all earlier counts, in (0, 1].
        forget_rows: rows ``[0:forget_rows]`` come from the forget corpus, the rest from the
            retain corpus. It is ignored if the state has a single domain.
        norms: norms of the decoder rows if they are not 1. Activations are multiplied by them.
    """
    stride = _counted_rows(acts)
    on_gpu = device.on_gpu(acts)
    known = Nonzeros.known(acts) if stride == 1 and not on_gpu else None
    # With a stride, the forget rows are the first ceil(forget_rows / stride) counted rows.
    width = acts.shape[1] * stride  # distance in `flat` between two counted rows
    flat = acts.contiguous().view(-1)
    acts, signs = acts[::stride], signs[::stride]
    forget_rows = -(-forget_rows // stride)
    if known is None:
        # A GPU selects the positive ones at once. It waits only for their number.
        rows, latents = (acts > 0 if on_gpu else acts).nonzero(as_tuple=True)
        values = flat[rows * width + latents]
    else:
        rows, latents, values, _ = known
    if not on_gpu and bool((values < 0).any()):
        positive = values > 0
        rows, latents, values = rows[positive], latents[positive], values[positive]
    values = values.float() if norms is None else values.float() * norms[latents]
    fired = Nonzeros(rows, latents, values, acts.shape)
    by_latent = fired.transposed()
    if on_gpu:
        joint = _joint_sums_on_gpu(by_latent, flat, width, neighbours, norms)
    else:
        joint = _joint_sums(fired, flat, width, neighbours, norms)
    return with_counts(state, fired, joint, signs, decay, forget_rows, by_latent)


def with_counts(
    state: CoactivationState,
    fired: Nonzeros,
    joint: Float[Tensor, "3 d_sae m"],
    signs: Float[Tensor, "batch r"],
    decay: float,
    forget_rows: int,
    by_latent: Nonzeros | None = None,
) -> CoactivationState:
    """Add the firings of one batch, whose joint firings are already counted.

    Args:
        fired: the firings, with activations for decoder rows of unit norm.
        joint: number of joint firings of each pair, and the sums of ``a_i`` and of ``a_j``.
        signs: see :func:`update`.
        decay: see :func:`update`.
        forget_rows: see :func:`update`.
        by_latent: ``fired``, transposed, if it is known.
    """
    n, d_sae = fired.shape
    rows, latents, values, _ = fired
    by_latent = by_latent or fired.transposed()
    two_domains = state.samples.shape[0] == 2
    new_samples = [forget_rows, n - forget_rows] if two_domains else [n]
    domains = (rows >= forget_rows).long() if two_domains else torch.zeros_like(rows)
    new_fired = state.fired.new_zeros(state.fired.numel())
    # Sums of ones are exact in any order.
    new_fired.index_add_(0, domains * d_sae + latents, torch.ones_like(values))
    by_latent = by_latent._replace(values=torch.ones_like(values))
    return CoactivationState(
        samples=state.samples * decay + device.numbers(new_samples, state.samples),
        fired=state.fired * decay + new_fired.view(-1, d_sae),
        joint=state.joint * decay + joint[0],
        joint_samples=state.joint_samples * decay + n,
        sketch=state.sketch * decay + by_latent.times(signs),
        sketch_total=state.sketch_total * decay + signs.sum(0),
        total=state.total * decay + fired.column_sums(),
        squares=state.squares * decay + fired._replace(values=values.square()).column_sums(),
        joint_own=state.joint_own * decay + joint[1],
        joint_other=state.joint_other * decay + joint[2],
    )


def _joint_sums(
    fired: Nonzeros,
    flat: Float[Tensor, " entries"],
    width: int,
    neighbours: Int[Tensor, "d_sae m"],
    norms: Float[Tensor, " d_sae"] | None,
) -> Float[Tensor, "3 d_sae m"]:
    """Number of joint firings of each pair, and the sums of ``a_i`` and of ``a_j`` over them.

    Args:
        fired: the firings, with activations for decoder rows of unit norm.
        flat: all activations of the batch; entry ``row * width + latent``.
        width: distance in ``flat`` between two counted rows.
        neighbours: candidate pairs.
        norms: norms of the decoder rows if they are not 1.
    """
    d_sae, m = neighbours.shape
    sums = fired.values.new_zeros(3, d_sae * m)
    blocks = (torch.split(x, FIRINGS_PER_BLOCK) for x in fired[:3])
    for r, i, a in zip(*blocks, strict=True):
        j = neighbours[i]
        others = flat.take((r * width).unsqueeze(1) + j)
        # Few neighbours of a latent fire with it, so only those are added up.
        firing, slot = (others > 0).nonzero(as_tuple=True)
        pair = i[firing] * m + slot
        other = others[firing, slot].float()
        if norms is not None:
            other = other * norms[j[firing, slot]]
        sums[0] += torch.bincount(pair, minlength=d_sae * m)
        sums[1].index_add_(0, pair, a[firing])
        sums[2].index_add_(0, pair, other)
    return sums.view(3, d_sae, m)


def _joint_sums_on_gpu(
    by_latent: Nonzeros,
    flat: Float[Tensor, " entries"],
    width: int,
    neighbours: Int[Tensor, "d_sae m"],
    norms: Float[Tensor, " d_sae"] | None,
) -> Float[Tensor, "3 d_sae m"]:
    """The same as :func:`_joint_sums`, in few large kernels whose sizes the host knows.

    ``by_latent`` are the firings, transposed: those of a latent are next to each other. Their sums
    then need no atomic additions and are the same in every run.
    """
    d_sae, m = neighbours.shape
    starts = by_latent.starts()[:-1]
    sums = by_latent.values.new_zeros(d_sae, 3 * m)
    blocks = (torch.split(x, GPU_FIRINGS_PER_BLOCK) for x in by_latent[:3])
    for block, (i, r, a) in enumerate(zip(*blocks, strict=True)):
        j = neighbours[i]
        others = flat.take((r * width).unsqueeze(1) + j).float().clamp(min=0)
        fires = (others > 0).float()
        if norms is not None:
            others = others * norms[j]
        table = torch.cat([fires, fires * a.unsqueeze(1), others], dim=1)
        inside = (starts - block * GPU_FIRINGS_PER_BLOCK).clamp(0, len(i))
        places = torch.arange(len(i), device=i.device)
        sums += embedding_bag(places, table, inside, mode="sum")
    return sums.view(d_sae, 3, m).transpose(0, 1)


def _counted_rows(acts: Float[Tensor, "batch d_sae"]) -> int:
    """The stride n that counts every n-th row, estimated from the firings of some rows."""
    return counted_stride(estimated_nonzeros(acts), acts.shape[1])


def counted_stride(n_firings: int, d_sae: int) -> int:
    """The stride n that counts every n-th row of a batch with about this many firings."""
    most = max(MOST_FIRINGS, MOST_PER_LATENT * d_sae)
    return max(1, -(-n_firings // most))


def retarget(
    state: CoactivationState, old: Int[Tensor, "d_sae m"], new: Int[Tensor, "d_sae m"]
) -> CoactivationState:
    """Move pair counts to a refreshed neighbour list. New pairs start at 0."""
    pairs = ("joint", "joint_samples", "joint_own", "joint_other")
    return state._replace(**{p: carry_over(getattr(state, p), old, new) for p in pairs})


def firing_rates(state: CoactivationState) -> Float[Tensor, " d_sae"]:
    """``P(i)`` over all rows of all domains; zeros before the first update."""
    return state.fired.sum(0) / state.samples.sum().clamp(min=1.0)


def domain_rates(state: CoactivationState) -> Float[Tensor, "n_domains d_sae"]:
    """``P(i | domain)``; zeros before the first update."""
    return state.fired / state.samples.clamp(min=1.0).unsqueeze(1)


def energies(state: CoactivationState) -> Float[Tensor, " d_sae"]:
    """``E[a_i^2]`` over all rows, in squared activation units; 0 for a latent that never fired."""
    return state.squares / state.samples.sum().clamp(min=1.0)


def sketch_directions(state: CoactivationState) -> Float[Tensor, "d_sae r"]:
    """Unit sketches of the *centred* firing patterns.

    ``<x_i, x_j>`` estimates the phi correlation of latents i and j, with a standard error of
    about ``1 / sqrt(r)``. A latent that never fired has a zero row.
    """
    centred = state.sketch - firing_rates(state).unsqueeze(1) * state.sketch_total
    return centred / typed.norms(centred, keepdim=True).clamp(min=1e-8)
