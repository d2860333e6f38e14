"""Write ``report.html``, the page of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from saelens_adaptive_ortho.evaluations import Evaluation, headline_keys
from saelens_adaptive_ortho.examples import Examples
from saelens_adaptive_ortho.examples import read as read_examples
from saelens_adaptive_ortho.files import without_home, write_text_atomic
from saelens_adaptive_ortho.report.figures.files import run_figures
from saelens_adaptive_ortho.report.formatting import duration, number
from saelens_adaptive_ortho.report.notes import GapGroup
from saelens_adaptive_ortho.report.opening import opening
from saelens_adaptive_ortho.report.page.parts import (
    Drawing,
    MetricTable,
    metric_table,
    reference_table,
    render,
)
from saelens_adaptive_ortho.report.page.sparsity import sparsity_section
from saelens_adaptive_ortho.report.page.text import compared, named_run, question, texts
from saelens_adaptive_ortho.report.published import PublishedMethod, load
from saelens_adaptive_ortho.report.statistics import EvaluationSummary, Summary, summarise
from saelens_adaptive_ortho.report.tables import pair_title
from saelens_adaptive_ortho.report.verdicts import EvaluationVerdict, Verdicts, judge
from saelens_adaptive_ortho.results import Result, left_out, load_results, results_dir

TRADEOFF_CAPTION = (
    "What is gained against what it costs: a small dot is one SAE, a large marker the mean of a "
    "variant, with 95% intervals of both means. The variants of one seed share initial weights and "
    "activations, so the paired differences in the tables can be clear where intervals overlap. "
    "Lines join the settings of one series. Dashed: references, of which only random latents use "
    "an SAE. Dotted: the cost of the first variant plus the margin within which two variants count "
    "as equivalent."
)

#: The same for a run with one seed, which has neither means nor intervals.
TRADEOFF_CAPTION_ONE_SEED = (
    "What is gained against what it costs: a marker is one SAE. There is one seed, so nothing here "
    "shows how much another seed would differ: a distance between two markers may be chance. Lines "
    "join the settings of one series. Dashed: references, of which only random latents use an SAE. "
    "Dotted: the cost of the first variant plus the margin within which two variants count as "
    "equivalent."
)

HEADLINE_CAPTION = (
    "Each panel is one metric: compare dots of the same seed along the thin lines, since the "
    "verdict in the corner rests on those paired differences and not on whether the bars of two "
    "variants overlap."
)

# Where `adaptive-ortho browse RUN` writes its page, below the run.
BROWSER = "browse/index.html"

_GAP_WORDS = {"failed": "failed", "missing": "missing", "null": "no value"}


def write_report(run_dir: str | Path) -> Path:
    """Write ``RUN/report.html`` atomically and return its path.

    Raises:
        ResultError: the run has no results, or one of them cannot be used.
        ConfigError: the published results of the run cannot be used.
    """
    run_dir = Path(run_dir)
    results = load_results(run_dir)
    config_path = run_dir / "config.yaml"
    # It is only shown: what is not UTF-8 must not stop the report.
    config = config_path.read_text("utf-8", "replace") if config_path.is_file() else None
    name = run_dir.resolve().name
    browser = BROWSER if (run_dir / BROWSER).is_file() else ""
    found = read_examples(results_dir(run_dir))
    run = "" if config is None else without_home(named_run(config, run_dir))
    page = render_page(
        results, without_home(config), name, browser, found, run, load(run_dir), left_out(run_dir)
    )
    return write_text_atomic(run_dir / "report.html", page)


def render_page(
    results: Sequence[Result],
    config: str | None = None,
    name: str = "run",
    browser: str = "",
    examples: Examples | None = None,
    run: str = "",
    published: Sequence[PublishedMethod] = (),
    others: Mapping[str, str] | None = None,
) -> str:
    """Return the page as text.

    Args:
        results: results as `load_results` returns them.
        config: text of the run's configuration, shown unchanged; None if there is none.
        name: name of the run for the title.
        browser: path of the page of ``adaptive-ortho browse``; empty if there is none.
        examples: text before and after unlearning; None if there is none.
        run: the run folder as a command names it; empty if it holds no SAEs.
        published: results of others.
        others: files that were left out, and why (`results.left_out`).
    """
    summary = summarise(results)
    verdicts = judge(summary)
    figures = run_figures(summary, results, published)
    pairs = sorted(summary.pairs, key=lambda pair: pair[0] != summary.focus)
    one_seed = len(summary.seeds) == 1
    tradeoff_caption = TRADEOFF_CAPTION_ONE_SEED if one_seed else TRADEOFF_CAPTION
    drawings = {
        name: Drawing.of(figures[name], name, heading, caption)
        for name, heading, caption in (
            ("tradeoff", "Gain and cost", tradeoff_caption),
            ("headline", "At a glance", HEADLINE_CAPTION),
        )
        if name in figures
    }
    return render(
        "run.html.j2",
        title=f"{name}: sparse autoencoders compared",
        compared=compared(name, config, summary),
        texts=texts(examples, summary, run),
        question=question(summary),
        verdicts=verdicts,
        others=[v for v in verdicts.overall if v.variant != summary.focus],
        pairs=[pair_title(pair) for pair in pairs],
        sections=[
            _section(summary, verdicts, found, pairs, figures)
            for found in summary.evaluations.values()
        ],
        failures=[
            *((summary.evaluations[gap.eval].info.title, _gap(gap)) for gap in summary.gap_groups),
            *((file, _other(problem)) for file, problem in (others or {}).items()),
        ],
        opening=opening(summary),
        concerns=summary.concerns,
        first=drawings.pop("tradeoff", None),
        overview=list(drawings.values()),
        sparsity=sparsity_section(summary, published, figures.get("sparsity")),
        headline=metric_table(summary, summary.headline) if summary.headline else None,
        references=reference_table(summary, summary.headline),
        one_seed=one_seed,
        config=None if config is None else config.rstrip(),
        browser=browser,
        latents=f"adaptive-ortho browse {run}" if run else "",
        versions=[(name, ", ".join(seen)) for name, seen in summary.versions.items()],
        mixed=", ".join(name for name, seen in summary.versions.items() if len(seen) > 1),
        files=[(r.variant, r.seed, r.eval, number(r.seconds, 1), r.fingerprint) for r in results],
    )


@dataclass(frozen=True)
class Section:
    """The section of one evaluation.

    Args:
        info: the evaluation.
        finished: number of SAEs with results; if it is 0, only the failures are shown.
        failures: what is missing, and why.
        outcomes: verdict on each pair, for the table of contents; None if the pair has none.
        verdicts: the verdicts of ``outcomes`` that exist.
        caveats: caveats on the numbers.
        remarks: other remarks in the results.
        table: table of the primary and headline metrics.
        folded: table of the other metrics, folded away.
        drawings: figures of the evaluation.
        took: mean time per SAE, as text.
    """

    info: Evaluation
    finished: int
    failures: Sequence[str]
    outcomes: Sequence[EvaluationVerdict | None]
    verdicts: Sequence[EvaluationVerdict]
    caveats: Sequence[str]
    remarks: Sequence[str]
    table: MetricTable
    folded: MetricTable
    drawings: Sequence[Drawing]
    took: str


def _section(
    summary: Summary,
    verdicts: Verdicts,
    found: EvaluationSummary,
    pairs: Sequence[tuple[str, str]],
    figures: Mapping[str, Figure],
) -> Section:
    info = found.info
    outcomes = [verdicts.of(info.name, pair) for pair in pairs]
    first = {*info.keys(info.primary), *headline_keys(found.keys)}
    shown = [key for key in found.keys if key in first] or list(found.keys)
    folded = [key for key in found.keys if key not in shown]
    return Section(
        info=info,
        finished=found.finished,
        failures=[_gap(gap) for gap in summary.gap_groups if gap.eval == info.name],
        outcomes=outcomes,
        verdicts=[verdict for verdict in outcomes if verdict is not None],
        caveats=found.caveats,
        remarks=found.remarks,
        table=metric_table(summary, shown, section=True),
        folded=metric_table(summary, folded, section=True, named=True),
        drawings=[
            Drawing.of(figures[shown.name], shown.name, shown.heading, shown.caption)
            for shown in info.figures
            if shown.name in figures
        ],
        took="" if found.seconds is None else duration(found.seconds),
    )


def _other(problem: str) -> str:
    return f"left out, because no SAE of this run has its name: {without_home(problem)}"


def _gap(gap: GapGroup) -> str:
    return f"{_GAP_WORDS[gap.kind]}, {gap.saes}: {gap.reason}"
