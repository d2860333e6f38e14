"""Draw ``docs/sparsity.png``: what the report draws over L0, with invented numbers.

python -m tools.draw_sparsity
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from saelens_adaptive_ortho.report.figures.sparsity import sparsity_figure
from saelens_adaptive_ortho.report.figures.style import STYLE
from saelens_adaptive_ortho.report.published import PublishedSae, group
from saelens_adaptive_ortho.report.sparsity import L0
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.results import Result

TARGET = Path(__file__).parents[1] / "docs" / "sparsity.png"
SCORE, PROBING = "core/pooled/ce_loss_score", "sparse_probing/sae_top_5_accuracy"


def score(l0: float, shift: float) -> float:
    """An invented CE loss score."""
    return 1 - 0.35 * math.exp(-0.45 * math.log(l0)) - shift


def probing(l0: float, shift: float) -> float:
    """An invented accuracy, which is best at a middle L0."""
    return 0.87 - 0.012 * (math.log(l0) - math.log(60)) ** 2 - shift


def own(name: str, l0s: Sequence[float], shift: float) -> list[Result]:
    """Results of a method at several sparsities, with three seeds."""
    noise = np.random.default_rng(len(name)).normal(size=(len(l0s), 3, 3))
    found: list[Result] = []
    for at, l0 in enumerate(l0s):
        for seed, (a, b, c) in enumerate(noise[at]):
            x, variant = l0 * (1 + 0.02 * a), f"{name}={l0:g}"
            core = {"pooled/l0": x, "pooled/ce_loss_score": score(x, shift) + 0.002 * b}
            probes = {"sae_top_5_accuracy": probing(x, -2 * shift) + 0.003 * c}
            found.append(Result("core", variant, seed, metrics=core))
            found.append(Result("sparse_probing", variant, seed, metrics=probes))
    return found


def others(architecture: str, shift: float) -> list[PublishedSae]:
    """Published SAEs of one architecture."""
    return [
        PublishedSae(
            release=f"release_{architecture}_trainer_{number}",
            sae_id="sae",
            architecture=architecture,
            model="model",
            hook="blocks.8.hook_resid_post",
            d_sae=16_384,
            metrics={L0: l0, SCORE: score(l0, shift), PROBING: probing(l0, shift)},
        )
        for number, l0 in enumerate((20.0, 40.0, 80.0, 160.0, 320.0))
    ]


def draw() -> Figure:
    """The figure."""
    results = own("baseline", (16, 32, 64, 128), 0.005) + own("adaptive", (16, 32, 64, 128), 0.011)
    published = group([*others("topk", 0.015), *others("jumprelu", 0.03)])
    figure = sparsity_figure(summarise(results), published)
    assert figure is not None
    return figure


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        draw().savefig(TARGET, dpi=110)
    print(TARGET)
