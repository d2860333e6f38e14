"""The program ``adaptive-ortho`` in a process of its own loads SAELens only when it needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from saelens_adaptive_ortho.commands.cli import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "sae_lens", "transformer_lens", "transformers", "matplotlib", "numpy")
# Runs the program on several command lines, and prints which heavy packages it has loaded.
SCRIPT = """
import contextlib, io, json, sys
from adaptive_ortho_command import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        assert not main(arguments)
    assert out.getvalue()
print(json.dumps([name for name in json.loads(sys.argv[2]) if name in sys.modules]))
"""


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_loads_neither_torch_nor_saelens() -> None:
    lines = [["--help"], ["--version"]]
    for command in COMMANDS:
        below = [[each.name] for each in command.commands] or [[]]
        lines += [[command.name, *rest, "--help"] for rest in below]
    lines = [line for line in lines if line[0] != "sae-lens"]  # SAELens writes its help
    assert json.loads(run(SCRIPT, json.dumps(lines), json.dumps(HEAVY))) == []


def test_commands_that_read_settings_alone_do_not_load_saelens() -> None:
    lines = [["config", "list"], ["evaluations", "core"]]
    assert json.loads(run(SCRIPT, json.dumps(lines), json.dumps(HEAVY[:2]))) == []


def test_other_commands_know_the_architectures() -> None:
    script = """
import contextlib, sys
from adaptive_ortho_command import main
import saelens_adaptive_ortho
assert "sae_lens" not in sys.modules
assert main(["check", "demo", "--offline"]) == 0
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY as registry
assert set(saelens_adaptive_ortho.ARCHITECTURES) <= set(registry)
for name in saelens_adaptive_ortho.__all__:
    getattr(saelens_adaptive_ortho, name)
"""
    assert "settings are valid" in run(script)


def test_importing_the_package_registers_at_once() -> None:
    script = """
import saelens_adaptive_ortho
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY as registry
print("adaptive_ortho_batchtopk" in registry)
"""
    assert run(script).split() == ["True"]
