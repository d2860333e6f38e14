"""``init`` writes an experiment that ``check`` accepts and ``compare`` can run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from saelens_adaptive_ortho.commands import init
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.experiment import load_experiment
from saelens_adaptive_ortho.settings import parse_yaml


@pytest.fixture
def arguments(tiny: Any) -> list[str]:
    texts = ["--forget", str(tiny.forget), "--retain", str(tiny.retain)]
    return ["--model", str(tiny.model), *texts, "--device", "cpu"]


def written(path: Path) -> dict[str, Any]:
    return parse_yaml(path.read_text(), str(path))


def test_the_experiment_is_valid_and_says_what_to_do_next(
    arguments: list[str], tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my own.yaml"
    assert main(["init", str(path), *arguments, "--near", str(tiny.retain), "--layer", "0"]) == 0
    said = capsys.readouterr().out
    for command in ("check", "plan", "compare"):
        assert f"adaptive-ortho {command} '{path}'" in said
    tree = written(path)
    assert tree["hook_name"] == "blocks.0.hook_resid_post"
    assert tree["sae"]["d_in"] == tiny.width
    assert tree["context_size"] == 64  # no longer than the model reads
    assert tree["ortho_corpora"]["near"] == {"path": str(tiny.retain), "share": 0.2}
    assert list(load_experiment(path).variants) == ["baseline", "adaptive"]


def test_check_accepts_the_experiment(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.yaml"
    assert main(["init", str(path), *arguments]) == 0
    assert main(["check", str(path), "--set", f"output_path={tmp_path / 'run'}"]) == 0
    assert "ready to run" in capsys.readouterr().out


def test_short_texts_are_not_read_too_often(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for name, characters in {"short": 400_000, "long": 40_000_000, "other": 400_000}.items():
        paths.append(tmp_path / f"{name}.txt")
        paths[-1].write_text("word " * (characters // 5))
    short, long, other = map(str, paths)
    size = init.SIZES["cpu"]
    expected = 2 * init.EPOCHS * 400_000 // init.CHARACTERS
    assert expected > size["tokens"]
    options: dict[str, Any] = {
        "config": tmp_path / "my.yaml",
        "model": str(tiny.model),
        "device": "cpu",
    }
    tree = init.experiment_tree(init.InitOptions(forget=long, retain=short, **options))
    assert tree["training_tokens"] == size["tokens"]
    paths[0].write_text("word " * 32_000)  # 160,000 characters
    tree = init.experiment_tree(init.InitOptions(forget=short, retain=long, **options))
    assert tree["training_tokens"] == 480_000 // 2048 * 2048
    assert "Warning" not in capsys.readouterr().out
    paths[0].write_text("word " * 5_600)  # 7,000 tokens
    tree = init.experiment_tree(init.InitOptions(forget=long, retain=short, **options))
    assert tree["training_tokens"] == 2 * init.EPOCHS * 7_000 // 2048 * 2048
    warning = capsys.readouterr().out
    assert "--retain holds about 7,000 tokens; a sensible training needs 17,066" in warning
    assert f"training_tokens is {tree['training_tokens']:,}" in warning
    paths[0].write_text("word " * 5_200)  # 15% of 6,500 tokens are less than 16 contexts of 64
    for texts in (
        {"forget": long, "retain": short},
        {"forget": long, "retain": other, "near": short},
    ):
        with pytest.raises(ConfigError, match=r"holds about 6,500 tokens, and .* needs 6,827"):
            init.experiment_tree(init.InitOptions(**texts, **options))


@pytest.mark.parametrize(("width", "d_sae"), [(32, 1024), (576, 4096), (768, 4096), (2304, 8192)])
def test_number_of_latents(width: int, d_sae: int) -> None:
    size = init.SIZES["cpu"]
    found = init._power_of_two(size["expansion"] * width, size["least"], size["most"])
    assert found == d_sae


def test_what_is_missing_is_asked_for(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = io.StringIO(f"{tiny.model}\n{tiny.forget}\n{tiny.retain}\n")
    monkeypatch.setattr(answers, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", answers)
    path = tmp_path / "my.yaml"
    assert main(["init", str(path), "--device", "cpu"]) == 0
    assert written(path)["ortho_corpora"]["retain"] == {"path": str(tiny.retain)}


def test_without_a_terminal_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["init", str(tmp_path / "my.yaml"), "--model", "x"]) == 2
    assert "--forget=None: is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"--layer": "2"}, "--layer=2: the model has the layers 0 to 1"),
        ({"--device": "tpu"}, "--device='tpu': must be one of cpu, cuda"),
        ({"--device": "cuda"}, "--device='cuda'"),
        ({"--model": "./absent"}, "no such directory"),
        ({"--forget": "./absent.jsonl"}, "no such file or directory"),
        ({"--text-field": "body"}, "body"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    arguments: list[str],
    tmp_path: Path,
    changes: dict[str, str],
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = dict(zip(arguments[::2], arguments[1::2], strict=True)) | changes
    before = sorted(tmp_path.rglob("*"))
    path = tmp_path / "new" / "folder" / "my.yaml"
    assert main(["init", str(path), *(word for pair in given.items() for word in pair)]) == 2
    assert error in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_is_not_overwritten(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("mine")
    assert main(["init", str(path), *arguments]) == 2
    assert main(["init", str(tmp_path / "my.txt"), *arguments]) == 2
    assert capsys.readouterr().err.count("CONFIG=") == 2
    assert path.read_text() == "mine"
