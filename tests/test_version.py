"""Other files agree with the version and the dependencies in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

import saelens_adaptive_ortho
from saelens_adaptive_ortho.commands.cli import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]


def test_package_version() -> None:
    # If this fails, the installation is old: run `pip install -e .` again.
    assert saelens_adaptive_ortho.__version__ == VERSION


def test_command_line_says_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"adaptive-ortho {VERSION}\n"


def test_citation_version() -> None:
    assert YAML(typ="safe").load(ROOT / "CITATION.cff")["version"] == VERSION


def test_changelog_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION


def test_lock_matches_dependencies_and_pins() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    (package,) = (p for p in lock["package"] if p["name"] == PROJECT["name"])
    extras = PROJECT["optional-dependencies"].values()
    wanted = map(Requirement, [*PROJECT["dependencies"], *chain(*extras)])
    found = package["metadata"]["requires-dist"]
    remedy = "pyproject.toml has changed: run `make lock`"
    assert sorted((r["name"], str(SpecifierSet(r.get("specifier", "")))) for r in found) == sorted(
        (canonicalize_name(r.name), str(r.specifier)) for r in wanted
    ), remedy
    locked = {p["name"]: p.get("version") for p in lock["package"]}
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert pins.items() <= locked.items(), "constraints.txt has changed: run `make lock`"


def test_lock_uses_only_pypi() -> None:
    hosts = set(re.findall(r"\w+://[^/\"]+", (ROOT / "uv.lock").read_text()))
    assert hosts == {"https://pypi.org", "https://files.pythonhosted.org"}
