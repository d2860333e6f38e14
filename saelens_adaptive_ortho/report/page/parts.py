"""Parts of the pages: the templates, figures, and the table of metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from saelens_adaptive_ortho.evaluations import evaluation
from saelens_adaptive_ortho.report.figures.files import figure_svg
from saelens_adaptive_ortho.report.figures.style import MUTED, css_colour, variant_styles
from saelens_adaptive_ortho.report.formatting import DASH, estimate, number
from saelens_adaptive_ortho.report.statistics import (
    BETTER,
    MIXED,
    WORSE,
    Difference,
    JointVerdict,
    Summary,
)
from saelens_adaptive_ortho.report.tables import (
    Level,
    difference_texts,
    levels,
    metric_label,
    pair_title,
    reference_rows,
)


def render(template: str, **values: object) -> str:
    """Return the page that ``template`` makes of ``values``."""
    environment = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["tone"] = tone  # pyright: ignore[reportUnknownMemberType]
    return environment.get_template(template).render(**values)


def tone(verdict: JointVerdict) -> str:
    """Return the CSS class of a verdict."""
    return {BETTER: "better", WORSE: "worse", MIXED: "mixed"}.get(verdict, "plain")


@dataclass(frozen=True)
class Drawing:
    """A figure in a page.

    Args:
        name: name of the figure, unique in the page.
        heading: what the figure shows, for screen readers.
        caption: text below the figure.
        svg: the figure itself.
        width: natural width in CSS pixels; keeps a small figure from growing to full width.
        points: whether the page explains points of it.
    """

    name: str
    heading: str
    caption: str
    svg: Markup
    width: int
    points: bool

    @classmethod
    def of(cls, figure: Figure, name: str, heading: str, caption: str) -> Drawing:
        """Return the drawing of ``figure``."""
        # matplotlib escapes the texts that it writes, so its output is safe as markup.
        svg = Markup(figure_svg(figure, name.replace("_", "-")))
        points = '<g class="points">' in svg
        return cls(name, heading, caption, svg, round(figure.get_figwidth() * 96), points)


@dataclass(frozen=True)
class Column:
    """The column of an SAE or a variant: its name, and its colour in the figures."""

    name: str
    colour: str


@dataclass(frozen=True)
class Cell:
    """A paired difference with its verdict, effect size and bootstrap interval, as text.

    ``words`` is the verdict in words.
    """

    mean: str
    interval: str = ""
    verdict: JointVerdict | None = None
    words: str = ""
    dz: str = ""
    bootstrap: str = ""


@dataclass(frozen=True)
class Row:
    """The row of a metric; ``key`` is shown below the label unless it is empty."""

    label: str
    levels: Sequence[Level]
    differences: Sequence[Cell] = ()
    key: str = ""
    primary: bool = False


@dataclass(frozen=True)
class MetricTable:
    """A row per metric; columns for the levels and the paired differences."""

    columns: Sequence[Column]
    pairs: Sequence[str]
    rows: Sequence[Row]


def metric_table(
    summary: Summary, keys: Sequence[str], section: bool = False, named: bool = False
) -> MetricTable:
    """Return the table of some metrics of a run.

    Args:
        summary: statistics of the run.
        keys: keys of the metrics to show.
        section: whether the table stands in the section of one evaluation; then labels leave out
            the evaluation, primary metrics are marked, and effect sizes and bootstrap intervals
            are added.
        named: whether to show the keys below the labels.
    """
    styles = variant_styles(summary.variants)
    return MetricTable(
        columns=[Column(variant, css_colour(styles[variant][0])) for variant in summary.variants],
        pairs=[pair_title(pair) for pair in summary.pairs],
        rows=[_row(summary, key, section, named) for key in keys],
    )


def reference_table(summary: Summary, keys: Sequence[str]) -> MetricTable:
    """Return the table of ceilings and floors that need no SAE; without rows if there are none."""
    return MetricTable(
        columns=[Column(name, css_colour(MUTED)) for name in summary.without_sae],
        pairs=[],
        rows=[
            Row(_unbroken(label), [Level(cell) for cell in cells])
            for label, cells in reference_rows(summary, keys)
        ],
    )


def _row(summary: Summary, key: str, section: bool, named: bool) -> Row:
    metric = summary.metrics[key]
    info = evaluation(key.split("/")[0])
    found = levels(metric, len(summary.seeds))
    return Row(
        label=_unbroken(metric_label(metric, full=not section)),
        levels=[found[variant] for variant in summary.variants],
        differences=[_cell(metric.difference(*pair), section) for pair in summary.pairs],
        key=key if named else "",
        primary=section and key in info.keys(info.primary),
    )


def _cell(difference: Difference | None, section: bool) -> Cell:
    mean, interval = difference_texts(difference)
    if difference is None or mean == DASH:
        return Cell(DASH)
    dz = bootstrap = ""
    if section and difference.dz is not None:
        dz = f"dz {number(difference.dz, 1 if abs(difference.dz) >= 10 else 2)}"
    if section and difference.bootstrap95 is not None:
        _, bootstrap = estimate(difference.spread.mean or 0.0, difference.bootstrap95)
    return Cell(mean, interval, difference.verdict, difference.words, dz, bootstrap)


def _unbroken(label: str) -> str:
    """Put no-break spaces before an arrow and after the sign of a bound."""
    label = re.sub(" ([↑↓])", "\N{NO-BREAK SPACE}\\1", label)
    return re.sub("([≤≥=]) ", "\\1\N{NO-BREAK SPACE}", label)
