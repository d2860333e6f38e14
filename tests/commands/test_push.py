"""``adaptive-ortho push``: what would be uploaded, and what is refused before anything is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from saelens_adaptive_ortho.checksums import find_damage, write_sums
from saelens_adaptive_ortho.commands import pushing
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.results import load_results
from tests.finished_run import write_run

FILES = ["SHA256SUMS", "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"]


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "get_token", lambda: None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def dry(run: Path, *arguments: str) -> Path:
    """The folder of a dry run."""
    target = run.parent / "dry"
    assert main(["push", str(run), "me/saes", "--dry-run", str(target), *arguments]) == 0
    return target


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["push", *map(str, arguments)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# ------------------------------------------------------------------- what is uploaded


def test_dry_run_writes_what_would_be_uploaded(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dry(run)
    saes = [f"seed{seed}/{variant}" for seed in (0, 1) for variant in ("adaptive", "baseline")]
    expected = [f"{sae}/{name}" for sae in saes for name in FILES]
    assert names(folder) == sorted([*expected, "README.md", "tradeoff.png"])
    size = sum((folder / name).stat().st_size for name in names(folder))
    first, last = capsys.readouterr().out.splitlines()
    assert first == (
        f"me/saes: 18 files, {pushing.megabytes(size)}. SAEs: baseline, seed 0, 1; adaptive, "
        "seed 0, 1. Beside them: tradeoff.png, README.md."
    )
    assert last.endswith("this would be uploaded. Nothing was.")
    for sae in saes:
        assert find_damage(folder / sae) is None
        for name in FILES[1:]:
            assert (folder / sae / name).read_bytes() == (run / sae / name).read_bytes()
        assert isinstance(SAE.load_from_disk(folder / sae), SAE)


def test_chosen_variants_and_seeds(run: Path) -> None:
    folder = dry(run, "--variants", "adaptive", "--seeds", "1", "--with-results")
    of_sae = [f"seed1/adaptive/{name}" for name in FILES]
    assert names(folder) == sorted([*of_sae, "README.md", "results.jsonl", "tradeoff.png"])
    assert load_results(folder) == load_results(run)
    assert 'SAE.from_pretrained("me/saes", "seed1/adaptive")' in (folder / "README.md").read_text()


def test_settings_name_no_folder_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = write_run(
        tmp_path / "run",
        model_name=str(tmp_path / "models" / "mine"),
        dataset_path={"forget": "/data/secret/bio.jsonl", "retain": "~/wiki.jsonl"},
        model_from_pretrained_kwargs={"token": "hf_abc", "center_writing_weights": False},
    )
    folder = dry(run, "--base-model", "some/model", "--license", "apache-2.0", "--with-results")
    cfg = json.loads((folder / "seed0/adaptive/cfg.json").read_text())["metadata"]
    assert cfg["model_name"] == "some/model"
    assert cfg["dataset_path"] == {"forget": "bio.jsonl", "retain": "wiki.jsonl"}
    assert cfg["model_from_pretrained_kwargs"] == {"center_writing_weights": False}
    for name in names(folder):
        content = (folder / name).read_bytes()
        for hidden in (b"hf_abc", str(tmp_path).encode(), b"/data/", b"somebody"):
            assert hidden not in content, name
    assert find_damage(folder / "seed0/adaptive") is None
    weights = load_file(run / "seed0/adaptive/sae_weights.safetensors")
    loaded = SAE.load_from_disk(folder / "seed0/adaptive").state_dict()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)


def test_run_without_sums_is_uploaded_with_sums(run: Path) -> None:
    for file in run.glob("seed*/*/SHA256SUMS"):  # a run of an earlier version
        file.unlink()
    folder = dry(run)
    weights = folder / "seed0/adaptive/sae_weights.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert f"{digest}  {weights.name}\n" in (weights.parent / "SHA256SUMS").read_text()


# ---------------------------------------------------------------------- the model card


def test_card(run: Path) -> None:
    card = ModelCard.load(dry(run) / "README.md")
    data: Any = card.data
    assert (data.library_name, data.license, data.base_model) == ("saelens", "mit", None)
    assert {"saelens", "sparse-autoencoder"} <= set(data.tags)
    text = card.text
    assert "![Explained variance against unlearning, a point per SAE](tradeoff.png)" in text
    assert "| explained variance, pooled ↑ | 0.90050 ± 0.00071 |" in text
    assert "**Verdict.** Against baseline over 2 paired seeds" in text
    assert "| `seed1/adaptive` | adaptive | jumprelu | 1 | 128 |" in text
    assert "architecture `adaptive_ortho_batchtopk`; training_tokens `4096`; lr `0.001`" in text
    assert "| `ortho_mode` | `off` | `adaptive` |" in text
    assert "adaptive-ortho unlearn me/saes:seed0/adaptive --model demo:model" in text
    assert "It is no guarantee of safety." in text


def test_card_without_a_trade_off_has_no_figure(run: Path) -> None:
    for file in (run / "results").glob("*unlearning*"):
        file.unlink()
    folder = dry(run)
    assert "tradeoff.png" not in names(folder)
    assert "tradeoff" not in (folder / "README.md").read_text()


def test_licence_is_read_from_the_card_of_a_local_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: gemma\n---\n# Model\n")
    folder = dry(write_run(tmp_path / "run", model_name=str(model)))
    front = (folder / "README.md").read_text().split("---\n")[1]
    assert "license: other\nlicense_name: gemma\n" in front
    assert "base_model" not in front


def test_name_of_a_local_model_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry(write_run(tmp_path / "run", model_name="/models/mine"))
    out = capsys.readouterr().out
    assert out.startswith("The language model is '/models/mine', which others do not have: --base")
    assert "activations of `mine` at" in (tmp_path / "dry" / "README.md").read_text()


def test_short_name_of_a_model_becomes_its_hub_name() -> None:
    assert pushing._hub_name("pythia-70m-deduped") == "EleutherAI/pythia-70m-deduped"
    assert pushing._hub_name("google/gemma-2-2b") == "google/gemma-2-2b"
    for local in ("demo:model", "/models/mine", "~/mine", "a/b/c", ""):
        assert pushing._hub_name(local) == ""


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_damaged_sae_is_refused(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    file = run / "seed1/adaptive" / name
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    message = refused(capsys, run, "me/saes", "--dry-run", run.parent / "dry")
    assert str(file) in message
    assert "its SHA-256 differs from SHA256SUMS" in message
    assert not (run.parent / "dry").exists()


def test_missing_weights_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("SHA256SUMS", "sae_weights.safetensors"):
        (run / "seed0/baseline" / name).unlink()
    message = refused(capsys, run, "me/saes", "--dry-run", run.parent / "dry")
    assert "seed0/baseline/sae_weights.safetensors': is missing" in message


def test_architecture_that_plain_saelens_does_not_know_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "seed0/baseline/cfg.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architecture": "mine"}))
    write_sums(file.parent)
    message = refused(capsys, run, "me/saes", "--dry-run", run.parent / "dry")
    assert "names no architecture that SAELens can load ('mine')" in message


def test_token_in_a_text_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", sequence_separator_token="hf_" + "a1B2" * 8)
    target = tmp_path / "dry"
    message = refused(capsys, run, "me/saes", "--dry-run", target)
    assert "cfg.json': holds what looks like a token of the hub" in message
    monkeypatch.setattr(pushing, "get_token", lambda: "pooled")  # a word of the results
    run = write_run(tmp_path / "second")
    assert "looks like a token" in refused(capsys, run, "me/saes", "--dry-run", target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["saes"], "USER/REPO='saes': must read owner/name"),
        (["me/my saes"], "USER/REPO='me/my saes': is no name of a repository"),
        (["me/saes", "--base-model", "mine"], "--base-model='mine': must read owner/name"),
        (["me/saes", "--variants", "fixed"], "no SAE of 'fixed'; it has baseline, adaptive."),
        (["me/saes", "--seeds", "0,7"], "no SAE of '7'; it has 0, 1."),
        (["me/saes"], "needs a token of the hub that may write. Log in with `hf auth login`"),
    ],
)
def test_bad_options_are_refused_first(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, run, *arguments)


def test_offline_mode_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, run, "me/saes")


def test_used_folder_of_a_dry_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, run, "me/saes", "--dry-run", run)
    assert "is not empty. Name a new folder" in message


def test_folder_that_is_no_run_is_explained(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "no such folder" in refused(capsys, tmp_path / "none", "me/saes")
    assert "is one SAE" in refused(capsys, run / "seed0/adaptive", "me/saes")
    assert "Push each to a repository of its own: run." in refused(capsys, tmp_path, "me/saes")
    (tmp_path / "empty").mkdir()
    assert "holds no finished SAE" in refused(capsys, tmp_path / "empty", "me/saes")


def test_run_without_results_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (run / "results").iterdir():
        file.unlink()
    assert "holds no results; run compare first" in refused(capsys, run, "me/saes")


def test_weights_of_an_unfinished_file_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that were replaced after the export do not match the sums."""
    file = run / "seed0/adaptive/sae_weights.safetensors"
    save_file({name: value * 2 for name, value in load_file(file).items()}, file)
    message = refused(capsys, run, "me/saes", "--dry-run", run.parent / "dry")
    assert "SHA-256 differs" in message
