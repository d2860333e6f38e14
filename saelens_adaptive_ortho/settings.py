"""Settings that a user gives, in YAML or on a command line: read strictly, errors name a remedy."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from dataclasses import fields
from typing import Any, get_args, get_origin

import yaml

from saelens_adaptive_ortho.errors import reject

# Set from other fields, or meaningless in a file.
NOT_IN_YAML = {"sae_lens_version", "sae_lens_training_version", "hook_eval", "ortho_forget_rows"}


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


# ----------------------------------------------------------------- strictness


def init_fields(cls: type) -> list[str]:
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
