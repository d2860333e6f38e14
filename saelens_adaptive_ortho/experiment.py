"""One experiment, one strict YAML file: a runner config, and the variants, seeds and evals."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from sae_lens.config import LoggingConfig
from sae_lens.registry import get_sae_training_class

from saelens_adaptive_ortho.architectures import ARCHITECTURES
from saelens_adaptive_ortho.config import ConfigError, reject
from saelens_adaptive_ortho.runner import AdaptiveOrthoRunnerConfig, with_sae

DEFAULT_VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"ortho_mode": "off"},
    "fixed": {"ortho_mode": "fixed"},
    "adaptive": {"ortho_mode": "adaptive"},
}
DEFAULT_EVALS = {"core": {}, "subspace": {}}
EXPERIMENT_KEYS = ("variants", "seeds", "evals")
MERGED_KEYS = ("sae", "logger")  # where a file that extends another changes single fields
# Set from other fields, or meaningless in a file.
NOT_IN_YAML = {"sae_lens_version", "sae_lens_training_version", "hook_eval", "ortho_forget_rows"}


@dataclass
class Experiment:
    """What ``adaptive-ortho compare`` runs.

    Args:
        runner: model, corpora, training and the SAE all variants start from.
        variants: changes to the ``sae`` fields, by variant name.
        seeds: each variant is trained once per seed; variants of a seed share initial weights
            and activation stream.
        evals: settings by evaluation name.
        name: of the experiment (the file's stem).
    """

    runner: AdaptiveOrthoRunnerConfig
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(DEFAULT_VARIANTS))
    seeds: list[int] = field(default_factory=lambda: [0])
    evals: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(DEFAULT_EVALS))
    name: str = "experiment"


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read a YAML file and those it extends, apply ``key=value`` overrides, validate all.

    Raises:
        ConfigError: unreadable file, malformed YAML, unknown key (with the nearest known one),
            wrong type or value.
    """
    path = Path(path)
    tree = _read_tree(path, ())
    for override in overrides or []:
        apply_override(tree, override)
    return build_experiment(tree, path.stem)


def _read_tree(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """A file's settings laid over those of the file it ``extends``.

    ``sae`` and ``logger`` are merged field by field; any other setting is replaced whole (a list
    of variants, or a corpus, is one thing).
    """
    if path.resolve() in extended_by:
        raise reject("extends", str(path), "extends itself.")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise reject("config", str(path), f"cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise reject("config", str(path), "is not UTF-8 text.") from error
    tree = parse_yaml(text, str(path))
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise reject("extends", base, "must name a YAML file, relative to this one.")
    extended = _read_tree(path.parent / base, (*extended_by, path.resolve()))
    for key in MERGED_KEYS:
        if isinstance(tree.get(key), dict) and isinstance(extended.get(key), dict):
            tree[key] = {**extended[key], **tree[key]}
    return {**extended, **tree}


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A mapping from YAML text, with YAML 1.2 scalars: ``off`` is a string, ``1e-3`` a number.

    Raises:
        ConfigError: malformed YAML, a duplicate key, or not a mapping.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise reject("config", where, f"is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise reject("config", where, "must be a mapping of settings.")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set ``a.b=value`` in a tree of mappings; the value is read as YAML.

    Raises:
        ConfigError: no ``=``, or a path through something that is not a mapping.
    """
    key, sep, value = override.partition("=")
    if not sep or not key:
        raise reject("--set", override, "must read key=value, for instance sae.k=16.")
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise reject("--set", override, f"{parent!r} is not a mapping.")
    node[last] = parse_yaml(f"value: {value}", override)["value"]


def eval_settings(names: list[str], overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Settings of the named evaluations, with ``eval.field=value`` overrides.

    Raises:
        ConfigError: an unknown evaluation or field, or a value of the wrong type.
    """
    tree: dict[str, Any] = {name.strip(): {} for name in names}
    for override in overrides:
        if override.partition(".")[0] not in tree:
            raise reject("--set", override, f"must begin with one of {', '.join(tree)} and a dot.")
        apply_override(tree, override)
    return _check_evals(tree)


def build_experiment(tree: dict[str, Any], name: str = "experiment") -> Experiment:
    """Validate a tree of settings and build the experiment.

    Raises:
        ConfigError: naming field, value and remedy.
    """
    tree = dict(tree)
    runner_fields = _init_fields(AdaptiveOrthoRunnerConfig)
    reject_unknown(tree, [*runner_fields, *EXPERIMENT_KEYS], "")
    variants = tree.pop("variants", DEFAULT_VARIANTS)
    seeds = tree.pop("seeds", [0])
    evals = tree.pop("evals", DEFAULT_EVALS)
    runner = _build_runner(tree)
    _check_variants(variants, runner)
    if not isinstance(seeds, list) or not seeds or not all(_is_seed(s) for s in seeds):
        raise reject("seeds", seeds, "must be a list of whole numbers >= 0, such as [0, 1, 2].")
    if len(set(seeds)) != len(seeds):
        raise reject("seeds", seeds, "names a seed twice.")
    return Experiment(
        runner=runner,
        variants={k: dict(v or {}) for k, v in variants.items()},
        seeds=seeds,
        evals=_check_evals(evals),
        name=name,
    )


def _build_runner(tree: dict[str, Any]) -> AdaptiveOrthoRunnerConfig:
    sae = tree.pop("sae", None)
    if not isinstance(sae, dict):
        raise reject("sae", sae, "must be a mapping with at least architecture, d_in and d_sae.")
    sae_cfg = _build_sae(sae)
    logger = tree.pop("logger", {"log_to_wandb": False})
    if not isinstance(logger, dict):
        raise reject("logger", logger, "must be a mapping of SAELens LoggingConfig fields.")
    reject_unknown(logger, _init_fields(LoggingConfig), "logger.")
    for key in ("model_name", "hook_name"):
        if not isinstance(tree.get(key), str) or not tree[key]:
            raise reject(key, tree.get(key), "must be given.")
    if isinstance(tree.get("seqpos_slice"), list):
        tree["seqpos_slice"] = tuple(tree["seqpos_slice"])
    corpora = tree.get("ortho_corpora", {})
    if not isinstance(corpora, dict):
        raise reject("ortho_corpora", corpora, "must map forget and retain to corpora.")
    tree["ortho_corpora"] = corpora
    check_types(tree, AdaptiveOrthoRunnerConfig, "")
    try:
        return AdaptiveOrthoRunnerConfig(
            sae=sae_cfg, logger=LoggingConfig(**{"log_to_wandb": False, **logger}), **tree
        )
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # SAELens's own checks
        raise ConfigError(f"config: SAELens refuses it: {error}") from error


def _build_sae(sae: dict[str, Any]) -> Any:
    sae = dict(sae)
    architecture = sae.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(str(architecture), ARCHITECTURES, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise reject(
            "sae.architecture", architecture, f"must be one of {', '.join(ARCHITECTURES)}.{hint}"
        )
    return construct_sae(architecture, sae, "sae.")


def construct_sae(architecture: str, sae: dict[str, Any], prefix: str) -> Any:
    config_class = get_sae_training_class(architecture)[1]
    reject_unknown(sae, _init_fields(config_class), prefix)
    for key in ("d_in", "d_sae"):
        value = sae.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise reject(f"{prefix}{key}", value, "must be a positive whole number.")
    check_types(sae, config_class, prefix)
    try:
        return config_class(**sae)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{prefix[:-1]}: SAELens refuses it: {error}") from error


def _check_variants(variants: object, runner: AdaptiveOrthoRunnerConfig) -> None:
    if not isinstance(variants, dict) or not variants:
        raise reject("variants", variants, "must map variant names to changes of `sae` fields.")
    for name, changes in variants.items():
        where = f"variants.{name}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.=-]*", name):
            raise reject("variants", name, "a name has letters, digits and .=- only.")
        if not isinstance(changes or {}, dict):
            raise reject(where, changes, "must be a mapping of `sae` fields.")
        changes = changes or {}
        architecture = changes.get("architecture", runner.sae.architecture())
        if architecture not in ARCHITECTURES:
            raise reject(f"{where}.architecture", architecture, f"known: {list(ARCHITECTURES)}.")
        config_class = get_sae_training_class(architecture)[1]
        reject_unknown(changes, ["architecture", *_init_fields(config_class)], f"{where}.")
        check_types(changes, config_class, f"{where}.")
        for shared in ("d_in", "normalize_activations"):
            if shared in changes and changes[shared] != getattr(runner.sae, shared):
                raise reject(
                    f"{where}.{shared}", changes[shared], "variants share one activation stream."
                )
        try:
            with_sae(runner, changes)
        except ConfigError as error:
            raise ConfigError(f"{where}.{error}") from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: SAELens refuses it: {error}") from error


def _check_evals(evals: object) -> dict[str, dict[str, Any]]:
    from saelens_adaptive_ortho.evaluation import EVALS

    if isinstance(evals, list):
        evals = {name: {} for name in evals}
    if not isinstance(evals, dict):
        raise reject("evals", evals, f"must list evaluations; known: {', '.join(EVALS)}.")
    checked: dict[str, dict[str, Any]] = {}
    for name, settings in evals.items():
        if name not in EVALS:
            near = difflib.get_close_matches(str(name), EVALS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise reject("evals", name, f"unknown evaluation; known: {', '.join(EVALS)}.{hint}")
        settings = {} if settings is None else settings
        if not isinstance(settings, dict):
            raise reject(f"evals.{name}", settings, "must be a mapping of its settings.")
        known = {f.name: f for f in fields(EVALS[name].settings)}
        reject_unknown(settings, list(known), f"evals.{name}.")
        check_types(settings, EVALS[name].settings, f"evals.{name}.")
        checked[name] = settings
    return checked


# ----------------------------------------------------------------- strictness


def _init_fields(cls: type) -> list[str]:
    return [
        f.name for f in fields(cls) if f.init and f.name not in NOT_IN_YAML and f.name != "metadata"
    ]


def reject_unknown(tree: dict[str, Any], known: list[str], prefix: str) -> None:
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"Did you mean {prefix}{near[0]}?" if near else "See configs/ for what is known."
            raise reject(f"{prefix}{key}", value, f"unknown key. {hint}")


def check_types(tree: dict[str, Any], cls: type, prefix: str) -> None:
    hints = typing.get_type_hints(cls)
    for key, value in tree.items():
        if key in hints and not _matches(value, hints[key]):
            wanted = str(getattr(hints[key], "__name__", hints[key])).replace("typing.", "")
            raise reject(f"{prefix}{key}", value, f"must be of type {wanted}.")


def _matches(value: Any, hint: Any) -> bool:
    """Whether a YAML value fits a field's annotation; unknown annotations accept anything."""
    origin = get_origin(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin is typing.Literal:
        return value in get_args(hint)
    if origin is typing.Union or type(hint).__name__ == "UnionType":
        return any(_matches(value, h) for h in get_args(hint))
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if origin in (list, tuple, dict) or hint in (list, tuple, dict):
        return isinstance(value, origin or hint)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, typing.cast(type, hint))
    return True


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's booleans and floats, refusing duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text; quote it", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rx) for tag, rx in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|nan))$"
    ),
    list("-+.0123456789"),
)
