"""``make real``: what it fetches, and the comparison that it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from saelens_adaptive_ortho.experiments.experiment import load_experiment

ROOT = Path(__file__).parents[2]
# Notes its arguments; a fetching command makes its folder.
COMMAND = """#!/bin/sh
printf '%s\\n' "$@" --- >> calls
case $1 in fetch-*) mkdir -p "$3" ;; esac
"""
MODEL = ["fetch-model", "smollm2-135m", "runs/real/smollm2-135m"]
TEXT = ["fetch-text", "kjv", "runs/real/text"]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[int, list[list[str]]]]:
    """Run ``make real`` in a folder with a stand-in of the installed command.

    It returns the exit status, and the commands that ran since the last time.
    """
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    command = tmp_path / ".venv" / "bin" / "adaptive-ortho"
    command.parent.mkdir(parents=True)
    command.write_text(COMMAND)
    command.chmod(0o755)
    (tmp_path / ".venv" / ".installed").write_text("")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}

    def run(*variables: str) -> tuple[int, list[list[str]]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        done = subprocess.run(
            ["make", "-f", str(ROOT / "Makefile"), "real", *variables],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
        )
        *parts, _ = calls.read_text().split("---\n")
        return done.returncode, [part.splitlines() for part in parts]

    return run


def test_model_and_text_are_fetched_once(
    make: Callable[..., tuple[int, list[list[str]]]],
) -> None:
    status, (*fetched, compared) = make()
    assert status == 0
    assert sorted(fetched) == [MODEL, TEXT]
    assert compared[:2] == ["compare", "configs/smollm2-135m.yaml"]
    assert make() == (0, [compared])
    experiment = load_experiment(ROOT / compared[1], [*compared[3::2], "sae.d_in=576"])
    shipped = load_experiment("smollm2-135m")
    assert experiment.runner.model_name == MODEL[2]
    assert experiment.runner.corpora() == shipped.runner.corpora()
    assert experiment.runner.output_path == shipped.runner.output_path
    assert {Path(c.path).parent for c in shipped.runner.corpora().values()} == {Path(TEXT[2])}


@pytest.mark.parametrize("near", [[], ["NEAR=c.jsonl"]])
def test_own_texts_replace_all_corpora(
    make: Callable[..., tuple[int, list[list[str]]]], near: list[str]
) -> None:
    status, (fetched, compared) = make("FORGET=a b.jsonl", "RETAIN=demo:retain", *near)
    assert (status, fetched) == (0, MODEL)
    experiment = load_experiment(ROOT / compared[1], [*compared[3::2], "sae.d_in=576"])
    found = {name: (c.path, c.share) for name, c in experiment.runner.corpora().items()}
    own = {"forget": ("a b.jsonl", None), "retain": ("demo:retain", None)}
    assert found == own | ({"near": ("c.jsonl", 0.2)} if near else {})
    assert experiment.runner.output_path == "runs/real/own"


def test_output_can_be_chosen(make: Callable[..., tuple[int, list[list[str]]]]) -> None:
    _, (*_, compared) = make("FORGET=a", "RETAIN=b", "OUT=runs/mine")
    assert "output_path=runs/mine" in compared


@pytest.mark.parametrize("given", ["FORGET=a.jsonl", "RETAIN=a.jsonl", "NEAR=a.jsonl"])
def test_one_text_is_not_enough(
    make: Callable[..., tuple[int, list[list[str]]]], given: str
) -> None:
    assert make(given) == (2, [])
