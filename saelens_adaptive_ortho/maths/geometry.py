"""Geometry of groups of decoder directions, in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from saelens_adaptive_ortho.maths import typed
from saelens_adaptive_ortho.maths.directions import decoder_directions, max_cosines

EXACT_ROWS = 4096


def condition_number(directions: Float[Tensor, "n d_in"]) -> float:
    """``sigma_max / sigma_min`` over the ``min(n, d_in)`` singular values of the rows.

    It is 1 for orthonormal rows. It is infinite if the rows are linearly dependent to working
    precision (``sigma_min <= max(n, d_in) * eps * sigma_max``). More than d_in rows are always
    linearly dependent; the number then says how evenly they fill the space.

    Raises:
        ValueError: no rows, or rows that are not finite.
    """
    sigma = singular_values(directions)
    tolerance = max(directions.shape) * torch.finfo(torch.float64).eps * sigma[0]
    return float("inf") if sigma[-1] <= tolerance else float(sigma[0] / sigma[-1])


def effective_rank(directions: Float[Tensor, "n d_in"]) -> float:
    """``exp(H(p))``, ``p = sigma / sum(sigma)``: entropy of the normalised singular values.

    Source: Roy and Vetterli 2007. It is ``n`` for orthonormal rows, 1 for parallel rows, and 0 if
    all rows are zero.

    Raises:
        ValueError: no rows, or rows that are not finite.
    """
    sigma = singular_values(directions)
    if sigma[0] == 0:
        return 0.0
    p = sigma / sigma.sum()
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum()))


def singular_values(directions: Float[Tensor, "n d_in"]) -> Float[Tensor, " k"]:
    """Singular values of the rows in falling order, float64.

    Up to ``EXACT_ROWS`` rows they come from an SVD. For more rows they are the square roots of the
    eigenvalues of the [d_in, d_in] Gram matrix ``D^T D``. This costs ``n d_in^2 + d_in^3``, works
    in blocks of rows, and does not copy the group. Values below about 1e-8 of the largest one are
    then lost in rounding. They are returned as 0, which gives an infinite condition number.

    Raises:
        ValueError: no rows, or rows that are not finite.
    """
    if directions.shape[0] == 0:
        raise ValueError("A group without latents has no singular values.")
    typed.check_finite("directions", directions)
    if directions.shape[0] <= EXACT_ROWS:
        return typed.svdvals(directions.double())
    squares = typed.eigvalsh(_gram(directions)).flip(0)
    squares[squares < squares[0] * directions.shape[1] * torch.finfo(torch.float64).eps] = 0
    return squares.sqrt()[: min(directions.shape)]


def _gram(directions: Float[Tensor, "n d_in"]) -> Float[Tensor, "d_in d_in"]:
    """``D^T D`` in float64, in blocks of rows."""
    d_in = directions.shape[1]
    gram = torch.zeros(d_in, d_in, dtype=torch.float64, device=directions.device)
    for block in torch.split(directions, EXACT_ROWS):
        gram += block.double().T @ block.double()
    return gram


def principal_angles(
    A: Float[Tensor, "n d_in"], B: Float[Tensor, "k d_in"], energy: float = 1.0
) -> Float[Tensor, " r"]:
    """Principal angles between the row spaces of A and B, in degrees, smallest first.

    Cosines are the singular values of ``Q_A^T Q_B`` with orthonormal bases Q (Bjorck and Golub
    1973). Small angles are computed from the sines, because a cosine near 1 cannot resolve them.
    With ``energy < 1`` each basis keeps only the leading singular directions that carry that share
    of the group's squared singular values. Without this, the spans of two groups of more than
    d_in / 2 rows always intersect, and their smallest angles say nothing.

    Returns ``min(rank A, rank B)`` angles.

    Raises:
        ValueError: a group without rows, or ``energy`` outside (0, 1].
    """
    large, small = row_space(A, energy), row_space(B, energy)
    if large.shape[1] < small.shape[1]:
        small, large = large, small
    cosines = typed.svdvals(large.T @ small).clamp(max=1.0)
    sines = typed.svdvals(small - large @ (large.T @ small)).flip(0).clamp(max=1.0)
    angles = torch.where(cosines > 0.5**0.5, sines.asin(), cosines.acos())
    return torch.rad2deg(angles).sort().values


def row_space(directions: Float[Tensor, "n d_in"], energy: float = 1.0) -> Float[Tensor, "d_in r"]:
    """Orthonormal basis of the row space, or of its leading part; see :func:`principal_angles`."""
    if directions.shape[0] == 0:
        raise ValueError("A group without latents spans no subspace.")
    if not 0 < energy <= 1:
        raise ValueError(f"energy must lie in (0, 1], got {energy}.")
    if directions.shape[0] <= EXACT_ROWS:
        _, sigma, Vt = typed.thin_svd(directions.double())
        tolerance = max(directions.shape) * torch.finfo(torch.float64).eps * sigma[0]
    else:  # from the Gram matrix, as in singular_values
        squares, V = typed.eigh(_gram(directions))
        sigma, Vt = squares.flip(0).clamp(min=0).sqrt(), V.T.flip(0)
        tolerance = (directions.shape[1] * torch.finfo(torch.float64).eps) ** 0.5 * sigma[0]
    rank = int((sigma > tolerance).sum())
    if energy < 1:
        share = sigma.square().cumsum(0) / sigma.square().sum()
        rank = min(rank, int((share < energy).sum()) + 1)
    return Vt[:rank].T


def mean_max_cosine(W_dec: Float[Tensor, "d_sae d_in"], block_size: int = 2048) -> float:
    """``mean_i max_{j != i} c_ij`` over the whole dictionary (lower is more orthogonal).

    Raises:
        ValueError: ``W_dec`` is not finite.
    """
    typed.check_finite("W_dec", W_dec)
    return float(max_cosines(W_dec.double(), block_size).mean())


def cosine_histogram(
    W_dec: Float[Tensor, "d_sae d_in"], bins: int = 100, block_size: int = 2048
) -> tuple[list[float], list[int]]:
    """Edges and counts of ``c_ij`` over all ordered pairs i != j, in [-1, 1]."""
    D = decoder_directions(W_dec.double())
    counts = torch.zeros(bins, dtype=torch.float64)
    for start in range(0, D.shape[0], block_size):
        cosines = (D[start : start + block_size] @ D.T).clamp(-1, 1)
        rows = torch.arange(cosines.shape[0], device=D.device)
        # A value outside the range: the cosine of a latent with itself is not counted.
        cosines[rows, rows + start] = 2.0
        counts += torch.histc(cosines.cpu(), bins=bins, min=-1.0, max=1.0)
    edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64)
    return [float(e) for e in edges], [int(c) for c in counts]
