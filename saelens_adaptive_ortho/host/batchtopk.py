"""BatchTopK's selection without sorting the batch: bit-identical output, faster on a CPU.

SAELens uses ``torch.topk`` for the ``k * batch`` largest of all ``batch * d_sae`` pre-activations.
On a CPU this partial sort takes about a third of a small SAE's training step. Here a threshold is
estimated from a sample, so that the selection has only few candidates.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from sae_lens.saes.batchtopk_sae import BatchTopK
from torch import Tensor

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
    """

    def forward(self, x: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        count = int(self.k * x.shape[:-1].numel())
        if x.device.type == "cpu" and x.numel() >= SMALLEST and 0 < 4 * count <= x.numel():
            least = _kth_largest(x.detach(), count)
            if least is not None:
                # torch's threshold drops values equal to it, so use the next smaller number.
                below = torch.nextafter(least, least.new_tensor(-math.inf))
                return torch.nn.functional.threshold(x, float(below), 0.0)
        return super().forward(x)


def _kth_largest(x: Float[Tensor, "... d_sae"], count: int) -> Float[Tensor, ""] | None:
    """The ``count``-th largest value; None if it is not positive, tied, or missed by the sample."""
    values, stride = x.flatten(), max(2, x.numel() // SAMPLE)
    while math.gcd(stride, x.shape[-1]) > 1:  # otherwise some latents would never be sampled
        stride += 1
    sample = values[::stride]
    expected = count * len(sample) / len(values)
    rank = min(int(expected + MARGIN * math.sqrt(expected)) + 1, len(sample))
    bound = sample.kthvalue(len(sample) - rank + 1).values
    if not bound > 0:
        return None
    candidates = values[values >= bound]
    if len(candidates) < count:
        return None
    least = candidates.kthvalue(len(candidates) - count + 1).values
    return least if int((candidates >= least).sum()) == count else None
