"""Settings that a user gives, in YAML or on a command line: read strictly, errors name a remedy.

A setting is a field of a dataclass. Its annotation says what it holds, and its bounds stand beside
it, in the annotation (``steps: PositiveInt``, ``share: Share``) or, where SAELens's command line
reads the annotation, in the field's metadata (:func:`bounds`). Pydantic checks them strictly: a
whole number is a fine number, but true is not 1, ``"1"`` is not 1, and NaN and infinity are no
numbers. Rules over several fields are code beside the dataclass.
"""

from __future__ import annotations

import difflib
import io
import json
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from saelens_adaptive_ortho.errors import ConfigError, reject

T = TypeVar("T")

# Set from other fields, or meaningless in a file.
NOT_IN_YAML = {"sae_lens_version", "sae_lens_training_version", "hook_eval", "ortho_forget_rows"}

Share = Annotated[float, Field(ge=0, le=1)]
"""A number in [0, 1]."""

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
LISTED = 8  # of up to so many known names, all are listed


def bounds(
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> dict[str, Any]:
    """Metadata of a field with bounds: at least, above, at most, below."""
    return {"bounds": Field(ge=ge, gt=gt, le=le, lt=lt)}


# -------------------------------------------------------------------- checks


def check_value(name: str, value: object, hint: Any) -> None:
    """Check one value against an annotation.

    Raises:
        ConfigError: naming the setting, its value and the rule it breaks.
    """
    _check(name, value, TypeAdapter(hint, config=STRICT))


def check_values(
    values: Mapping[str, Any], cls: type, prefix: str = "", also: Mapping[str, Any] | None = None
) -> None:
    """Check values against the annotations and bounds of a dataclass's fields of those names.

    Args:
        prefix: of the names in errors; with ``--``, they read like options of a command line.
        also: annotations that replace those of the class, for fields that are not ours.

    Raises:
        ConfigError: naming the setting, its value and the rule it breaks.
    """
    also = also or {}
    for name, value in values.items():
        shown = f"--{name.replace('_', '-')}" if prefix == "--" else prefix + name
        if name in also:
            check_value(shown, value, also[name])
        else:
            _check(shown, value, _adapter(cls, name))


def check_fields(settings: Any, cls: type | None = None, prefix: str = "") -> None:
    """Check every field of a dataclass, for its ``__post_init__``.

    Args:
        cls: a base of its class whose fields alone are checked.

    Raises:
        ConfigError: naming the setting, its value and the rule it breaks.
    """
    cls = cls or type(settings)
    check_values({f.name: getattr(settings, f.name) for f in fields(cls)}, cls, prefix)


def check_one_of(name: str, value: object, known: Collection[str]) -> None:
    """Check that a value is among the names of a table.

    Raises:
        ConfigError: listing the names, with the nearest one.
    """
    if not isinstance(value, str) or value not in known:
        text = value if isinstance(value, str) else ""
        near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise reject(name, value, f"must be one of {', '.join(known)}.{hint}")


def reject_unknown(tree: Mapping[str, Any], known: Collection[str], prefix: str) -> None:
    """Refuse keys that are not known.

    Raises:
        ConfigError: with the nearest known key.
    """
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            if near:
                hint = f"Did you mean {prefix}{near[0]}?"
            elif not known:
                hint = "Nothing is to be set here."
            elif len(known) <= LISTED:
                hint = f"Known: {', '.join(known)}."
            else:
                hint = "See configs/ for what is known."
            raise reject(f"{prefix}{key}", value, f"unknown key. {hint}")


def init_fields(cls: type) -> list[str]:
    """Names of the fields of a dataclass that a user may set."""
    return [
        f.name for f in fields(cls) if f.init and f.name not in NOT_IN_YAML and f.name != "metadata"
    ]


def parse(
    cls: type[T],
    tree: object,
    prefix: str = "",
    also: Mapping[str, Any] | None = None,
    **built: Any,
) -> T:
    """A dataclass of settings from a mapping that a user gave.

    Args:
        prefix: of the names in errors, such as ``sae.``.
        also: annotations that replace those of the class, for fields that are not ours.
        built: fields that are objects already.

    Raises:
        ConfigError: not a mapping, an unknown key (with the nearest known one), a field that is
            missing, or a value that breaks a rule.
    """
    if not isinstance(tree, dict):
        raise reject(prefix.rstrip(".") or "settings", tree, "must be a mapping of settings.")
    known = [name for name in init_fields(cls) if name not in built]
    reject_unknown(tree, known, prefix)
    for f in fields(cls):  # pyright: ignore[reportArgumentType]
        required = f.default is MISSING and f.default_factory is MISSING
        if f.name in known and required and tree.get(f.name) is None:
            raise reject(f"{prefix}{f.name}", None, "must be given.")
    check_values(tree, cls, prefix, also)
    try:
        return cls(**tree, **built)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _check(name: str, value: object, adapter: TypeAdapter[Any]) -> None:
    # The value is checked, never converted: what a user wrote is what files and digests hold.
    try:
        checked = adapter.validate_python(value)
        # Pydantic finds a literal by equality, and True == 1.0 == 1.
        if type(checked) is not int or type(value) is int:
            return
    except ValidationError:
        pass
    schema = adapter.json_schema()
    examples = "".join(f", such as {example}" for example in schema.get("examples", []))
    raise reject(name, value, f"must be {_described(schema)}{examples}.")


@cache
def _adapter(cls: type, name: str) -> TypeAdapter[Any]:
    hint: Any = _hints(cls)[name]
    field = next(f for f in fields(cls) if f.name == name)
    if "bounds" in field.metadata:
        hint = Annotated[hint, field.metadata["bounds"]]
    return TypeAdapter(hint, config=STRICT)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _described(schema: dict[str, Any], many: bool = False) -> str:
    """What a JSON Schema admits, in words: ``a number in [0, 1]``, ``one of a, b``."""
    if "anyOf" in schema:
        return " or ".join(_described(choice, many) for choice in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind == "integer":
        return ("whole numbers" if many else "a whole number") + _whole_bounds(schema)
    if kind == "number":
        return ("numbers" if many else "a number") + _interval(schema)
    if kind == "array":
        least = f"{schema['minItems']} or more " if "minItems" in schema else ""
        items = _described(schema.get("items", {}), many=True)
        return f"{'lists' if many else 'a list'} of {least}{items}"
    if kind == "string":
        return "text" + (" that is not empty" if schema.get("minLength") else "")
    words = {"boolean": "true or false", "null": "null"}
    if kind == "object":
        values = schema.get("additionalProperties")
        of = f" to {_described(values, many=True)}" if isinstance(values, dict) and values else ""
        return ("mappings" if many else "a mapping") + of
    return words.get(str(kind), "values" if many else "a value")


def _whole_bounds(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - 1
    rules = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
    return f" of {' and '.join(rules)}" if rules else ""


def _interval(schema: dict[str, Any]) -> str:
    low, high = "(-inf", "inf)"
    if "minimum" in schema:
        low = f"[{schema['minimum']:g}"
    if "exclusiveMinimum" in schema:
        low = f"({schema['exclusiveMinimum']:g}"
    if "maximum" in schema:
        high = f"{schema['maximum']:g}]"
    if "exclusiveMaximum" in schema:
        high = f"{schema['exclusiveMaximum']:g})"
    return "" if (low, high) == ("(-inf", "inf)") else f" in {low}, {high}"


# ---------------------------------------------------------------------- YAML


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A mapping from YAML 1.2 text: ``off`` is text, ``1e-3`` a number, a date text.

    Raises:
        ConfigError: malformed YAML, a duplicate key, a key that is not text, or not a mapping;
            names ``where`` and the line.
    """
    tree = _load("config", where, text)
    if not isinstance(tree, dict):
        found = "; it holds nothing" if tree is None else ""
        raise reject("config", where, f"must be a mapping of settings{found}.")
    return tree


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """YAML 1.2 text that :func:`parse_yaml` reads back to the same tree of plain values."""
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    yaml.representer.ignore_aliases = lambda *_: True
    stream = io.StringIO()
    yaml.dump(dict(tree), stream)
    return stream.getvalue()


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
    node[last] = _load("--set", override, f"value: {value}")["value"]


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


class _Constructor(SafeConstructor):
    """Constructs what YAML 1.2's core schema has: a date is text there."""


YAML_TAG = "tag:yaml.org,2002:"
_PLAIN = {YAML_TAG + kind for kind in "str int float bool null map seq merge".split()}
_TEXT = {YAML_TAG + kind for kind in "str timestamp value".split()}
for _tag in _TEXT:
    _Constructor.add_constructor(_tag, SafeConstructor.construct_scalar)


def _load(field: str, where: str, text: str) -> Any:
    def refused(line: int | None, problem: str) -> ConfigError:
        at = "" if line is None else f"line {line + 1}: "
        return reject(field, where, f"is not valid YAML: {at}{problem}.")

    try:
        root = _yaml().compose(text)
        for node in _nodes(root):
            if node.tag not in _PLAIN | _TEXT:
                raise refused(node.start_mark.line, f"the tag {node.tag!r} is not known")
            for key in (key for key, _ in node.value) if isinstance(node, MappingNode) else ():
                if key.tag not in _TEXT | {YAML_TAG + "merge"}:
                    scalar = isinstance(key, ScalarNode)
                    problem = f"the key {key.value} is not text; quote it"
                    raise refused(key.start_mark.line, problem if scalar else "a key must be text")
        # Through JSON, so that what an alias repeats is not one object in two places.
        return json.loads(json.dumps(_yaml().load(text)))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise refused(mark and mark.line, str(error.problem or error.context)) from error
    except YAMLError as error:
        raise refused(None, " ".join(str(error).split())) from error
    except (ValueError, KeyError, RecursionError) as error:  # e.g. !!int abc, an alias of itself
        if isinstance(error, ConfigError):
            raise
        raise refused(None, f"{type(error).__name__}: {error}") from error


def _nodes(root: Node | None) -> Iterator[Node]:
    """All nodes of a document, keys included, each once."""
    waiting, seen = [root] if root is not None else [], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif not isinstance(node, ScalarNode):
            waiting += node.value
