"""The words of the first screen: what was compared, and text before and after."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from saelens_adaptive_ortho import examples
from saelens_adaptive_ortho.examples import Examples
from saelens_adaptive_ortho.report.page.browse import write_page
from saelens_adaptive_ortho.report.page.run import render_page, write_report
from saelens_adaptive_ortho.report.page.text import compared, texts
from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.results import Result
from tests.ground.test_examples import example, some
from tests.report.pages import HOSTILE, Requests, plain
from tests.report.runs import core, put, result

CONFIG = """
model_name: /data/models/of/the/laboratory/gemma-2-2b
hook_name: blocks.12.hook_resid_post
ortho_corpora:
  forget: {path: bio.jsonl}
  retain: org/wiki
  near: {path: /data/anatomy.jsonl, share: 0.2}
"""


def run() -> list[Result]:
    metrics: dict[str, float | None] = {"token/forget_damage_at_0.10": 1.0}
    return [result("unlearning", v, s, metrics) for v in ("baseline", "adaptive") for s in (0, 1)]


@pytest.fixture(scope="module")
def statistics() -> Summary:
    return summarise(run())


def test_what_was_compared(statistics: Summary) -> None:
    found = compared("run5", CONFIG, statistics)
    assert [(f.label, f.name) for f in found] == [
        ("run", "run5"),
        ("model", "…/laboratory/gemma-2-2b"),
        ("at", "layer 12, hook_resid_post"),
        ("forget", "bio.jsonl"),
        ("retain", "org/wiki"),
        ("near", "/data/anatomy.jsonl"),
        ("SAEs", "baseline, adaptive"),
        ("", "2 seeds"),
    ]
    assert found[1].whole == "/data/models/of/the/laboratory/gemma-2-2b"


@pytest.mark.parametrize("config", [None, "", "a: [", "- 1", "ortho_corpora: [1]\nmodel_name: 3"])
def test_what_a_config_does_not_say_is_left_out(config: str | None, statistics: Summary) -> None:
    assert [f.label for f in compared("x", config, statistics)] == ["run", "SAEs", ""]


def test_one_corpus_is_the_text(statistics: Summary) -> None:
    found = compared("x", "dataset_path: org/pile\n", statistics)
    assert ("text", "org/pile") in [(f.label, f.name) for f in found]


def test_first_pair_of_each_side_and_the_rest(statistics: Summary) -> None:
    corpora = ["forget", "forget", "retain", "retain", "near", "forget_test"]
    found = texts(some(examples=[example(c) for c in corpora]), statistics, "runs/a")
    assert found is not None
    assert [p.title for p in found.first] == ["Text to forget", "Text to retain"]
    assert [p.title for p in found.rest] == [
        "Text to forget 2",
        "Text to retain 2",
        "Text to retain, near",
        "Second text to forget",
    ]
    assert found.first[0].loss == "0.50 before, 2.25 nats per token after"
    assert "adaptive, seed 1" in found.sae
    assert "40 latents are clamped at \N{MINUS SIGN}8 \N{MULTIPLICATION SIGN}" in found.sae
    assert "fire on over 5.0% of the tokens (gate)" in found.sae
    assert "at most 0.05 nats on any retain corpus" in found.how[0]
    assert "forget +2.000, retain +0.010" in found.how[0]
    assert "not picked" in found.how[1]
    ungated = texts(some(gate=None), statistics)
    assert ungated is not None
    assert ungated.sae.endswith("wherever they fire.")


def test_without_text_the_page_says_how_to_make_it() -> None:
    page = plain(render_page(run(), CONFIG, run="runs/a"))
    assert "No text was written yet." in page
    assert "adaptive-ortho unlearn runs/a --example" in page
    reason = some(examples=[], reason="no latent is specific")
    page = plain(render_page(run(), CONFIG, examples=reason, run="runs/a"))
    assert "No text, with adaptive, seed 1: no latent is specific." in page
    # Judged SAEs are in no run folder, and without unlearning there is nothing to show.
    assert "What the model writes" not in render_page(run())
    assert "What the model writes" not in render_page(core("x", [0.1]), run="runs/a")


def test_page_shows_the_texts_of_the_run_folder(tmp_path: Path) -> None:
    folder = put(tmp_path / "it's", *run())
    (folder / "config.yaml").write_text(CONFIG)
    examples.write(folder / "results", some())
    page = plain(write_report(folder).read_text())
    assert "With the SAE adaptive, seed 1." in page
    assert "1 more prompts" not in page
    assert "1 more prompt" in page
    (folder / "results" / "examples.json").unlink()
    assert "it'\"'\"'s' --example" in plain(write_report(folder).read_text())
    (folder / "config.yaml").write_text("output_path: ~/runs/a\n")
    assert "adaptive-ortho browse ~/runs/a" in plain(write_report(folder).read_text())


def test_texts_and_names_are_escaped() -> None:
    bad = HOSTILE.format("x")
    found = Examples(
        variant=bad,
        seed=0,
        sae_digest="",
        examples=[example(bad, prompt=bad, truth=bad, before=bad, after=f"{bad}!")],
    )
    page = render_page(run(), f"model_name: {bad!r}\n", examples=found, browser="browse/index.html")
    assert bad not in page
    assert page.count("<script") == 1
    reader = Requests()
    reader.feed(page)
    assert reader.open == []
    assert bad in plain(page)


def test_unchanged_text_is_said_to_be_the_same() -> None:
    same = example(before=" a b", after=" a b")
    page = render_page(run(), examples=some(examples=[same]))
    assert '<span class="note">the same</span>' in page


def test_tabs_of_report_and_latents(tmp_path: Path) -> None:
    page = render_page(run(), CONFIG, browser="browse/index.html")
    tabs = page[page.index('<nav class="tabs"') :].split("</nav>")[0]
    assert '<span aria-current="page">Result</span>' in tabs
    assert '<a href="browse/index.html">Latents</a>' in tabs
    page = render_page(run(), CONFIG, run="runs/a")
    tabs = page[page.index('<nav class="tabs"') :].split("</nav>")[0]
    assert '<a href="#latents">Latents</a>' in tabs
    assert "adaptive-ortho browse runs/a" in html.unescape(page)
    latents = write_page(tmp_path, ["a"], "../report.html").read_text()
    assert '<a href="../report.html">Result</a>' in latents
    assert '<nav class="tabs"' not in write_page(tmp_path, ["a"]).read_text()
