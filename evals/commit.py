"""Copy what a reader needs of a run folder (config, results, figures) into evals/results.

Of an alpha study that is the metrics of each SAE, without their details, and one figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from evals.alpha.tables import alpha_figure, is_alpha_study
from saelens_adaptive_ortho import report
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.report.plots import save_figure
from saelens_adaptive_ortho.results import load_results, result_path


def commit_run(run: Path, target: Path) -> None:
    """Replace ``target`` by the config, result JSON and figures of ``run``."""
    results = load_results(run)  # refuses broken files before anything is replaced
    if target.exists():
        shutil.rmtree(target)
    (target / "results").mkdir(parents=True)
    shutil.copy(run / "config.yaml", target / "config.yaml")
    study = is_alpha_study(results)
    for result in results:
        path = result_path(run, result.variant, result.seed, result.eval)
        document = json.loads(path.read_text(encoding="utf-8"))
        write_json(target / "results" / path.name, document | ({"details": {}} if study else {}))
    if study:
        plots = save_figure(alpha_figure(results), target / "plots" / "alpha")
    else:
        report.write_summary(target)
        plots = report.save_plots(target)
    for plot in plots:
        if plot.suffix != ".png":  # the page draws its own; a reader of the repository needs one
            plot.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    commit_run(args.run, args.target)
