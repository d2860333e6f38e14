"""``adaptive-ortho analyse`` on exported SAEs: JSON, table, page and plots."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.commands import cli
from saelens_adaptive_ortho.commands.analyse import AnalyseOptions
from saelens_adaptive_ortho.commands.analysis import analyse
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.report.page.analysis import render_analysis
from saelens_adaptive_ortho.results import Result
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def exports(
    make_config: Callable[..., Any], prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A baseline SAE, and an SAE with a copy of latent 0 that fires on other tokens."""
    root = tmp_path_factory.mktemp("saes")
    cfg = make_config()
    runner = AdaptiveOrthoRunner(
        cfg, {"baseline": {"ortho_mode": "off"}, "gram": {"ortho_mode": "gram"}}, prepared
    )
    runner.trainer.fit()
    for name in runner.saes:
        runner.export(name, root / name)
    return root


@pytest.fixture(scope="module")
def analysed(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("analysis")
    arguments = ["analyse", str(exports / "baseline"), str(exports / "gram"), "--out", str(out)]
    status = cli.main([*arguments, "--contexts", "12", "--min-cosine", "-1", "--max-lift", "1"])
    assert status == 0
    return out


def test_json_holds_geometry_groups_churn_and_pairs(analysed: Path) -> None:
    baseline, gram = json.loads((analysed / "analysis.json").read_text())
    assert [baseline["variant"], gram["variant"]] == ["baseline", "gram"]
    for document in (baseline, gram):
        metrics, details = document["metrics"], document["details"]
        assert metrics["condition_number/all"] > 1
        assert 0 <= metrics["domain_churn"] <= 1
        assert sum(details["cosine_histogram"]["counts"]) == 64 * 63
        assert {"forget", "retain", "shared"} <= set(details["group_sizes"])
        assert metrics["absorption_candidates"] >= len(details["absorption_candidates"])
        assert metrics["similar_pairs_examined"] >= len(details["similar_pairs"]) > 0
    pair = baseline["details"]["absorption_candidates"][0]
    assert pair["rate_frequent"] >= pair["rate_rare"] > 0
    assert pair["lift"] <= 1
    texts = pair["texts"]["frequent"]
    assert 1 <= len(texts) <= 3
    assert texts[0]["activation"] >= texts[-1]["activation"] > 0
    assert re.search(r"virus|castle|the", texts[0]["before"] + texts[0]["token"])
    assert texts[0]["corpus"] in {"forget", "retain"}


def test_figures_are_files_and_part_of_the_page(analysed: Path) -> None:
    drawn = {path.name for path in (analysed / "plots").iterdir()}
    for name in ("condition_numbers", "group_sizes", "cosines", "pairs"):
        assert {f"{name}.svg", f"{name}.png"} <= drawn
    page = (analysed / "analysis.html").read_text()
    assert page.count("<svg") == len(drawn) // 2
    assert "<script src" not in page
    assert not re.search(r'(?:src|href)="http', page)


@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
def test_browser_renders_the_page(analysed: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1000,1400",
            f"--screenshot={shot}",
            "--dump-dom",
            (analysed / "analysis.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Absorption candidates" in done.stdout, done.stderr[-500:]
    assert done.stdout.count("<figure") >= 4


def test_text_in_the_page_is_escaped() -> None:
    text = {"activation": 1.0, "corpus": "forget", "before": "<b>", "token": "&", "after": ""}
    pair = {
        **dict.fromkeys(("frequent", "rare"), 1),
        **dict.fromkeys(("cosine", "lift", "rate_frequent", "rate_rare", "expected"), 0.5),
        "texts": {"frequent": [text], "rare": []},
    }
    result = Result(
        eval="subspace",
        variant="a<b",
        seed=0,
        metrics={"absorption_candidates": 1.0},
        details={"absorption_candidates": [pair]},
    )
    page = render_analysis([result])
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert "&lt;b&gt;<mark>&amp;</mark>" in page


def test_bad_option_is_refused_by_name(exports: Path, tmp_path: Path) -> None:
    options = AnalyseOptions(out=tmp_path)
    with pytest.raises(ConfigError, match="--min-cosine=2"):
        replace(options, min_cosine=2)
    with pytest.raises(ConfigError, match="--contexts=1"):
        replace(options, contexts=1)
    same = str(exports / "gram")
    with pytest.raises(ConfigError, match="name it"):
        analyse(replace(options, saes=[same, same]))
    with pytest.raises(ConfigError, match="no such directory"):
        analyse(replace(options, saes=[str(tmp_path / "absent")]))
