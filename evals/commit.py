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
from saelens_adaptive_ortho.errors import Explained, reject
from saelens_adaptive_ortho.files import atomic_directory
from saelens_adaptive_ortho.report.figures.files import save_figure, save_plots
from saelens_adaptive_ortho.results import (
    RESULTS_FILE,
    Result,
    ResultError,
    load_results,
    write_results_file,
)

#: What is written.
WRITTEN = {"config.yaml", RESULTS_FILE, "plots"}
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
        ConfigError: ``run`` is no run folder, or ``target`` holds something else than results that
            this function wrote. Nothing is replaced.
        ResultError: the run holds no results, or broken ones. Nothing is replaced.
        StorageError: the results could not be written. Nothing is replaced.
    """
    if not (run / "config.yaml").is_file():
        raise reject("run", str(run), "is no run folder: it has no config.yaml.")
    _check_target(run, target)
    results = load_results(run)
    with atomic_directory(target, f"{target} is as it was.") as folder:
        shutil.copy(run / "config.yaml", folder / "config.yaml")
        write_results_file(folder / RESULTS_FILE, compact_results(results))
        if is_alpha_study(results):
            plots = save_figure(alpha_figure(results), folder / "plots" / "alpha")
        else:
            plots = save_plots(run, folder / "plots")
        if is_separation_study(results):
            plots += save_figure(separation_figure(results), folder / "plots" / "separation")
        keep_png(plots)


def _check_target(run: Path, target: Path) -> None:
    """Refuse a target that holds anything but the results of an earlier call."""
    source, place = run.resolve(), target.resolve()
    if source == place or source in place.parents or place in source.parents:
        raise reject("target", str(target), "and the run folder must not contain one another.")
    if target.exists() and not target.is_dir():
        raise reject("target", str(target), "is a file. Name a folder: evals/STUDY/results/NAME.")
    others = {path.name for path in target.iterdir()} - WRITTEN if target.is_dir() else set()
    if others:
        rule = "holds {}, which would be deleted. Name evals/STUDY/results/NAME."
        raise reject("target", str(target), rule.format(", ".join(sorted(others)[:3])))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("target", type=Path, help="evals/STUDY/results/NAME; it is replaced")
    args = parser.parse_args(argv)
    try:
        commit_run(args.run, args.target)
    except (Explained, ResultError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
