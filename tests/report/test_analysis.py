"""The page and table of an analysis."""

from __future__ import annotations

from typing import Any

from saelens_adaptive_ortho.report.page.analysis import render_analysis
from saelens_adaptive_ortho.report.tables import analysis_rows
from saelens_adaptive_ortho.results import Result
from tests.report.pages import HOSTILE, Requests, plain


def analysis(variant: str, text: str = "word") -> Result:
    texts = [{"corpus": text, "before": text, "token": text, "after": text}]
    pair: dict[str, Any] = {"frequent": 3, "rare": 7, "rate_frequent": 0.25, "rate_rare": 0.01}
    pair |= {"cosine": 0.771, "lift": 0.012, "expected": 12.4}
    pair |= {"texts": {"frequent": texts, "rare": []}}
    return Result(
        "subspace",
        variant,
        0,
        metrics={
            "condition_number/forget+retain": 40.1234,
            "n_forget": 4.0,
            "absorption_candidates": 9.0,
        },
        details={
            "principal_angles_deg": [40.0, 60.0],
            "cosine_histogram": {"edges": [-1, -0.5, 0, 1], "counts": [0, 9, 1]},
            "similar_pairs": [[0, 1, 0.5, 0.2], [1, 2, 0.6, 0.0]],
            "absorption_candidates": [pair],
        },
        versions={"torch": text},
    )


def test_page() -> None:
    page = render_analysis([analysis("baseline"), Result("subspace", "gram", 0, metrics={"x": 1})])
    reader = Requests()
    reader.feed(page)
    assert reader.loads == ["script"]  # it is inline
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert page.count("<figure>") == page.count("<svg") == 5
    text = plain(page)
    assert "baseline, seed 0: the 1 most similar of 9" in text
    assert "3 and 7: cosine 0.77, lift 0.01 (12 joint firings expected by chance)" in text
    assert "latent 3 (frequent, fires on 25.00% of tokens)" in text
    assert "No candidate among the similar pairs." in text


def test_text_is_escaped() -> None:
    page = render_analysis([analysis(HOSTILE.format("variant"), HOSTILE.format("text"))])
    assert page.count("<script") == 1
    # The corpus, the token, the text before and after it, and the version.
    assert plain(page).count(HOSTILE.format("text")) == 5
    assert HOSTILE.format("variant") in plain(page)


def test_rows() -> None:
    rows = dict(analysis_rows([analysis("a"), Result("subspace", "b", 0, metrics={})]))
    assert rows["condition number, forget + retain"] == ["40.12", "–"]
