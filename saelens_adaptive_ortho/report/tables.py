"""The summary as a table for the terminal and as markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from saelens_adaptive_ortho.report.formatting import (
    DASH,
    MINUS,
    estimate,
    markdown,
    number,
    spread_decimals,
)
from saelens_adaptive_ortho.report.summary import (
    BETTER,
    TOO_FEW,
    WORSE,
    Difference,
    MetricSummary,
    Summary,
)

_VERDICT_STYLE = {BETTER: "bold green", WORSE: "bold red"}


def level_texts(metric: MetricSummary, seeds: int) -> dict[str, str]:
    """Return ``mean ± std`` per variant, with equal decimals.

    The number of seeds is added where a variant has fewer than ``seeds``; a variant without a
    value gets a dash, one with a single seed its value alone.
    """
    spreads = metric.variants.values()
    decimals = spread_decimals(
        [spread.mean for spread in spreads if spread.mean is not None],
        [spread.std for spread in spreads if spread.std is not None],
    )
    texts = {}
    for variant, spread in metric.variants.items():
        text = number(spread.mean, decimals)
        if spread.std is not None:
            text += f" ± {number(spread.std, decimals)}"
        if spread.mean is not None and spread.n < seeds:
            text += f" (n={spread.n})"
        texts[variant] = text
    return texts


def difference_texts(difference: Difference | None) -> tuple[str, str]:
    """Return mean difference and 95% interval: ``("+0.012", "[+0.004, +0.020]")``.

    A dash stands for a pair without a common seed; the second text is empty with one seed.
    """
    if difference is None or difference.spread.mean is None:
        return DASH, ""
    return estimate(difference.spread.mean, difference.spread.ci95)


def metric_label(metric: MetricSummary, full: bool = True) -> str:
    """Return label (``full``: with its evaluation), unit and the arrow of the better direction."""
    info = metric.info
    unit = f" ({info.unit})" if info.unit and info.unit not in info.name else ""
    return f"{info.full_label if full else info.label}{unit} {info.arrow}".rstrip()


def pair_title(pair: tuple[str, str]) -> str:
    """Return ``adaptive − baseline``."""
    return f" {MINUS} ".join(pair)


def seeds_text(summary: Summary) -> str:
    """Return ``3 seeds (0, 1, 2)``."""
    n = len(summary.seeds)
    return f"{n} seed{'' if n == 1 else 's'} ({', '.join(map(str, summary.seeds))})"


def evaluation_lines(summary: Summary) -> list[tuple[str, list[str]]]:
    """Return (title, verdicts on `focus`) of every evaluation with primary metrics or a failure.

    One that failed for every SAE gets its reasons in place of the verdicts.
    """
    lines = []
    for name, found in summary.evaluations.items():
        if not found.finished:
            gaps = [g for g in summary.gap_groups if (g.kind, g.eval) == ("failed", name)]
            texts = [f"not measured, {gap.who}: {gap.reason}" for gap in gaps]
        else:
            verdicts = [found.verdict(*pair) for pair in summary.focus_pairs]
            texts = [verdict.text for verdict in verdicts if verdict is not None]
        if texts:
            lines.append((found.info.title, texts))
    return lines


def terminal_table(summary: Summary) -> RenderableType:
    """Return the headline metrics for a terminal: levels, paired differences, verdicts, gaps."""
    parts: list[RenderableType] = []
    keys = summary.headline
    if keys:
        levels = Table(
            title=f"Mean ± standard deviation over {seeds_text(summary)}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        levels.add_column("metric")
        for variant in summary.variants:
            levels.add_column(Text(variant), justify="right")
        for key in keys:
            metric = summary.metrics[key]
            texts = level_texts(metric, len(summary.seeds))
            levels.add_row(metric_label(metric), *(Text(texts[v]) for v in summary.variants))
        parts.append(levels)
    if keys and summary.pairs:
        differences = Table(
            title="Difference paired by seed [95% interval]: better or worse if zero is outside",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        differences.add_column("metric")
        for pair in summary.pairs:
            differences.add_column(Text(pair_title(pair)), justify="right")
        # A metric without a better side (L0) has no verdict; its levels above say enough.
        for key in (key for key in keys if summary.metrics[key].info.direction):
            metric = summary.metrics[key]
            cells = [_terminal_cell(metric.difference(*pair)) for pair in summary.pairs]
            differences.add_row(metric_label(metric), *cells)
        parts.append(differences)
    parts.append(Text(summary.verdict))
    lines = evaluation_lines(summary)
    if lines:
        table = Table(
            title="By evaluation (“if corrected”: Bonferroni, for the number of primary metrics)",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_header=False,
        )
        table.add_column("evaluation", style="bold", max_width=24)
        table.add_column("verdicts")
        for title, texts in lines:
            table.add_row(Text(title), Text("\n".join(texts)))
        parts.append(table)
    if summary.gap_groups:
        gaps = Table(
            title="Failed or missing",
            title_justify="left",
            title_style="bold red",
            box=box.SIMPLE_HEAD,
        )
        for column in ("kind", "eval", "SAEs", "reason"):
            gaps.add_column(column, overflow="fold")
        for gap in summary.gap_groups:
            gaps.add_row(*(Text(cell) for cell in (gap.kind, gap.eval, gap.who, gap.reason)))
        parts.append(gaps)
    return Group(*parts)


def _terminal_cell(difference: Difference | None) -> Text:
    mean, interval = difference_texts(difference)
    text = Text(mean)
    if difference is not None and difference.verdict in _VERDICT_STYLE:
        text.append(f" {difference.verdict}", style=_VERDICT_STYLE[difference.verdict])
    elif difference is not None and difference.verdict == TOO_FEW and mean != DASH:
        text.append(f" {TOO_FEW}", style="dim")
    if interval:
        text.append(f"\n{interval}", style="dim")
    return text


def markdown_table(summary: Summary, metrics: Sequence[str] | None = None) -> str:
    """Return a markdown table with a note below it that says how to read it.

    Args:
        summary: the run's statistics.
        metrics: keys to show (``{eval}/{name}``); by default the headline metrics. A key that
            was not measured gets a row of dashes.

    Returns:
        Lines ending in a newline: the table (left out where nothing was measured), the note,
        and one list item for each reason of failed or missing values.
    """
    keys = summary.headline if metrics is None else list(metrics)
    rows: list[list[str]] = []
    for key in keys:
        metric = summary.metrics.get(key)
        if metric is None:
            rows.append([key] + [DASH] * (len(summary.variants) + len(summary.pairs)))
            continue
        texts = level_texts(metric, len(summary.seeds))
        cells = [metric_label(metric), *(texts[variant] for variant in summary.variants)]
        for pair in summary.pairs:
            difference = metric.difference(*pair)
            mean, interval = difference_texts(difference)
            text = f"{mean} {interval}".rstrip()
            if difference is not None and difference.verdict in (BETTER, WORSE):
                text += f" **{difference.verdict}**"
            elif difference is not None and difference.verdict is not None and text != DASH:
                text += f" ({difference.verdict})"
            cells.append(text)
        rows.append(cells)
    head = ["metric", *summary.variants, *(pair_title(pair) for pair in summary.pairs)]
    lines = [markdown(head, rows, text_columns=1), ""] if keys else []
    lines.append(_note(summary))
    if summary.gap_groups:
        lines += ["", "Failed or missing:", ""]
        for gap in summary.gap_groups:
            reason = " ".join(gap.reason.split())
            lines.append(f"- {gap.kind}: {gap.eval}, {gap.who}: {reason}")
    return "\n".join(lines) + "\n"


def markdown_verdicts(summary: Summary) -> str:
    """Return the verdict paragraph and a list of the verdicts by evaluation."""
    text = f"**Verdict.** {summary.verdict}\n"
    lines = [
        f"- **{title}**: " + "; ".join(" ".join(text.split()) for text in texts) + "."
        for title, texts in evaluation_lines(summary)
    ]
    head = "By evaluation (“if corrected”: Bonferroni, for the number of primary metrics):"
    return f"{text}\n{head}\n\n" + "\n".join(lines) + "\n" if lines else text


def _note(summary: Summary) -> str:
    note = f"Mean ± sample standard deviation over {seeds_text(summary)}; ↑ higher is better, "
    note += "↓ lower is better."
    if summary.pairs:
        note += (
            " Differences are paired by seed, with 95% t-intervals, one metric at a time (not "
            "corrected for the number of metrics)."
        )
    return note
