"""Train and judge every idea of the prior runs, in every setting.

``results.jsonl`` gets a line when a run is finished. If a command was stopped, the same command
continues with the missing runs. An experiment is a setting (``configs/settings``), overridden by an
idea (``configs/ideas``), overridden by what the setting says about that idea.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.compact import append_run, read_runs
from evals.prior_runs.figures import figure
from evals.prior_runs.large_norm import write_large_norm_model
from evals.prior_runs.note import NEXT_STEPS, NORM_IN, PRIOR_RUNS
from evals.tables import KINDS
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.experiments.comparison import Comparison
from saelens_adaptive_ortho.experiments.experiment import (
    Experiment,
    build_experiment,
    lay_over,
    read_tree,
)
from saelens_adaptive_ortho.report.figures.files import save_figure
from saelens_adaptive_ortho.report.markdown import update_tables
from saelens_adaptive_ortho.settings import apply_override
from saelens_adaptive_ortho.text.corpora import read_documents

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"
RESULTS = HERE / "results.jsonl"
LARGE_MODEL = "runs/prior_runs/large_norm_model"
RUNS = [*PRIOR_RUNS, *NEXT_STEPS]

# SAE and activations are in bf16. The model is in float32: bf16 is ten times slower on most CPUs.
_BF16 = [
    f"model_name={LARGE_MODEL}",
    "dtype=bfloat16",
    "sae.dtype=bfloat16",
]
GEMMA = "gemma-2-2b_layer19"
# Setting -> its file, and overrides of that file.
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "demo": ("demo", []),
    "local_text": ("local_text", []),
    # The setting of the note: activations of the same norm, bf16, and d_sae = d_in.
    "large_norm_1x": ("local_text", [*_BF16, "sae.d_sae=128", "sae.k=16"]),
    "large_norm_8x": ("local_text", [*_BF16, "sae.d_sae=1024"]),
    # The model of the note; it runs only if it is named.
    GEMMA: (GEMMA, []),
}
DEFAULT_SETTINGS = [setting for setting in SETTINGS if setting != GEMMA]
METRICS = {
    "explained_variance": "core/pooled/explained_variance",
    "ce_loss_score": "core/pooled/ce_loss_score",
    "l0": "core/pooled/l0",
    "mean_max_cosine": "subspace/mean_max_cosine",
    "steps": "training/steps",
    "final_mse_loss": "training/final_mse_loss",
}


def load(setting: str, run: str, extra: Sequence[str] = ()) -> Experiment:
    """Return the experiment of a run in a setting.

    Raises:
        ConfigError: see :func:`saelens_adaptive_ortho.experiments.experiment.load_experiment`.
    """
    file, overrides = SETTINGS[setting]
    tree = read_tree(CONFIGS / "settings" / f"{file}.yaml")
    by_idea = tree.pop("ideas", {})
    for name in by_idea:
        if name not in RUNS:
            raise reject("ideas", name, f"must be among {', '.join(RUNS)}.")
    tree = lay_over(tree, read_tree(CONFIGS / "ideas" / f"{run}.yaml"))
    tree = lay_over(tree, by_idea.get(run, {}))
    tree["variants"] = {run.replace("_", "-"): {}}
    tree["output_path"] = f"runs/prior_runs/{setting}/{run}"
    for override in [*overrides, *extra]:
        apply_override(tree, override)
    return build_experiment(tree, run)


def prepare_model(setting: str) -> None:
    """Write the model with large activations if the setting needs it and it does not exist yet."""
    if f"model_name={LARGE_MODEL}" not in SETTINGS[setting][1]:
        return
    if (Path(LARGE_MODEL) / "config.json").is_file():
        return
    local = load("local_text", "run0").runner
    corpus = local.corpora()["retain"]
    documents = read_documents(corpus, "ortho_corpora.retain")
    text = " ".join(document for document, _ in zip(documents, range(20), strict=False))
    layer = int(local.hook_name.split(".")[1])
    write_large_norm_model(local.model_name, LARGE_MODEL, text, layer, NORM_IN)


def execute(
    setting: str, run: str, results: Path = RESULTS, extra: Sequence[str] = ()
) -> dict[str, Any]:
    """Train and judge one run, unless ``results`` already has it, and return its result."""
    for finished in load_results(results):
        if (finished["setting"], finished["run"]) == (setting, run):
            return finished
    prepare_model(setting)
    experiment = load(setting, run, extra)
    found = Comparison(experiment).run()
    failed = [f"{r.eval}: {r.reason}" for r in found if not r.ok]
    if failed:
        raise RuntimeError(f"{setting}/{run}: {'; '.join(failed)}")
    metrics = {f"{r.eval}/{name}": value for r in found for name, value in r.metrics.items()}
    result = {
        "setting": setting,
        "run": run,
        "metrics": {name: metrics.get(key) for name, key in METRICS.items()},
        "versions": dict(found[0].versions),
    }
    append_run(results, result)
    return result


def load_results(results: Path = RESULTS) -> list[dict[str, Any]]:
    """Return every finished run, sorted by setting and run."""
    return sorted(read_runs(results), key=lambda r: (r["setting"], r["run"]))


def save_report(results: Path = RESULTS) -> None:
    """Update the tables of the README beside ``results``, and the figure."""
    update_tables(results.parent / "README.md", renderers=KINDS)
    for path in save_figure(figure(load_results(results)), results.parent / "plots" / "runs"):
        if path.suffix == ".svg":  # the README shows the PNG only
            path.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then update tables and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", default=DEFAULT_SETTINGS, choices=list(SETTINGS))
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file with a line per run")
    parser.add_argument("--report-only", action="store_true", help="only update tables and figure")
    args = parser.parse_args(argv)
    if not args.report_only:
        for setting in args.settings:
            for run in args.runs:
                execute(setting, run, args.results, args.set)
                print(f"{setting}/{run}: finished")
    if args.results == RESULTS:
        save_report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
