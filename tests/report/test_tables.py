"""The tables of a run for the terminal and for markdown."""

from __future__ import annotations

from pathlib import Path

from saelens_adaptive_ortho.evaluations import BUILT_IN
from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.report.tables import markdown_table, markdown_verdicts
from saelens_adaptive_ortho.results import (
    load_results,
)
from tests.report.runs import (
    ANGLE,
    full_run,
    shown,
)


def test_markdown_row(tmp_path: Path) -> None:
    table = markdown_table(summarise(load_results(full_run(tmp_path))), [ANGLE, "core/absent"])
    lines = table.splitlines()
    assert lines[0] == "| metric | baseline | adaptive | adaptive − baseline |"
    # Differences 10, 10.1, 10.2: half width 0.1 · 4.302653 / √3 = 0.248.
    assert lines[2] == (
        "| mean principal angle (°) ↑ | 51.0 ± 1.0 | 61.1 ± 1.1 | "
        "+10.10 [+9.85, +10.35] **better** |"
    )
    assert lines[3] == "| core/absent | – | – | – |"


def test_a_verdict_per_evaluation(summary: Summary) -> None:
    text = shown(summary, 150)
    listed = text[text.index("By evaluation") :]
    judged = [info for info in BUILT_IN if info.primary]
    for info in judged:
        assert info.title.split()[0] in listed
    verdicts = markdown_verdicts(summary)
    bullets = [line for line in verdicts.splitlines() if line.startswith("- ")]
    assert len(judged) >= 9
    assert len(bullets) == len(judged)
    bullet = bullets[[info.name for info in judged].index("sparse_probing")]
    assert bullet.startswith("- **Sparse probing**: adaptive against baseline, 3 seeds: ")
    assert "; adaptive against fixed, 3 seeds: " in bullet
    assert "fixed against baseline" not in verdicts
