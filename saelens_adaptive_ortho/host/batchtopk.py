"""BatchTopK's selection without sorting the batch: bit-identical output, faster on a CPU.

SAELens uses ``torch.topk`` for the ``k * batch`` largest of all ``batch * d_sae`` pre-activations.
On a CPU this partial sort takes about a third of a small SAE's training step. Here a threshold is
estimated from a sample, so that the selection has only few candidates.
"""

from __future__ import annotations

import math

from jaxtyping import Float, Int
from sae_lens.saes.batchtopk_sae import BatchTopK
from torch import Tensor

from saelens_adaptive_ortho.maths.sparse import keep

# Approximate number of values in the sample that estimates the threshold.
SAMPLE = 2**16
SMALLEST = 2**15
# The sampled rank is lowered by this many standard deviations. If the threshold is still too high,
# this costs only time.
MARGIN = 4.0


class SampledBatchTopK(BatchTopK):
    """SAELens's BatchTopK with bit-identical values and gradients.

    The shortcut is used only on a CPU, because it reads counts and a GPU would have to wait. It is
    used only if exactly ``k * batch`` values reach the threshold. The stock selection handles ties.
    The result remembers its non-zeros (:class:`~saelens_adaptive_ortho.maths.sparse.Nonzeros`).
    """

    def forward(self, x: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        count = int(self.k * x.shape[:-1].numel())
        if x.device.type == "cpu" and x.numel() >= SMALLEST and 0 < 4 * count <= x.numel():
            places = _places_of_largest(x.detach(), count)
            if places is not None:
                rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
                kept = keep(rows, places)
                return kept if x.ndim == 2 else kept.view(x.shape)
        return super().forward(x)


def _places_of_largest(x: Float[Tensor, "... d_sae"], count: int) -> Int[Tensor, " count"] | None:
    """Positions of the ``count`` largest values of ``x.flatten()``, in ascending order.

    None if the least of them is not positive, has ties, or was missed by the sample, and None if
    there are NaN.
    """
    values, stride = x.flatten(), max(2, x.numel() // SAMPLE)
    while math.gcd(stride, x.shape[-1]) > 1:  # otherwise some latents would never be sampled
        stride += 1
    sample = values[::stride]
    expected = count * len(sample) / len(values)
    rank = min(int(expected + MARGIN * math.sqrt(expected)) + 1, len(sample))
    bound = sample.kthvalue(len(sample) - rank + 1).values
    if not bound > 0:
        return None
    places = (values < bound).logical_not_().nonzero().squeeze(1)  # NaN stays a candidate
    candidates = values[places]
    if len(candidates) < count:
        return None
    least = candidates.kthvalue(len(candidates) - count + 1).values
    places = places[candidates >= least]
    return places if len(places) == count else None
