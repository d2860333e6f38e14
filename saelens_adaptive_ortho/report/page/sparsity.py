"""The section of a page that compares methods over sparsity, and with published results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from saelens_adaptive_ortho.report.figures.style import MUTED, variant_styles
from saelens_adaptive_ortho.report.formatting import (
    DASH,
    estimate,
    number,
    plus_minus,
    spread_decimals,
)
from saelens_adaptive_ortho.report.page.parts import Cell, Column, Drawing, MetricTable, Row
from saelens_adaptive_ortho.report.published import PublishedMethod, comparable, keys_of
from saelens_adaptive_ortho.report.sparsity import L0, AtL0, at_equal_l0, interpolate, methods
from saelens_adaptive_ortho.report.statistics import Spread, Summary
from saelens_adaptive_ortho.report.tables import Level, metric_label, pair_title

HEADING = "Over sparsity"
CAPTION = (
    "Each panel is one metric against the measured L0, the number of latents that fire per token. "
    "A line is one method at several sparsities, and joins the means over seeds; small dots are "
    "single SAEs. Compare two lines at the same L0."
)
PUBLISHED_CAPTION = (
    " Grey and dashed: published results. They are for the same model and hook, but with other "
    "settings: other text, other training and other versions of the evaluations, so small "
    "differences from them mean nothing."
)
OUTSIDE = "outside"


@dataclass(frozen=True)
class SparsitySection:
    """The figure and the tables; a table without rows is not shown.

    Args:
        drawing: the figure; None if nothing can be drawn.
        table: the methods of the run at equal L0.
        others: comparable published methods at the same L0s.
        published: method, number of SAEs, range of L0, model, hook and fate of each published
            method.
    """

    drawing: Drawing | None
    table: MetricTable
    others: MetricTable
    published: Sequence[Sequence[str]]


def sparsity_section(
    summary: Summary, published: Sequence[PublishedMethod], figure: Figure | None
) -> SparsitySection | None:
    """Return the section; None if there are neither curves nor published results."""
    if figure is None and not published:
        return None
    others = comparable(published)
    found = at_equal_l0(summary, keys_of(others))
    drawing = None
    if figure is not None:
        caption = CAPTION + (PUBLISHED_CAPTION if others else "")
        drawing = Drawing.of(figure, "sparsity", HEADING, caption)
    return SparsitySection(
        drawing,
        _table(summary, found),
        _published_table(summary, found, others),
        [_listed(method) for method in published],
    )


def _table(summary: Summary, found: Sequence[AtL0]) -> MetricTable:
    every = methods(summary)
    styles = variant_styles([method.name for method in every])
    names = [method.name for method in every if method.has_curve]
    return MetricTable(
        columns=[Column(name, styles[name][0]) for name in names],
        pairs=[pair_title((name, names[0])) for name in names[1:]],
        rows=[
            Row(
                _label(summary, one),
                _levels(one, names, len(summary.seeds)),
                [_cell(one.differences.get(name)) for name in names[1:]],
            )
            for one in found
        ],
    )


def _label(summary: Summary, one: AtL0) -> str:
    return f"{metric_label(summary.metrics[one.key])} at L0\N{NO-BREAK SPACE}{one.l0:g}"


def _levels(one: AtL0, names: Sequence[str], seeds: int) -> list[Level]:
    decimals = _decimals(one)
    levels: list[Level] = []
    for name in names:
        spread = one.values.get(name)
        if spread is None:
            levels.append(Level(DASH))
        elif spread.mean is None:
            levels.append(Level(OUTSIDE))
        else:
            note = f"n={spread.n}" if spread.n < seeds else ""
            levels.append(Level(plus_minus(spread.mean, spread.std, decimals), note))
    return levels


def _decimals(one: AtL0) -> int:
    spreads = one.values.values()
    means = [spread.mean for spread in spreads if spread.mean is not None]
    return spread_decimals(means, [spread.std for spread in spreads if spread.std is not None])


def _cell(spread: Spread | None) -> Cell:
    if spread is None or spread.mean is None:
        return Cell(DASH)
    return Cell(*estimate(spread.mean, spread.ci95))


def _published_table(
    summary: Summary, found: Sequence[AtL0], others: Sequence[PublishedMethod]
) -> MetricTable:
    measured = keys_of(others)
    rows: list[Row] = []
    for one in (one for one in found if one.key in measured):
        levels: list[Level] = []
        for method in others:
            points = method.points(one.key)
            value = interpolate(points, one.l0)
            missing = OUTSIDE if points else DASH
            levels.append(Level(missing if value is None else number(value, _decimals(one))))
        rows.append(Row(_label(summary, one), levels))
    return MetricTable([Column(method.label, MUTED) for method in others], [], rows)


def _listed(method: PublishedMethod) -> list[str]:
    l0s = [x for x, _ in method.points(L0)]
    ends = [f"{l0:.3g}" for l0 in dict.fromkeys(l0s[:1] + l0s[-1:])]
    unknown = "unknown"
    return [
        method.label,
        str(len(method.saes)),
        " to ".join(ends) or DASH,
        method.model or unknown,
        method.hook or unknown,
        f"not drawn: {method.reason}" if method.reason else "drawn",
    ]
