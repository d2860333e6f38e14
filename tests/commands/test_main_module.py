"""The command line as a module."""

import subprocess
import sys


def test_the_package_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "saelens_adaptive_ortho", "config", "list"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "demo" in done.stdout
