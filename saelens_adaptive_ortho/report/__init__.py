"""From result files to statistics, tables, figures and one self-contained page.

Nothing here imports torch or SAELens, so a finished run can be read anywhere.
"""

from .analysis_page import analysis_table, write_analysis
from .evaluations import EVALUATIONS, EvaluationInfo, evaluation, headline_keys
from .metrics import METRICS, MetricInfo, describe
from .page import render_page, write_report, write_summary
from .plots import (
    angles_figure,
    cosine_figure,
    counts_figure,
    figure_svg,
    firing_figure,
    frontier_figure,
    groups_figure,
    headline_figure,
    run_figures,
    save_figure,
    save_plots,
    training_figure,
)
from .readme import update_tables
from .results import (
    SCHEMA_VERSION,
    Result,
    ResultError,
    load_result,
    load_results,
    order_variants,
    result_path,
    write_result,
    write_text_atomic,
)
from .summary import (
    Difference,
    EvaluationSummary,
    EvaluationVerdict,
    Gap,
    GapGroup,
    MetricSummary,
    OverallVerdict,
    Spread,
    Summary,
    summarise,
)
from .tables import evaluation_lines, markdown_table, markdown_verdicts, terminal_table

__all__ = [
    "EVALUATIONS",
    "METRICS",
    "SCHEMA_VERSION",
    "Difference",
    "EvaluationInfo",
    "EvaluationSummary",
    "EvaluationVerdict",
    "Gap",
    "GapGroup",
    "MetricInfo",
    "MetricSummary",
    "OverallVerdict",
    "Result",
    "ResultError",
    "Spread",
    "Summary",
    "analysis_table",
    "angles_figure",
    "cosine_figure",
    "counts_figure",
    "describe",
    "evaluation",
    "evaluation_lines",
    "figure_svg",
    "firing_figure",
    "frontier_figure",
    "groups_figure",
    "headline_figure",
    "headline_keys",
    "load_result",
    "load_results",
    "markdown_table",
    "markdown_verdicts",
    "order_variants",
    "render_page",
    "result_path",
    "run_figures",
    "save_figure",
    "save_plots",
    "summarise",
    "terminal_table",
    "training_figure",
    "update_tables",
    "write_analysis",
    "write_report",
    "write_result",
    "write_summary",
    "write_text_atomic",
]
