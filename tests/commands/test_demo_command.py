"""``adaptive-ortho demo``: `compare demo`, without what is not installed."""

from __future__ import annotations

import importlib.util

import pytest

from saelens_adaptive_ortho.commands import compare
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.commands.compare import CompareOptions
from saelens_adaptive_ortho.experiments.experiment import load_experiment


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[CompareOptions]:
    """What `compare` was asked to do."""
    asked: list[CompareOptions] = []
    monkeypatch.setattr(compare, "run", lambda options: asked.append(options) or 0)
    return asked


def installed(monkeypatch: pytest.MonkeyPatch, saebench: bool) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: saebench or None if name == "sae_bench" else find(name, *a),
    )


def test_demo_is_the_comparison_of_the_demo(
    asked: list[CompareOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, saebench=True)
    assert main(["demo", "--fresh", "--set", "seeds=[3]"]) == 0
    assert asked == [CompareOptions(config="demo", set=["seeds=[3]"], fresh=True)]


def test_evaluations_that_cannot_run_are_left_out(
    asked: list[CompareOptions], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(monkeypatch, saebench=False)
    whole = load_experiment("demo")
    assert main(["demo"]) == 0
    left = load_experiment(asked[0].config, asked[0].set)
    assert list(left.evals) == ["subspace", "unlearning"]
    assert left.evals["unlearning"] == whole.evals["unlearning"]
    assert (left.runner, left.variants, left.seeds) == (whole.runner, whole.variants, whole.seeds)
    out = capsys.readouterr().out
    assert "Left out: core, sparse_probing. Each needs the package 'sae_bench': pip" in out
