"""The command line as a module."""

import os
import subprocess
import sys

import pytest

from saelens_adaptive_ortho.commands import cli


def test_the_package_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "saelens_adaptive_ortho", "config", "list"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "demo" in done.stdout


def test_large_pages_are_asked_for_unless_the_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.LARGE_PAGES, "0")
    assert cli.main(["config", "list"]) == 0
    assert os.environ[cli.LARGE_PAGES] == "0"
    monkeypatch.delenv(cli.LARGE_PAGES)
    assert cli.main(["config", "list"]) == 0
    assert os.environ[cli.LARGE_PAGES] == "1"
