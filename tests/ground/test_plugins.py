"""Tables of named objects: built-in and plugin objects, and errors that name broken packages."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from saelens_adaptive_ortho import evaluations
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.plugins import Table
from tests.packages import Install

GROUP = "test_things"


@dataclass
class Thing:
    name: str


OWN = Thing("own")
CODE = """
from tests.ground.test_plugins import Thing
GOOD, NAMESAKE, NO_THING = Thing("good"), Thing("own"), 3
"""


@pytest.fixture
def table() -> Table[Thing]:
    return Table(Thing, GROUP, [OWN])


def refusal(table: Table[Thing], name: object) -> str:
    with pytest.raises(ConfigError) as error:
        table.find("thing", name, also=("off",))
    return str(error.value)


def test_built_in_object_loads_no_plugin(table: Table[Thing], install: Install) -> None:
    install("toys", CODE, {GROUP: {"own": "toys:NAMESAKE", "good": "toys:GOOD"}})
    assert table.find("thing", "own") is OWN
    assert table.names() == ["own", "good"]
    assert "toys" not in sys.modules


def test_plugin_object_is_loaded_once(table: Table[Thing], install: Install) -> None:
    install("toys", CODE, {GROUP: {"good": "toys:GOOD"}})
    found = table.find("thing", "good")
    assert found == Thing("good")
    assert table.find("thing", "good") is found


@pytest.mark.parametrize("name", ["goood", 3, None, True, ["own"]])
def test_unknown_name_is_refused_with_known_ones(
    table: Table[Thing], install: Install, name: object
) -> None:
    install("toys", CODE, {GROUP: {"good": "toys:GOOD"}})
    message = refusal(table, name)
    assert message.startswith(f"thing={name!r}: must be one of off, own, good.")
    assert message.endswith("Did you mean good?") == (name == "goood")


@pytest.mark.parametrize(
    ("entry", "value", "why"),
    [
        ("gone", "toys_that_are_gone:GOOD", r"cannot be loaded \(ModuleNotFoundError: .*gone'\)"),
        ("gone", "toys:GONE", r"cannot be loaded \(AttributeError: .*GONE'\)"),
        ("number", "toys:NO_THING", "gives a int, not a Thing"),
        ("better", "toys:GOOD", "gives the Thing 'good'; both names must be equal"),
    ],
)
def test_broken_package_breaks_only_its_names(
    table: Table[Thing], install: Install, entry: str, value: str, why: str
) -> None:
    install("toys", CODE, {GROUP: {entry: value, "good": "toys:GOOD"}})
    with pytest.raises(ConfigError, match=why) as error:
        table.find("thing", entry)
    where = f"thing={entry!r}: the entry point {entry} = {value} of toys (group {GROUP}) "
    assert str(error.value).startswith(where)
    assert str(error.value).endswith("Repair or uninstall that package.")
    assert table.names() == ["own", entry, "good"]
    assert table.find("thing", "own") is OWN
    assert table.find("thing", "good") == Thing("good")


def test_failing_import_names_the_module(table: Table[Thing], install: Install) -> None:
    install("toys", "raise OSError('no such toy')", {GROUP: {"good": "toys:GOOD"}})
    assert "good = toys:GOOD of toys" in refusal(table, "good")
    assert "(OSError: no such toy)" in refusal(table, "good")


def test_every_skips_broken_objects_with_warning(table: Table[Thing], install: Install) -> None:
    entries = {"own": "toys:NAMESAKE", "good": "toys:GOOD", "gone": "toys:GONE"}
    install("toys", CODE, {GROUP: entries})
    with pytest.warns(UserWarning, match=r"gone = toys:GONE of toys .*GONE") as warned:
        found = table.every()
    assert ["own = toys:NAMESAKE of toys has the name" in str(w.message) for w in warned] == [
        True,
        False,
    ]
    assert found == {"own": OWN, "good": Thing("good")}
    assert list(found) == ["own", "good"]
    found.clear()
    assert table.every() == {"own": OWN, "good": Thing("good")}
    table.forget()
    with pytest.warns(UserWarning, match="gone"):
        table.every()


def test_plugin_evaluation_is_found_by_name(install: Install) -> None:
    code = (
        "from saelens_adaptive_ortho.evaluations import Evaluation\n"
        "TOY = Evaluation('toy', 'Toy', module='toys')\n"
    )
    install("toys", code, {evaluations.GROUP: {"toy": "toys:TOY"}})
    assert evaluations.evaluation("toy").title == "Toy"
    assert list(evaluations.every()) == [*(e.name for e in evaluations.BUILT_IN), "toy"]
    assert "toy" in evaluations.runnable()


def test_name_offered_by_two_packages_is_refused(table: Table[Thing], install: Install) -> None:
    install("toys", CODE, {GROUP: {"good": "toys:GOOD"}})
    install("games", CODE, {GROUP: {"good": "games:GOOD"}})
    message = refusal(table, "good")
    assert "offered more than once" in message
    assert "good = toys:GOOD of toys" in message
    assert "good = games:GOOD of games" in message


def test_a_package_that_exits_at_import_is_left_out(install: Install) -> None:
    install("exits", "raise SystemExit(3)\n", {"test_things": {"exits": "exits:THING"}})
    table = Table(Thing, "test_things", [Thing("own")])
    with pytest.warns(UserWarning, match="SystemExit: 3"):
        assert set(table.every()) == {"own"}
