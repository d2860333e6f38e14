"""Everything that an experiment downloads arrives, with real names and libraries."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from saelens_adaptive_ortho.demo import FORGET_CORPUS, RETAIN_CORPUS
from tests.text.hub.repositories import D_IN, D_SAE, GATED, HOOK, Repositories, run_client


@pytest.fixture(scope="module")
def steps(repositories: Repositories, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("downloads") / "out"
    return run_client("downloads.py", repositories.root, out)


@pytest.fixture
def step(steps: dict[str, Any], request: pytest.FixtureRequest) -> Any:
    """The return value of the step that the test names with :func:`of`."""
    step = steps[request.param]
    assert step["error"] is None, step["error"]
    return step["value"]


def of(name: str) -> Any:
    return pytest.mark.parametrize("step", [name], indirect=True, ids=[""])


def first(corpus: Path, n: int) -> list[str]:
    return [json.loads(line)["text"] for line in corpus.read_text().splitlines()[:n]]


@of("model")
def test_pythia_loads_by_its_transformer_lens_name(step: Any) -> None:
    assert step == {"layers": 4, "width": D_IN, "vocabulary": 705, "as_local": True}


@of("unlisted")
def test_model_that_transformer_lens_does_not_list_loads_by_its_bridge(step: Any) -> None:
    assert step == {"class": "TransformerBridge", "width": D_IN, "as_local": True}


@of("sae")
def test_registered_sae_loads(step: Any, repositories: Repositories) -> None:
    folder = repositories.root / "models/ctigges/pythia-70m-deduped__res-sm_processed/3-res-sm"
    assert step == {
        "hook_name": HOOK,
        "model_name": "pythia-70m-deduped",
        "shape": [D_SAE, D_IN],
        "first": load_file(folder / "sae_weights.safetensors")["W_dec"][0, 0].item(),
    }


@of("corpora")
def test_corpora_are_read_whole_and_in_order(step: Any) -> None:
    assert step == {
        GATED: first(FORGET_CORPUS, 1500),
        "cais/wmdp-corpora": first(FORGET_CORPUS, 300),
        "wikitext-103-raw-v1": first(RETAIN_CORPUS, 1500),
        "wikitext-2-raw-v1": first(RETAIN_CORPUS, 50),
    }


@of("evaluate")
def test_registered_sae_is_evaluated_on_hub_corpora(step: Any) -> None:
    assert step["status"] == 0
    (result,) = step["results"]
    assert (result["eval"], result["status"]) == ("core", "ok")
    for domain in ("forget", "retain", "pooled"):
        assert math.isfinite(result["metrics"][f"{domain}/ce_loss_score"])


@of("core")
def test_sae_bench_core_streams_its_data_set(step: Any) -> None:
    assert math.isfinite(step["ce_loss_score"])
    # The loss shows that this is the trained model, not a random one.
    assert step["ce_loss_without_sae"] < 0.6 * math.log(705)


@of("probing")
def test_sae_bench_sparse_probing_reads_its_data_set(step: Any) -> None:
    assert step["llm"]["llm_test_accuracy"] > 0.5
    assert 0 < step["sae"]["sae_test_accuracy"] <= 1


@of("questions")
def test_wmdp_and_mmlu_questions_are_read(step: Any) -> None:
    subjects = {"cais/wmdp": "biology", "cais/mmlu": "history"}
    for repo, subject in subjects.items():
        choices = ["cave", "valley", "marsh", "forest"]
        question = f"Question 1 of {subject}?"
        assert step[repo] == {"question": question, "choices": choices, "answer": 1}


@of("sae_lens")
def test_readme_example_trains(step: Any) -> None:
    assert step == {"architecture": "jumprelu"}


@of("check")
def test_pythia_experiment_passes_its_check(step: Any) -> None:
    assert step == 0


def test_stand_in_received_the_requests(steps: dict[str, Any]) -> None:
    asked = "\n".join(line for step in steps.values() for line in step["requests"])
    for name in ("EleutherAI/pythia-70m-deduped", f"datasets/{GATED}", "datasets/cais/mmlu"):
        assert f"/{name}/resolve/" in asked


@pytest.mark.slow
def test_pythia_experiment_writes_its_report(repositories: Repositories, tmp_path: Path) -> None:
    step = run_client("downloads.py", repositories.root, tmp_path / "out", "compare")["compare"]
    assert step["error"] is None, step["error"]
    failed = [r for r in step["value"]["results"] if r["status"] != "ok"]
    assert step["value"]["status"] == 0, failed
    found = {(r["variant"], r["eval"], r["status"]) for r in step["value"]["results"]}
    variants = ("baseline", "fixed", "adaptive")
    assert found >= {(v, e, "ok") for v in variants for e in ("core", "subspace", "unlearning")}
    assert (tmp_path / "out/work/run/report.html").is_file()
