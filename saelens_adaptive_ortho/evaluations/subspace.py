"""Subspace: the geometry of decoder directions in groups of latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveInt

from saelens_adaptive_ortho.evaluations.contract import FIGURES, Evaluation, Figure, Metric
from saelens_adaptive_ortho.settings import Share

PRIMARY = ("principal_angle/mean_deg", "mean_max_cosine")


@dataclass(frozen=True)
class Settings:
    """Geometry of the forget, retain and shared groups of latents.

    Args:
        n_contexts: training contexts per corpus for measuring firing rates.
        domain_ratio: a latent belongs to one corpus if its firing rate there is at least this many
            times the rate on the other corpus.
        energy: share of the squared singular values that a group's subspace keeps for principal
            angles.
        batch_size_prompts: contexts per forward pass.
    """

    n_contexts: PositiveInt = 256
    domain_ratio: Annotated[float, Field(gt=1)] = 9.0
    energy: Share = 0.9
    batch_size_prompts: PositiveInt = 32


SUBSPACE = Evaluation(
    name="subspace",
    title="Geometry of decoder directions",
    description=(
        "Cosines between the decoder directions of all latents, and principal angles "
        "between the subspaces of those that fire mostly on the forget and mostly on the "
        "retain corpus."
    ),
    settings=Settings,
    module="saelens_adaptive_ortho.judging.geometry",
    version=2,
    metrics={
        "mean_max_cosine": Metric("mean max cosine", "", "lower"),
        "border_max_cosine": Metric("max cosine from forget to retain", "", "lower"),
        "n_coactivation_groups": Metric("co-activation groups", "groups"),
        "n_forget": Metric("forget latents", "latents"),
        "n_retain": Metric("retain latents", "latents"),
        "n_shared": Metric("shared latents", "latents"),
        "condition_number": Metric("condition number", "", "lower"),
        "effective_rank": Metric("effective rank"),
        "principal_angle/min_deg": Metric("smallest principal angle", "°", "higher"),
        "principal_angle/mean_deg": Metric("mean principal angle", "°", "higher"),
        "principal_angle/max_deg": Metric("largest principal angle", "°", "higher"),
    },
    primary=PRIMARY,
    headline=(
        "principal_angle/mean_deg",
        "principal_angle/min_deg",
        "mean_max_cosine",
        *(f"condition_number/{g}" for g in ("forget", "retain", "shared", "forget+retain")),
    ),
    glance=(
        "principal_angle/mean_deg",
        "principal_angle/min_deg",
        "mean_max_cosine",
        "condition_number/forget+retain",
    ),
    caveat="Geometry is not knowledge: directions can be far apart and still carry the same.",
    figures=(
        Figure(
            "principal_angles",
            "Principal angles",
            (
                "Angles between the subspaces spanned by forget and by retain decoder "
                "directions, smallest first: a curve further up shares fewer directions, but "
                "angles also depend on how many latents each side has, so compare those counts "
                "among the other metrics."
            ),
            f"{FIGURES}.geometry:angles_figure",
        ),
        Figure(
            "cosines",
            "Cosines between decoder directions",
            (
                "A narrower peak at zero means decoder directions nearer to orthogonal; the "
                "tails are pairs of latents that point nearly the same or the opposite way."
            ),
            f"{FIGURES}.geometry:cosine_figure",
        ),
        Figure(
            "firing_rates",
            "Firing rates",
            (
                "One dot per latent: on the diagonal it fires as often on both corpora, far "
                "from it on one of them only, and in the shaded margin it never fires on that "
                "corpus."
            ),
            f"{FIGURES}.geometry:firing_figure",
        ),
    ),
)
