"""The ``ortho_*`` fields of every adaptive-orthogonal SAE, flat and validated.

Flat, because SAELens writes SAE configs with ``asdict`` and reads them back field by field: a
nested dataclass would come back as a dict.
"""

# No postponed annotations: SAELens's command line resolves those of a dataclass in the module of
# one of its bases only, where the names of the other's would be missing.

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.host.switch_config import SwitchConfig, validate_switches
from saelens_adaptive_ortho.maths.affinity import AFFINITIES
from saelens_adaptive_ortho.maths.penalties import PENALTIES, Penalty
from saelens_adaptive_ortho.maths.penalties.contract import MEAN_COEFFICIENT
from saelens_adaptive_ortho.settings import bounds, check_fields

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
OrthoWeighting = Literal["energy", "uniform"]


@dataclass(kw_only=True)
class OrthoConfig(SwitchConfig):
    """Fields that an adaptive-orthogonal training SAE has on top of its stock architecture.

    The loss is ``L_total = L_sae + lambda(t) * scale * L_ortho``; see
    :mod:`saelens_adaptive_ortho.maths.penalties` for ``L_ortho``.

    Args:
        ortho_mode: ``off`` (bit-identical to the stock architecture), ``gram`` (mean squared
            cosine), ``fixed`` (OrtSAE), ``adaptive`` (affinity-weighted pairs), or a penalty of an
            installed package. OrtSAE as published: ``fixed``, coefficient 0.25, not scale-free,
            every step or every 5th.
        ortho_coefficient: lambda; None for the default of the penalty, see
            :func:`ortho_coefficient`. Scale-free unless ``ortho_scale_free`` is off: 0.05 means
            that a dictionary of duplicated directions costs as much as 0.05 of explained variance.
        ortho_scale_free: multiply by a running estimate of the activations' total variance, so
            that one lambda serves activations of any norm.
        ortho_warm_up_steps: steps over which lambda rises linearly from 0.
        ortho_curriculum_start: lambda at step 0 of a curriculum that reaches
            ``ortho_coefficient`` after ``ortho_curriculum_steps``; none by default.
        ortho_curriculum_steps: length of the curriculum, in steps.
        ortho_fade_start_step: step at which lambda starts to fall to 0; none by default.
        ortho_fade_end_step: step from which lambda is 0.
        ortho_alpha: controlled sharing in [0, 1]; pair weight ``1 - alpha * s_ij``.
        ortho_affinity: ``s_ij`` from co-activation: ``unsuppressed`` (lift, where neither latent
            is weaker in the other's company), ``lift``, ``overlap``, ``group`` (1 in the same
            co-activation group, else 0), or an affinity of an installed package.
        ortho_weighting: ``energy`` sums over latents, each pair weighted by the share of the
            variance that its weaker latent contributes; ``uniform`` averages over latents.
        ortho_ordering: ``frequency`` pushes only the rarer latent of a pair, ``symmetric`` both.
        ortho_neighbours: m, candidates per latent.
        ortho_refresh_every: steps between refreshes of groups and domains, and most steps
            between those of neighbour lists.
        ortho_min_captured: share of latents whose list must still hold a neighbour within .01 of
            the most similar. Watched on a sample every few steps: where it captures less, lists
            are refreshed at once. 0 for refreshes every ``ortho_refresh_every`` steps, unwatched.
        ortho_statistics_every: co-activation is counted on every n-th batch.
        ortho_statistics_decay: factor on old counts at each counted batch, in (0, 1].
        ortho_sketch_size: r, width of the firing-pattern sketch that groups are formed on.
        ortho_group_threshold: phi correlation from which two latents may be grouped.
        ortho_domain_ratio: firing-rate ratio from which a latent belongs to one corpus.
        ortho_forget_rows: leading rows of every batch that come from the forget corpus, 0 for
            batches of a single corpus. The project's runner sets it.
        ortho_chunk_size: latents per chunk of the fixed penalty.
        ortho_every: apply the fixed penalty every n-th step, with n times the coefficient.
        ortho_seed: seed of chunks and sketches.
        ortho_settings: settings by name of a penalty that has some of its own; those of this
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
    ortho_seed: int = field(default=0, metadata=bounds(ge=0))
    ortho_settings: dict[str, Any] = field(
        default_factory=dict, metadata={"custom_args": {"type": json.loads}}
    )

    def __post_init__(self) -> None:
        validate_ortho(self)
        validate_switches(self)
        super().__post_init__()  # type: ignore[misc]  # the stock config beside us in the MRO


def validate_ortho(cfg: Any) -> None:
    """Check the ``ortho_*`` fields of an SAE config, the switches' bounds included.

    Raises:
        ConfigError: naming the field, its value and the rule it breaks.
    """
    penalty = penalty_of(cfg)
    AFFINITIES.find("ortho_affinity", cfg.ortho_affinity)
    check_fields(cfg, OrthoConfig)
    if penalty is not None and cfg.d_sae < 2:
        raise reject("d_sae", cfg.d_sae, "orthogonality needs at least 2 latents.")
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
    """The penalty that ``ortho_mode`` of an SAE config names; None where it is ``off``.

    Raises:
        ConfigError: there is none of that name.
    """
    return penalty_named("ortho_mode", cfg.ortho_mode)


def penalty_named(field: str, name: Any) -> Penalty | None:
    """The penalty called ``name``, the value of the setting ``field``; None for ``off``.

    Raises:
        ConfigError: there is none of that name.
    """
    return None if name == "off" else PENALTIES.find(field, name, also=("off",))


def ortho_coefficient(cfg: Any) -> float:
    """lambda of an SAE config: its own, or by default that of its penalty.

    Looked up when used, so that a variant of another mode gets its own default.
    """
    if cfg.ortho_coefficient is not None:
        return cfg.ortho_coefficient
    penalty = penalty_of(cfg)
    return MEAN_COEFFICIENT if penalty is None else penalty.coefficient(cfg)


def without_defaults_added_later(sae: dict[str, Any]) -> dict[str, Any]:
    """Fields of an SAE config by name, for a digest of settings.

    A field that came after runs had been saved is left out where it has its default, so that
    digests of those runs stay as they are.
    """
    return {k: v for k, v in sae.items() if k != "ortho_settings" or v}


def ortho_field_names() -> list[str]:
    """Names of the SAE-level ``ortho_*`` fields, in order."""
    return [f.name for f in fields(OrthoConfig)]
