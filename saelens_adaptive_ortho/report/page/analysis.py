"""Write ``analysis.html`` of ``adaptive-ortho analyse``: geometry of SAEs and pairs of latents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from saelens_adaptive_ortho.files import without_home, write_text_atomic
from saelens_adaptive_ortho.report.figures.analysis import analysis_figures
from saelens_adaptive_ortho.report.figures.files import save_figure
from saelens_adaptive_ortho.report.figures.style import css_colour, variant_styles
from saelens_adaptive_ortho.report.page.parts import Column, Drawing, MetricTable, Row, render
from saelens_adaptive_ortho.report.tables import Level, analysis_rows, four_figures, sae_name
from saelens_adaptive_ortho.results import Result, order_variants

CAPTIONS = {
    "condition_numbers": "Condition number of each group's decoder directions: 1 when they are "
    "orthonormal, large when some nearly coincide. A group of more latents than dimensions "
    "cannot be independent; its number says how evenly it fills the space.",
    "group_sizes": "Latents by the corpus they serve: forget and retain fire there at least as "
    "many times as often as the ratio says, shared in between.",
    "cosines": "Cosines between all pairs of decoder directions, as a density.",
    "principal_angles": "Principal angles between forget and retain subspaces, smallest first.",
    "firing": "Firing rate of each latent on the two corpora.",
    "pairs": "Similar pairs: cosine of their directions against how often they fire together, "
    "relative to chance (lift 1). Low and to the right is where absorption would be.",
}


def write_analysis(out: str | Path, results: Sequence[Result]) -> Path:
    """Write ``analysis.html`` and ``plots/`` into ``out`` and return the path of the page."""
    out = Path(out)
    figures = analysis_figures(results)
    for name, figure in figures.items():
        save_figure(figure, out / "plots" / name)
    page = without_home(render_analysis(results, figures))
    return write_text_atomic(out / "analysis.html", page)


def render_analysis(results: Sequence[Result], figures: Mapping[str, Figure] | None = None) -> str:
    """Return the page as text."""
    figures = analysis_figures(results) if figures is None else figures
    return render(
        "analysis.html.j2",
        title="Subspace analysis: " + "; ".join(sae_name(r) for r in results),
        table=_table(results),
        drawings=[
            Drawing.of(figure, name, name.replace("_", " "), CAPTIONS[name])
            for name, figure in figures.items()
        ],
        saes=[_candidates(r) for r in results],
        versions=json.dumps(dict(results[0].versions)) if results else "",
    )


def _table(results: Sequence[Result]) -> MetricTable:
    styles = variant_styles(order_variants(r.variant for r in results))
    return MetricTable(
        columns=[Column(sae_name(r), css_colour(styles[r.variant][0])) for r in results],
        pairs=[],
        rows=[Row(label, [Level(c) for c in cells]) for label, cells in analysis_rows(results)],
    )


@dataclass(frozen=True)
class Side:
    """One latent of a pair, with the texts that activate it most."""

    heading: str
    texts: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Candidate:
    """A pair of latents in which one may have absorbed the other."""

    heading: str
    sides: Sequence[Side]


@dataclass(frozen=True)
class Candidates:
    """The pairs of one SAE that are shown, and ``total``, the number of all its pairs."""

    name: str
    pairs: Sequence[Candidate]
    total: str


def _candidates(result: Result) -> Candidates:
    found: Sequence[Mapping[str, Any]] = result.details.get("absorption_candidates") or []
    return Candidates(
        name=sae_name(result),
        pairs=[_candidate(pair) for pair in found],
        total=four_figures(result.metrics.get("absorption_candidates")),
    )


def _candidate(pair: Mapping[str, Any]) -> Candidate:
    return Candidate(
        heading=(
            f"{pair['frequent']} and {pair['rare']}: cosine {pair['cosine']:.2f}, lift "
            f"{pair['lift']:.2f} ({pair['expected']:.0f} joint firings expected by chance)"
        ),
        sides=[
            Side(
                f"latent {pair[which]} ({which}, fires on {pair['rate_' + which]:.2%} of tokens)",
                pair["texts"][which],
            )
            for which in ("frequent", "rare")
        ],
    )
