"""A driver of another package, as docs and ``drivers/contract.py`` describe it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.sweeps.attempts import Attempts
from saelens_adaptive_ortho.sweeps.drivers import GROUP, find_driver
from saelens_adaptive_ortho.sweeps.drivers.contract import Needs
from saelens_adaptive_ortho.sweeps.drivers.local import LocalDriver
from tests.packages import Install

CODE = '''
"""A fleet of ships. All of them are this process, one after the other."""
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.sweeps.drivers.contract import Kind, Phase, State
from saelens_adaptive_ortho.sweeps.working import Kept, do_task

CALLS = []


class Fleet:
    def __init__(self, ships):
        self.ships, self.kept = ships, Kept()

    def capacity(self):
        return len(self.ships)

    def submit(self, task):
        CALLS.append(("submit", task.unit))
        return [task, State(Phase.WAITING)]

    def poll(self, handle):
        task, state = handle
        if not state.ended:
            status = do_task(task, self.kept)
            phase = Phase.FAILED if status else Phase.DONE
            handle[1] = State(phase, status, where=f"ship {self.ships[0]}")
        return handle[1]

    def cancel(self, handle, now=False):
        raise AssertionError("nothing is stopped here")

    def close(self):
        CALLS.append(("close", self.ships))


def open_fleet(argument, needs):
    CALLS.append(("open", argument, needs.device, needs.units))
    if not argument:
        raise reject("--on", "fleet:", "name the ships: fleet:ada,bob")
    return Fleet(argument.split(","))


FLEET = Kind("fleet", "fleet:SHIPS", "ships that are at sea", open_fleet)
OTHER = Kind("navy", "navy", "a kind with another name", open_fleet)
CLASS = Fleet
'''
CPU = Needs("cpu", 1, 1)


@pytest.fixture
def config(sweep_settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(dump_yaml(sweep_settings(tmp_path / "sweep")))
    return path


def test_sweep_is_done_by_the_driver_of_another_package(
    install: Install, config: Path, tmp_path: Path, capsys: Any, no_report: None
) -> None:
    install("ships", CODE, {GROUP: {"fleet": "ships:FLEET"}})
    assert main(["sweep", str(config), "--on", "fleet:ada,bob"]) == 0
    assert "All 2 units are finished." in capsys.readouterr().out
    newest = Attempts(tmp_path / "sweep").newest()
    assert {attempt.ended for attempt in newest.values()} == {"whole"}
    calls = sys.modules["ships"].CALLS
    assert calls[0] == ("open", "ada,bob", "cpu", 2)
    assert sorted(calls[1:-1]) == [("submit", unit) for unit in sorted(newest)]
    assert calls[-1] == ("close", ["ada", "bob"])


def test_help_and_errors_name_the_driver(install: Install, config: Path, capsys: Any) -> None:
    install("ships", CODE, {GROUP: {"fleet": "ships:FLEET"}})
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    assert "fleet:SHIPS" in (out := capsys.readouterr().out)
    assert "ships that are at sea" in out
    with pytest.raises(ConfigError, match=r"Known: local:N .*, fleet \(of another package\)"):
        find_driver("fleat:ada", CPU)
    assert main(["sweep", str(config), "--on", "fleet"]) == 2
    assert "--on='fleet:': name the ships" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("ships_that_sank:FLEET", r"cannot be loaded \(ModuleNotFoundError: .*ships_that_sank"),
        ("ships:SUNK", r"cannot be loaded \(AttributeError: .*SUNK"),
        ("ships:CLASS", "gives a type, not a Kind"),
        ("ships:OTHER", "gives the Kind 'navy'; both names must be equal"),
    ],
)
def test_broken_driver_breaks_only_its_name(
    install: Install, config: Path, tmp_path: Path, capsys: Any, value: str, why: str
) -> None:
    install("ships", CODE, {GROUP: {"fleet": value}})
    with pytest.raises(ConfigError, match=why) as error:
        find_driver("fleet:ada", CPU)
    assert f"the entry point fleet = {value} of ships" in str(error.value)
    assert isinstance(find_driver("local:1", CPU), LocalDriver)
    assert main(["sweep", str(config), "--on", "fleet:ada"]) == 2
    assert "--on='fleet': the entry point" in capsys.readouterr().err
    assert not list((tmp_path / "sweep").glob("*"))
    with pytest.warns(UserWarning, match="fleet"), pytest.raises(SystemExit):
        main(["sweep", "--help"])
    assert "local:N" in capsys.readouterr().out
