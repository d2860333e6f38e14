"""``adaptive-ortho --print-completion``: the shell completes commands, options and files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from saelens_adaptive_ortho.commands.cli import main


def printed(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", shell])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def complete(script: str, words: list[str], folder: Path) -> set[str]:
    """What bash offers for the last word."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    quoted = " ".join(f"'{word}'" for word in words)
    ask = (
        f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
        "_shtab_adaptive_ortho\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run([bash, "-c", ask], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = printed("bash", capsys)
    (tmp_path / "mine.yaml").write_text("")
    assert complete(script, ["adaptive-ortho", "unl"], tmp_path) == {"unlearn"}
    flags = complete(script, ["adaptive-ortho", "push", "--"], tmp_path)
    assert {"--dry-run", "--private", "--with-results"} <= flags
    assert complete(script, ["adaptive-ortho", "compare", "mi"], tmp_path) == {"mine.yaml"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert "unlearn" in printed(shell, capsys)


def test_missing_package_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", "bash"])
    assert stopped.value.code == 2
    assert "pip install 'saelens-adaptive-ortho[completion]'" in capsys.readouterr().err
