"""Directions of one corpus and not of another: projectors, contrastive PCA, LEACE, a detector.

A *basis* holds orthonormal directions, one in each row. The projector onto its first r directions
is ``P = B[:r].T @ B[:r]``. All functions compute in float64 on the CPU, because eigenvectors of
covariances with a few very large directions are inaccurate in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelens_adaptive_ortho.maths import typed

_DEPENDENT = 1e-6  # a direction with less than this share of its length left is dependent


class Moments(NamedTuple):
    """Mean and covariance of activations.

    Attributes:
        mean: mean activation.
        covariance: covariance about ``mean``.
    """

    mean: Float[Tensor, " d_in"]
    covariance: Float[Tensor, "d_in d_in"]

    def about(self, centre: Float[Tensor, " d_in"]) -> Float[Tensor, "d_in d_in"]:
        """``E[(x - centre) (x - centre)^T]``."""
        shift = self.mean - centre
        return self.covariance + torch.outer(shift, shift)


def mixed_moments(
    means: Float[Tensor, "n d_in"],
    seconds: Float[Tensor, "n d_in d_in"],
    shares: Float[Tensor, " n"],
) -> Moments:
    """Moments of a mixture of corpora.

    Args:
        means: mean of each corpus.
        seconds: ``E[x x^T]`` of each corpus.
        shares: share of each corpus; they add up to 1.
    """
    mean = shares @ means
    second = torch.einsum("n,nij->ij", shares, seconds)
    return Moments(mean, second - torch.outer(mean, mean))


def removed(
    rows: Float[Tensor, "n d_in"], basis: Float[Tensor, "k d_in"]
) -> Float[Tensor, "n d_in"]:
    """``rows - rows B^T B``: the rows without their part in the span of a basis."""
    return rows - (rows @ basis.T) @ basis


def orthonormal_basis(rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "r d_in"]:
    """The rows, orthonormalised in their order (Gram-Schmidt).

    The first k directions span the first k independent rows. A row that depends on the rows before
    it gives no direction.

    Raises:
        ValueError: ``rows`` are not finite.
    """
    typed.check_finite("rows", rows)
    found: list[Tensor] = []
    for row in rows.double():
        length = float(typed.norms(row))
        for _ in range(2):  # the second time removes what rounding left
            for direction in found:
                row = row - (row @ direction) * direction
        left = float(typed.norms(row))
        if length > 0 and left > _DEPENDENT * length:
            found.append(row / left)
    return torch.stack(found) if found else torch.zeros(0, rows.shape[1], dtype=torch.float64)


def leading_directions(
    covariance: Float[Tensor, "d_in d_in"], share: float
) -> Float[Tensor, "k d_in"]:
    """The fewest principal directions that hold at least ``share`` of the variance."""
    values, vectors = typed.eigh(covariance.double())
    held = values.flip(0).clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    count = int((held < share - 1e-12).sum()) + 1
    return vectors.flip(1)[:, :count].T


def contrastive_directions(
    forget: Float[Tensor, "d_in d_in"],
    retain: Float[Tensor, "d_in d_in"],
    weight: float = 2.0,
) -> Float[Tensor, "d_in d_in"]:
    """Eigenvectors of ``C_F - weight * C_R``, largest eigenvalue first.

    This is contrastive PCA (Abid et al. 2018, arXiv 1709.06716): directions in which one corpus
    varies much and the other one little.
    """
    _, vectors = typed.eigh(forget.double() - weight * retain.double())
    return vectors.flip(1).T


class Erasure(NamedTuple):
    """``x -> x - s (x - centre) A B``; with ``A = B^T`` of orthonormal B, an orthogonal projector.

    Attributes:
        into: the matrix A.
        back: the matrix B.
    """

    into: Float[Tensor, "d_in r"]
    back: Float[Tensor, "r d_in"]

    @classmethod
    def onto(cls, basis: Float[Tensor, "r d_in"]) -> Erasure:
        """Erase the span of an orthonormal basis."""
        return cls(basis.T, basis)

    def apply(
        self, x: Float[Tensor, "*n d_in"], centre: Float[Tensor, " d_in"], strength: float
    ) -> Float[Tensor, "*n d_in"]:
        """``x - strength * (x - centre) A B``."""
        return x - strength * ((x - centre) @ self.into) @ self.back


def leace(difference: Float[Tensor, " d_in"], covariance: Float[Tensor, "d_in d_in"]) -> Erasure:
    """LEACE for two classes: ``P = d d^T C^+ / (d^T C^+ d)``, an oblique projector of rank 1.

    After erasure at strength 1 both classes have the same mean, so no linear classifier beats a
    constant. With the mean of all activations as the centre, no other affine map that achieves this
    changes x less (Belrose et al. 2023, arXiv 2306.03819, theorem 4.3, for a binary concept).

    Args:
        difference: difference d of the class means.
        covariance: covariance C of all activations; that of a class gives the same P.

    Raises:
        ValueError: an argument is not finite, or the activations do not vary along the difference,
            for instance because it is zero.
    """
    typed.check_finite("difference", difference)
    typed.check_finite("covariance", covariance)
    d = difference.double()
    solved = typed.pseudo_inverse(covariance.double()) @ d
    variance = d @ solved
    if not variance > 0:
        raise ValueError("difference must not be zero, and covariance must be positive along it.")
    return Erasure((solved / variance)[:, None], d[None])


class Detector(NamedTuple):
    """``score(x) = weight . x + bias``: the log-odds that a token comes from the forget corpus."""

    weight: Float[Tensor, " d_in"]
    bias: float

    def score(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n"]:
        """The log-odds of each token."""
        return x @ self.weight.to(x) + self.bias


def logistic_detector(
    x: Float[Tensor, "n d_in"],
    is_forget: Bool[Tensor, " n"],
    weights: Float[Tensor, " n"],
    penalty: float = 1e-3,
) -> Detector:
    """Logistic regression on standardised activations.

    It minimises ``sum_t w_t log(1 + exp(-y_t score(x_t))) + penalty / 2 |v|^2`` with L-BFGS. The
    weight of the standardised activations is v.

    Args:
        x: activations of tokens of both corpora.
        is_forget: whether each token comes from the forget corpus.
        weights: weight of each token in the loss; they add up to 1.
        penalty: strength of the L2 penalty.
    """
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-8)
    scaled = (x - mean) / spread
    sign = torch.where(is_forget, 1.0, -1.0).to(x)
    v = torch.zeros(x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([v], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        margins = sign * (scaled @ v[:-1] + v[-1])
        value = (weights.to(x) * torch.nn.functional.softplus(-margins)).sum()
        value = value + penalty / 2 * v[:-1].square().sum()
        value.backward()  # pyright: ignore[reportUnknownMemberType]
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # pyright: ignore[reportUnknownMemberType]
    weight = v.detach()[:-1] / spread
    return Detector(weight, float(v.detach()[-1] - weight @ mean))


def lowest_threshold(
    forget: Float[Tensor, " n_forget"],
    retain: Float[Tensor, " n_retain"],
    retain_weights: Float[Tensor, " n_retain"],
    ratio: float,
) -> float | None:
    """The lowest threshold that forget tokens pass ``ratio`` times as often as retain tokens.

    Thresholds that fewer than 1 in 1,000 forget tokens pass are left out, because their rates are
    noise. None if no other threshold has the ratio.

    Args:
        forget: scores of forget tokens.
        retain: scores of retain tokens.
        retain_weights: weight of each retain token; they add up to 1.
        ratio: required ratio of the two rates.
    """
    levels = torch.quantile(forget.double(), torch.arange(1000, dtype=torch.float64) / 1000)
    order = retain.double().sort()
    above = 1 - torch.cat(
        [torch.zeros(1, dtype=torch.float64), retain_weights.double()[order.indices].cumsum(0)]
    )
    retain_rate = above[torch.searchsorted(order.values, levels, right=True)].clamp(min=0)
    forget_rate = (forget.double()[None] > levels[:, None]).double().mean(1)
    fits = (forget_rate >= 1e-3) & (forget_rate >= ratio * retain_rate)
    return float(levels[fits][0]) if fits.any() else None
