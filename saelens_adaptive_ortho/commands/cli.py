"""``adaptive-ortho``: the command line."""

from __future__ import annotations

import argparse
import runpy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelens_adaptive_ortho.results import load_results

if TYPE_CHECKING:  # loads slowly: commands import what they need
    from saelens_adaptive_ortho.text.corpora import CorpusConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit status: 0 done, 1 an evaluation failed, 2 bad input, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["sae-lens"]:  # its options are SAELens's to parse
        return sae_lens(argv[1:])
    args = _parser().parse_args(argv)
    from saelens_adaptive_ortho.errors import ConfigError
    from saelens_adaptive_ortho.files import StorageError
    from saelens_adaptive_ortho.results import ResultError

    errors: tuple[type[Exception], ...] = (ConfigError, ResultError, StorageError)
    if args.command in {"compare", "train", "check", "eval", "analyse", "synth"}:
        from saelens_adaptive_ortho.training.lockstep import NonFiniteLossError
        from saelens_adaptive_ortho.training.store import NonFiniteActivationsError

        errors = (*errors, NonFiniteActivationsError, NonFiniteLossError)
    try:
        return args.run(args)
    except errors as error:
        print(f"adaptive-ortho: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        message = str(error) or "interrupted"
        hint = {
            "compare": "The same command continues.",
            "eval": "The same command continues.",
            "synth": "The same command continues at the last checkpoint, if there is one.",
            "train": "Continue with --set resume_from_checkpoint=FOLDER.",
        }.get(args.command, "")
        print(f"adaptive-ortho: {message}. {hint}", file=sys.stderr)
        return 130


def compare(args: argparse.Namespace) -> int:
    """Train, evaluate and report every variant of an experiment."""
    from rich.console import Console

    from saelens_adaptive_ortho.commands.compare import Comparison
    from saelens_adaptive_ortho.commands.experiment import load_experiment
    from saelens_adaptive_ortho.report.statistics import summarise
    from saelens_adaptive_ortho.report.tables import terminal_table

    console = Console()
    experiment = load_experiment(args.config, args.set)
    results = Comparison(experiment, say=_say).run(fresh=args.fresh)
    console.print(terminal_table(summarise(results)))
    return 0 if all(r.ok for r in results) else 1


def evaluate(args: argparse.Namespace) -> int:
    """Judge finished SAEs side by side: directories that SAELens saved, or release:sae_id."""
    from rich.console import Console

    from saelens_adaptive_ortho.commands.experiment import eval_settings
    from saelens_adaptive_ortho.commands.judge import run_suite
    from saelens_adaptive_ortho.judging.subjects import SuiteOptions
    from saelens_adaptive_ortho.report.statistics import summarise
    from saelens_adaptive_ortho.report.tables import terminal_table

    options = SuiteOptions(
        evals=eval_settings(args.evals.split(","), args.set),
        out=Path(args.out),
        model_name=args.model,
        corpora=_corpora(args),
        context_size=args.context_size,
        device=args.device,
        dtype=args.dtype,
    )
    results = run_suite(args.saes, options, say=_say)
    Console().print(terminal_table(summarise(results)))
    return 0 if all(r.ok for r in results) else 1


def analyse(args: argparse.Namespace) -> int:
    """Geometry of finished SAEs: conditioning, angles and cosines of groups, similar pairs."""
    from rich.console import Console

    from saelens_adaptive_ortho.commands.analyse import AnalyseOptions
    from saelens_adaptive_ortho.commands.analyse import analyse as run
    from saelens_adaptive_ortho.report.tables import analysis_table

    options = AnalyseOptions(
        out=Path(args.out),
        model_name=args.model,
        corpora=_corpora(args),
        context_size=args.context_size,
        n_contexts=args.contexts,
        min_cosine=args.min_cosine,
        max_lift=args.max_lift,
        n_candidates=args.candidates,
        n_texts=args.texts,
        device=args.device,
        dtype=args.dtype,
    )
    Console().print(analysis_table(run(args.saes, options, say=_say)))
    return 0


def _corpora(args: argparse.Namespace) -> dict[str, CorpusConfig] | None:
    """Those of --forget and --retain; one alone is a corpus without a part to play."""
    from saelens_adaptive_ortho.text.corpora import CorpusConfig

    given = {d: getattr(args, d) for d in ("forget", "retain") if getattr(args, d) is not None}
    corpora = {d: CorpusConfig.parse(f"--{d}", text) for d, text in given.items()}
    if len(corpora) == 1:
        corpora = {"corpus": next(iter(corpora.values()))}
    return corpora or None


def train(args: argparse.Namespace) -> int:
    """Train the one SAE of a config and export it."""
    from saelens_adaptive_ortho.commands.experiment import load_experiment
    from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner

    cfg = load_experiment(args.config, args.set).runner
    AdaptiveOrthoRunner(cfg).run()
    _say(f"Saved: {cfg.output_path}/sae")
    return 0


def synth(args: argparse.Namespace) -> int:
    """Train one SAE on a synthetic world and measure what it found of the true features."""
    from rich.console import Console
    from rich.table import Table

    from saelens_adaptive_ortho.files import check_writable, write_json
    from saelens_adaptive_ortho.synthetic.run import build_run, execute, parse_settings

    settings = parse_settings(args.set)
    for value, field in ((args.alpha, "ortho_alpha"), (args.coefficient, "ortho_coefficient")):
        if value is not None:
            settings[field] = value
    for value, field in ((args.world_seed, "seed"), (args.scale, "scale")):
        if value is not None:
            settings.setdefault("world", {})[field] = value
    run = build_run(args.world, args.base, args.mode, args.seed, settings)
    out = Path(args.json)
    check_writable("--json", out.parent)
    check_writable("--cache", args.cache)
    checkpoints = out.with_name(f"{out.name}.checkpoint")
    result = execute(run, args.cache, checkpoints, args.checkpoint_every)
    write_json(out, result)
    table = Table("metric", "value")
    for name, value in result.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4g}")
    Console().print(table)
    _say(f"Saved: {out}")
    return 0


def check(args: argparse.Namespace) -> int:
    """Validate a config: settings, folders, corpora, model; nothing is trained."""
    from saelens_adaptive_ortho.commands.experiment import load_experiment
    from saelens_adaptive_ortho.training import runner

    experiment = load_experiment(args.config, args.set)
    if args.offline:
        _say(f"{args.config}: settings are valid (corpora and model were not opened).")
        return 0
    prepared = runner.prepare(experiment.runner)
    for corpus in prepared.corpora:
        _say(
            f"{corpus.domain}: {len(corpus.train)} training and {len(corpus.held_out)} held-out "
            f"contexts of {experiment.runner.context_size} tokens"
        )
    _say(f"{args.config}: ready to run.")
    return 0


def config(args: argparse.Namespace) -> int:
    """List the configs that ship with the package, or copy one with the files it extends."""
    from saelens_adaptive_ortho.commands.configs import copy_config, described_configs

    if args.action == "list":
        described = described_configs()
        width = max(map(len, described))
        for name, text in described.items():
            print(f"{name:<{width}}  {text}")
        return 0
    for path in copy_config(args.name, args.dest):
        print(path)
    return 0


def make_report(args: argparse.Namespace) -> int:
    """Write the report of a run folder afresh, and show its table."""
    from rich.console import Console

    from saelens_adaptive_ortho.report import summary
    from saelens_adaptive_ortho.report.page import run as page
    from saelens_adaptive_ortho.report.statistics import summarise
    from saelens_adaptive_ortho.report.tables import terminal_table

    root = Path(args.run_dir)
    summary.write_summary(root)
    _say(f"Report: {page.write_report(root)}")
    Console().print(terminal_table(summarise(load_results(root))))
    return 0


def tables(args: argparse.Namespace) -> int:
    """Regenerate the tables of a markdown file from the results it names."""
    from saelens_adaptive_ortho.report.markdown import update_tables

    path = Path(args.markdown)
    changed = update_tables(path, path.parent, check=args.check)
    if args.check and changed:
        print(f"{path}: tables are not those of the results; run without --check", file=sys.stderr)
        return 1
    return 0


def penalties(_: argparse.Namespace) -> int:
    """List penalties and affinities, those of installed packages included."""
    from saelens_adaptive_ortho.errors import ConfigError
    from saelens_adaptive_ortho.maths.affinity import AFFINITIES
    from saelens_adaptive_ortho.maths.penalties import PENALTIES

    for field, table in (("ortho_mode", PENALTIES), ("ortho_affinity", AFFINITIES)):
        print(f"{field}:")
        for name in table.names():
            try:
                print(f"  {name:<16}{table.find(field, name).help}")
            except ConfigError as error:  # of one package; the others are listed all the same
                print(f"  {name:<16}cannot be used: {error}")
    return 0


def sae_lens(argv: list[str]) -> int:
    """SAELens's own training command line, with this package's architectures registered."""
    import saelens_adaptive_ortho  # noqa: F401  (registers)

    previous = sys.argv
    sys.argv = ["adaptive-ortho sae-lens", *argv]
    try:
        with warnings.catch_warnings():
            # runpy warns that the module is imported already; it is run afresh, as meant.
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
            runpy.run_module("sae_lens.llm_sae_training_runner", run_name="__main__")
    finally:
        sys.argv = previous
    return 0


def _say(line: str) -> None:
    from tqdm.auto import tqdm

    tqdm.write(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adaptive-ortho",
        description="Sparse autoencoders with adaptively orthogonal decoder directions.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Any, config: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        if config:
            sub.add_argument("config", help="experiment YAML, or a shipped config's name: demo")
            sub.add_argument(
                "--set",
                metavar="KEY=VALUE",
                action="append",
                default=[],
                help="override a setting, e.g. --set sae.k=16 (repeatable)",
            )
        return sub

    add("compare", compare, config=True).add_argument(
        "--fresh", action="store_true", help="delete the run's SAEs and results first"
    )
    add("train", train, config=True)
    sub = add("eval", evaluate)
    sub.add_argument("saes", nargs="+", metavar="SAE", help="[NAME=]DIRECTORY or release:sae_id")
    sub.add_argument("--evals", default="core", help="comma-separated, e.g. core,unlearning")
    sub.add_argument("--out", required=True, help="folder for results and report")
    sub.add_argument("--model", help="hub name or directory, if not the one in the SAE's metadata")
    sub.add_argument("--forget", metavar="CORPUS", help="file, directory, or hub data set[:name]")
    sub.add_argument("--retain", metavar="CORPUS", help="likewise; default: those of the training")
    sub.add_argument("--context-size", type=int, help="tokens in a context")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--dtype", default="float32")
    sub.add_argument(
        "--set",
        metavar="EVAL.FIELD=VALUE",
        action="append",
        default=[],
        help="a setting of an evaluation, e.g. --set core.n_contexts=64 (repeatable)",
    )
    sub = add("analyse", analyse)
    sub.add_argument("saes", nargs="+", metavar="SAE", help="[NAME=]DIRECTORY or release:sae_id")
    sub.add_argument("--out", required=True, help="folder for the JSON, the page and the plots")
    sub.add_argument("--model", help="hub name or directory, if not the one in the SAE's metadata")
    sub.add_argument("--forget", metavar="CORPUS", help="file, directory, or hub data set[:name]")
    sub.add_argument("--retain", metavar="CORPUS", help="likewise; default: those of the training")
    sub.add_argument("--context-size", type=int, help="tokens in a context")
    sub.add_argument("--contexts", type=int, default=256, help="contexts read of each corpus")
    sub.add_argument("--min-cosine", type=float, default=0.3, help="of a pair that is looked at")
    sub.add_argument("--max-lift", type=float, default=0.25, help="of an absorption candidate")
    sub.add_argument("--candidates", type=int, default=20, help="candidates shown per SAE")
    sub.add_argument("--texts", type=int, default=3, help="texts shown per latent")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--dtype", default="float32")
    sub = add("synth", synth)
    sub.add_argument("--world", required=True, help="hierarchy, cluster, domains, synthsaebench16k")
    sub.add_argument(
        "--base",
        default="batchtopk",
        help="standard, topk, batchtopk, jumprelu, matryoshka_batchtopk (default: batchtopk)",
    )
    sub.add_argument(
        "--mode",
        default="adaptive",
        help="off, gram, fixed, adaptive (default), or a penalty of an installed package",
    )
    sub.add_argument("--alpha", type=float, help="ortho_alpha, the sharing allowed")
    sub.add_argument("--coefficient", type=float, help="ortho_coefficient, lambda")
    sub.add_argument("--seed", type=int, default=0, help="of weights and order of samples")
    sub.add_argument("--world-seed", type=int, help="of the world and its samples")
    sub.add_argument("--scale", type=int, help="divide synthsaebench16k by this")
    sub.add_argument("--json", required=True, metavar="OUT", help="file for the metrics")
    sub.add_argument(
        "--cache", default="runs/synthetic_pools", help="folder of sample pools, drawn once each"
    )
    sub.add_argument("--checkpoint-every", type=int, default=5000, metavar="STEPS")
    sub.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="a field of the SAE, or world.FIELD, train.FIELD, pool.FIELD, e.g. --set k=8 "
        "--set ortho_affinity=overlap --set world.cosine=.6 --set train.steps=1000 (repeatable)",
    )
    add("check", check, config=True).add_argument(
        "--offline", action="store_true", help="check the settings only"
    )
    actions = add("config", config).add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="name and first line of each")
    sub = actions.add_parser("copy", help="write NAME.yaml and the files it extends")
    sub.add_argument("name", metavar="NAME", help="e.g. demo")
    sub.add_argument("dest", metavar="DEST", nargs="?", default=".", help="folder; default: here")
    add("report", make_report).add_argument("run_dir", help="a run folder")
    add("penalties", penalties)
    commands.add_parser("sae-lens", help=sae_lens.__doc__)
    sub = add("tables", tables)
    sub.add_argument("markdown", help="e.g. README.md")
    sub.add_argument("--check", action="store_true", help="only say whether they are up to date")
    return parser


if __name__ == "__main__":
    sys.exit(main())
