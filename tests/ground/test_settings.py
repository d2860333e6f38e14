"""Checks of settings, and reading and writing of YAML."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.settings import (
    Share,
    apply_override,
    bounds,
    check_fields,
    check_one_of,
    check_value,
    check_values,
    dump_yaml,
    parse,
    parse_yaml,
    reject_unknown,
)

NAN, INF = math.nan, math.inf

# --------------------------------------------------------------------- values

KINDS: dict[str, tuple[Any, str, list[Any], list[Any]]] = {
    # kind: (annotation, rule, bad values, good values)
    "number": (float, "a number", [NAN, INF, -INF, True, "1", None, [1]], [0, -1, 2.5]),
    "share": (Share, "a number in [0, 1]", [-1e-9, 1.001, NAN, True, "0", None], [0, 1, 0.5]),
    "positive number": (PositiveFloat, "a number in (0, inf)", [0, -1, INF, False], [1e-9, 3]),
    "half-open": (
        Annotated[float, Field(gt=0, le=0.5)],
        "a number in (0, 0.5]",
        [0, 0.51],
        [1e-9, 0.5],
    ),
    "at most": (Annotated[float, Field(lt=2)], "a number in (-inf, 2)", [2, -INF], [-9, 1.9]),
    "whole": (int, "a whole number", [1.0, True, False, "1", None, NAN], [-3, 0, 3]),
    "count": (PositiveInt, "a whole number of at least 1", [0, -1, 1.0, True, None], [1, 10**30]),
    "from zero": (NonNegativeInt, "a whole number of at least 0", [-1, 0.0, False], [0]),
    "between": (
        Annotated[int, Field(ge=4, lt=9)],
        "a whole number of at least 4 and at most 8",
        [3, 9],
        [4, 8],
    ),
    "optional count": (
        Annotated[int | None, Field(ge=1)],
        "a whole number of at least 1 or null",
        [0, 1.0, True, "none"],
        [None, 1],
    ),
    "optional share": (
        Annotated[float | None, Field(ge=0, le=1)],
        "a number in [0, 1] or null",
        [2, NAN, True],
        [None, 0, 1],
    ),
    "names": (Literal["a", "b"], "one of a, b", ["c", "A", None, True, ["a"]], ["a", "b"]),
    "numbers listed": (Literal[1, 2, 4], "one of 1, 2, 4", [3, 1.0, True, "1"], [1, 4]),
    "switch": (bool, "true or false", [0, 1, "yes", "true", None], [True, False]),
    "text": (str, "text", [1, None, True, ["a"]], ["", "a"]),
    "text that is there": (
        Annotated[str, Field(min_length=1)],
        "text that is not empty",
        ["", None],
        ["a"],
    ),
    "list": (list[int], "a list of whole numbers", [1, [1.5], ["1"], (1,), [True]], [[], [1, 2]]),
    "filled list": (
        Annotated[list[NonNegativeInt], Field(min_length=1, examples=[[0, 1]])],
        "a list of 1 or more whole numbers of at least 0, such as [0, 1]",
        [[], [-1], 3, None],
        [[0], [3, 0]],
    ),
    "switch or list": (
        bool | list[int],
        "true or false or a list of whole numbers",
        [1, "no", ["a"]],
        [True, [1]],
    ),
    "mapping": (dict[str, Any], "a mapping", [1, [], None], [{}, {"a": 1}]),
    "mapping to lists": (
        dict[str, list[str]],
        "a mapping to lists of text",
        [{"a": "b"}, {"a": [1]}],
        [{"a": ["b"]}],
    ),
    "anything": (Any, "", [], [None, object(), 3]),
}


@pytest.mark.parametrize(
    ("hint", "rule", "bad"),
    [
        pytest.param(hint, rule, bad, id=f"{kind}: {bad!r}")
        for kind, (hint, rule, wrong, _) in KINDS.items()
        for bad in wrong
    ],
)
def test_bad_value_is_refused_in_common_form(hint: Any, rule: str, bad: Any) -> None:
    with pytest.raises(ConfigError) as error:
        check_value("field", bad, hint)
    assert str(error.value) == f"field={bad!r}: must be {rule}."


@pytest.mark.parametrize(
    ("hint", "good"),
    [
        pytest.param(hint, good, id=f"{kind}: {type(good).__name__}")
        for kind, (hint, _, _, right) in KINDS.items()
        for good in right
    ],
)
def test_a_good_value_passes(hint: Any, good: Any) -> None:
    check_value("field", good, hint)


def test_numpy_float_is_a_number_but_not_whole() -> None:
    check_value("field", np.float64(0.5), Share)
    with pytest.raises(ConfigError, match="whole number"):
        check_value("field", np.float64(1), int)


def test_name_outside_table_is_refused_with_nearest() -> None:
    table = {"topk": 1, "gated": 2}
    check_one_of("base", "topk", table)
    with pytest.raises(ConfigError) as error:
        check_one_of("base", "topq", table)
    assert str(error.value) == "base='topq': must be one of topk, gated. Did you mean 'topk'?"
    for bad in ("zzz", None, True, ["topk"], {}):
        with pytest.raises(ConfigError, match=r"must be one of topk, gated\.$"):
            check_one_of("base", bad, table)


@pytest.mark.parametrize(
    ("key", "known", "hint"),
    [
        ("lerning", ["learning", "steps"], "Did you mean a.learning?"),
        ("zzz", ["learning", "steps"], "Known: learning, steps."),
        ("zzz", [], "There are no settings here."),
        ("zzz", list("abcdefghi"), "`adaptive-ortho config copy demo` writes an example."),
    ],
)
def test_unknown_key_is_refused_with_nearest(key: str, known: list[str], hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        reject_unknown({**dict.fromkeys(known, 1), key: 3}, known, "a.")
    assert str(error.value) == f"a.{key}=3: unknown key. {hint}"


# ----------------------------------------------------------------- dataclasses


@dataclass
class Stock:
    """Represents a config of another library."""

    width: int
    rate: float = 1.0


@dataclass
class Own(Stock):
    share: float = field(default=0.5, metadata=bounds(ge=0, le=1))
    limit: int | None = field(default=None, metadata=bounds(ge=1))
    steps: PositiveInt = 3
    batch_size: Annotated[int, Field(ge=2)] = 2
    widths: list[int] = field(default_factory=list)
    derived: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_fields(self, Own)
        if self.steps > 5 and self.share == 0:
            raise ConfigError("steps=6: contradicts share.")


def test_mapping_becomes_settings_with_defaults() -> None:
    assert parse(Own, {"width": 3, "share": 0}) == Own(width=3, share=0)
    assert parse(Own, {"share": 1}, width=4) == Own(width=4, share=1)


def test_values_are_not_converted() -> None:
    assert type(parse(Own, {"width": 3, "share": 1}).share) is int


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"width": 3, "share": 2}, "own.share=2: must be a number in [0, 1]."),
        ({"width": 3, "limit": 0}, "own.limit=0: must be a whole number of at least 1 or null."),
        ({"width": 3, "steps": 0}, "own.steps=0: must be a whole number of at least 1."),
        ({"width": 3, "widths": ["a"]}, "own.widths=['a']: must be a list of whole numbers."),
        ({"width": "3"}, "own.width='3': must be a whole number."),
        ({}, "own.width=None: must be given."),
        ({"width": None}, "own.width=None: must be given."),
        ({"with": 3}, "own.with=3: unknown key. Did you mean own.width?"),
        ({"width": 4, "derived": 1}, "own.derived=1: unknown key."),
        ({"width": 4, "steps": 6, "share": 0}, "own.steps=6: contradicts share."),
        (["width"], "own=['width']: must be a mapping of settings."),
        (None, "own=None: must be a mapping of settings."),
    ],
)
def test_mapping_that_breaks_a_rule_is_refused(tree: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        parse(Own, tree, "own.")


def test_also_gives_bounds_to_foreign_fields() -> None:
    also = {"width": Annotated[int, Field(ge=4)]}
    assert parse(Own, {"width": 4}, "own.", also).width == 4
    for bad in (3, "4", True):
        with pytest.raises(ConfigError, match=r"^own\.width=.*: .* of at least 4\.$"):
            parse(Own, {"width": bad}, "own.", also)


def test_directly_built_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"^share=-1: must be a number in \[0, 1\]\.$"):
        Own(width=3, share=-1)
    with pytest.raises(ConfigError, match=r"^rate=nan: must be a number\.$"):
        Own(width=3, rate=NAN)


def test_command_line_settings_are_named_as_options() -> None:
    with pytest.raises(ConfigError, match=r"^--batch-size=1: must be a whole number"):
        check_values({"batch_size": 1}, Own, "--")


# ----------------------------------------------------------------------- YAML

SCALARS: dict[str, Any] = {
    **{text: text for text in ("off", "on", "yes", "no", "Off", "YES", "y", "n", "e3", "1:30")},
    **{"true": True, "True": True, "false": False, "False": False},
    **{"null": None, "~": None, "": None, "'null'": "null"},
    **{"1e-3": 1e-3, "1E3": 1e3, ".5": 0.5, "-.5": -0.5, "1.": 1.0, "-2.5e+1": -25.0},
    **{"1_048_576": 1_048_576, "010": 10, "0o10": 8, "0x1F": 31, "+1": 1, "7": 7},
    **{".inf": INF, "-.inf": -INF, "'1e-3'": "1e-3", '"7"': "7"},
    **{"2024-01-02": "2024-01-02", "2024-01-02 10:00:00": "2024-01-02 10:00:00", "=": "="},
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(f"a: {text}\n", "file.yaml")["a"]
    assert read == value
    assert type(read) is type(value)


def test_nan_is_read_as_nan() -> None:
    assert math.isnan(parse_yaml("a: .nan", "file.yaml")["a"])


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a: &x 1\nb: *x\n", {"a": 1, "b": 1}),
        ("a: &x {k: 1}\nb:\n  <<: *x\n  m: 2\n", {"a": {"k": 1}, "b": {"k": 1, "m": 2}}),
        ("a: &x {k: 1}\nb: {<<: *x, k: 2}\n", {"a": {"k": 1}, "b": {"k": 2}}),
        ("\ufeffa: 1\n", {"a": 1}),
        ("a: 1\r\nb:\r\n  - 2\r\n", {"a": 1, "b": [2]}),
        ("# words\n---\na: ü 😀\n...\n", {"a": "ü 😀"}),
        ("off: 1\n'1': 2\n", {"off": 1, "1": 2}),
        ("{}", {}),
    ],
)
def test_other_yaml_features_are_read(text: str, tree: dict[str, Any]) -> None:
    assert parse_yaml(text, "file.yaml") == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 'line 3: found duplicate key "a"'),
        ("sae: {k: 1, d_sae: 2,\n  k: 3}\n", 'line 2: found duplicate key "k"'),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", "line 2: the tag .*python/object"),
        ("a: !!python/name:os.system\n", "line 1: the tag .*python/name"),
        ("a: !mine 3\n", "line 1: the tag '!mine' is not known"),
        ("a: !!set {b, c}\n", "line 1: the tag .*set' is not known"),
        ("a: !!binary aGk=\n", "line 1: the tag .*binary' is not known"),
        ("a: !!int abc\n", "is not valid YAML: .*'abc'"),
        ("a: [1, 2\n", "is not valid YAML: line 2: expected ',' or ']'"),
        ("a: b: c\n", "is not valid YAML: line 1: mapping values are not allowed here"),
        ("a: 1\nb:\n\tc: 2\n", r"line 3: found character '\\t' that cannot start any token"),
        ("a: *b\n", "line 1: found undefined alias 'b'"),
        ("a: &a [*a]\n", "is not valid YAML: .*[Cc]ircular"),
        ("a: 1\n---\nb: 2\n", "line 2: but found another document"),
        ("a: \x07\n", "is not valid YAML: unacceptable character #x0007"),
        ("a: " + "[" * 5000, "is too long or nested too deeply: .*100 brackets"),
        ("a: " + "{" * 101 + "}" * 101, "nested too deeply"),
        ("a: " + "[" * 100 + "b", "is not valid YAML: "),
        ("# " + "x" * 1_000_000, "is too long"),
        ("- a\n- b\n", r"must be a mapping of settings\.$"),
        ("just words", r"must be a mapping of settings\.$"),
        ("", "must be a mapping of settings; it holds nothing"),
        ("# words\n", "must be a mapping of settings; it holds nothing"),
        ("a: 1\n? [1, 2]\n: 3\n", "line 2: a key must be text"),
        ("? {a: 1}\n: 3\n", "line 1: a key must be text"),
        ("sae:\n  1: 2\n", "line 2: the key 1 is not text; quote it"),
        ("a: [{true: 2}]\n", "line 1: the key true is not text; quote it"),
        ("null: 2\n", "line 1: the key null is not text; quote it"),
    ],
)
def test_bad_yaml_is_refused_with_file_and_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^config='dir/file.yaml': .*{message}"):
        parse_yaml(text, "dir/file.yaml")


def test_alias_values_are_copied() -> None:
    tree = parse_yaml("a: &x {k: [1]}\nb: *x\n", "file.yaml")
    apply_override(tree, "a.k=2")
    assert tree == {"a": {"k": 2}, "b": {"k": [1]}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("k", "--set='k': must read key=value"),
        ("a.b.c=3", "--set='a.b.c=3': 'b' is not a mapping."),
        ("a=[", "--set='a=[': is not valid YAML"),
        ("a={b: 1, b: 2}", 'found duplicate key "b"'),
    ],
)
def test_unreadable_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        apply_override({"a": {"b": 1}}, override)


# Any text without control characters and without line breaks other than "\n".
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]) | st.just("\n"))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(TEXT, PLAIN, max_size=4))
def test_yaml_round_trip(tree: dict[str, Any]) -> None:
    assert parse_yaml(dump_yaml(tree), "file.yaml") == tree


def test_dump_keeps_order_with_one_line_per_setting() -> None:
    assert dump_yaml({"b": 1, "a": {"mode": "off", "lr": 1e-5}, "seeds": [0, 1]}) == (
        "b: 1\na:\n  mode: off\n  lr: 1e-05\nseeds:\n- 0\n- 1\n"
    )


def test_dump_writes_no_aliases() -> None:
    shared = {"k": 1}
    assert "&" not in dump_yaml({"a": shared, "b": shared})


def test_configs_of_old_run_folders_are_read() -> None:
    """PyYAML wrote them, and PyYAML follows YAML 1.1."""
    text = (
        "mode: 'off'\n'yes': 'no'\nlr: 1.0e-05\nbig: 1.0e+20\ninf: .inf\ndate: '2024-01-02'\n"
        "text: 'a: b #'\nnumber: '7'\nnone: null\nempty: {}\nlist:\n- []\n- - 1\n"
    )
    assert parse_yaml(text, "config.yaml") == {
        **{"mode": "off", "yes": "no", "lr": 1e-5, "big": 1e20, "inf": INF, "date": "2024-01-02"},
        **{"text": "a: b #", "number": "7", "none": None, "empty": {}, "list": [[], [1]]},
    }


def test_all_repository_yaml_files_are_read() -> None:
    root = Path(__file__).parents[2]
    paths = [p for top in ("configs", "evals") for p in (root / top).rglob("*.yaml")]
    assert len(paths) > 20
    for path in paths:
        assert parse_yaml(path.read_text(encoding="utf-8"), str(path))


def test_aliases_that_grow_are_refused() -> None:
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    with pytest.raises(ConfigError, match="with its aliases it has more than 1,000,000 values"):
        parse_yaml("\n".join(lines), "bomb.yaml")
    assert parse_yaml("a: &a [1, 2]\nb: *a", "x.yaml") == {"a": [1, 2], "b": [1, 2]}
