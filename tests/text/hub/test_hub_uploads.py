"""A run arrives on the hub completely or not at all, and plain SAELens loads it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from saelens_adaptive_ortho.checksums import find_damage
from saelens_adaptive_ortho.results import load_results
from tests.finished_run import D_IN, D_SAE, HOOK, SEEDS, VARIANTS, write_run
from tests.text.hub.repositories import PYTHIA, Repositories, run_client
from tests.text.hub.uploads import LOADED

OF_SAE = ("SHA256SUMS", "cfg.json", "sae_weights.safetensors", "sparsity.safetensors")
FILES = {f"seed{s}/{v}/{name}" for s in SEEDS for v in VARIANTS for name in OF_SAE}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), model_name="pythia-70m-deduped")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads") / "out"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repos = Repositories(tmp_path_factory.mktemp("hub"))
    (repos.model(PYTHIA) / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Pythia\n")
    return repos.root


@pytest.fixture(scope="module")
def steps(run: Path, out: Path, repositories: Path) -> dict[str, Any]:
    steps = run_client("uploads.py", repositories, out, str(run))
    assert {name: step["error"] for name, step in steps.items() if step["error"]} == {}
    return steps


def test_every_file_arrives(steps: dict[str, Any]) -> None:
    pushed = steps["push"]["value"]
    assert pushed["status"] == 0, pushed["err"]
    own = {".gitattributes", "README.md", "tradeoff.png", "results.jsonl"}
    assert set(steps["files"]["value"]) == FILES | own
    first, last = pushed["out"].splitlines()[0], pushed["out"].splitlines()[-1]
    assert first.startswith("me/saes: 19 files, ")
    assert "SAEs: baseline, seed 0, 1; adaptive, seed 0, 1." in first
    assert last.endswith("/me/saes")


@pytest.mark.parametrize("sae_id", LOADED)
def test_plain_saelens_loads_it_to_the_bit(
    steps: dict[str, Any], run: Path, out: Path, sae_id: str
) -> None:
    assert steps["plain"]["value"][:-1] == [f"JumpReLUSAE {HOOK} pythia-70m-deduped"] * 2
    here = load_file(run / sae_id / "sae_weights.safetensors")
    back = load_file(out / f"{sae_id.replace('/', '-')}.safetensors")
    assert here.keys() == back.keys()
    assert all(torch.equal(here[name], back[name]) for name in here)


def test_commands_name_an_sae_of_the_repository(steps: dict[str, Any]) -> None:
    assert steps["by command"]["value"] == [D_SAE, D_IN]


def test_what_arrived_is_whole(steps: dict[str, Any], repositories: Path, run: Path) -> None:
    pushed = repositories / "models/me/saes"
    assert [find_damage(pushed / f"seed{s}" / v) for s in SEEDS for v in VARIANTS] == [None] * 4
    assert load_results(pushed) == load_results(run)


def test_card_has_the_licence_of_the_base_model(steps: dict[str, Any], repositories: Path) -> None:
    card = (repositories / "models/me/saes/README.md").read_text()
    front = card.split("---\n")[1]
    assert "license: apache-2.0\n" in front
    assert f"base_model: {PYTHIA}\n" in front


def test_repository_shows_nothing_of_an_upload_that_fails(steps: dict[str, Any]) -> None:
    assert steps["commit fails"]["value"]["status"] == 2
    assert "the hub fails to take the upload" in steps["commit fails"]["value"]["err"]
    assert steps["nothing is there"]["value"] == [".gitattributes"]
    # The next call sends only what the hub does not have yet.
    first, second = (
        len({request for request in steps[name]["requests"] if request.startswith("PUT ")})
        for name in ("commit fails", "push")
    )
    assert (first, second) == (5, 0)  # the weights of four SAEs, and their common sparsity


def test_upload_can_be_repeated(steps: dict[str, Any]) -> None:
    assert steps["again"]["value"]["status"] == 0, steps["again"]["value"]["err"]


def test_private_repository(steps: dict[str, Any], repositories: Path) -> None:
    assert steps["private"]["value"]["status"] == 0, steps["private"]["value"]["err"]
    assert steps["who sees it"]["value"] == ["me/hidden"]
    assert not (repositories / "models/me/hidden/seed1").exists()


def test_own_card_is_replaced_only_when_asked(steps: dict[str, Any], repositories: Path) -> None:
    assert steps["card replaced"]["value"]["status"] == 0, steps["card replaced"]["value"]["err"]
    assert "adaptive-ortho push" in (repositories / "models/me/mine/README.md").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("public already", "--private='me/saes': is public already."),
        ("card of others", "has a model card that this command did not write."),
        ("licence", '"license" must be one of'),
        ("other owner", "the hub refuses the upload"),
        ("stranger", "Use a token that may write to me (`hf auth login`, or HF_TOKEN)"),
        ("expired", "the hub refuses the upload"),
        ("silent", "the hub cannot be reached"),
        ("closed", "the hub cannot be reached"),
    ],
)
def test_refusal_is_explained(steps: dict[str, Any], name: str, message: str) -> None:
    assert steps[name]["value"]["status"] == 2
    err = steps[name]["value"]["err"].strip().splitlines()[-1]
    assert err.startswith("adaptive-ortho: error: ")
    assert message in err
    assert not any("/commit/" in request for request in steps[name]["requests"])
