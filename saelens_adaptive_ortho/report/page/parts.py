"""What the pages are made of: the templates, figures, and the table of metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from saelens_adaptive_ortho.evaluations import evaluation
from saelens_adaptive_ortho.report.figures.files import figure_svg
from saelens_adaptive_ortho.report.figures.style import variant_styles
from saelens_adaptive_ortho.report.formatting import DASH, estimate, number
from saelens_adaptive_ortho.report.statistics import (
    BETTER,
    MIXED,
    WORSE,
    Difference,
    JointVerdict,
    Summary,
    brief,
)
from saelens_adaptive_ortho.report.tables import (
    Level,
    difference_texts,
    levels,
    metric_label,
    pair_title,
)


def render(template: str, **values: object) -> str:
    """The page of a template."""
    environment = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (tone, brief):
        environment.filters[function.__name__] = function  # pyright: ignore[reportUnknownMemberType]
    return environment.get_template(template).render(**values)


def tone(verdict: JointVerdict) -> str:
    """The style class of a verdict."""
    return {BETTER: "better", WORSE: "worse", MIXED: "mixed"}.get(verdict, "plain")


@dataclass(frozen=True)
class Drawing:
    """A figure in a page.

    Args:
        name: unique in the page.
        heading: what it shows, for readers who do not see it.
        caption: below it.
        svg: the figure.
        width: in CSS pixels; its natural size keeps a small figure from growing to full width.
    """

    name: str
    heading: str
    caption: str
    svg: Markup
    width: int

    @classmethod
    def of(cls, figure: Figure, name: str, heading: str, caption: str) -> Drawing:
        """Draw ``figure``."""
        # matplotlib escapes what it writes, so that its output can enter the page as it is.
        svg = Markup(figure_svg(figure, name.replace("_", "-")))
        return cls(name, heading, caption, svg, round(figure.get_figwidth() * 96))


@dataclass(frozen=True)
class Column:
    """An SAE, or a variant: its name and its colour in the figures."""

    name: str
    colour: str


@dataclass(frozen=True)
class Cell:
    """A paired difference; ``tags`` stand below it."""

    mean: str
    interval: str = ""
    verdict: JointVerdict | None = None
    dz: str = ""
    bootstrap: str = ""


@dataclass(frozen=True)
class Row:
    """A metric. ``key`` is shown below the label unless it is empty."""

    label: str
    levels: Sequence[Level]
    differences: Sequence[Cell] = ()
    key: str = ""
    primary: bool = False


@dataclass(frozen=True)
class MetricTable:
    """Metrics down; levels and paired differences across."""

    columns: Sequence[Column]
    pairs: Sequence[str]
    rows: Sequence[Row]


def metric_table(
    summary: Summary, keys: Sequence[str], section: bool = False, named: bool = False
) -> MetricTable:
    """The table of some metrics of a run.

    Args:
        summary: the statistics.
        keys: of the metrics.
        section: of one evaluation, whose name goes without saying; with effect sizes, bootstrap
            intervals and the primary metrics marked.
        named: with the keys themselves.
    """
    styles = variant_styles(summary.variants)
    return MetricTable(
        columns=[Column(variant, styles[variant][0]) for variant in summary.variants],
        pairs=[pair_title(pair) for pair in summary.pairs],
        rows=[_row(summary, key, section, named) for key in keys],
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
    return Cell(mean, interval, difference.verdict, dz, bootstrap)


def _unbroken(label: str) -> str:
    """Keep an arrow or a bound on the line of what it belongs to."""
    label = re.sub(" ([↑↓])", "\N{NO-BREAK SPACE}\\1", label)
    return re.sub("([≤≥=]) ", "\\1\N{NO-BREAK SPACE}", label)
