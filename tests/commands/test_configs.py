"""Shipped configs: find them by name, list and copy them, in the repository and in a wheel."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from saelens_adaptive_ortho.commands import configs
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.experiment import load_experiment

ROOT = Path(__file__).parents[2]
NAMES = {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_configs_are_listed_with_their_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == NAMES
    assert lines["demo"].startswith("The embedded language model")
    for name in NAMES:
        text = (ROOT / "configs" / f"{name}.yaml").read_text()
        assert text.startswith("# ")
        assert text.splitlines()[0] == f"# {lines[name]}"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_copy_is_the_same_experiment(name: str, tmp_path: Path) -> None:
    paths = configs.copy_config(name, tmp_path / "new" / "folder")
    assert paths[0] == tmp_path / "new" / "folder" / f"{name}.yaml"
    assert set(paths) == set(paths[0].parent.iterdir())
    copied, original = load_experiment(paths[0]), load_experiment(ROOT / "configs" / f"{name}.yaml")
    assert copied.runner.to_dict() == original.runner.to_dict()
    assert (copied.variants, copied.evals) == (original.variants, original.evals)


def test_copy_goes_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", "copy", "gemma-2-2b_layer5.yaml"]) == 0
    written = capsys.readouterr().out.split()
    assert written == [
        "gemma-2-2b_layer5.yaml",
        "gemma-2-2b_layer12.yaml",
        "pythia-70m-deduped_layer3.yaml",
    ]
    assert {p.name for p in tmp_path.iterdir()} == set(written)
    assert main(["config", "copy", "gemma-2-2b_layer19"]) == 0  # the extended file exists already


def test_copy_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "copy", "demo", str(tmp_path)]) == 0
    (tmp_path / "demo.yaml").write_text("mine: 1\n")
    assert main(["config", "copy", "demo", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is not overwritten. Remove it, or choose another folder." in error
    assert str(tmp_path / "demo.yaml") in error
    assert (tmp_path / "demo.yaml").read_text() == "mine: 1\n"
    # A changed file with the name of the extended one is also in the way. Nothing is written then.
    (tmp_path / "pythia-70m-deduped_layer3.yaml").write_text("mine: 1\n")
    with pytest.raises(ConfigError, match="layer3.*is not overwritten"):
        configs.copy_config("pythia-70m-deduped_layer4", tmp_path)
    assert not (tmp_path / "pythia-70m-deduped_layer4.yaml").exists()
    with pytest.raises(ConfigError, match="DEST=.*is a file; name a folder"):
        configs.copy_config("local_text", tmp_path / "demo.yaml")


def test_unknown_name_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "copy", "local_txt"]) == 2
    error = capsys.readouterr().err
    assert "NAME='local_txt': no such config" in error
    assert "Did you mean local_text?" in error


def test_bare_name_is_a_file_or_else_shipped_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of that name takes precedence over the shipped config."""
    monkeypatch.chdir(tmp_path)
    assert main(["check", "demo", "--offline"]) == 0
    assert load_experiment("demo").name == "demo"
    (tmp_path / "demo").write_text("lr: mine\n")
    with pytest.raises(ConfigError, match="sae=None"):
        load_experiment("demo")
    for path in ("demo.yaml", "configs/demo.yaml"):
        assert main(["check", path, "--offline"]) == 2
        assert "`adaptive-ortho config copy demo` writes demo.yaml" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="demos.*no such file.*Did you mean demo"):
        load_experiment("demos")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    script = "import sys, hatchling.build as b; b.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(target)], cwd=ROOT, check=True)
    (path,) = target.glob("*.whl")
    return path


def test_wheel_has_configs_but_no_studies_tests_tools(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = {Path(n).stem for n in names if n.startswith("saelens_adaptive_ortho/configs/")}
    assert inside == NAMES
    roots = {name.split("/")[0] for name in names}
    program = "adaptive_ortho_command.py"
    ours = {root for root in roots if not root.endswith(".dist-info")}
    assert ours == {"saelens_adaptive_ortho", program}
    assert not [n for n in names if n.split("/")[1:2] in (["evals"], ["tests"], ["tools"])]


def test_metadata_of_the_wheel_is_ready_for_the_package_index(wheel: Path) -> None:
    """The licence has the form of PEP 639, and the README is the description."""
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
        licence = archive.read(f"{info}/licenses/LICENSE")
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert licence == (ROOT / "LICENSE").read_bytes()
    # The index refuses a licence classifier beside an expression.
    assert not [c for c in metadata.get_all("Classifier", []) if c.startswith("License")]
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload(decode=True)
    assert isinstance(description, bytes)
    assert description.strip() == (ROOT / "README.md").read_bytes().strip()


def test_source_distribution_builds_the_wheel(tmp_path: Path) -> None:
    """It has what the wheel has, and no tests or results of studies."""
    script = "import sys, hatchling.build as b; b.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"configs/{name}.yaml" for name in NAMES} <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "saelens_adaptive_ortho/py.typed"} <= names
    assert "adaptive_ortho_command.py" in names
    assert not {name.split("/")[0] for name in names} & {"evals", "tests", "tools", "runs"}


def test_installed_wheel_finds_configs(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from saelens_adaptive_ortho.commands import configs\n"
        "print(configs.__file__, *configs.copy_config('gemma-2-2b_layer5', 'here'))"
    )
    run = [sys.executable, "-c", script]
    found = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True)
    module, *copied = found.stdout.split()
    assert Path(module).is_relative_to(tmp_path / "site")
    assert len(copied) == 3
    assert (tmp_path / "here" / "gemma-2-2b_layer5.yaml").is_file()


def test_copy_into_a_path_through_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["config", "copy", "demo", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_misspelt_bare_name_suggests_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "dmeo"]) == 2
    assert "config='dmeo': no such file" in (error := capsys.readouterr().err)
    assert "Did you mean demo?" in error
    assert main(["check", "nothing like it.yaml"]) == 2
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err
