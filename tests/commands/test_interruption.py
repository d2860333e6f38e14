"""A signal during ``compare`` and ``eval``: finished work stays, and the same command continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.judging import running
from saelens_adaptive_ortho.results import load_results

TWO = {"fixed": {"ortho_mode": "fixed"}, "adaptive": {}}
NAMES = {f"{name}__seed0__{kind}.json" for name in TWO for kind in ("training", "subspace")}


@pytest.fixture
def config(write_config: Callable[..., Path]) -> str:
    return str(write_config(variants=TWO, evals={"subspace": {"n_contexts": 8}}))


def results(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (root / "results").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_in_an_evaluation_keeps_the_others(
    config: str,
    no_report: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    run = running.run_evaluation

    def interrupted(name: str, context: Any, settings: dict[str, Any]) -> Any:
        outcome = run(name, context, settings)
        if context.variant == "adaptive":
            os.kill(os.getpid(), number)
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(running, "run_evaluation", interrupted)
        assert main(["compare", config]) == 128 + number
    message = f"adaptive-ortho: interrupted by {number.name}. The same command continues."
    assert message in capsys.readouterr().err
    root = tmp_path / "run"
    before = results(root)
    assert set(before) == NAMES - {"adaptive__seed0__subspace.json"}
    assert not list(root.glob(".lock*"))
    assert main(["compare", config]) == 0
    out = capsys.readouterr().out
    assert "every variant is trained already" in out
    assert out.count("evaluating") == 1
    after = results(root)
    assert set(after) == NAMES
    assert all(after[name] == content for name, content in before.items())
    assert all(r.ok for r in load_results(root))


COMMAND = """
import os, signal, sys
from saelens_adaptive_ortho.commands import cli
from saelens_adaptive_ortho.training import lockstep

log = lockstep.LockstepTrainer._log

def tell(trainer, *args):
    log(trainer, *args)
    if trainer.state.n_training_steps == 4:
        print("training", flush=True)
        sys.stdin.read()  # until the signal has been sent

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started these tests
lockstep.LockstepTrainer._log = tell
sys.exit(cli.main(["compare", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_process_exits_with_the_status_of_the_signal(
    config: str, no_report: None, tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, config],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any(line == "training\n" for line in process.stdout)
        # A second process in the same folder has to wait.
        assert main(["compare", config]) == 2
        process.send_signal(number)
        _, error = process.communicate()
    assert process.returncode == 128 + number
    assert f"{number.name}: stopped at step 4 of 24; saved " in error
    assert "Traceback" not in error
    assert main(["compare", config]) == 0
