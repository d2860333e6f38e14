"""The page of ``adaptive-ortho analyse``: geometry side by side, and pairs worth reading.

One self-contained file: figures and styles inline, no script, no request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table

from saelens_adaptive_ortho.files import write_text_atomic
from saelens_adaptive_ortho.report.formatting import DASH
from saelens_adaptive_ortho.report.metrics import describe
from saelens_adaptive_ortho.report.plots import (
    STYLE,
    Section,
    angles_figure,
    cosine_figure,
    figure_svg,
    firing_figure,
    panel_grid,
    save_figure,
    shared_legend,
    variant_styles,
)
from saelens_adaptive_ortho.report.summary import summarise
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


def analysis_figures(results: Sequence[Result]) -> dict[str, Figure]:
    """Figures by name; those with nothing to show are left out."""
    section = Section(summarise(results), results, "subspace")
    makers = {
        "condition_numbers": lambda: _group_figure(
            results, "condition_number/", "Condition numbers", "sigma max / sigma min", log=True
        ),
        "group_sizes": lambda: _group_figure(results, "n_", "Group sizes", "latents"),
        "cosines": lambda: cosine_figure(section),
        "principal_angles": lambda: angles_figure(section),
        "firing": lambda: firing_figure(section),
        "pairs": lambda: _pairs_figure(results),
    }
    figures = {name: make() for name, make in makers.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _group_figure(
    results: Sequence[Result], prefix: str, title: str, label: str, log: bool = False
) -> Figure | None:
    """A dot per SAE for each group that has the metric."""
    groups = list(
        dict.fromkeys(
            key.removeprefix(prefix)
            for result in results
            for key, value in result.metrics.items()
            if key.startswith(prefix) and value is not None and "coactivation_groups" not in key
        )
    )
    if not groups:
        return None
    variants = order_variants(r.variant for r in results)
    styles = variant_styles(variants)
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = panel_grid(1, height=0.45 * len(groups) + 1.2, width=7.2)
        for result in results:
            colour, marker = styles[result.variant]
            offset = 0.5 * (variants.index(result.variant) + 0.5) / len(variants) - 0.25
            points = [
                (value, row + offset)
                for row, group in enumerate(groups)
                if (value := result.metrics.get(prefix + group)) is not None
            ]
            x, y = [p[0] for p in points], [p[1] for p in points]
            axes.plot(x, y, color=colour, marker=marker, ls="")
        if log:
            axes.set_xscale("log")
        names = [g.replace("_", " ").replace("+", " + ") for g in groups]
        axes.set_yticks(range(len(groups)), names)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_title(title)
        axes.set_xlabel(label)
        shared_legend(figure, variants, styles)
    return figure


def _pairs_figure(results: Sequence[Result]) -> Figure | None:
    chosen: dict[str, list[list[float]]] = {}
    for result in results:  # the first seed of each
        pairs = result.details.get("similar_pairs")
        if pairs:
            chosen.setdefault(result.variant, pairs)
    if not chosen:
        return None
    styles = variant_styles(order_variants(r.variant for r in results))
    with matplotlib.rc_context(STYLE):
        figure, grid = panel_grid(len(chosen), height=3.0)
        for axes, (variant, pairs) in zip(grid, chosen.items(), strict=True):
            # Lift 0 has no logarithm: symlog shows it on the axis.
            axes.set_yscale("symlog", linthresh=0.1)
            axes.set_ylim(bottom=-0.02)
            axes.axhline(1, color="#C3CCD6", lw=1)
            axes.scatter(
                [p[2] for p in pairs],
                [p[3] for p in pairs],
                s=9,
                alpha=0.5,
                color=styles[variant][0],
                linewidths=0,
            )
            axes.set_title(variant)
            axes.set_xlabel("cosine")
            axes.set_ylabel("lift")
    return figure


def analysis_table(results: Sequence[Result]) -> Table:
    """Metrics down, SAEs across."""
    table = Table("metric", *(_name(r) for r in results))
    for key in dict.fromkeys(key for r in results for key in r.metrics):
        table.add_row(_label(key), *(_text(r.metrics.get(key)) for r in results))
    return table


def write_analysis(out: str | Path, results: Sequence[Result]) -> Path:
    """Write ``analysis.html`` and ``plots/`` into ``out``; returns the page's path."""
    out = Path(out)
    figures = analysis_figures(results)
    for name, figure in figures.items():
        save_figure(figure, out / "plots" / name)
    return write_text_atomic(out / "analysis.html", render_analysis(results, figures))


def render_analysis(results: Sequence[Result], figures: dict[str, Figure] | None = None) -> str:
    """The page as text."""
    figures = analysis_figures(results) if figures is None else figures
    drawn = "\n".join(
        f'<figure id="{name}">{figure_svg(figure, name)}'
        f"<figcaption>{escape(CAPTIONS[name])}</figcaption></figure>"
        for name, figure in figures.items()
    )
    return _PAGE.substitute(
        title=escape("Subspace analysis: " + "; ".join(_name(r) for r in results)),
        table=_html_table(results),
        figures=drawn,
        pairs="\n".join(_pairs(r) for r in results),
        versions=escape(json.dumps(dict(results[0].versions)) if results else ""),
    )


def _html_table(results: Sequence[Result]) -> str:
    head = "".join(f'<th scope="col">{escape(_name(r))}</th>' for r in results)
    rows = []
    for key in dict.fromkeys(key for r in results for key in r.metrics):
        cells = "".join(f"<td>{_text(r.metrics.get(key))}</td>" for r in results)
        rows.append(f'<tr><th scope="row">{escape(_label(key))}</th>{cells}</tr>')
    return (
        f'<table id="metrics"><thead><tr><th scope="col">metric</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _pairs(result: Result) -> str:
    found = result.details.get("absorption_candidates") or []
    total = result.metrics.get("absorption_candidates")
    if not found:
        return f"<h3>{escape(_name(result))}</h3><p>No candidate among the similar pairs.</p>"
    blocks = []
    for pair in found:
        sides = "".join(
            f"<div><h4>latent {pair[which]} ({which}, fires on {pair['rate_' + which]:.2%} of "
            f"tokens)</h4>{_texts(pair['texts'][which])}</div>"
            for which in ("frequent", "rare")
        )
        blocks.append(
            f"<details><summary>{pair['frequent']} and {pair['rare']}: cosine "
            f"{pair['cosine']:.2f}, lift {pair['lift']:.2f} ({pair['expected']:.0f} joint firings "
            f"expected by chance)</summary><div class='sides'>{sides}</div></details>"
        )
    return (
        f"<h3>{escape(_name(result))}: the {len(found)} most similar of {_text(total)}</h3>"
        + "".join(blocks)
    )


def _texts(texts: Sequence[dict[str, object]]) -> str:
    items = "".join(
        f"<li><span class='corpus'>{escape(str(t['corpus']))}</span> {escape(str(t['before']))}"
        f"<mark>{escape(str(t['token']))}</mark>{escape(str(t['after']))}</li>"
        for t in texts
    )
    return f"<ol>{items}</ol>"


def _name(result: Result) -> str:
    return f"{result.variant}, seed {result.seed}"


def _label(key: str) -> str:
    return describe(f"subspace/{key}").label


def _text(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1F2933; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { margin-top: 2.5rem; } h4 { margin: .4rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #E3E8EE; text-align: right; }
th[scope=row], thead th:first-child { text-align: left; font-weight: 500; }
.scroll { overflow-x: auto; }
figure { margin: 2rem 0; } figure svg { width: 100%; height: auto; }
figcaption { color: #52606D; font-size: .9rem; }
details { border-bottom: 1px solid #E3E8EE; padding: .4rem 0; } summary { cursor: pointer; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
mark { background: #FFE8B3; } .corpus { color: #66727F; font-size: .8rem; }
footer { color: #66727F; font-size: .8rem; margin: 3rem 0; }
</style></head><body>
<h1>$title</h1>
<div class="scroll">$table</div>
<h2>Figures</h2>
$figures
<h2>Absorption candidates</h2>
<p>Pairs of latents whose directions are alike and that fire together far less often than chance
would have them, each with the texts that activate it most. Not every such pair is an absorption:
read the texts.</p>
$pairs
<footer>Written by adaptive-ortho analyse. $versions</footer>
</body></html>
""")
