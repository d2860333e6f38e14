"""Strict reading of the settings that a user gives in YAML or on a command line.

A setting is a field of a dataclass. Its annotation says what it holds. Its bounds are in the
annotation (``steps: PositiveInt``, ``share: Share``). If SAELens's command line reads the
annotation, the bounds are in the field's metadata instead (:func:`bounds`). Pydantic checks both
strictly: a whole number is allowed where a number is expected, but true is not 1, ``"1"`` is not
1, and NaN and infinity are not numbers. Rules over several fields are code in the dataclass's
module.
"""

from __future__ import annotations

import difflib
import io
import json
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from saelens_adaptive_ortho.errors import ConfigError, reject

T = TypeVar("T")

# Fields that are computed from other fields or have no meaning in a file.
NOT_IN_YAML = {"sae_lens_version", "sae_lens_training_version", "hook_eval", "ortho_forget_rows"}

Share = Annotated[float, Field(ge=0, le=1)]
"""A number in [0, 1]."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed of torch's generators."""

BenchSeed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed of SAEBench, which also goes to NumPy's generator."""

Dtype = Literal[
    "float32",
    "float64",
    "bfloat16",
    "float16",
    "torch.float32",
    "torch.float64",
    "torch.bfloat16",
    "torch.float16",
]
"""The name of a dtype of weights and activations."""

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
LONGEST = 1_000_000  # characters of YAML, in a file or on the command line
DEEPEST = 100  # brackets of YAML in each other
LISTED = 8  # an error lists all known names if there are at most this many


def bounds(
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> dict[str, Any]:
    """Metadata of a field with bounds: at least ge, above gt, at most le, below lt."""
    return {"bounds": Field(ge=ge, gt=gt, le=le, lt=lt)}


# -------------------------------------------------------------------- checks


def check_value(name: str, value: object, hint: Any) -> None:
    """Check one value against an annotation.

    Raises:
        ConfigError: a value breaks a rule. The message names the setting, value and rule.
    """
    _check(name, value, TypeAdapter(hint, config=STRICT))


def check_values(
    values: Mapping[str, Any], cls: type, prefix: str = "", also: Mapping[str, Any] | None = None
) -> None:
    """Check values against the annotations and bounds of the dataclass fields with these names.

    Args:
        prefix: prefix of the names in errors; ``--`` shows them as command line options.
        also: annotations that replace those of the class, for fields of another library.

    Raises:
        ConfigError: a value breaks a rule. The message names the setting, value and rule.
    """
    also = also or {}
    for name, value in values.items():
        shown = f"--{name.replace('_', '-')}" if prefix == "--" else prefix + name
        if name in also:
            check_value(shown, value, also[name])
        else:
            _check(shown, value, _adapter(cls, name))


def check_fields(settings: Any, cls: type | None = None, prefix: str = "") -> None:
    """Check every field of a dataclass; meant for its ``__post_init__``.

    Args:
        cls: a base class; only its fields are checked. By default all fields are checked.

    Raises:
        ConfigError: a value breaks a rule. The message names the setting, value and rule.
    """
    cls = cls or type(settings)
    check_values({f.name: getattr(settings, f.name) for f in fields(cls)}, cls, prefix)


def check_one_of(name: str, value: object, known: Collection[str]) -> None:
    """Check that a value is one of the names of a table.

    Raises:
        ConfigError: it is not. The message lists the names and the nearest one.
    """
    if not isinstance(value, str) or value not in known:
        text = value if isinstance(value, str) else ""
        near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise reject(name, value, f"must be one of {', '.join(known)}.{hint}")


def reject_unknown(
    tree: Mapping[str, Any], known: Collection[str], prefix: str, remedy: str = ""
) -> None:
    """Refuse unknown keys.

    Args:
        remedy: a sentence that says where the known keys are listed.

    Raises:
        ConfigError: a key is unknown. The message names the nearest known key.
    """
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            if near:
                hint = f"Did you mean {prefix}{near[0]}?"
            elif not known:
                hint = "There are no settings here."
            elif len(known) <= LISTED:
                hint = f"Known: {', '.join(known)}."
            else:
                hint = "" if remedy else "`adaptive-ortho config copy demo` writes an example."
            rule = " ".join(part for part in ("unknown key.", hint, remedy) if part)
            raise reject(f"{prefix}{key}", value, rule)


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
    """Build a dataclass of settings from a mapping that a user gave.

    Args:
        prefix: prefix of the names in errors, such as ``sae.``.
        also: annotations that replace those of the class, for fields of another library.
        built: fields whose values are already built objects.

    Raises:
        ConfigError: the value is not a mapping, a key is unknown, a field is missing, or a value
            breaks a rule.
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
    # The value is checked but never converted, so files and digests hold what the user wrote.
    try:
        checked = adapter.validate_python(value)
        # Pydantic compares literals by equality, and True == 1.0 == 1.
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
    """Describe the values that a JSON Schema allows: ``a number in [0, 1]``, ``one of a, b``."""
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
    """Read a mapping from YAML 1.2 text: ``off`` is text, ``1e-3`` is a number, a date is text.

    Raises:
        ConfigError: the YAML is malformed, a key is duplicate or not text, or the text is not a
            mapping. The message names ``where`` and the line.
    """
    tree = _load("config", where, text)
    if not isinstance(tree, dict):
        found = "; it holds nothing" if tree is None else ""
        raise reject("config", where, f"must be a mapping of settings{found}.")
    return tree


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """Write YAML 1.2 text that :func:`parse_yaml` reads back to the same tree."""
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    yaml.representer.ignore_aliases = lambda *_: True
    stream = io.StringIO()
    yaml.dump(dict(tree), stream)
    return stream.getvalue()


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set ``a.b=value`` in a tree of mappings. The value is read as YAML.

    Raises:
        ConfigError: there is no ``=``, or a parent in the path is not a mapping.
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
    """Constructs the types of YAML 1.2's core schema, where a date is text."""


YAML_TAG = "tag:yaml.org,2002:"
_PLAIN = {YAML_TAG + kind for kind in "str int float bool null map seq merge".split()}
_TEXT = {YAML_TAG + kind for kind in "str timestamp value".split()}
for _tag in _TEXT:
    _Constructor.add_constructor(_tag, SafeConstructor.construct_scalar)


def _load(field: str, where: str, text: str) -> Any:
    def refused(line: int | None, problem: str) -> ConfigError:
        at = "" if line is None else f"line {line + 1}: "
        return reject(field, where, f"is not valid YAML: {at}{problem}.")

    # The time that YAML takes grows with the square of the depth.
    if len(text) > LONGEST or _depth(text) > DEEPEST:
        rule = f"at most {LONGEST:,} characters and {DEEPEST} brackets in each other are read"
        raise reject(field, f"{where[:100]}", f"is too long or nested too deeply: {rule}.")
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
        found = _yaml().load(text)
        if _size(found, {}) > LONGEST:
            raise refused(None, f"with its aliases it has more than {LONGEST:,} values")
        # The JSON round trip copies the values of aliases, so that no object is in two places.
        return json.loads(json.dumps(found))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise refused(mark and mark.line, str(error.problem or error.context)) from error
    except YAMLError as error:
        raise refused(None, " ".join(str(error).split())) from error
    except (
        ValueError,
        KeyError,
        RecursionError,
    ) as error:  # !!int abc, or an alias of itself
        if isinstance(error, ConfigError):
            raise
        raise refused(None, f"{type(error).__name__}: {error}") from error


def _size(value: Any, known: dict[int, int]) -> int:
    """The number of values, where what several aliases name counts several times."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = 0  # an alias of itself; the copy then fails
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(one, known) for one in inside)
    return known[id(value)]


def _depth(text: str) -> int:
    """The largest number of brackets that are open at the same time."""
    deepest = depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def _nodes(root: Node | None) -> Iterator[Node]:
    """All nodes of a document, including keys, each once."""
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
