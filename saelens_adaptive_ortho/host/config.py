"""The ``ortho_*`` fields of every adaptive-orthogonal SAE, flat and validated.

The fields are flat because SAELens writes SAE configs with ``asdict`` and reads them back field by
field. A nested dataclass would come back as a dict.
"""

# This module does not postpone annotations. SAELens's command line resolves postponed annotations
# of a dataclass in the module of only one base, where names from the other base would be missing.

import json
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.host.switch_config import SwitchConfig, validate_switches
from saelens_adaptive_ortho.maths.affinity import AFFINITIES
from saelens_adaptive_ortho.maths.penalties import PENALTIES, Penalty
from saelens_adaptive_ortho.maths.penalties.contract import MEAN_COEFFICIENT
from saelens_adaptive_ortho.settings import bounds, check_fields, check_value

__all__ = [
    "ConfigError",
    "OrthoConfig",
    "ortho_coefficient",
    "ortho_field_names",
    "penalty_named",
    "penalty_of",
    "reject",
    "validate_ortho",
]

OrthoOrdering = Literal["frequency", "symmetric"]
OrthoSeparated = Literal["forget", "both"]
OrthoWeighting = Literal["energy", "uniform"]


# lambda_sep of the mode ``adaptive``.
DEFAULT_SEPARATION = 3.0


@dataclass(kw_only=True)
class OrthoConfig(SwitchConfig):
    """Fields that an adaptive-orthogonal training SAE adds to its stock architecture.

    The loss is ``L_total = L_sae + lambda(t) * scale * L_ortho + lambda_sep * L_sep``; see
    :mod:`saelens_adaptive_ortho.maths.penalties` for ``L_ortho``, and
    :mod:`saelens_adaptive_ortho.maths.separation` for ``L_sep``.

    Args:
        ortho_mode: ``off`` (bit-identical to the stock architecture), ``gram`` (mean squared
            cosine), ``fixed`` (OrtSAE), ``adaptive`` (affinity-weighted pairs), or a penalty of an
            installed package. OrtSAE as published is ``fixed`` with coefficient 0.25, not
            scale-free, on every step or every 5th step.
        ortho_coefficient: lambda; None means the default of the penalty, see
            :func:`ortho_coefficient`. If ``ortho_scale_free`` is on, 0.05 means that a dictionary
            of duplicated directions costs as much as 0.05 of explained variance.
        ortho_scale_free: multiply the penalty by a running estimate of the activations' total
            variance, so that one lambda works for activations of any norm.
        ortho_warm_up_steps: steps over which lambda and lambda_sep rise linearly from 0.
        ortho_curriculum_start: lambda at step 0 of a curriculum that reaches
            ``ortho_coefficient`` after ``ortho_curriculum_steps``; None means no curriculum.
        ortho_curriculum_steps: length of the curriculum, in steps.
        ortho_fade_start_step: step at which lambda starts to fall to 0; None means no fade-out.
        ortho_fade_end_step: step from which lambda is 0.
        ortho_alpha: controlled sharing in [0, 1]: the weight ``1 - alpha * s_ij`` of a pair of
            directions, and ``1 - alpha * s_i`` of a latent that serves both corpora.
        ortho_separation: lambda_sep of the group half, ``lambda_sep * L_sep`` (see
            :mod:`saelens_adaptive_ortho.maths.separation`). It needs batches of two corpora. None
            means 3 in the mode ``adaptive`` and 0 in all others; with one corpus it is absent.
        ortho_separated: ``forget`` charges latents that lean to the forget corpus for their
            activations on retain rows; ``both`` also charges the others for theirs on forget rows.
        ortho_sharing_ratio: a latent may serve both corpora if its firing rates on them differ by
            at most this factor.
        ortho_affinity: ``s_ij`` from co-activation: ``unsuppressed`` (lift, if neither latent is
            weaker when the other fires too), ``lift``, ``overlap``, ``group`` (1 in the same
            co-activation group, else 0), or an affinity of an installed package.
        ortho_weighting: ``energy`` sums over latents and weights each pair by the share of the
            variance that its weaker latent contributes; ``uniform`` averages over latents.
        ortho_ordering: ``frequency`` pushes only the rarer latent of a pair, ``symmetric`` both.
        ortho_neighbours: m, number of candidates per latent.
        ortho_refresh_every: steps between refreshes of groups and domains, and the largest number
            of steps between refreshes of the neighbour lists.
        ortho_min_captured: share of latents whose list must still hold a neighbour within .01 of
            the most similar latent. A sample is checked every few steps; if the share is too low,
            the lists are refreshed at once. With 0 there is no check, and the lists are refreshed
            every ``ortho_refresh_every`` steps.
        ortho_statistics_every: n; firings and co-activation are counted on every n-th batch. After
            each count the mode ``adaptive`` chooses its pairs again. On the counted batches
            ``L_sep`` acts, with n times its coefficient.
        ortho_statistics_decay: factor on old counts at each counted batch, in (0, 1].
        ortho_sketch_size: r, width of the firing-pattern sketch from which groups are formed.
        ortho_group_threshold: smallest phi correlation at which two latents may be grouped.
        ortho_domain_ratio: smallest firing-rate ratio at which a latent belongs to one corpus.
        ortho_forget_rows: number of leading rows of every batch that come from the forget corpus;
            0 for batches of a single corpus. The project's runner sets it.
        ortho_chunk_size: latents per chunk of the fixed penalty.
        ortho_every: n; the fixed penalty applies on every n-th step, with n times the coefficient.
        ortho_seed: seed of chunks and sketches.
        ortho_settings: settings that only the chosen penalty has, by name. The penalties of this
            package have none.
    """

    ortho_mode: str = "adaptive"
    ortho_coefficient: float | None = field(default=None, metadata=bounds(ge=0))
    ortho_scale_free: bool = True
    ortho_warm_up_steps: int = field(default=0, metadata=bounds(ge=0))
    ortho_curriculum_start: float | None = field(default=None, metadata=bounds(ge=0))
    ortho_curriculum_steps: int = field(default=0, metadata=bounds(ge=0))
    ortho_fade_start_step: int | None = field(default=None, metadata=bounds(ge=0))
    ortho_fade_end_step: int | None = field(default=None, metadata=bounds(ge=0))
    ortho_alpha: float = field(default=1.0, metadata=bounds(ge=0, le=1))
    ortho_separation: float | None = field(default=None, metadata=bounds(ge=0))
    ortho_separated: OrthoSeparated = "forget"
    ortho_sharing_ratio: float = field(default=2.0, metadata=bounds(ge=1))
    ortho_affinity: str = "unsuppressed"
    ortho_weighting: OrthoWeighting = "energy"
    ortho_ordering: OrthoOrdering = "frequency"
    ortho_neighbours: int = field(default=16, metadata=bounds(ge=1))
    ortho_refresh_every: int = field(default=100, metadata=bounds(ge=1))
    ortho_min_captured: float = field(default=0.99, metadata=bounds(ge=0, le=1))
    ortho_statistics_every: int = field(default=4, metadata=bounds(ge=1))
    ortho_statistics_decay: float = field(default=0.99, metadata=bounds(gt=0, le=1))
    ortho_sketch_size: int = field(default=64, metadata=bounds(ge=1))
    ortho_group_threshold: float = field(default=0.5, metadata=bounds(ge=0, le=1))
    ortho_domain_ratio: float = field(default=9.0, metadata=bounds(gt=1))
    ortho_forget_rows: int = field(default=0, metadata=bounds(ge=0))
    ortho_chunk_size: int = field(default=8192, metadata=bounds(ge=2))
    ortho_every: int = field(default=1, metadata=bounds(ge=1))
    ortho_seed: int = field(default=0, metadata=bounds(ge=0, lt=2**63))
    ortho_settings: dict[str, Any] = field(
        default_factory=dict, metadata={"custom_args": {"type": json.loads}}
    )

    def __post_init__(self) -> None:
        validate_ortho(self)
        validate_switches(self)
        super().__post_init__()  # type: ignore[misc]  # the stock config comes later in the MRO


def validate_ortho(cfg: Any) -> None:
    """Check the ``ortho_*`` fields of an SAE config, including the bounds of the switches.

    Raises:
        ConfigError: naming the field, its value and the rule it breaks.
    """
    penalty = penalty_of(cfg)
    AFFINITIES.find("ortho_affinity", cfg.ortho_affinity)
    check_fields(cfg, OrthoConfig)
    if penalty is not None and cfg.d_sae < 2:
        raise reject("d_sae", cfg.d_sae, "orthogonality needs at least 2 latents.")
    if hasattr(cfg, "k"):
        # SAELens takes any k: 0 trains an SAE that never fires, one above d_sae fails at a step.
        check_value("k", cfg.k, Annotated[float, Field(ge=1, le=cfg.d_sae)])
    if penalty is not None and penalty.needs_lists and cfg.ortho_neighbours > cfg.d_sae - 1:
        raise reject(
            "ortho_neighbours",
            cfg.ortho_neighbours,
            f"a latent has only d_sae - 1 = {cfg.d_sae - 1} others; lower it.",
        )
    if (cfg.ortho_curriculum_start is None) != (cfg.ortho_curriculum_steps == 0):
        raise reject(
            "ortho_curriculum_start",
            cfg.ortho_curriculum_start,
            "a curriculum needs both ortho_curriculum_start and ortho_curriculum_steps > 0; "
            f"ortho_curriculum_steps is {cfg.ortho_curriculum_steps}.",
        )
    if cfg.ortho_curriculum_start is not None and cfg.ortho_coefficient == 0:
        raise reject(
            "ortho_coefficient",
            cfg.ortho_coefficient,
            "a curriculum must end above 0; to fall to 0 use ortho_fade_start_step.",
        )
    start, end = cfg.ortho_fade_start_step, cfg.ortho_fade_end_step
    if (start is None) != (end is None) or (start is not None and end is not None and start >= end):
        raise reject(
            "ortho_fade_start_step",
            start,
            f"a fade-out needs ortho_fade_start_step < ortho_fade_end_step (which is {end!r}); "
            "set both or neither.",
        )
    if penalty is not None:
        penalty.own_settings(cfg.ortho_settings)
        penalty.check(cfg)


def penalty_of(cfg: Any) -> Penalty | None:
    """The penalty that ``ortho_mode`` of an SAE config names; None for ``off``.

    Raises:
        ConfigError: no penalty has this name.
    """
    return penalty_named("ortho_mode", cfg.ortho_mode)


def penalty_named(field: str, name: Any) -> Penalty | None:
    """The penalty called ``name``, the value of the setting ``field``; None for ``off``.

    Raises:
        ConfigError: no penalty has this name.
    """
    return None if name == "off" else PENALTIES.find(field, name, also=("off",))


def ortho_coefficient(cfg: Any) -> float:
    """lambda of an SAE config: its ``ortho_coefficient``, or the default of its penalty.

    The default is looked up at each use, so that a variant with another mode gets another default.
    """
    if cfg.ortho_coefficient is not None:
        return cfg.ortho_coefficient
    penalty = penalty_of(cfg)
    return MEAN_COEFFICIENT if penalty is None else penalty.coefficient(cfg)


def separation_coefficient(cfg: Any) -> float:
    """lambda_sep of an SAE config: its ``ortho_separation``, or the default of its mode."""
    if cfg.ortho_separation is not None:
        return cfg.ortho_separation
    return DEFAULT_SEPARATION if cfg.ortho_mode == "adaptive" else 0.0


def without_defaults_added_later(sae: dict[str, Any]) -> dict[str, Any]:
    """Fields of an SAE config by name, for a digest of settings.

    Some fields were added after runs had been saved. Such a field is left out if it changes
    nothing, so that the digests of the saved runs do not change. If the same fields now learn
    something else, the version of the penalty changes the digest.
    """
    absent = set() if sae["ortho_settings"] else {"ortho_settings"}
    if not (sae["ortho_forget_rows"] and separation_coefficient(SimpleNamespace(**sae))):
        absent |= {"ortho_separation", "ortho_separated", "ortho_sharing_ratio"}
    kept = {k: v for k, v in sae.items() if k not in absent}
    penalty = penalty_named("ortho_mode", sae["ortho_mode"])
    if penalty is not None and penalty.version > 1:
        kept["ortho_version"] = penalty.version
    return kept


def ortho_field_names() -> list[str]:
    """Names of the SAE-level ``ortho_*`` fields, in order."""
    return [f.name for f in fields(OrthoConfig)]
