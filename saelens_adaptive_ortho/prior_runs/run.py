"""Train and judge every idea of the prior runs, in every setting; one JSON per run, resumable."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho import data, report
from saelens_adaptive_ortho.compare import Comparison
from saelens_adaptive_ortho.experiment import Experiment, load_experiment
from saelens_adaptive_ortho.prior_runs.large_norm import write_large_norm_model
from saelens_adaptive_ortho.prior_runs.note import NEXT_STEPS, NORM_IN, PRIOR_RUNS
from saelens_adaptive_ortho.storage import write_json

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "prior_runs"
RESULTS = ROOT / "evals" / "prior_runs" / "results"
LARGE_MODEL = "runs/prior_runs/large_norm_model"
RUNS = [*PRIOR_RUNS, *NEXT_STEPS]

_BF16 = [
    f"model_name={LARGE_MODEL}",
    "model_from_pretrained_kwargs={dtype: bfloat16}",
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
    documents = data.read_documents(corpus, "ortho_corpora.retain")
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


def load_results(results: Path = RESULTS) -> dict[str, dict[str, dict[str, Any]]]:
    """Metrics by setting and run."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(results.glob("*/*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(document["setting"], {})[document["run"]] = document["metrics"]
    return found


def markdown_table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The note's explained variance, and for each setting what the idea reaches here."""
    settings = [name for name in SETTINGS if name in found]
    heads = [f"{s}: EV / CE / L0 / max cos" for s in settings]
    lines = [
        "| run | idea | note: EV | note: CE | " + " | ".join(heads) + " |",
        "| --- | --- | ---: | ---: |" + " ---: |" * len(settings),
    ]
    for run in RUNS:
        note = PRIOR_RUNS.get(run)
        idea = note.idea if note else NEXT_STEPS[run]
        cells = [
            _number(note.explained_variance if note else None),
            _number(note.ce_loss_score if note else None),
        ]
        for setting in settings:
            metrics = found[setting].get(run)
            names = ("explained_variance", "ce_loss_score", "l0", "mean_max_cosine")
            cells.append(" / ".join(_number(metrics[n]) for n in names) if metrics else "—")
        lines.append(f"| {run.replace('_', ' ')} | {idea} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}"


def update_readme(path: Path, results: Path = RESULTS) -> bool:
    """Put the table between the markers of a markdown file; whether that changed it."""
    begin, end = "<!-- prior runs -->\n", "\n<!-- /prior runs -->"
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    new = head + begin + "\n" + markdown_table(load_results(results)) + "\n" + end + tail
    if new != text:
        report.write_text_atomic(path, new)
    return new != text


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then renew the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table-only", action="store_true")
    args = parser.parse_args(argv)
    if not args.table_only:
        for setting in args.settings:
            for run in args.runs:
                print(execute(setting, run, args.results, args.set))
    if args.results == RESULTS:
        update_readme(RESULTS.parent / "README.md")
    return 0
