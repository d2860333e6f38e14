"""Bootstrap intervals over seeds and units; a metric is a mean over units (passages, questions).

An evaluation may store bootstrap replicates of a metric in ``details["replicates"]``. All SAEs
must use the same resampled units. Then a paired difference is resampled on both levels:

    d*_b = mean over drawn seeds s of ( x_b(variant, s) - x_b(reference, s) )

Seeds are drawn with replacement. Replicate ``b`` is the same draw of units for all SAEs. A paired
t-interval over seeds does not contain the uncertainty that all SAEs of the run share: the choice
of passages. With few seeds, resampling the seeds gives an interval that is too narrow by a factor
of the square root of 1 - 1/n.
"""

# numpy leaves the type of drawn integers open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

DRAWS = 4000
MIN_SEEDS = 2


def difference_interval(
    variant: Mapping[int, Sequence[float]],
    reference: Mapping[int, Sequence[float]],
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile interval of the paired difference over seeds and units.

    Args:
        variant: replicates of the variant, by seed.
        reference: replicates of the reference, by seed, with the same draws of units.
        level: confidence level of the interval.

    Returns:
        Lower and upper bound. None with fewer than two common seeds, or if the SAEs have different
        numbers of replicates.
    """
    seeds = sorted(set(variant) & set(reference))
    lengths = {len(r[s]) for r in (variant, reference) for s in seeds}
    if len(seeds) < MIN_SEEDS or len(lengths) != 1 or not min(lengths):
        return None
    differences = np.array([np.subtract(variant[s], reference[s]) for s in seeds])
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(seeds), size=(DRAWS, len(seeds)))
    units = generator.integers(differences.shape[1], size=DRAWS)
    means: npt.NDArray[np.float64] = differences[drawn, units[:, None]].mean(1)
    tail = (1 - level) / 2
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))
