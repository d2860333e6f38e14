"""The axes of a sweep: ``sweep:`` in a config maps fields to lists of values.

Every SAE of the product of all axes is one *point*. Without ``variants`` in the config, a point is
the SAE of ``sae`` with the values of the axes. With ``variants``, each variant is multiplied by the
axes, except by those whose field it sets itself: ``baseline: {ortho_mode: off, ortho_alpha: 1}`` is
trained once, not once for each ``sae.ortho_alpha``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sae_lens.registry import get_sae_training_class

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.experiments.experiment import (
    EXPERIMENT_KEYS,
    Experiment,
    build_experiment,
    check_compared,
    lay_over,
    overridden_tree,
)
from saelens_adaptive_ortho.files import refuse_url
from saelens_adaptive_ortho.host.architectures import ARCHITECTURES
from saelens_adaptive_ortho.manifests import Point
from saelens_adaptive_ortho.settings import init_fields, reject_unknown
from saelens_adaptive_ortho.sweeps.copying import COPY_TO, checked_url
from saelens_adaptive_ortho.training.runner_config import (
    NOT_FINGERPRINTED,
    AdaptiveOrthoRunnerConfig,
    with_sae,
)

SWEEP = "sweep"
SEED = "seed"
MOST_POINTS = 100_000
# SAEs that differ in these fields cannot be trained together: they see other activations.
APART = ("d_in", "normalize_activations", "dtype")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.-]+")


@dataclass(frozen=True)
class Setting:
    """The SAEs that can be trained together: one value of every axis but those of their SAEs.

    Args:
        experiment: their experiment. Its variants are the SAEs; it has one seed.
        tree: the settings that it was built from, without ``output_path``.
        points: the SAEs, in the order of the variants.
        words: the values of its axes, in words.
    """

    experiment: Experiment
    tree: dict[str, Any]
    points: Sequence[Point]
    words: str


@dataclass(frozen=True)
class Sweep:
    """A sweep as its config says it.

    Args:
        name: name of the config.
        folder: ``output_path``.
        axes: the values of each axis. The last one is ``seed``.
        settings: its SAEs, grouped by what can be trained together.
        config: the whole tree of settings, as it was read.
        most: largest number of SAEs in a unit; None for as many as the memory takes.
        copy_to: URL where a copy of each finished unit is kept; empty for none.
    """

    name: str
    folder: Path
    axes: Mapping[str, Sequence[Any]]
    settings: Sequence[Setting]
    config: Mapping[str, Any]
    most: int | None
    copy_to: str = ""


def is_sweep_config(path: str | Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a config has the key ``sweep``.

    Raises:
        ConfigError: it cannot be read.
    """
    return SWEEP in overridden_tree(path, list(overrides))[0]


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a config with a sweep, and validate every SAE of it.

    Raises:
        ConfigError: the config has no sweep, an axis names no field, has no values, or has a value
            twice, or a setting cannot work. The message names field, value and remedy.
    """
    tree, name = overridden_tree(path, list(overrides))
    return build_sweep(tree, name)


def build_sweep(tree: dict[str, Any], name: str = "sweep") -> Sweep:
    """Validate a tree of settings with the key ``sweep``, and build the sweep."""
    config = deepcopy(tree)
    tree = deepcopy(tree)
    axes = _axes(tree)
    folder = tree.pop("output_path", None)
    if not isinstance(folder, str) or not folder:
        raise reject("output_path", folder, "a sweep needs a folder to write to.")
    refuse_url("output_path", folder)
    copy_to = tree.pop(COPY_TO, None)
    copy_to = "" if copy_to is None else checked_url(copy_to)
    most = tree.pop("saes_per_unit", None)
    if most is not None and (type(most) is not int or most < 1):
        raise reject("saes_per_unit", most, "must be a whole number of at least 1.")
    variants = _variants(tree, axes)
    of_saes = {axis: values for axis, values in axes.items() if _is_of_sae(axis)}
    others = {axis: values for axis, values in axes.items() if axis not in of_saes}
    short = _short_names(list(of_saes))
    settings = [
        _setting(tree, choice, variants, of_saes, short, name) for choice in _product(others)
    ]
    _refuse_equal(settings)
    return Sweep(name, Path(folder), axes, settings, config, most, copy_to)


# ---------------------------------------------------------------------- axes


def _axes(tree: dict[str, Any]) -> dict[str, list[Any]]:
    """The axes of a config, checked; ``seed`` comes last."""
    found = tree.pop(SWEEP, None)
    if not isinstance(found, dict) or not found:
        rule = "must map fields to lists of values, such as {sae.k: [16, 32]}."
        raise reject(SWEEP, found, rule)
    axes = dict(_flat(found))
    for axis, values in axes.items():
        _check_axis(axis, values)
    if "hook_names" in tree:
        if "hook_name" in axes:
            rule = "the sweep has the axis hook_name. Give the hooks in one of the two places."
            raise reject("hook_names", tree["hook_names"], rule)
        axes = {"hook_name": tree.pop("hook_names"), **axes}
        _check_values("hook_names", axes["hook_name"])
    if SEED in axes:
        if "seeds" in tree:
            rule = "the sweep has the axis seed. Give the seeds in `seeds`, and leave the axis out."
            raise reject("seeds", tree["seeds"], rule)
        tree.pop(SEED, None)
        seeds = axes.pop(SEED)
    else:
        check_compared(tree)
        tree.pop(SEED, None)
        seeds = tree.pop("seeds", [0])
        _check_values("seeds", seeds)
    n = len(seeds)
    for values in axes.values():
        n *= len(values)
    if n > MOST_POINTS:
        rule = f"these axes make {n:,} SAEs; a sweep has at most {MOST_POINTS:,}."
        raise reject(SWEEP, list(found), rule)
    return {**axes, SEED: seeds}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The axes by their full names; ``--set`` writes ``sae: {k: [16]}`` for ``sae.k: [16]``."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check_axis(axis: str, values: object) -> None:
    shown = f"{SWEEP}.{axis}"
    head, _, rest = axis.partition(".")
    if head == "sae":
        classes = [get_sae_training_class(name)[1] for name in ARCHITECTURES]
        known = ["architecture", *dict.fromkeys(f for c in classes for f in init_fields(c))]
        known.remove("device")
        reject_unknown({rest: values}, known, f"{SWEEP}.sae.")
    elif head in EXPERIMENT_KEYS:
        rule = "is no axis: it names no field of the training. Give it beside `sweep`."
        raise reject(shown, values, rule)
    elif head in NOT_FINGERPRINTED or head == "hook_names":
        instead = " Name the axis hook_name." if head == "hook_names" else ""
        raise reject(shown, values, f"is no axis: it does not change what is learned.{instead}")
    else:
        known = [f for f in init_fields(AdaptiveOrthoRunnerConfig) if f not in NOT_FINGERPRINTED]
        known = [f"sae.{axis}", *known] if _is_field_of_sae(axis) else known
        reject_unknown({head: values}, known, f"{SWEEP}.")
    _check_values(shown, values)


def _is_field_of_sae(name: str) -> bool:
    classes = [get_sae_training_class(known)[1] for known in ARCHITECTURES]
    return any(name in init_fields(c) for c in classes)


def _check_values(shown: str, values: object) -> None:
    if not isinstance(values, list):
        raise reject(shown, values, "must be a list of values.")
    if not values:
        raise reject(shown, values, "has no values. Give one or more, or leave the axis out.")
    seen: list[Any] = []
    for value in values:
        if any(_same(value, other) for other in seen):
            raise reject(shown, values, f"has the value {value!r} twice. Leave one of them out.")
        seen.append(value)


def _same(a: object, b: object) -> bool:
    """Whether two values are equal; 1 and 1.0 are, but 1 and true are not."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _is_of_sae(axis: str) -> bool:
    """Whether SAEs that differ on this axis can be trained together."""
    head, _, field = axis.partition(".")
    return head == "sae" and field not in APART


def _product(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


# -------------------------------------------------------------------- points


def _variants(tree: dict[str, Any], axes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The variants of the config; one without a name if it has none."""
    found = tree.pop("variants", None)
    if found is None:
        return {"": {}}
    if not isinstance(found, dict) or not found:
        raise reject("variants", found, "must map variant names to changes of `sae` fields.")
    for name, changes in found.items():
        if changes is not None and not isinstance(changes, dict):
            raise reject(f"variants.{name}", changes, "must be a mapping of `sae` fields.")
        for field, value in (changes or {}).items():
            if field in APART and f"sae.{field}" in axes:
                rule = f"conflicts with the axis sae.{field}. Leave one of the two out."
                raise reject(f"variants.{name}.{field}", value, rule)
    return {name: dict(changes or {}) for name, changes in found.items()}


def _setting(
    tree: dict[str, Any],
    choice: dict[str, Any],
    variants: Mapping[str, dict[str, Any]],
    of_saes: Mapping[str, Sequence[Any]],
    short: Mapping[str, str],
    name: str,
) -> Setting:
    """The SAEs with these values of the other axes."""
    words = ", ".join(f"{axis}={in_words(value)}" for axis, value in choice.items())
    changed: dict[str, dict[str, Any]] = {}
    places: dict[str, tuple[str, dict[str, Any]]] = {}
    for base, changes in variants.items():
        free = {a: v for a, v in of_saes.items() if a.removeprefix("sae.") not in changes}
        for values in _product(free):
            variant = _name(base, values, short)
            if variant in changed:
                other = in_words_of(*places[variant])
                here = in_words_of(base, {**values, **choice})
                rule = f"{other} and {here} would have one name, {variant}. Rename one variant."
                raise reject("variants", list(variants), rule)
            changed[variant] = {**{a.removeprefix("sae."): v for a, v in values.items()}, **changes}
            places[variant] = (base, {**values, **choice})
    seed = choice[SEED]
    full = {**_with_values(tree, choice), "variants": changed, "seeds": [seed]}
    try:
        experiment = build_experiment({**full, "output_path": "unit"}, name)
    except ConfigError as error:
        raise ConfigError(_of_axis(str(error), places, choice, variants)) from error
    full["evals"] = experiment.evals
    points = [
        Point(_digest(experiment, variant), variant, base, seed, values)
        for variant, (base, values) in places.items()
    ]
    return Setting(experiment, full, points, words)


def _of_axis(
    message: str,
    places: Mapping[str, tuple[str, dict[str, Any]]],
    choice: Mapping[str, Any],
    variants: Mapping[str, Mapping[str, Any]],
) -> str:
    """An error about the settings of some SAEs, in the words of the config of the sweep.

    Args:
        message: the error, which may name the variant that was made of a variant and its axes.
        places: the variant of the config, and the values of the axes, of each of them.
        choice: values of the axes that all of them share.
        variants: the changes of each variant of the config.
    """
    found = [name for name in places if re.match(rf"variants\.{re.escape(name)}[.:]", message)]
    if not found:
        for name, (base, values) in places.items():  # the name itself is refused
            if message.startswith(start := f"variants={name!r}: "):
                what = in_words_of(base, values)
                return f"{SWEEP} ({what}): its SAE is named {name}: {message.removeprefix(start)}"
        # The hooks may also be given as `hook_names`, which are no axis of `sweep`.
        if any(message.startswith(f"{axis}=") for axis in choice if axis != "hook_name"):
            return f"{SWEEP}.{message}"
        return f"{SWEEP} ({in_words_of('', choice)}): {message}"
    variant = max(found, key=len)  # k=4.5 begins like k=4
    base, values = places[variant]
    rest = message[len(f"variants.{variant}") :]
    field = re.match(r"\.(\w+)=", rest)
    if field is None:
        return f"{SWEEP} ({in_words_of(base, values)}){rest}"
    axis = f"sae.{field[1]}"
    if field[1] in variants[base]:
        return f"variants.{base}{rest}"
    if axis not in values:
        return f"{SWEEP} ({in_words_of(base, values)}): sae{rest}"
    others = {name: value for name, value in values.items() if name not in (axis, SEED)}
    where = f" This is at {in_words_of('', others)}." if others else ""
    return f"{SWEEP}.sae{rest}{where}"


def in_words_of(base: str, values: Mapping[str, Any]) -> str:
    """The SAE of a variant (empty without variants) with these values of axes, in words."""
    parts = [f"variant {base}"] if base else []
    return ", ".join(parts + [f"{axis}={in_words(value)}" for axis, value in values.items()])


def _with_values(tree: dict[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with these values of fields; ``a.b`` is the field ``b`` of the mapping ``a``."""
    changes: dict[str, Any] = {}
    for axis, value in choice.items():
        if axis == SEED:
            continue
        head, *rest = axis.split(".")
        if not rest:
            changes[head] = deepcopy(value)
            continue
        node = changes.setdefault(head, deepcopy(tree.get(head, {})))
        for part in rest[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise reject(f"{SWEEP}.{axis}", value, f"{head} is no mapping with this field.")
        node[rest[-1]] = deepcopy(value)
    return lay_over(tree, changes)


def _digest(experiment: Experiment, variant: str) -> str:
    """Digest of all settings that decide what an SAE learns."""
    cfg = with_sae(experiment.runner, experiment.variants[variant])
    settings = {**cfg.settings(), SEED: experiment.seeds[0]}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _refuse_equal(settings: Sequence[Setting]) -> None:
    seen: dict[str, str] = {}
    for setting in settings:
        for point in setting.points:
            here = in_words_of(point.base, point.values)
            if point.id in seen:
                rule = f"({seen[point.id]}) and ({here}) are the same SAE. Leave one of them out."
                raise reject(SWEEP, list(point.values), rule)
            seen[point.id] = here


# --------------------------------------------------------------------- names


def _short_names(axes: Sequence[str]) -> dict[str, str]:
    """Names of axes in the names of variants: without ``sae.ortho_`` where that is enough."""
    shorter = {a: a.removeprefix("sae.").removeprefix("ortho_") for a in axes}
    twice = {s for s in shorter.values() if list(shorter.values()).count(s) > 1}
    named = {a: a.removeprefix("sae.") if s in twice else s for a, s in shorter.items()}
    return {axis: name.replace("_", "-") for axis, name in named.items()}


def _name(base: str, values: Mapping[str, Any], short: Mapping[str, str]) -> str:
    parts = [base] if base else []
    parts += [f"{short[axis]}={_in_name(value)}" for axis, value in values.items()]
    return "-".join(parts) or "sae"


def _in_name(value: object) -> str:
    """A value as a part of a name; a long or strange one gets a digest."""
    text = in_words(value).removeprefix("adaptive_ortho_")
    plain = _NOT_IN_NAMES.sub("-", text)
    if len(plain) <= 24 and plain == text.replace("_", "-"):
        return plain
    return f"{plain[:12].strip('-')}.{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def in_words(value: object) -> str:
    """A value of an axis as text."""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True)
