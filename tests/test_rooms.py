"""Imports between rooms follow the rules, and every module that a string names exists."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from saelens_adaptive_ortho.evaluations import BUILT_IN, Evaluation
from tests.conftest import SHAPED_MODULES

ROOT = Path(__file__).parents[1]
# "package.module", or "package.module.name" for an object in it. `evals.core` is also the name of a
# setting, so `evals` counts only after `-m`.
DOTTED = re.compile(r"\b(?:saelens_adaptive_ortho|(?<=-m )evals)(?:\.[A-Za-z_]\w*)+")
# These are not modules: other packages write them in their pyproject.toml.
ENTRY_POINT_GROUPS = {
    f"saelens_adaptive_ortho.{table}"
    for table in ("penalties", "affinities", "evaluations", "formats", "drivers")
}


def run_without(absent: list[str], statements: str) -> str:
    """Run ``statements`` in a process that cannot import ``absent``, and return their output."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in absent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{blocked}{statements}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_maths_works_without_sae_lens() -> None:
    out = run_without(
        ["sae_lens"],
        "import torch\n"
        "from saelens_adaptive_ortho.maths import (\n"
        "    affinity, coactivation, grouping, neighbours, penalties, schedule, geometry\n"
        ")\n"
        "from saelens_adaptive_ortho.maths.penalties.gram import gram_penalty\n"
        "I = torch.eye(3)\n"
        "print(float(gram_penalty(I)), geometry.condition_number(I))\n"
        "print('transformer_lens' in sys.modules)\n",
    )
    assert out.split() == ["0.0", "1.0", "False"]


def test_report_imports_without_torch_and_sae_lens() -> None:
    out = run_without(
        ["torch", "sae_lens"],
        "import saelens_adaptive_ortho.report as report\nprint(report.__name__)\n",
    )
    assert out.split() == ["saelens_adaptive_ortho.report"]


def test_other_missing_module_is_named() -> None:
    out = run_without(
        ["transformer_lens"],
        "try:\n"
        "    import saelens_adaptive_ortho\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error.name.partition('.')[0])\n",
    )
    assert out.split() == ["transformer_lens"]


def test_package_import_loads_no_report_or_judging() -> None:
    out = run_without(
        [],
        "import saelens_adaptive_ortho\n"
        "late = ('matplotlib', 'evals', 'saelens_adaptive_ortho.report',\n"
        "        'saelens_adaptive_ortho.judging')\n"
        "print([n for n in sys.modules if any((n + '.').startswith(m + '.') for m in late)])\n",
    )
    assert out.split() == ["[]"]


def test_import_rules_hold() -> None:
    out = run_without(
        [],
        "from importlinter.cli import lint_imports_command\n"
        "lint_imports_command(['--no-cache'], standalone_mode=False)\n",
    )
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", out), out


# ------------------------------------------------- modules that strings name


def names_in_strings(source: str) -> set[str]:
    """Return our dotted names in the string literals of a source file, including docstrings."""
    strings = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return {name for text in strings for name in DOTTED.findall(text)}


def places_of_names() -> dict[str, Path]:
    """Return each dotted name in the repository's string literals, with a file that contains it."""
    return {
        name: path.relative_to(ROOT)
        for folder in ("saelens_adaptive_ortho", "evals", "tools", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in names_in_strings(path.read_text()) - ENTRY_POINT_GROUPS
    }


def test_names_are_found_in_strings() -> None:
    source = 'x = f"saelens_adaptive_ortho.maths.{y}"\n"""Run -m evals.tables; not evals.core.x."""'
    assert names_in_strings(source) == {"saelens_adaptive_ortho.maths", "evals.tables"}


@pytest.mark.parametrize(("name", "path"), sorted(places_of_names().items()), ids=str)
def test_name_in_string_exists(name: str, path: Path) -> None:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{path} names {name}, which does not exist: {error}")


@pytest.mark.parametrize("evaluation", [e for e in BUILT_IN if e.module], ids=lambda e: e.name)
def test_evaluation_has_run_and_figures(
    evaluation: Evaluation,
) -> None:
    assert callable(pkgutil.resolve_name(f"{evaluation.module}:run"))
    for figure in evaluation.figures:
        assert callable(pkgutil.resolve_name(figure.draw))


@pytest.mark.parametrize("name", SHAPED_MODULES)
def test_shape_checked_module_exists(name: str) -> None:
    assert importlib.util.find_spec(f"saelens_adaptive_ortho.{name}") is not None
