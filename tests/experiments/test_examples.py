"""A comparison makes examples of text once, with the first SAE of ``adaptive``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho import examples
from saelens_adaptive_ortho.experiments.comparison import Comparison
from saelens_adaptive_ortho.experiments.experiment import build_experiment
from saelens_adaptive_ortho.judging.unlearning import examples as making
from saelens_adaptive_ortho.results import load_results


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_compare_makes_examples_once(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {
        "n_select_contexts": 8,
        "n_choose_contexts": 4,
        "n_contexts": 4,
        "n_reference_contexts": 4,
        "counts": [4],
        "specificities": [1.01],
        "ranks": [2],
        "references": False,
        "gate": "token",
        "replicates": 5,
    }
    tree = settings(
        variants={"baseline": {"ortho_mode": "off"}, "adaptive": {}},
        seeds=[0],
        evals={"unlearning": quick},
        output_path=str(tmp_path / "run"),
    )
    calls: list[str] = []
    make = making.make_examples

    def counted(context: Any, *rest: Any) -> Any:
        calls.append(context.variant)
        return make(context, *rest)

    monkeypatch.setattr("saelens_adaptive_ortho.experiments.comparison.make_examples", counted)
    comparison = Comparison(build_experiment(tree), say=lambda _: None)
    comparison.run()
    assert calls == ["adaptive"]
    results = tmp_path / "run" / "results"
    found = examples.read(results)
    assert found is not None
    assert (found.variant, found.seed) == ("adaptive", 0)
    assert found.examples or found.reason
    assert {r.eval for r in load_results(results)} == {"training", "unlearning"}
    before = (results / examples.FILE).read_bytes()
    comparison.write_examples()
    assert calls == ["adaptive"]
    # Examples that a user made for another SAE of the run are kept, those of a lost SAE are not.
    digest = comparison._context("baseline", 0).sae_digest
    for kept, variant in ((digest, "baseline"), ("other", "baseline"), (digest, "lost")):
        other = examples.Examples(variant=variant, seed=0, sae_digest=kept, reason="none")
        examples.write(results, other)
        comparison.write_examples()
        same = (kept, variant) == (digest, "baseline")
        assert examples.read(results) == (other if same else found)
    assert calls == ["adaptive"] * 3
    assert (results / examples.FILE).read_bytes() == before
    comparison.clear()  # as --fresh does
    assert not (results / examples.FILE).exists()
    comparison.write_examples()  # there is no result now
    assert not (results / examples.FILE).exists()
