"""Train and judge every idea of the prior runs, in every setting; one JSON per run, resumable."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.prior_runs.large_norm import write_large_norm_model
from evals.prior_runs.note import NEXT_STEPS, NORM_IN, PRIOR_RUNS
from evals.prior_runs.tables import figure
from saelens_adaptive_ortho import report
from saelens_adaptive_ortho.commands.compare import Comparison
from saelens_adaptive_ortho.commands.experiment import Experiment, load_experiment
from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.report.plots import save_figure
from saelens_adaptive_ortho.text.corpora import read_documents

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"
RESULTS = HERE / "results"
LARGE_MODEL = "runs/prior_runs/large_norm_model"
RUNS = [*PRIOR_RUNS, *NEXT_STEPS]

# The SAE and its input in bf16; the model in float32, since bf16 is ten times slower on most CPUs.
_BF16 = [
    f"model_name={LARGE_MODEL}",
    "dtype=bfloat16",
    "sae.dtype=bfloat16",
]
# Setting -> the folder of its configs, and what it changes in each of them.
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "demo": ("demo", []),
    "local_text": ("local_text", []),
    # The note's setting: activations of its norm, bf16, and a dictionary of the width of the model.
    "large_norm_1x": ("local_text", [*_BF16, "sae.d_sae=128", "sae.k=16"]),
    "large_norm_8x": ("local_text", [*_BF16, "sae.d_sae=1024"]),
}
METRICS = {
    "explained_variance": "core/pooled/explained_variance",
    "ce_loss_score": "core/pooled/ce_loss_score",
    "l0": "core/pooled/l0",
    "mean_max_cosine": "subspace/mean_max_cosine",
    "steps": "training/steps",
    "final_mse_loss": "training/final_mse_loss",
}


def load(setting: str, run: str, extra: Sequence[str] = ()) -> Experiment:
    """The experiment of a run in a setting."""
    folder, overrides = SETTINGS[setting]
    output = f"output_path=runs/prior_runs/{setting}/{run}"
    return load_experiment(CONFIGS / folder / f"{run}.yaml", [*overrides, output, *extra])


def prepare_model(setting: str) -> None:
    """Write the model of large activations, if the setting needs it and it is not there yet."""
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


def execute(setting: str, run: str, results: Path = RESULTS, extra: Sequence[str] = ()) -> Path:
    """Train and judge one run, unless its JSON is there; returns the JSON's path."""
    path = results / setting / f"{run}.json"
    if path.is_file():
        return path
    prepare_model(setting)
    experiment = load(setting, run, extra)
    found = Comparison(experiment).run()
    failed = [f"{r.eval}: {r.reason}" for r in found if not r.ok]
    if failed:
        raise RuntimeError(f"{setting}/{run}: {'; '.join(failed)}")
    metrics = {f"{r.eval}/{name}": value for r in found for name, value in r.metrics.items()}
    write_json(
        path,
        {
            "setting": setting,
            "run": run,
            "metrics": {name: metrics.get(key) for name, key in METRICS.items()},
            "versions": dict(found[0].versions),
        },
    )
    return path


def load_results(results: Path = RESULTS) -> list[dict[str, Any]]:
    """The JSON of every finished run."""
    files = sorted(results.glob("*/*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def save_report(results: Path = RESULTS) -> None:
    """Renew the tables of the README beside ``results``, and the figure."""
    report.update_tables(results.parent / "README.md")
    for path in save_figure(figure(load_results(results)), results.parent / "plots" / "runs"):
        if path.suffix == ".svg":  # a reader of the repository needs one of the two
            path.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then renew tables and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args(argv)
    if not args.report_only:
        for setting in args.settings:
            for run in args.runs:
                print(execute(setting, run, args.results, args.set))
    if args.results == RESULTS:
        save_report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
