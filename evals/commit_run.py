"""Copy what a reader needs of a run folder (config, results, figures) into evals/results."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from saelens_adaptive_ortho import report


def commit_run(run: Path, target: Path) -> None:
    """Replace ``target`` by the config, result JSON and figures of ``run``."""
    results = report.load_results(run)  # refuses broken files before anything is replaced
    if target.exists():
        shutil.rmtree(target)
    (target / "results").mkdir(parents=True)
    shutil.copy(run / "config.yaml", target / "config.yaml")
    for result in results:
        path = report.result_path(run, result.variant, result.seed, result.eval)
        shutil.copy(path, target / "results" / path.name)
    report.write_summary(target)
    for plot in report.save_plots(target):
        if plot.suffix != ".png":  # the page draws its own; a reader of the repository needs one
            plot.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    commit_run(args.run, args.target)
