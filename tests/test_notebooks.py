"""The notebooks run, and what they show is committed: complete, small, and of no one's machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LARGEST = 300_000  # bytes
MACHINE = re.compile(r"(?<![\w.~])/(?:home|root|tmp|work|usr|opt|var|Users)/")


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict[str, Any]) -> list[str]:
    """What a cell shows: the types of its outputs, with the formats of each."""
    found = []
    for output in cell["outputs"]:
        formats = sorted(output.get("data", {}))
        found.append(f"{output['output_type']} {' '.join(formats)}".strip())
    return found


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_both_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["forget_a_corpus", "judge_any_sae"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_committed(path: Path) -> None:
    """Every cell ran, in order and without an error; GitHub shows the pictures."""
    assert path.stat().st_size < LARGEST
    cells = code_cells(read(path))
    counts = [cell["execution_count"] for cell in cells if cell["execution_count"] is not None]
    assert counts == list(range(1, len(counts) + 1))
    shown = [kind for cell in cells for kind in kinds(cell)]
    assert sum("image/png" in kind for kind in shown) >= 2
    assert not any(kind.startswith("error") for kind in shown)
    assert all(cell["metadata"] == {} for cell in cells)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output.get("name") == "stderr" for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_nothing_tells_the_machine(path: Path) -> None:
    notebook = read(path)
    assert MACHINE.search("Report: /home/me/runs")
    for cell in notebook["cells"]:
        texts = ["".join(cell["source"])]
        for output in cell.get("outputs", []):
            texts += ["".join(output.get("text", "")), *map(str, output.get("data", {}).values())]
        for text in texts:
            assert not MACHINE.search(text), text[:300]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_linked_files_exist(path: Path) -> None:
    cells = read(path)["cells"]
    text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    linked = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert linked
    assert [name for name in linked if not (path.parent / name).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path: Path) -> None:
    """A new execution shows the same kinds of things in the same cells as the committed one."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("sae_bench")
    from tools.notebooks import execute

    found = [kinds(cell) for cell in code_cells(execute(path))]
    assert found == [kinds(cell) for cell in code_cells(read(path))]
