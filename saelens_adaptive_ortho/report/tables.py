"""Write the summary as a table for the terminal and as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from saelens_adaptive_ortho.evaluations import essential_keys
from saelens_adaptive_ortho.report.formatting import (
    DASH,
    MINUS,
    estimate,
    markdown,
    number,
    plus_minus,
    spread_decimals,
    value_decimals,
)
from saelens_adaptive_ortho.report.metrics import describe
from saelens_adaptive_ortho.report.statistics import (
    BETTER,
    EQUIVALENT,
    MIN_SEEDS,
    TOO_FEW,
    WORSE,
    Difference,
    MetricSummary,
    Summary,
)
from saelens_adaptive_ortho.report.verdicts import Verdicts, found_text, judge, rules
from saelens_adaptive_ortho.results import Result, split_series

#: Characters that the labels of the metrics have at least, beside at most so many other columns.
LABEL_WIDTH, LABEL_COLUMNS = 22, 5

_VERDICT_STYLE = {BETTER: "bold green", WORSE: "bold red", EQUIVALENT: "bold"}


class Level(NamedTuple):
    """``mean ± std`` of a variant; ``note`` is its number of seeds if the run has more."""

    value: str
    note: str = ""

    @property
    def text(self) -> str:
        """``0.51 ± 0.02 (n=2)``."""
        return f"{self.value} ({self.note})" if self.note else self.value


def levels(metric: MetricSummary, seeds: int) -> dict[str, Level]:
    """Return the level of every variant, all with the same number of decimals.

    A variant without a value gets a dash. A variant with one seed gets its value alone.

    Args:
        metric: statistics of the metric.
        seeds: number of seeds of the run.
    """
    spreads = metric.variants.values()
    decimals = spread_decimals(
        [spread.mean for spread in spreads if spread.mean is not None],
        [spread.std for spread in spreads if spread.std is not None],
    )
    return {
        variant: Level(
            plus_minus(spread.mean, spread.std, decimals),
            f"n={spread.n}" if 0 < spread.n < seeds else "",
        )
        for variant, spread in metric.variants.items()
    }


def difference_texts(difference: Difference | None) -> tuple[str, str]:
    """Return mean difference and 95% interval: ``("+0.012", "[+0.004, +0.020]")``.

    The first text is a dash if the pair has no common seed. The second text is empty if it has
    only one.
    """
    if difference is None or difference.spread.mean is None:
        return DASH, ""
    return estimate(difference.spread.mean, difference.spread.ci95)


def metric_label(metric: MetricSummary, full: bool = True) -> str:
    """Return label, unit and arrow of the better direction; ``full`` adds the evaluation."""
    info = metric.info
    unit = f" ({info.unit})" if info.unit and info.unit not in info.name else ""
    return f"{info.full_label if full else info.label}{unit} {info.arrow}".rstrip()


def reference_rows(summary: Summary, keys: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return label and values of each metric that has references without an SAE, for ``keys``.

    The values are in the order of ``summary.without_sae``; a missing one is a dash.
    """
    rows: list[tuple[str, list[str]]] = []
    for key in keys:
        found = [metrics.get(key) for metrics in summary.without_sae.values()]
        known = [value for value in found if value is not None]
        if known:
            decimals = value_decimals(known, figures=3)
            label = metric_label(summary.metrics[key])
            rows.append((label, [number(value, decimals) for value in found]))
    return rows


def pair_title(pair: tuple[str, str]) -> str:
    """Return ``adaptive − baseline``."""
    return f" {MINUS} ".join(pair)


def seeds_text(summary: Summary) -> str:
    """Return ``3 seeds (0, 1, 2)``."""
    n = len(summary.seeds)
    return f"{n} seed{'' if n == 1 else 's'} ({', '.join(map(str, summary.seeds))})"


def evaluation_lines(summary: Summary, verdicts: Verdicts) -> list[tuple[str, list[str]]]:
    """Return title and texts of every evaluation that has primary metrics or a failure.

    The texts are the verdicts on the focus variant. If the evaluation failed for every SAE, they
    are the reasons of the failure.
    """
    lines: list[tuple[str, list[str]]] = []
    for name, found in summary.evaluations.items():
        if found.finished:
            judged = [verdicts.of(name, pair) for pair in summary.focus_pairs]
            texts = [verdict.text for verdict in judged if verdict is not None]
        else:
            texts = [f"not measured, {g.saes}: {g.reason}" for g in summary.failures(name)]
        if texts:
            lines.append((found.info.title, texts))
    return lines


def terminal_table(summary: Summary, full: bool = False) -> RenderableType:
    """Return the main metrics for a terminal: levels, differences, verdict, gaps, concerns.

    The differences are those of the focus variant. With too few seeds for any verdict, one line
    says so in place of differences and verdicts.

    Args:
        summary: statistics of the run.
        full: all headline metrics, the differences of all pairs, what the words of the verdicts
            mean, and a verdict on each evaluation.
    """
    verdicts = judge(summary)
    keys = summary.headline if full else main_keys(summary)
    parts: list[RenderableType] = []
    if keys:
        parts.append(_terminal_levels(summary, keys))
    judged = any(summary.family(pair) for pair in summary.pairs)
    if keys and summary.pairs and (full or judged):
        pairs = summary.pairs if full else summary.focus_pairs
        parts.append(_terminal_differences(summary, keys, pairs))
    if full:
        parts.append(Text(f"{verdicts.text} {verdicts.rules}".rstrip()))
    else:
        few = bool(summary.pairs) and not judged
        parts.append(Text(_too_few(summary) if few else found_text(summary)))
    lines = evaluation_lines(summary, verdicts) if full else []
    if lines:
        parts.append(_terminal_verdicts(lines))
    if summary.gap_groups:
        parts.append(_terminal_gaps(summary))
    parts += [Text(f"Doubtful: {text}", style="yellow") for text in summary.concerns]
    if not full:
        parts.append(Text("All metrics: in the report, or by `adaptive-ortho report RUN --full`."))
    return Group(*parts)


def main_keys(summary: Summary) -> list[str]:
    """Return the few metrics of a run that a terminal shows, in the order of the report.

    They are the ``glance`` metrics. An evaluation without any shows its primary metrics, or, if it
    has none of these, its headline metrics.
    """
    found: list[str] = []
    for name, evaluated in summary.evaluations.items():
        info, measured = evaluated.info, summary.metrics
        if not info.module:  # training is no evaluation
            continue
        for keys in (summary.glance, info.keys(info.primary), summary.headline):
            here = [key for key in keys if key in measured and key.startswith(f"{name}/")]
            if here:
                found += here
                break
    return found


def _too_few(summary: Summary) -> str:
    """Return ``1 seed: too few for verdicts, which need 3; ...``."""
    n = len(summary.seeds)
    return (
        f"{n} seed{'' if n == 1 else 's'}: too few for verdicts, which need {MIN_SEEDS} seeds that "
        "both sides have. In a config: seeds: [0, 1, 2]; finished SAEs are kept."
    )


def _terminal_levels(summary: Summary, keys: Sequence[str]) -> Table:
    table = Table(
        title=f"Mean ± standard deviation over {seeds_text(summary)}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    _add_labels(table, len(summary.variants))
    for variant in summary.variants:
        table.add_column(Text(variant), justify="right")
    for key in keys:
        metric = summary.metrics[key]
        found = levels(metric, len(summary.seeds))
        table.add_row(metric_label(metric), *(Text(found[v].text) for v in summary.variants))
    return table


def _add_labels(table: Table, columns: int) -> None:
    """Add the column of the labels, wide enough to be read if there are few other columns."""
    table.add_column("metric", min_width=LABEL_WIDTH if columns <= LABEL_COLUMNS else None)


def _terminal_differences(
    summary: Summary, keys: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> Table:
    table = Table(
        title="Difference paired by seed [95% interval of this metric alone] and verdict, if any",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    _add_labels(table, len(pairs))
    for pair in pairs:
        table.add_column(Text(pair_title(pair)), justify="right")
    # A metric without a better direction (L0) has no verdict; its levels are in the table above.
    for metric in (summary.metrics[key] for key in keys):
        if metric.info.direction:
            cells = [_terminal_cell(metric.difference(*pair)) for pair in pairs]
            table.add_row(metric_label(metric), *cells)
    return table


def _terminal_verdicts(lines: Sequence[tuple[str, Sequence[str]]]) -> Table:
    table = Table(
        title="By evaluation",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=False,
    )
    table.add_column("evaluation", style="bold", max_width=24)
    table.add_column("verdicts")
    for title, texts in lines:
        table.add_row(Text(title), Text("\n".join(texts)))
    return table


def _terminal_gaps(summary: Summary) -> Table:
    table = Table(
        title="Failed or missing",
        title_justify="left",
        title_style="bold red",
        box=box.SIMPLE_HEAD,
    )
    for column in ("kind", "eval", "SAEs", "reason"):
        table.add_column(column, overflow="fold")
    for gap in summary.gap_groups:
        table.add_row(*(Text(cell) for cell in (gap.kind, gap.eval, gap.saes, gap.reason)))
    return table


def _terminal_cell(difference: Difference | None) -> Text:
    mean, interval = difference_texts(difference)
    text = Text(mean)
    # Too few seeds are said once, below the table.
    if difference is not None and difference.verdict not in (None, TOO_FEW) and mean != DASH:
        text.append(f" {difference.words}", style=_VERDICT_STYLE.get(difference.verdict, ""))
    if interval:
        text.append(f"\n{interval}", style="dim")
    return text


def markdown_table(summary: Summary, metrics: Sequence[str] | None = None) -> str:
    """Return a markdown table, and below it a note on how to read it.

    Args:
        summary: statistics of the run.
        metrics: keys to show (``{eval}/{name}``); by default the headline metrics. A key that
            was not measured gets a row of dashes.

    Returns:
        Text that ends in a newline: the table (if anything was measured), the note, and one list
        item for each reason of failed or missing values.
    """
    keys = summary.headline if metrics is None else list(metrics)
    head = ["metric", *summary.variants, *(pair_title(pair) for pair in summary.pairs)]
    rows = [_markdown_row(summary, key) for key in keys]
    lines = [markdown(head, rows, text_columns=1), ""] if keys else []
    lines += _markdown_references(summary, keys)
    lines.append(_note(summary))
    if summary.gap_groups:
        lines += ["", "Failed or missing:", ""]
        for gap in summary.gap_groups:
            reason = " ".join(gap.reason.split())
            lines.append(f"- {gap.kind}: {gap.eval}, {gap.saes}: {reason}")
    return "\n".join(lines) + "\n"


def _markdown_references(summary: Summary, keys: Sequence[str]) -> list[str]:
    rows = reference_rows(summary, [key for key in keys if key in summary.metrics])
    if not rows:
        return []
    head = ["without an SAE", *summary.without_sae]
    return [markdown(head, [[label, *cells] for label, cells in rows], text_columns=1), ""]


def _markdown_row(summary: Summary, key: str) -> list[str]:
    metric = summary.metrics.get(key)
    if metric is None:
        return [key] + [DASH] * (len(summary.variants) + len(summary.pairs))
    found = levels(metric, len(summary.seeds))
    return [
        metric_label(metric),
        *(found[variant].text for variant in summary.variants),
        *(_markdown_cell(metric.difference(*pair)) for pair in summary.pairs),
    ]


def _markdown_cell(difference: Difference | None) -> str:
    mean, interval = difference_texts(difference)
    text = f"{mean} {interval}".rstrip()
    if difference is None or difference.verdict is None or text == DASH:
        return text
    if difference.verdict in (BETTER, WORSE):
        return f"{text} **{difference.verdict}**{difference.remark}"
    return f"{text} {difference.words}"


def markdown_verdicts(summary: Summary) -> str:
    """Return the verdict paragraph and a list of the verdicts by evaluation."""
    verdicts = judge(summary)
    text = f"**Verdict.** {verdicts.text}\n"
    lines = [
        f"- **{title}**: " + "; ".join(" ".join(text.split()) for text in texts) + "."
        for title, texts in evaluation_lines(summary, verdicts)
    ]
    return f"{text}\nBy evaluation:\n\n" + "\n".join(lines) + "\n" if lines else text


def short_table(summary: Summary) -> str:
    """Return a markdown table of the essential metrics, a sentence of what was found, and a note.

    The table has a column per variant. The columns after the first one also hold the difference
    from the reference of the variant (the first variant), with its interval and verdict.
    """
    keys = essential_keys(summary.metrics)
    rows = [_short_row(summary, key) for key in keys]
    lines = [markdown(["metric", *summary.variants], rows, text_columns=1), ""] if keys else []
    lines += _markdown_references(summary, keys)
    note = _note(summary)
    if summary.pairs:
        references = list(dict.fromkeys(reference for _, reference in summary.pairs))
        first, *others = [r for r in references if r not in summary.references[1:]]
        if others:
            first = f"the one of {split_series(first)[0]} with the same number, or from {first}"
        note += f" Below the value of a variant: its difference from {first}."
    return "\n".join([*lines, f"**Found.** {found_text(summary)}", "", note]) + "\n"


def _short_row(summary: Summary, key: str) -> list[str]:
    metric = summary.metrics[key]
    found = levels(metric, len(summary.seeds))
    cells = [found[variant].text for variant in summary.variants]
    for place, variant in enumerate(summary.variants):
        difference = _markdown_cell(metric.difference(variant, summary.reference(variant)))
        if place and difference != DASH:
            cells[place] += f"<br>{difference}"
    return [metric_label(metric), *cells]


def _note(summary: Summary) -> str:
    note = f"Mean ± sample standard deviation over {seeds_text(summary)}; ↑ higher is better, "
    note += "↓ lower is better."
    if summary.pairs:
        note += f" Differences are paired by seed, with 95% t-intervals. {rules(summary)}"
    return note.rstrip()


def analysis_table(results: Sequence[Result]) -> Table:
    """Return the table of ``adaptive-ortho analyse``: a row per metric, a column per SAE."""
    table = Table("metric", *(sae_name(result) for result in results))
    for label, cells in analysis_rows(results):
        table.add_row(label, *cells)
    return table


def analysis_rows(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """Return the label of each metric and its value for each SAE."""
    keys = dict.fromkeys(key for result in results for key in result.metrics)
    return [
        (describe(f"subspace/{key}").label, [four_figures(r.metrics.get(key)) for r in results])
        for key in keys
    ]


def sae_name(result: Result) -> str:
    """Return ``adaptive, seed 0``."""
    return f"{result.variant}, seed {result.seed}"


def four_figures(value: float | None) -> str:
    """Return the value with four significant figures, or a dash for None."""
    return DASH if value is None else f"{value:.4g}"
