"""Tables of the benchmarks show the values of the JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.performance import tables as performance
from evals.performance.figures import overhead_figure
from evals.tables import KINDS
from saelens_adaptive_ortho.report.markdown import update_tables
from saelens_adaptive_ortho.results import ResultError


def overhead_row(variant: str, seconds: float, **more: Any) -> dict[str, Any]:
    place = {"base": "batchtopk", "d_in": 512, "d_sae": 16384, "batch": 4096, "k": 64}
    ratio = {"ratio": seconds / 4, "ratio_low": seconds / 5, "ratio_high": seconds / 3}
    return {**place, "variant": variant, "seconds": seconds, **ratio, **more}


def test_overhead_compares_with_stock_and_off() -> None:
    rows = [
        overhead_row("stock", 4.0),
        overhead_row("off", 3.0),
        overhead_row("adaptive", 3.3, peak_ratio=1.02, off_ratio=1.1, off_low=1, off_high=1.3),
        overhead_row("off, sparse products", 1.0),
        overhead_row("adaptive, sparse products", 1.2),
    ]
    lines = performance.overhead_table([{"rows": rows[:3]}, {"rows": rows[3:]}]).splitlines()[2:]
    cells = [[c.strip() for c in line.strip("| ").split(" | ")] for line in lines]
    assert cells[2] == [
        "512 x 16,384",
        "4,096",
        "batchtopk",
        "adaptive",
        "3,300",
        "0.825 [0.660, 1.100]",
        "1.100 [1.000, 1.300]",
        "1.020",
    ]
    assert [row[6] for row in cells] == ["–", "–", "1.100 [1.000, 1.300]", "–", "–"]
    figure = overhead_figure([{"rows": rows}])
    assert len(figure.axes) == 1
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        r["variant"] for r in reversed(rows[1:])
    ]


def test_overhead_separates_batch_sizes() -> None:
    rows = [overhead_row("stock", 4.0), overhead_row("adaptive", 3.0)]
    small = [{**row, "batch": 1024} for row in rows]
    documents = [{"rows": rows}, {"rows": small}]
    lines = performance.overhead_table(documents).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["1,024", "1,024", "4,096", "4,096"]
    titles = [axes.get_title(loc="left") for axes in overhead_figure(documents).axes]
    assert [title.splitlines()[1] for title in titles] == ["batch 1,024", "batch 4,096"]


def test_scaling_names_widths_and_exponents() -> None:
    part = {"seconds": [0.01, 0.0205], "exponent": 1.036}
    table = performance.scaling_table([{"widths": [4096, 8192], "parts": {"penalty": part}}])
    assert table.splitlines()[0].count("d_sae = 8,192") == 1
    assert table.splitlines()[2] == "| penalty | 10.0 | 20.5 | 1.04 |"


def test_levers_give_ratios_ranges_and_deviation() -> None:
    ratio = {"median": 0.5, "low": 0.4, "high": 0.6}
    row = {"training": "x", "seconds": 7.0, "to_saelens": ratio, "to_one": ratio}
    place = {"d_in": 96, "d_sae": 768, "tokens": 1000, "batch": 10}
    rows = [{**row, "deviation": d} for d in (None, 0.0, 3.2e-7)]
    table = performance.levers_table([{**place, "rows": rows}])
    assert "0.50 [0.40, 0.60]" in table
    assert [line.split(" | ")[-1] for line in table.splitlines()[-3:]] == ["– |", "0 |", "3e-07 |"]


def test_floor_sums_all_operations() -> None:
    operations = {f"op{i}": 0.1 for i in range(20)}
    steps = [
        {"variant": "stock", "seconds": 3.0, "operations": operations | {"mm": 1.0}},
        {"variant": "adaptive", "seconds": 1.5, "operations": operations},
    ]
    table = performance.floor_table([{"floor": {"seconds": 0.5}, "steps": steps}])
    assert "| `mm` | 1,000 | 0 |" in table
    assert "| all others | 900 | 900 |" in table
    assert table.splitlines()[-1] == "| times the floor (500 ms) | 6.0 | 3.0 |"


def test_sweeps_show_what_the_scheduler_adds() -> None:
    run = {
        "units": 2,
        "seconds": {"no scheduler": 100.0, "local:1": 106.0, "local:2": 55.0},
        "unit_seconds": dict.fromkeys(["no scheduler", "local:1", "local:2"], [40.0, 50.0]),
        "added": 0.06,
        "speedup": 1.927,
    }
    lines = performance.sweeps_table([run]).splitlines()
    assert lines[3] == "| local:1 | 2 of 40 to 50 s | 106 | 16 |"
    assert lines[4].endswith("| 55 | – |")
    assert lines[-1] == (
        "The scheduler adds 6.0% of the work; two workers are 1.93 times as fast as one."
    )


def test_costs_become_a_table_or_a_named_error(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- costs: cost.json -->\nold\n<!-- /costs -->\n")
    with pytest.raises(ResultError, match=r"README\.md:1: cost\.json holds no measured costs"):
        update_tables(readme, renderers=KINDS)
    costs = {
        "evaluations": {"core": {"seconds": 12.4, "peak_mib": 1536.0}},
        "overhead": {"ratio": 1.0123, "ratio_low": 0.99, "ratio_high": 1.03, "repeats": 5},
    }
    (tmp_path / "cost.json").write_text(json.dumps(costs))
    assert update_tables(readme, renderers=KINDS)
    text = readme.read_text()
    assert "| `core` | 12 | 1.50 |" in text
    assert "5 alternating pairs in one process): 1.012 of its time" in text
    assert "old" not in text
    assert not update_tables(readme, renderers=KINDS)
