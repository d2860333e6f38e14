"""The READMEs are correct: Python and commands run, tables come from committed results."""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import sae_lens

from evals.tables import KINDS, main
from saelens_adaptive_ortho.commands import cli
from saelens_adaptive_ortho.commands.configs import CopyOptions
from saelens_adaptive_ortho.commands.init import InitOptions
from saelens_adaptive_ortho.experiments.shipped import find_config, shipped_configs
from saelens_adaptive_ortho.report.markdown import update_tables

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def test_python_of_the_documentation_builds_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (ROOT / "docs" / "saelens.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
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


def test_numbers_of_the_worked_example_are_computed() -> None:
    found = doctest.testfile(str(ROOT / "docs" / "method.md"), module_relative=False)
    assert found.attempted >= 10
    assert found.failed == 0


DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS, *sorted((ROOT / "evals").glob("**/README.md"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix(""))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_table_is_up_to_date(path: Path) -> None:
    assert not update_tables(path, check=True, renderers=KINDS), "run `make tables`"


def test_page_without_tables_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("words\n")
    assert main([str(page)]) == 0
    assert f"{page}: has no table" in capsys.readouterr().out


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_tree_lists_every_module_and_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {p.name for p in (ROOT / "saelens_adaptive_ortho").glob("[!_]*.py")}
    rooms = {f"{p.parent.name}/" for p in (ROOT / "saelens_adaptive_ortho").glob("*/__init__.py")}
    listed = set(re.findall(r"^ {6}([\w./]+)\s", text, re.MULTILINE))
    assert listed == modules | rooms


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_linked_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert named or path != README
    assert [name for name in named if not (path.parent / name).exists()] == []


@pytest.mark.parametrize("path", [README, *DOCS], ids=name_of)
def test_python_examples_define_their_names(path: Path) -> None:
    """The examples of a page, read one after the other, use only names that they define."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    source = "\n".join(block for block in blocks if ">>>" not in block)  # doctest runs the others
    nodes = list(ast.walk(ast.parse(source)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    known = {name.asname or name.name for node in imports for name in node.names}
    known |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
    assert {name.id for name in names} - known - set(dir(builtins)) == set()


def commands(path: Path) -> list[list[str]]:
    """Return the words of every command in the shell blocks of a page."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


OTHERS = {"git", "make", "pip", "cd", "python", "uv", "hf", "srun", "lm_eval", "torchrun"}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    written: set[str] = set()
    for words in commands(path):
        if words[:2] == ["python", "-m"] and words[2].startswith("evals."):
            spec = importlib.util.find_spec(words[2])
            assert spec is not None, words
            assert spec.origin is not None, words
            assert "__main__" in Path(spec.origin).read_text(encoding="utf-8"), words
        elif words[0] == "adaptive-ortho":
            args = cli.parser().parse_args(words[1:])  # argparse exits on an unknown option
            if args.command.options is InitOptions:
                written.add(str(args.config))
            elif hasattr(args, "config"):
                assert str(args.config) in written or find_config(args.config).is_file(), words
            if args.command.options is CopyOptions:
                assert args.name in shipped_configs(), words
        else:
            assert words[0] in OTHERS, words
