"""Imports point downwards: pure modules without SAELens, the report without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_without(absent: list[str], statements: str) -> str:
    """Standard output of ``statements`` in a process where ``absent`` cannot be imported."""
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


def test_pure_modules_import_and_work_without_sae_lens() -> None:
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


@pytest.mark.skipif(
    not (ROOT / "saelens_adaptive_ortho" / "report" / "__init__.py").exists(),
    reason="no report package yet",
)
def test_the_report_imports_without_torch_and_sae_lens() -> None:
    out = run_without(
        ["torch", "sae_lens"],
        "import saelens_adaptive_ortho.report as report\nprint(report.__name__)\n",
    )
    assert out.split() == ["saelens_adaptive_ortho.report"]


def test_another_missing_module_is_not_mistaken_for_a_missing_sae_lens() -> None:
    out = run_without(
        ["transformer_lens"],
        "try:\n"
        "    import saelens_adaptive_ortho\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error.name.partition('.')[0])\n",
    )
    assert out.split() == ["transformer_lens"]
