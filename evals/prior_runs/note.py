"""Ideas and numbers of the ten runs, as the note on them reports them."""

from __future__ import annotations

from typing import NamedTuple


class PriorRun(NamedTuple):
    """A run of the note; a value is None if the note gives no number, or NaN.

    Norms are those of activations at layer 19 of Gemma-2-2B. ``mse`` is per dimension.
    """

    idea: str
    steps: int
    final_loss: float | None = None
    explained_variance: float | None = None
    mse: float | None = None
    norm_out: float | None = None
    l0: float | None = None
    ce_loss_score: float | None = None


D_IN = 2304
D_SAE = 2304
NORM_IN = 308.0
STEPS = 48
CEILING = 1_000_000.0

_FOUR_TO_SEVEN = (48, CEILING, -1.671875, 70.5, 215.0, 1150.32568359375, -0.5986842105263158)
_EIGHT_AND_NINE = (48, CEILING, -0.80859375, 48.0, 33.75, 1154.838134765625, -0.7828947368421053)

PRIOR_RUNS: dict[str, PriorRun] = {
    "run0": PriorRun("baseline", 0),
    "run1": PriorRun(
        "basic orthogonality loss", 0, None, -0.78515625, 47.25, 0.0, 0.0, -0.5855263157894737
    ),
    "run2": PriorRun("training loop fix", 48, l0=0.0),
    "run3": PriorRun(
        "gradient stabilisation",
        48,
        CEILING,
        -4.3125,
        140.0,
        430.0,
        1150.35205078125,
        -0.6907894736842105,
    ),
    "run4": PriorRun("lower learning rate, unit-norm decoder", *_FOUR_TO_SEVEN),
    "run5": PriorRun("per-latent learning rates, accumulation", *_FOUR_TO_SEVEN),
    "run6": PriorRun("skip connection, dropout", *_FOUR_TO_SEVEN),
    "run7": PriorRun("curriculum", *_FOUR_TO_SEVEN),
    "run8": PriorRun("layer normalisation, warm-up", *_EIGHT_AND_NINE),
    "run9": PriorRun("progressive unlocking", *_EIGHT_AND_NINE),
}
NEXT_STEPS: dict[str, str] = {
    "next_k_winners": "k winners take all",
    "next_latent_norm": "feature-wise normalisation",
    "next_init_orthogonal": "orthogonal initialisation",
    "next_init_data": "initialisation from data",
}
