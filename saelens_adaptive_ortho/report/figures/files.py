"""Draw all figures of a run, as files or as text inside a page."""

# matplotlib leaves its keyword arguments untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import html
import importlib
import io
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saelens_adaptive_ortho.report.figures.dots import headline_figure
from saelens_adaptive_ortho.report.figures.section import Section
from saelens_adaptive_ortho.report.figures.sparsity import sparsity_figure
from saelens_adaptive_ortho.report.figures.style import (
    INK,
    STYLE,
    Picture,
    css_colour,
    empty_figure,
)
from saelens_adaptive_ortho.report.figures.tradeoff import tradeoff_figure
from saelens_adaptive_ortho.report.published import PublishedMethod, load
from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.results import Result, load_results

Draw = Callable[[Section], Figure | None]


def run_figures(
    summary: Summary, results: Sequence[Result], published: Sequence[PublishedMethod] = ()
) -> dict[str, Figure]:
    """Draw every figure for which there are results; keys are file name stems, in page order.

    A figure that cannot be drawn is a figure with the reason as text, so that the others are kept.

    Args:
        summary: statistics of the run.
        results: its results.
        published: results of others.
    """
    figures: dict[str, Figure | None] = {
        "tradeoff": tradeoff_figure(summary, results=results),
        "headline": headline_figure(summary),
        "sparsity": sparsity_figure(summary, published),
    }
    for name, found in summary.evaluations.items():
        for shown in found.info.figures:
            try:
                figures[shown.name] = _function(shown.draw)(Section(summary, results, name))
            except Exception as error:  # a figure of another package can raise anything
                reason = f"{type(error).__name__}: {error}"
                warnings.warn(f"Figure {shown.name} of {name}: {reason}", stacklevel=2)
                figures[shown.name] = _reason_figure(shown.name, reason)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _reason_figure(name: str, reason: str) -> Figure:
    """A figure that says why the figure ``name`` is absent."""
    figure = empty_figure(6.4, 1.0)
    text = textwrap.fill(f"The figure {name} could not be drawn ({reason}).", 80)
    figure.text(0.02, 0.5, text, fontsize=9, color=INK, va="center", parse_math=False)
    return figure


def _function(draw: str) -> Draw:
    module, _, function = draw.partition(":")
    return cast("Draw", getattr(importlib.import_module(module), function))


def figure_svg(figure: Figure, prefix: str) -> str:
    """Return the figure as an ``<svg>`` element for use inside a page.

    Its marks lie on top as invisible circles, with their words as titles. Colours are CSS variables
    where the page has other ones in the dark.

    Identifiers start with ``prefix``, so that figures in one page do not share clip paths and
    glyphs. XML prolog and metadata are left out, because they contain outside addresses.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    text = re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda found: css_colour(found[0]), text)
    text = text.removesuffix("</svg>") + _circles(figure) + "</svg>"
    # The page sets the size; the viewBox keeps the proportions.
    head, rest = text.split(">", 1)
    return re.sub(r'\s(?:width|height)="[^"]*"', "", head) + ">" + rest


def _circles(figure: Figure) -> str:
    """The marks of a figure that was drawn, as circles, in a group for each panel.

    Those outside of their panel are left out. An SVG of matplotlib has 72 units per inch, and y
    points down.
    """
    if not isinstance(figure, Picture) or not figure.marks:
        return ""
    height = figure.get_figheight() * 72
    groups: dict[Axes, list[str]] = {}
    for axes, x, y, words in figure.marks:
        across, up = axes.transData.transform((x, y))
        if axes.bbox.padded(1).contains(across, up):
            title = f"<title>{html.escape(words)}</title>"
            cx, cy = across * 72 / figure.dpi, height - up * 72 / figure.dpi
            at = f'cx="{cx:.1f}" cy="{cy:.1f}" r="5"'
            groups.setdefault(axes, []).append(f"<circle {at}>{title}</circle>")
    return "".join(f'<g class="points">{"".join(found)}</g>' for found in groups.values())


def save_figure(figure: Figure, stem: str | Path, dpi: int = 160) -> list[Path]:
    """Write ``STEM.svg`` and ``STEM.png`` and return their paths."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")]
    with matplotlib.rc_context(STYLE):
        figure.savefig(paths[0], format="svg", metadata={"Date": None})
        figure.savefig(paths[1], format="png", dpi=dpi)
    return paths


def save_plots(run_dir: str | Path, out_dir: str | Path | None = None) -> list[Path]:
    """Write every figure of a run to ``out_dir`` (by default ``RUN/plots``) as SVG and PNG.

    Raises:
        ResultError: the run has no results, or one of them cannot be used.
        ConfigError: the published results of the run cannot be used.
    """
    out_dir = Path(run_dir) / "plots" if out_dir is None else Path(out_dir)
    results = load_results(run_dir)
    figures = run_figures(summarise(results), results, load(run_dir))
    return [path for name, fig in figures.items() for path in save_figure(fig, out_dir / name)]
