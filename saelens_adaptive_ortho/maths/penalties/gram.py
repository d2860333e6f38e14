"""``gram``: the classical mutual-coherence penalty, over all pairs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saelens_adaptive_ortho.maths.directions import decoder_directions, need_pairs
from saelens_adaptive_ortho.maths.penalties.contract import Penalty


def gram_penalty(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
    """Mean squared cosine over all ordered pairs: ``1/(n(n-1)) * sum_{i != j} c_ij^2``.

    This is the classical mutual-coherence penalty (the "basic orthogonality loss"). It is exact and
    needs no [d_sae, d_sae] matrix, because ``||D D^T||_F = ||D^T D||_F``. The diagonal
    ``sum_i ||d_i||^4`` is subtracted.

    Raises:
        ValueError: fewer than two directions.
    """
    n = W_dec.shape[0]
    need_pairs(n)
    directions = decoder_directions(W_dec)
    gram = directions.T @ directions
    diagonal = directions.square().sum(-1).square().sum()
    return (gram.square().sum() - diagonal) / (n * (n - 1))


GRAM = Penalty(
    name="gram",
    help="mean squared cosine over all pairs: mean c_ij^2",
    loss=lambda inputs: gram_penalty(inputs.W_dec),
)
