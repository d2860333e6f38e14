"""The version stands in pyproject.toml; everything else agrees with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import saelens_adaptive_ortho

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_package_says_its_version() -> None:
    # Another one here means an old installation: `pip install -e .` again.
    assert saelens_adaptive_ortho.__version__ == VERSION


def test_the_citation_names_the_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION


def test_the_newest_entry_of_the_changelog_is_of_the_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION
