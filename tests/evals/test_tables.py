"""The README keeps its promises: its Python runs, its tables come from the committed JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sae_lens

from evals.tables import KINDS
from saelens_adaptive_ortho import report

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def test_the_ten_lines_of_python_build_the_run_they_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    ran: list[Any] = []

    class Recorder:
        def __init__(self, cfg: Any) -> None:
            self.cfg = cfg

        def run(self) -> None:
            ran.append(self.cfg)

    monkeypatch.setattr(sae_lens, "LanguageModelSAETrainingRunner", Recorder)
    exec(block.group(1), {})
    assert ran[0].sae.architecture() == "adaptive_ortho_batchtopk"
    assert ran[0].sae.ortho_mode == "adaptive"


PAGES = [README, *sorted((ROOT / "evals").glob("**/README.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.parent.name)
def test_every_table_is_the_one_its_results_give(path: Path) -> None:
    assert not report.update_tables(path, check=True, renderers=KINDS), "run `make tables`"


def test_the_tree_lists_every_module() -> None:
    text = README.read_text(encoding="utf-8")
    modules = {p.name for p in (ROOT / "saelens_adaptive_ortho").glob("[!_]*.py")}
    missing = {name for name in modules if not re.search(rf"^\s+{re.escape(name)}\s", text, re.M)}
    assert not missing


def test_every_file_the_readme_names_exists() -> None:
    text = README.read_text(encoding="utf-8")
    named = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert named
    assert all((ROOT / path).exists() for path in named)
