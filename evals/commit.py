"""Copy config, results and figures of a run folder into a study, in compact form.

The figures are drawn here, from the run folder, because they show histories, histograms and
bootstrap replicates that are too large to commit. An alpha study gets one figure of its own.

python -m evals.commit RUN TARGET
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from evals.alpha.figures import alpha_figure
from evals.alpha.tables import PANELS, is_alpha_study
from evals.draw import keep_png
from evals.separation.figures import is_separation_study, separation_figure
from saelens_adaptive_ortho.report.figures.files import save_figure, save_plots
from saelens_adaptive_ortho.results import (
    RESULTS_FILE,
    Result,
    load_results,
    write_results_file,
)

#: What tables, verdicts and the trade-off figure show of the details of a result.
KEPT = ("caveat", "source", "verdict", "mcq_reason", "references")


def compact_results(results: Sequence[Result]) -> list[Result]:
    """Return the results with only what tables need: metrics, and some of the details.

    For an alpha study, only the metrics of its table are kept, and results without any of them are
    left out.
    """
    study = is_alpha_study(results)
    kept = []
    for result in results:
        metrics = dict(result.metrics)
        if study:
            metrics = {n: v for n, v in metrics.items() if f"{result.eval}/{n}" in PANELS}
            if not metrics:
                continue
        details = {n: v for n, v in result.details.items() if n in KEPT and not study}
        kept.append(dataclasses.replace(result, metrics=metrics, details=details))
    return kept


def commit_run(run: Path, target: Path) -> None:
    """Replace ``target`` by the config, the results and the figures of ``run``.

    Raises:
        ResultError: the run holds no results, or broken ones. Then nothing is replaced.
    """
    results = load_results(run)
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    shutil.copy(run / "config.yaml", target / "config.yaml")
    write_results_file(target / RESULTS_FILE, compact_results(results))
    if is_alpha_study(results):
        plots = save_figure(alpha_figure(results), target / "plots" / "alpha")
    else:
        plots = save_plots(run, target / "plots")
    if is_separation_study(results):
        plots += save_figure(separation_figure(results), target / "plots" / "separation")
    keep_png(plots)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("target", type=Path, help="evals/STUDY/results/NAME; it is replaced")
    args = parser.parse_args(argv)
    commit_run(args.run, args.target)


if __name__ == "__main__":
    main()
