"""Seeded damage: values that no setting expects, changes of trees, of texts and of bytes."""

from __future__ import annotations

import copy
import math
from random import Random
from typing import Any

DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]

WEIRD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3.5,
    -0.0,
    1e-320,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    2**31,
    2**63,
    -(2**63),
    2**64,
    10**400,
    "",
    " ",
    "\0",
    "a\0b",
    "\n",
    "nan",
    "1e5",
    "true",
    "null",
    "~",
    "~nobody/x",
    "/",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "../../..",
    "a/../../b",
    "x" * 300,
    "é\u202e\ufeff漢字😀",
    "\ud800",
    "{{7*7}}",
    "%s%n",
    "[0]*?",
    "a=b=c",
    "--help",
    "cuda:99",
    "meta",
    "float99",
    "float16",
    "bos",
    "blocks.99.hook_resid_post",
    "blocks.1.attn.hook_z",
    "demo",
    "demo:nothing",
    [],
    [[]],
    [None],
    [1, "a", None],
    list(range(1000)),
    {},
    {"": ""},
    {"a": {"b": {"c": []}}},
    {"path": 1},
    {"__class__": "x"},
    DEEP,
]


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a tree of dictionaries and lists."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in inside:
        found.append((*at, key))
        if isinstance(value, dict | list):
            found += places(value, (*at, key))
    return found


def changed_tree(draw: Random, tree: Any, keys: list[str]) -> Any:
    """A copy of a tree with one to three changes.

    Args:
        draw: what chooses.
        tree: dictionaries, lists and plain values.
        keys: names of settings that may be added at the top, or anywhere.
    """
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        found = places(tree)
        if not found:
            return tree
        *parents, last = draw.choice(found)
        node = tree
        for key in parents:
            node = node[key]
        match draw.randrange(6):
            case 0 | 1 | 2:
                node[last] = _number_near(draw, node[last])
            case 3:
                del node[last]
            case 4:
                key = draw.choice([*keys, draw.choice(keys)[:-1], "", "é", "x" * 200])
                place = node if isinstance(node, dict) else tree
                if isinstance(place, dict):
                    place[key] = copy.deepcopy(draw.choice(WEIRD))
            case 5:
                node[last] = draw.choice([[node[last]], {str(last): node[last]}, str(node[last])])
    return tree


def _number_near(draw: Random, value: Any) -> Any:
    """Anything; for a number, often one of another size or sign."""
    if type(value) in (int, float) and draw.random() < 0.5:
        factor = draw.choice([0, -1, 0.5, 2, 1000, 1e30, 10**18])
        return value * (factor if abs(value) < 10**100 else -1)
    return copy.deepcopy(draw.choice(WEIRD))


TEXTS = [
    "\0", "\t", "\r", "\r\n", "\n\n", "\ufeff", "\u2028", "\x85", "{", "}", "[", "]", ":", "- ",
    "&a ", "*a", "!!int ", "!!python/object:os.system ", "<<: ", "|\n", '"', "'", "#",
    "%YAML 9.9\n", "---\n",
    "...\n", "null", "NaN", "Infinity", "1" * 5000, "[" * 3000, "{" * 3000, "é", "\ud800",
    "2020-13-45", "0x", "1_0", "!!timestamp x", "!!float x", "? ", "@", "`", "extends: /dev/zero\n",
    "extends: '\\0'\n", "&x [*x]",
]  # fmt: skip


def changed_text(draw: Random, text: str) -> str:
    """A text with one to three pieces put in, taken out, doubled or cut off."""
    for _ in range(draw.choice([1, 1, 2, 3])):
        at = draw.randint(0, len(text))
        until = min(len(text), at + draw.choice([1, 5, 50]))
        match draw.randrange(4):
            case 0 | 1:
                text = text[:at] + draw.choice(TEXTS) + text[at:]
            case 2:
                text = text[:at] + text[until:]
            case 3:
                text = text[:at] + text[at:until] * draw.choice([0, 2, 3]) + text[until:]
    return text if draw.random() < 0.9 else text[: draw.randint(0, len(text))]


ENCODINGS = "utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 latin-1 cp1252 utf-7".split()


def changed_bytes(draw: Random, text: str) -> bytes:
    """A text that is changed, in some encoding, with some damaged bytes."""
    if draw.random() < 0.7:
        text = changed_text(draw, text)
    encoding = "utf-8" if draw.random() < 0.6 else draw.choice(ENCODINGS)
    # Half of a surrogate pair is in no encoding.
    broken = "surrogatepass" if encoding.startswith("utf-") and draw.random() < 0.2 else "replace"
    data = bytearray(text.encode(encoding, "replace" if encoding == "utf-7" else broken))
    for _ in range(draw.choice([0, 0, 0, 1, 5])):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data) if draw.random() < 0.9 else bytes(data[: draw.randint(0, len(data))])
