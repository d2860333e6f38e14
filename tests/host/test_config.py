"""The ``ortho_*`` fields refuse bad values and say what to change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.host.config import ortho_field_names, without_defaults_added_later
from saelens_adaptive_ortho.maths.penalties import PENALTIES

BATCHTOPK = "adaptive_ortho_batchtopk"
NAN, INF = math.nan, math.inf

UNIT = r"must be a number in \[0, 1\]"
NOT_NEGATIVE = r"must be a number in \[0, inf\)"
BAD_VALUES: list[tuple[str, Any, str]] = [
    ("ortho_mode", "orthogonal", "must be one of off, gram, fixed, adaptive"),
    ("ortho_mode", None, "must be one of off, gram, fixed, adaptive"),
    ("ortho_mode", True, "must be one of off, gram, fixed, adaptive"),
    ("ortho_weighting", "mass", "must be one of energy, uniform"),
    ("ortho_affinity", "phi", "must be one of unsuppressed, lift, overlap, group"),
    ("ortho_ordering", "rate", "must be one of frequency, symmetric"),
    *[("ortho_alpha", bad, UNIT) for bad in (-0.01, 1.01, NAN, INF, True, "0.5", None)],
    *[("ortho_group_threshold", bad, UNIT) for bad in (-1, 1.5, NAN, False, "x")],
    *[("ortho_coefficient", bad, NOT_NEGATIVE) for bad in (-1e-9, NAN, INF, True, "0.1")],
    *[("ortho_curriculum_start", bad, NOT_NEGATIVE) for bad in (-1.0, NAN, True, "0.1")],
    *[("ortho_statistics_decay", bad, r"in \(0, 1\]") for bad in (0, 0.0, 1.001, NAN, True, "1")],
    *[("ortho_domain_ratio", bad, r"in \(1, inf\)") for bad in (1, 0.5, NAN, INF, True, "9")],
    *[
        (field, bad, f"must be a whole number of at least {low}")
        for field, low in [
            ("ortho_warm_up_steps", 0),
            ("ortho_curriculum_steps", 0),
            ("ortho_fade_start_step", 0),
            ("ortho_fade_end_step", 0),
            ("ortho_neighbours", 1),
            ("ortho_refresh_every", 1),
            ("ortho_statistics_every", 1),
            ("ortho_sketch_size", 1),
            ("ortho_forget_rows", 0),
            ("ortho_chunk_size", 2),
            ("ortho_every", 1),
            ("ortho_seed", 0),
        ]
        for bad in (low - 1, low + 0.5, float(low), True, "3", NAN)
    ],
    *[("ortho_scale_free", bad, "must be true or false") for bad in (1, 0, "yes", None)],
    ("ortho_neighbours", 64, "a latent has only d_sae - 1 = 63 others; lower it"),
    ("ortho_neighbours", 1000, "a latent has only d_sae - 1 = 63 others; lower it"),
]


@pytest.mark.parametrize(("field", "value", "rule"), BAD_VALUES)
def test_bad_value_is_refused_with_field_and_rule(
    build_cfg: Callable[..., Any], field: str, value: Any, rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule) as error:
        build_cfg(BATCHTOPK, **{field: value})
    assert str(error.value).startswith(f"{field}={value!r}: ")


@pytest.mark.parametrize(
    ("fields", "named", "rule"),
    [
        ({"ortho_curriculum_start": 0.1}, "ortho_curriculum_start=0.1", "curriculum needs both"),
        ({"ortho_curriculum_steps": 10}, "ortho_curriculum_start=None", "curriculum needs both"),
        ({"ortho_fade_start_step": 5}, "ortho_fade_start_step=5", "set both or neither"),
        ({"ortho_fade_end_step": 5}, "ortho_fade_start_step=None", "set both or neither"),
        (
            {"ortho_fade_start_step": 5, "ortho_fade_end_step": 5},
            "ortho_fade_start_step=5",
            "ortho_fade_start_step < ortho_fade_end_step",
        ),
        (
            {"ortho_fade_start_step": 6, "ortho_fade_end_step": 5},
            "ortho_fade_start_step=6",
            "ortho_fade_start_step < ortho_fade_end_step",
        ),
        ({"d_sae": 1, "ortho_mode": "gram"}, "d_sae=1", "at least 2 latents"),
    ],
)
def test_contradicting_settings_are_refused(
    build_cfg: Callable[..., Any], fields: dict[str, Any], named: str, rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule) as error:
        build_cfg(BATCHTOPK, **fields)
    assert str(error.value).startswith(named)


@pytest.mark.parametrize(
    "fields",
    [
        {"ortho_alpha": 0},
        {"ortho_alpha": 1},
        {"ortho_coefficient": 0},
        {"ortho_neighbours": 63},
        {"ortho_mode": "fixed", "ortho_neighbours": 1000},
        {"ortho_mode": "off", "d_sae": 1, "k": 1},
        {"ortho_statistics_decay": 1},
        {"ortho_curriculum_start": 0, "ortho_curriculum_steps": 1},
        {"ortho_fade_start_step": 0, "ortho_fade_end_step": 1},
        {"ortho_chunk_size": 2},
    ],
)
def test_bounds_themselves_are_accepted(
    build_cfg: Callable[..., Any], fields: dict[str, Any]
) -> None:
    cfg = build_cfg(BATCHTOPK, **fields)
    assert {name: getattr(cfg, name) for name in fields} == fields


def test_config_error_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)


def test_every_field_has_the_ortho_prefix() -> None:
    names = ortho_field_names()
    assert all(name.startswith("ortho_") for name in names)
    assert {"ortho_mode", "ortho_alpha", "ortho_seed"} <= set(names)


@pytest.mark.parametrize("k", [0, -1, 65, float("nan"), "4", True])
@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_k_outside_the_dictionary_is_refused(
    build_cfg: Callable[..., Any], name: str, k: Any
) -> None:
    with pytest.raises(ConfigError, match=r"k=.*must be a number in \[1, 64\]"):
        build_cfg(f"adaptive_ortho_{name}", k=k)


def test_only_penalties_of_a_later_version_change_digests(build_cfg: Callable[..., Any]) -> None:
    for mode in ("off", *PENALTIES.own):
        cfg = build_cfg("adaptive_ortho_topk", ortho_mode=mode)
        fields = {name: getattr(cfg, name) for name in ortho_field_names()}
        kept = without_defaults_added_later(fields)
        assert kept.get("ortho_version") == {"adaptive": 2}.get(mode)
        assert kept.keys() - fields.keys() <= {"ortho_version"}
