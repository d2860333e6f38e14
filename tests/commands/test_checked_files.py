"""What commands notice before they use finished work: other weights of the model, damage."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelens_adaptive_ortho.checksums import SUMS, find_damage, write_sums
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.comparison import RECORD, TRAINING, WEIGHTS
from saelens_adaptive_ortho.judging.subjects import Subject
from saelens_adaptive_ortho.results import Result, load_result
from saelens_adaptive_ortho.training import lockstep
from saelens_adaptive_ortho.training.lockstep import list_checkpoints
from tests.damages import damages

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def finished(
    settings: Callable[..., dict[str, Any]], tiny: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a model and a finished run of one SAE. Tests must not change it."""
    from saelens_adaptive_ortho.settings import dump_yaml

    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny.model, folder / "model")
    tree = settings(variants={"adaptive": {}}, seeds=[0], evals={"subspace": {"n_contexts": 4}})
    (folder / "experiment.yaml").write_text(dump_yaml(tree))
    assert compare(folder) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder, which a test may change."""
    return shutil.copytree(finished, tmp_path / "copy")


def compare(folder: Path, *options: str) -> int:
    # Relative paths, so that a copied run names the same model.
    named = ("--set", "output_path=run", "--set", "model_name=./model")
    with contextlib.chdir(folder):
        return main(["compare", "experiment.yaml", *named, *options])


def change_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["gpt_neox.embed_in.weight"][5] *= 1.5
    save_file(weights, model / "model.safetensors", {"format": "pt"})


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(_: object) -> NoReturn:
        raise AssertionError("training began")

    monkeypatch.setattr(lockstep.LockstepTrainer, "begin", begin)


# ------------------------------------------------------------------- weights of the model


@pytest.mark.usefixtures("no_training")
def test_finished_run_with_other_weights_of_the_model_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_weights(folder / "model")
    before = {p: p.read_bytes() for p in (folder / "run").rglob("*.json")}
    assert compare(folder) == 2
    message = capsys.readouterr().err
    assert "model_name='./model': the weights of this model changed" in message
    assert "adaptive of seed 0" in message
    assert "choose another output_path" in message
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.usefixtures("no_training")
def test_record_without_a_digest_of_the_weights_is_accepted(folder: Path) -> None:
    file = folder / "run" / "seed0" / "adaptive" / RECORD
    record = json.loads(file.read_text())
    assert len(record.pop(WEIGHTS)) == 64
    file.write_text(json.dumps(record))
    (file.parent / SUMS).unlink()
    change_weights(folder / "model")
    assert compare(folder, "--set", "evals=[]") == 0


def test_checkpoint_of_other_weights_is_not_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run with the new weights is the one that never saw the old ones."""
    options = ("--set", "n_checkpoints=1", "--set", "seeds=[1]", "--set", "evals=[]")
    with monkeypatch.context() as patch:
        patch.setattr(lockstep.LockstepTrainer, "finish", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compare(folder, *options)
    assert len(list_checkpoints(folder / "run" / "seed1" / "checkpoints")) == 1
    change_weights(folder / "model")
    capsys.readouterr()
    assert compare(folder, *options) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Not resuming" in said
    assert "made with other weights of the language model" in said
    resumed = folder / "run" / "seed1" / "adaptive" / "sae_weights.safetensors"
    clean = ("--set", "output_path=clean")
    assert compare(folder, *options, *clean) == 0
    other = folder / "clean" / "seed1" / "adaptive" / "sae_weights.safetensors"
    assert resumed.read_bytes() == other.read_bytes()


# ------------------------------------------------------------------------------ flipped bits


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_every_flipped_bit_of_an_sae_is_found(folder: Path) -> None:
    sae = folder / "run" / "seed0" / "adaptive"
    assert find_damage(sae) is None
    files = [f for f in sae.iterdir() if f.is_file()]
    assert {f.name for f in files} >= {SUMS, RECORD, "cfg.json", "sae_weights.safetensors"}
    for file in files:
        n_bits = 8 * file.stat().st_size
        for bit in range(0, n_bits, 1 if file.name == SUMS else n_bits // 50):
            flip(file, bit)
            assert find_damage(sae) is not None, (file.name, bit)
            flip(file, bit)
    (sae / "README.md").write_text("mine")  # other files may be added
    assert find_damage(sae) is None


def test_sha256sum_reads_the_sums(folder: Path) -> None:
    sae = folder / "run" / "seed0" / "adaptive"
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("needs sha256sum")
    command = [program, "-c", "--strict", SUMS]
    assert subprocess.run(command, cwd=sae, check=False, capture_output=True).returncode == 0
    flip(sae / "sae_weights.safetensors", 9000)
    assert subprocess.run(command, cwd=sae, check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json", RECORD, SUMS])
def test_sae_with_a_flipped_bit_is_trained_again(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    sae = folder / "run" / "seed0" / "adaptive"
    whole = {f.name: f.read_bytes() for f in sae.iterdir()}
    flip(sae / name, 8 * 200 + 1)
    assert compare(folder, "--set", "evals=[]") == 0
    assert "is damaged and is trained again" in " ".join(capsys.readouterr().out.split())
    assert {f.name: f.read_bytes() for f in sae.iterdir()} == whole


def test_sae_given_by_path_is_checked(folder: Path) -> None:
    sae = folder / "run" / "seed0" / "adaptive"
    flip(sae / "cfg.json", 8 * 20)
    with pytest.warns(UserWarning, match=r"cfg\.json is not as it was written"):
        Subject.parse(str(sae))
    flip(sae / "cfg.json", 8 * 20)
    flip(sae / "sae_weights.safetensors", 9000)
    with pytest.raises(ConfigError, match=r"SAE=.*sae_weights\.safetensors'.*is damaged"):
        Subject.parse(str(sae))
    (sae / SUMS).unlink()
    assert Subject.parse(str(sae)).path == sae.resolve()


@pytest.mark.usefixtures("no_training")
def test_flipped_bit_of_the_tokenised_text_is_found(folder: Path) -> None:
    (file,) = (folder / "run" / "cache").glob("forget-*.safetensors")
    tokens, n_bits = load_file(file), 8 * file.stat().st_size
    for bit in (8 * 40, n_bits // 2, n_bits - 9):
        flip(file, bit)
        with pytest.warns(UserWarning, match=r"forget-.* is damaged .*tokenised again"):
            assert compare(folder, "--set", "evals=[]") == 0
        assert all(torch.equal(load_file(file)[name], tokens[name]) for name in tokens)


# -------------------------------------------------------------------- results of the training

NO_EVALS = ("--set", "evals=[]")


def without_times(result: Result) -> dict[str, Any]:
    found = result.to_json()
    found["metrics"] = {k: v for k, v in found["metrics"].items() if "seconds" not in k}
    return {**found, "seconds": None}


@pytest.mark.usefixtures("no_training")
def test_damaged_result_of_a_training_is_made_again_from_the_record(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "run" / "results" / "adaptive__seed0__training.json"
    whole, text = load_result(file), file.read_text()
    assert whole.metrics["train_seconds"] is not None
    assert whole.details["history"]
    for damage in (*damages(file).values(), file.unlink):
        damage()
        assert compare(folder, *NO_EVALS) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"{file.name} is made again from {RECORD} of the SAE, without its times" in said
        assert without_times(load_result(file)) == without_times(whole)
        assert not any("seconds" in name for name in load_result(file).metrics)
        file.write_text(text)
    assert compare(folder, *NO_EVALS) == 0
    assert "is made again" not in capsys.readouterr().out
    assert file.read_text() == text


@pytest.mark.usefixtures("no_training")
def test_damaged_result_of_a_training_without_a_copy_is_refused_with_a_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "run" / "results" / "adaptive__seed0__training.json"
    record = folder / "run" / "seed0" / "adaptive" / RECORD
    saved = json.loads(record.read_text())
    del saved[TRAINING]  # as in earlier versions
    record.write_text(json.dumps(saved))
    write_sums(record.parent)
    flip(file, 8 * 300)
    assert compare(folder) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("adaptive-ortho: error: ")
    assert f"{file.name}: " in error
    assert "delete this file and rerun compare. The SAE is of an earlier version" in error
    assert "if you delete run/seed0/adaptive too, the SAE is trained again" in error
    file.unlink()
    assert compare(folder, *NO_EVALS) == 0
    assert not file.exists()


# --------------------------------------------------------------------- litter in the cache


@pytest.mark.usefixtures("no_training")
def test_what_a_killed_evaluation_left_in_the_cache_is_removed(folder: Path) -> None:
    cache = folder / "run" / "cache"
    before = sorted(cache.rglob("*"))
    scratch = cache / f"adaptive-ortho-{'a' * 32}"
    for place in (scratch, cache / "unlearning"):
        place.mkdir()
    (scratch / "results.json").touch()
    (cache / "unlearning" / f".known-0.json.{'a' * 32}.tmp").touch()
    assert compare(folder, *NO_EVALS) == 0
    assert sorted(cache.rglob("*")) == sorted([*before, cache / "unlearning"])


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("name", "is_folder"),
    [
        ("results", False),
        ("results/sae_bench", False),
        ("results/adaptive__seed0__training.json", True),
        ("results/summary.json", True),
        ("seed0", False),
        ("seed0/adaptive", False),
        ("cache", False),
        ("config.yaml", True),
        ("report.html", True),
    ],
)
def test_what_is_in_the_way_of_a_file_of_the_run_is_refused_before_training(
    tmp_path: Path,
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    name: str,
    is_folder: bool,
) -> None:
    path = tmp_path / "run" / name
    config = write_config(variants={"adaptive": {}}, evals={"subspace": {"n_contexts": 4}})
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_folder:
        path.mkdir()
    else:
        path.write_text("mine")
    assert main(["compare", str(config)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"{path} is no {'regular file' if is_folder else 'folder'}" in message
    assert "Move it away, or choose another output_path." in message
    assert path.exists()


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("name", "value"), [("settings", []), ("fingerprint", 3)])
def test_edited_record_is_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, value: object
) -> None:
    sae = folder / "run" / "seed0" / "adaptive"
    record = json.loads((sae / RECORD).read_text())
    (sae / RECORD).write_text(json.dumps({**record, name: value}))
    (sae / SUMS).unlink()
    assert compare(folder) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"adaptive/{RECORD} has a {name!r} that no run has written. Restore" in message


def test_damaged_results_of_two_saes_are_made_again(folder: Path) -> None:
    both = ("--set", "variants={adaptive: {}, other: {ortho_mode: off}}")
    assert compare(folder, *both) == 0
    files = [folder / f"run/results/{name}__seed0__subspace.json" for name in ("adaptive", "other")]
    whole = [load_result(file).metrics for file in files]
    for file in files:
        file.write_text(file.read_text()[:-30])
    assert compare(folder, *both) == 0
    assert [load_result(file).metrics for file in files] == whole
