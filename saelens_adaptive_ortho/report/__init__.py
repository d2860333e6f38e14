"""From result files to statistics, tables, figures and one self-contained page.

Nothing here imports torch or SAELens, so a finished run can be read anywhere.
"""

from saelens_adaptive_ortho.report.analysis_page import analysis_table, write_analysis
from saelens_adaptive_ortho.report.markdown import update_tables
from saelens_adaptive_ortho.report.metrics import MetricInfo, describe
from saelens_adaptive_ortho.report.page import render_page, write_report, write_summary
from saelens_adaptive_ortho.report.plots import (
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
from saelens_adaptive_ortho.report.summary import (
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
from saelens_adaptive_ortho.report.tables import (
    evaluation_lines,
    markdown_table,
    markdown_verdicts,
    terminal_table,
)

__all__ = [
    "Difference",
    "EvaluationSummary",
    "EvaluationVerdict",
    "Gap",
    "GapGroup",
    "MetricInfo",
    "MetricSummary",
    "OverallVerdict",
    "Spread",
    "Summary",
    "analysis_table",
    "angles_figure",
    "cosine_figure",
    "counts_figure",
    "describe",
    "evaluation_lines",
    "figure_svg",
    "firing_figure",
    "frontier_figure",
    "groups_figure",
    "headline_figure",
    "markdown_table",
    "markdown_verdicts",
    "render_page",
    "run_figures",
    "save_figure",
    "save_plots",
    "summarise",
    "terminal_table",
    "training_figure",
    "update_tables",
    "write_analysis",
    "write_report",
    "write_summary",
]
