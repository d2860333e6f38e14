"""Fixtures: a run with every evaluation, its statistics and its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from saelens_adaptive_ortho.report.page.run import write_report
from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.results import (
    load_results,
    result_path,
    write_result,
)
from tests.report.runs import (
    every_result,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for each in every_result():
        write_result(result_path(folder, each.variant, each.seed, each.eval), each)
    (folder / "config.yaml").write_text("model_name: tiny\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def summary(run: Path) -> Summary:
    return summarise(load_results(run))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")
