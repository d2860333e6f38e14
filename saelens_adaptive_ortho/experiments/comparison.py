"""Train each variant with each seed, evaluate it, and report. Finished work is not repeated.

A run folder holds ``config.yaml``, ``seed<S>/<variant>/`` (SAEs that plain SAELens loads),
``seed<S>/checkpoints/`` while training, ``results/*.json`` and ``report.html``. With W&B there are
also ``wandb.json`` and ``wandb/``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.saes.sae import SAE
from safetensors import SafetensorError, safe_open
from transformer_lens import HookedRootModule

from saelens_adaptive_ortho import examples
from saelens_adaptive_ortho.checksums import SUMS, files_named, find_damage
from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.evaluations import runnable
from saelens_adaptive_ortho.evaluations.unlearning import UNLEARNING
from saelens_adaptive_ortho.experiments.costs_in_words import taken_in_words
from saelens_adaptive_ortho.experiments.experiment import Experiment, check_fits, recorded_settings
from saelens_adaptive_ortho.files import (
    check_writable,
    delete_files,
    read_cached,
    recover_directory,
    remove_empty,
    remove_litter,
    remove_scratch,
    without_home,
    write_failures_named,
    write_text_atomic,
)
from saelens_adaptive_ortho.judging.contract import EvalContext, Outcome, Workbench
from saelens_adaptive_ortho.judging.running import (
    check_evals_corpora,
    check_evals_runnable,
    run_missing,
    write_outcome,
)
from saelens_adaptive_ortho.judging.unlearning.examples import make_examples
from saelens_adaptive_ortho.locks import run_lock
from saelens_adaptive_ortho.report import summary
from saelens_adaptive_ortho.report.formatting import duration
from saelens_adaptive_ortho.report.page import run as page
from saelens_adaptive_ortho.report.statistics import focus_of
from saelens_adaptive_ortho.results import (
    SCHEMA_VERSION,
    Result,
    ResultError,
    is_result_name,
    load_result,
    load_results,
    parse_result,
    result_path,
    write_result,
)
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.text.models import weights_digest
from saelens_adaptive_ortho.text.shared_reads import SharedReads
from saelens_adaptive_ortho.training.costs import costs_taken
from saelens_adaptive_ortho.training.lockstep import (
    delete_checkpoints,
    fit_together,
    holds_checkpoints,
    list_checkpoints,
)
from saelens_adaptive_ortho.training.runner import (
    AdaptiveOrthoRunner,
    Prepared,
    check_site,
    prepare,
)
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig, with_sae
from saelens_adaptive_ortho.training.tracking import ID_FILE, Tracking

RECORD = "ortho_run.json"
WEIGHTS = "model_weights"  # in the record: the digest of the language model's weights
TRAINING = "training"  # the result of a training; also in the record: its numbers
TIMES = ("train_seconds", "activation_seconds")  # not in the record: the same SAE, the same folder
CHECKPOINTS = "checkpoints"
RAW = "sae_bench"  # folder of SAEBench's own result files
RAW_SUFFIX = "_custom_sae_eval_results.json"  # the names of these files end with it
ABANDONED = 3600.0  # seconds after which no process writes a small file of the cache any more
SHORT = 10.0  # seconds of evaluation that need no announcement
HISTORY_KEYS = ("step", "mse_loss", "ortho_loss", "explained_variance", "l0")


def workbench(cfg: AdaptiveOrthoRunnerConfig, prepared: Prepared, cache: Path) -> Workbench:
    """The workbench of a training run: its model, its corpora, its contexts."""
    return Workbench(
        model=prepared.model,
        model_name=cfg.model_name,
        corpora=prepared.corpora,
        texts=cfg.corpora(),
        context_size=cfg.context_size,
        cache=cache.resolve(),
        prepend_bos=bool(cfg.prepend_bos),
        device=cfg.device,
        dtype=cfg.dtype,
    )


class Comparison:
    """Runs an :class:`Experiment` in its ``output_path``.

    Args:
        experiment: what to run.
        say: function that shows a line of progress.
        where: beginning of these lines, if comparisons of several hooks run together.
        cache: folder of the tokenised text and of what evaluations make once for all SAEs. Other
            comparisons may use it at the same time. None for one of its own, in ``output_path``.
    """

    def __init__(
        self,
        experiment: Experiment,
        say: Callable[[str], None] = print,
        where: str = "",
        cache: Path | None = None,
    ) -> None:
        if experiment.runner.output_path is None:
            raise reject("output_path", None, "a comparison needs a folder to write to.")
        self.experiment = experiment
        self.say = say
        self.where = where
        self.root = Path(experiment.runner.output_path)
        self.results = self.root / "results"
        self.shares_cache = cache is not None
        self.cache = cache or self.root / "cache"
        self.prepared: Prepared | None = None
        self.tracking = Tracking(experiment.runner.logger, self.root, say)

    def run(self, fresh: bool = False, prepared: Prepared | None = None) -> list[Result]:
        """Train and evaluate what is missing, and write the report; see :func:`run_together`."""
        return run_together([self], fresh, prepared)[0]

    def report(self) -> list[Result]:
        """Write the summary and the report, and return all results."""
        results = load_results(self.root, list(self.experiment.variants))
        summary.write_summary(self.root)
        path = page.write_report(self.root)
        self.say(f"Report: {path}")
        self._track(results, path)
        return results

    def rehearse(self) -> None:
        """Build SAEs and optimisers, so that a setting that fails there deletes nothing."""
        cfg = self._seeded(self.experiment.seeds[0])
        AdaptiveOrthoRunner(cfg, self.experiment.variants, self.prepared)

    def check_targets(self) -> None:
        """Refuse what is in the way of a file or a folder that the comparison will write.

        Raises:
            ConfigError: a file is where a folder will be, or the other way round, or a folder
                cannot be written. The message names it and the remedy.
        """
        seeds, variants = self.experiment.seeds, self.experiment.variants
        within = [self.root / f"seed{seed}" for seed in seeds]
        folders = [self.results, self.results / RAW, self.cache, *within]
        folders += [*self.sae_dirs(), *(self._checkpoints(seed) for seed in seeds)]
        files = [self.root / "config.yaml", self.root / "report.html"]
        files += [self.results / "summary.json", self.results / examples.FILE]
        for variant, seed, name in product(variants, seeds, (TRAINING, *self.experiment.evals)):
            files.append(result_path(self.root, variant, seed, name))
        remedy = "Move it away, or choose another output_path."
        for path in folders:
            if os.path.lexists(path) and not path.is_dir():
                rule = f"{path} is no folder, and a folder will be written there. {remedy}"
                raise reject("output_path", str(self.root), rule)
            if path.is_dir():
                check_writable("output_path", path)
        for path in files:
            if path.exists() and not path.is_file():
                rule = f"{path} is no regular file, and a file will be written there. {remedy}"
                raise reject("output_path", str(self.root), rule)

    def clear(self) -> None:
        """Delete the SAEs, checkpoints and results that comparisons made in this folder.

        Records, names and contents prove what they are. Everything else stays, and so does the
        tokenised text, which is found by its content. Folders that are empty then go, too.
        """
        folders, files = self._made_by_comparisons()
        if not folders and not files:
            return
        self.say(
            f"{self.root}: deleting {len(folders)} folders of SAEs or checkpoints, and "
            f"{len(files)} files of results"
        )
        for folder in folders:
            if folder.name == CHECKPOINTS:
                delete_checkpoints(folder)
            else:
                _delete_sae(folder)
            if folder.is_dir():
                self.say(f"{folder}: files that no comparison made stay")
        for file in files:
            file.unlink()
        (self.root / ID_FILE).unlink(missing_ok=True)  # the new SAEs get new W&B runs
        for folder in {path.parent for path in [*folders, *files]}:
            remove_empty(folder, self.root)

    def _made_by_comparisons(self) -> tuple[list[Path], list[Path]]:
        """The folders of SAEs and checkpoints, and the files of results."""
        seeds = [p for p in _real_folders(self.root) if re.fullmatch(r"seed\d+", p.name)]
        inside = [path for seed in seeds for path in _real_folders(seed)]
        folders = [p for p in inside if (p / RECORD).is_file()]
        folders += [p for p in inside if p.name == CHECKPOINTS and holds_checkpoints(p)]
        if self.results.is_symlink() or not self.results.is_dir():
            return folders, []
        files = [p for p in self.results.iterdir() if p.is_file() and self._is_result(p)]
        if examples.read(self.results) is not None:
            files.append(self.results / examples.FILE)
        raw = self.results / RAW
        for folder in _real_folders(raw) if not raw.is_symlink() else []:
            files += [p for p in folder.iterdir() if p.is_file() and p.name.endswith(RAW_SUFFIX)]
        return folders, files

    def _is_result(self, path: Path) -> bool:
        """Whether a file is a result by its content, or a damaged one by the names in its name."""
        if not is_result_name(path.name):
            return False
        try:
            load_result(path)
        except ResultError:
            variant, _, name = path.name.removesuffix(".json").split("__", 2)
            return variant in self.experiment.variants and name in (TRAINING, *runnable())
        return True

    # ------------------------------------------------------------------ train

    def begin(self, seed: int, reads: SharedReads | None = None) -> AdaptiveOrthoRunner | None:
        """A runner for the variants of a seed that are not exported yet, or None.

        It is at the newest intact checkpoint of these settings, or at step 0.

        Args:
            seed: the seed.
            reads: the model, if it is read at other hooks at the same time.
        """
        missing = {
            name: changes
            for name, changes in self.experiment.variants.items()
            if not self._is_trained(name, seed)
        }
        for name in self.experiment.variants:
            if name not in missing:
                self._mend_training(name, seed)
        if not missing:
            self.say(f"{self.where}Seed {seed}: every variant is trained already.")
            self._delete_finished_checkpoints(seed)
            return None
        runner = self._runner(seed, missing, reads)
        self.say(f"{self.where}Seed {seed}: training {', '.join(missing)}; {runner.placement()}")
        for name in missing:
            history = runner.trainer.state.history[name]
            self.tracking.open(name, seed, runner.configs[name].settings(), history)
        runner.trainer.on_log = partial(self.tracking.log, seed)
        return runner

    def finish(self, seed: int, runner: AdaptiveOrthoRunner) -> None:
        """Export the SAEs that a runner has trained, and delete its checkpoints."""
        for name in runner.saes:
            # The result comes first. So an SAE counts as trained only if everything is on disk.
            result = self._write_training(name, seed, runner)
            record = {
                "fingerprint": result.fingerprint,
                WEIGHTS: runner.weights,
                TRAINING: _numbers(result),
                "settings": without_home(runner.configs[name].settings()),
            }
            runner.export(name, self._sae_dir(name, seed), {RECORD: record})
        self.say(f"{self.where}Seed {seed}: {taken_in_words(costs_taken(runner.trainer))}")
        self._delete_checkpoints(seed)

    def _delete_finished_checkpoints(self, seed: int) -> None:
        """Delete what a process that was killed while it deleted the checkpoints has left.

        Checkpoints of an SAE that is not among the variants stay: it may not have an export yet.
        """
        folder = self._checkpoints(seed)
        if folder.is_symlink():
            return
        saes = {path.name for step in _real_folders(folder) for path in _real_folders(step)}
        if saes <= set(self.experiment.variants):
            self._delete_checkpoints(seed)

    def _delete_checkpoints(self, seed: int) -> None:
        """Delete the checkpoints of a seed, and say so if files of somebody else are there."""
        folder = self._checkpoints(seed)
        held = holds_checkpoints(folder)
        with suppress(OSError):  # what stays is deleted by the next run
            delete_checkpoints(folder)
        if held and folder.is_dir():
            self.say(f"{folder}: files that no comparison made stay")

    def remove_litter(self) -> None:
        """Delete what killed processes have left in the folder, except for checkpoints."""
        for folder in self.sae_dirs():
            recover_directory(folder)
        raw = self.results / RAW
        remove_scratch(self.cache)
        remove_litter([self.cache / "unlearning"], older=ABANDONED if self.shares_cache else 0.0)
        remove_litter([self.root, self.results, raw, *_real_folders(raw), *self.sae_dirs()])

    def _runner(
        self, seed: int, variants: dict[str, dict[str, Any]], reads: SharedReads | None
    ) -> AdaptiveOrthoRunner:
        folder = self._checkpoints(seed)
        cfg = self._seeded(seed, checkpoint_path=str(folder))
        for checkpoint in reversed(list_checkpoints(folder)):
            # Each try needs a new runner: loading may fail after half of a damaged checkpoint.
            runner = AdaptiveOrthoRunner(cfg, variants, self.prepared, reads)
            try:
                runner.trainer.load_checkpoint(checkpoint)
            except ConfigError as error:
                self.say(f"Not resuming: {error}")
                continue
            self.say(f"Resuming from {checkpoint}")
            return runner
        return AdaptiveOrthoRunner(cfg, variants, self.prepared, reads)

    def _write_training(self, variant: str, seed: int, runner: AdaptiveOrthoRunner) -> Result:
        """Write the result of the training, and return it."""
        trainer, state = runner.trainer, runner.trainer.state
        history = state.history[variant]
        last = history[-1]
        groups = [
            {k.removeprefix("ortho_groups/"): v for k, v in row.items() if "ortho_groups/" in k}
            | {"step": row["step"]}
            for row in history
            if "ortho_groups/n_groups" in row
        ]
        metrics: dict[str, float | None] = {
            "tokens": float(trainer.n_steps * trainer.cfg.train_batch_size_samples),
            "steps": float(trainer.n_steps),
            "train_seconds": state.seconds[variant],
            "activation_seconds": state.seconds["activations"],
            "dead_latents": float(last["sparsity/dead_features"]),
            "final_mse_loss": last["mse_loss"],
        }
        if "ortho_loss" in last:
            metrics["final_ortho_loss"] = last["ortho_loss"]
        for name in ("captured_mean", "captured_lowest"):
            if f"ortho_{name}" in last:
                metrics[name] = last[f"ortho_{name}"]
        if groups:
            metrics["n_groups"] = float(groups[-1]["n_groups"])
            for domain in ("forget", "retain", "shared"):
                metrics[f"{domain}_latents"] = float(groups[-1][domain])
        details = {
            "history": [
                {k: row[k] for k in HISTORY_KEYS if k in row}
                | {"n_training_samples": row["details/n_training_samples"]}
                for row in history
            ],
            "groups": groups,
            "epochs": trainer.store.epochs(trainer.n_steps),
        }
        return write_outcome(
            self.root,
            TRAINING,
            variant,
            seed,
            Outcome(metrics, details),
            state.seconds[variant],
            runner.configs[variant].fingerprint(runner.corpora),
        )

    def _mend_training(self, variant: str, seed: int) -> None:
        """Make the result of a training again from the record of its SAE, if the file is damaged.

        It then has no times. Records of earlier versions do not hold the numbers.

        Raises:
            ResultError: the file is damaged, and the record does not hold the numbers.
        """
        path = result_path(self.root, variant, seed, TRAINING)
        reason = "it is missing"
        if path.exists():
            try:
                load_result(path)
                return
            except ResultError as error:
                reason = str(error)
        record = self._read_record(variant, seed)
        numbers = record.get(TRAINING) if record else None
        if not isinstance(numbers, dict):
            if not path.exists():  # the report goes without it
                return
            raise ResultError(
                f"{reason}. The SAE is of an earlier version, and its {RECORD} does not hold these "
                f"numbers. Without this file, the report goes without them; if you delete "
                f"{self._sae_dir(variant, seed)} too, the SAE is trained again."
            )
        assert record is not None
        known = {
            "schema_version": SCHEMA_VERSION,
            "eval": TRAINING,
            "variant": variant,
            "seed": seed,
            "status": "ok",
            "fingerprint": record["fingerprint"],
        }
        write_result(path, parse_result({**numbers, **known}, self._record(variant, seed)))
        self.say(f"{path} is made again from {RECORD} of the SAE, without its times ({reason})")

    # --------------------------------------------------------------- evaluate

    def evaluate(self, variant: str, seed: int) -> bool:
        """Run the evaluations of one SAE that have no result yet; returns whether any ran."""
        context = self._context(variant, seed)
        return run_missing(context, self.experiment.evals, self.root, self.say)

    def _context(self, variant: str, seed: int) -> EvalContext:
        folder = self._sae_dir(variant, seed).resolve()  # SAEBench changes the working directory
        return EvalContext(
            bench=self.bench,
            load=lambda: SAE.load_from_disk(folder, self.bench.device),
            variant=variant,
            seed=seed,
            raw_dir=self.results.resolve() / RAW,
        )

    def write_examples(self) -> None:
        """Let the model write before and after unlearning with the first SAE of the focus.

        Without a result of the unlearning evaluation there are none. Examples of an SAE that is
        still there are kept, whatever chose them.
        """
        variants = list(self.experiment.variants)
        variant, seed = focus_of(variants) or variants[0], self.experiment.seeds[0]
        try:
            found = load_result(result_path(self.root, variant, seed, UNLEARNING.name))
        except ResultError:
            return
        if UNLEARNING.name not in self.experiment.evals or not found.ok or self._has_examples():
            return
        self.say(f"{self.where}Seed {seed}: text before and after unlearning with {variant}")
        settings = recorded_settings(self.root, UNLEARNING.name)
        examples.write(self.results, make_examples(self._context(variant, seed), settings))

    def _has_examples(self) -> bool:
        kept = examples.read(self.results)
        if kept is None or self._sae_dir(kept.variant, kept.seed) not in self.sae_dirs():
            return False
        return kept.sae_digest == self._context(kept.variant, kept.seed).sae_digest

    def say_time_left(self) -> None:
        """Say how long the evaluation of the other SAEs will take, from those that are done.

        The first SAE also takes the time of what all SAEs share: the texts, the questions, what
        needs no SAE. So from the second one on, the longest time of each evaluation does not count.
        """
        try:
            done = [r for r in load_results(self.root, list(self.experiment.variants)) if r.ok]
        except ResultError:  # of another SAE, whose evaluation is made again when its turn comes
            return
        seconds, left, with_shared = 0.0, 0, False
        for name in self.experiment.evals:
            here = [r for r in done if r.eval == name]
            took = sorted(r.seconds for r in here if r.seconds is not None)
            missing = len(self.sae_dirs()) - len(here)
            if took and missing:
                usual = took[:-1] or took
                seconds += missing * sum(usual) / len(usual)
                left = max(left, missing)
                with_shared |= len(took) == 1
        if left and seconds >= SHORT:
            saes = f"{left} SAE{'s' if left > 1 else ''}"
            about = f"about {duration(seconds)}{' or less' if with_shared else ''}"
            self.say(
                f"{self.where}Evaluations left: {saes}, {about} in all (training is not in it)"
            )

    @cached_property
    def bench(self) -> Workbench:
        """The model and the corpora on which all SAEs are judged."""
        assert self.prepared is not None
        return workbench(self.experiment.runner, self.prepared, self.cache)

    def _track(self, results: list[Result], report: Path) -> None:
        """Send the final metrics and the report to the W&B run of each SAE."""
        if not self.experiment.runner.logger.log_to_wandb:
            return
        for variant, seed in product(self.experiment.variants, self.experiment.seeds):
            of_sae = {r.eval: r for r in results if (r.variant, r.seed) == (variant, seed) and r.ok}
            # SAEs that an earlier process trained have no open run here.
            record = self._read_record(variant, seed)
            assert record is not None
            settings = record["settings"]
            training = of_sae.get(TRAINING)
            history = training.details["history"] if training else []
            self.tracking.open(variant, seed, settings, history)
            metrics = {
                f"{name}/{metric}": value
                for name, result in of_sae.items()
                for metric, value in result.metrics.items()
                if value is not None
            }
            self.tracking.summarise(variant, seed, metrics, report)

    # ------------------------------------------------------------------ paths

    def sae_dirs(self) -> list[Path]:
        """The folders of all SAEs."""
        seeds, variants = self.experiment.seeds, self.experiment.variants
        return [self._sae_dir(variant, seed) for seed in seeds for variant in variants]

    def _sae_dir(self, variant: str, seed: int) -> Path:
        return self.root / f"seed{seed}" / variant

    def _checkpoints(self, seed: int) -> Path:
        return self.root / f"seed{seed}" / CHECKPOINTS

    def _record(self, variant: str, seed: int) -> Path:
        return self._sae_dir(variant, seed) / RECORD

    def _read_record(self, variant: str, seed: int) -> dict[str, Any] | None:
        """The record of a finished SAE; None if there is none, or if it is damaged.

        Raises:
            ConfigError: a field has another type, although the file is as it was written. So the
                SAE is not replaced: someone has edited the record.
        """
        path = self._record(variant, seed)
        found = read_cached(path)
        if not isinstance(found, dict) or not {"fingerprint", "settings"} <= found.keys():
            return None
        for name, kind in (("fingerprint", str), ("settings", dict)):
            if isinstance(found[name], kind):
                continue
            if find_damage(path.parent) is not None:
                return None
            rule = (
                f"{path} has a {name!r} that no run has written. Restore this file, choose another "
                "output_path, or start over with --fresh."
            )
            raise reject("output_path", str(self.root), rule)
        return found

    def _is_trained(self, variant: str, seed: int) -> bool:
        """Whether an SAE is there. A damaged one is trained again, to the same weights."""
        if not self._record(variant, seed).is_file():
            return False
        folder = self._sae_dir(variant, seed)
        damaged = find_damage(folder)
        reason = f"{damaged.name if damaged else RECORD} is damaged"
        if damaged is None and self._read_record(variant, seed) is not None:
            try:
                json.loads((folder / SAE_CFG_FILENAME).read_text())
                with safe_open(folder / SAE_WEIGHTS_FILENAME, framework="pt"):
                    return True
            except (OSError, ValueError, SafetensorError) as error:
                reason = f"{type(error).__name__}: {error}"
        self.say(f"{folder} is damaged and is trained again ({reason})")
        return False

    def _seeded(self, seed: int, checkpoint_path: str | None = None) -> AdaptiveOrthoRunnerConfig:
        return replace(self.experiment.runner, seed=seed, checkpoint_path=checkpoint_path)

    def refuse_other_settings(self) -> None:
        """Refuse SAEs of other settings in the folder, because results would be mixed up.

        The weights of the language model count, too. Records of earlier versions do not name them.
        """
        assert self.prepared is not None
        for seed in self.experiment.seeds:
            for variant, changes in self.experiment.variants.items():
                saved = self._read_record(variant, seed)
                if saved is None:
                    continue
                cfg = with_sae(self._seeded(seed), changes)
                weights = weights_digest(self.prepared.model)
                same_settings = saved["fingerprint"] == cfg.fingerprint(self.prepared.corpora)
                if same_settings and saved.get(WEIGHTS, weights) == weights:
                    continue
                if find_damage(self._sae_dir(variant, seed)) is not None:
                    continue  # the record cannot be trusted, and the SAE is trained again
                if not same_settings:
                    settings = without_home(cfg.settings())
                    differing = _difference(without_home(saved["settings"]), settings)
                    raise reject(
                        "output_path",
                        str(self.root),
                        f"holds {variant} of seed {seed} trained with other settings or data "
                        f"({differing}). Choose another output_path, or start over with --fresh.",
                    )
                raise reject(
                    "model_name",
                    cfg.model_name,
                    f"the weights of this model changed since {variant} of seed {seed} in "
                    f"{self.root} was trained (SHA-256 {saved[WEIGHTS]!s:.12}..., now "
                    f"{weights[:12]}...). Restore them, choose another output_path, or start "
                    "over with --fresh.",
                )

    def write_config(self) -> None:
        plain = json.loads(json.dumps(self.experiment.runner.to_dict(), default=str))
        plain["sae"].pop("metadata", None)
        tree = {
            **plain,
            "variants": self.experiment.variants,
            "seeds": self.experiment.seeds,
            "evals": self.experiment.evals,
        }
        write_text_atomic(self.root / "config.yaml", dump_yaml(without_home(tree)))


def run_together(
    comparisons: Sequence[Comparison], fresh: bool = False, prepared: Prepared | None = None
) -> list[list[Result]]:
    """Run comparisons that differ only in hook and folder: train, evaluate and report.

    Only what is missing is done. The SAEs of all hooks train at the same time, and the model reads
    each text once for all of them. Every SAE is bit-equal to that of a comparison of its own.

    Args:
        comparisons: one comparison or more.
        fresh: delete the SAEs, checkpoints and results of the folders first, after everything was
            checked. Only what a comparison made is deleted.
        prepared: model and corpora from :func:`prepare`, if they are loaded already.

    Returns:
        All results of each comparison, including those of failed evaluations.

    Raises:
        ConfigError: a setting cannot work, a folder holds SAEs of other settings, or another
            process runs there.
        StorageError: a file could not be written. SAEs and results finished before are intact.
        Interrupted: a signal asked the process to stop. Finished work is kept.
    """
    first = comparisons[0]
    if len(comparisons) > 1 and first.experiment.runner.compile_llm:
        raise reject("compile_llm", True, "a compiled model is read at one hook only.")
    check_evals_runnable(first.experiment.evals)
    check_fits([one.experiment for one in comparisons])
    for one in comparisons:
        check_writable("output_path", one.root)
        one.check_targets()
    with ExitStack() as stack:
        for one in comparisons:
            stack.enter_context(run_lock("output_path", one.root, "adaptive-ortho compare"))
            stack.enter_context(one.tracking)
        hooks = [one.experiment.runner.hook_name for one in comparisons]
        if prepared is None:
            prepared = prepare(first.experiment.runner, first.cache, hook_names=hooks)
        for other in comparisons[1:]:
            check_site(prepared.model, other.experiment.runner)
        check_evals_corpora(first.experiment.evals, prepared.corpora)
        for one in comparisons:
            one.prepared = prepared
            one.remove_litter()
            if fresh:
                one.rehearse()
                one.clear()
            one.refuse_other_settings()
        common = first.root if len(comparisons) == 1 else first.root.parent
        with write_failures_named(common, "SAEs and results finished before are intact."):
            for one in comparisons:
                one.write_config()
            for seed in first.experiment.seeds:
                _train_together(comparisons, seed, prepared.model)
                for one in comparisons:
                    for variant in one.experiment.variants:
                        if one.evaluate(variant, seed):
                            one.say_time_left()
            for one in comparisons:
                one.write_examples()
            return [one.report() for one in comparisons]


def _train_together(comparisons: Sequence[Comparison], seed: int, model: HookedRootModule) -> None:
    cfg = comparisons[0].experiment.runner
    reads = None
    if len(comparisons) > 1:
        hooks = [one.experiment.runner.hook_name for one in comparisons]
        reads = SharedReads(
            model, hooks, 2 * cfg.n_batches_in_buffer * cfg.store_batch_size_prompts
        )
    runners = [(one, runner) for one in comparisons if (runner := one.begin(seed, reads))]
    if runners:
        fit_together([runner.trainer for _, runner in runners])
    for one, runner in runners:
        one.finish(seed, runner)


def _delete_sae(folder: Path) -> None:
    """Delete the files of an SAE, and the folder if it is empty then."""
    known = {SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME, RUNNER_CFG_FILENAME}
    # The record is last: without it, the rest would not be known after a kill.
    delete_files(folder, [*sorted((known | files_named(folder)) - {RECORD}), SUMS, RECORD])


def _numbers(training: Result) -> dict[str, Any]:
    """What the record of an SAE keeps of the result of its training: everything but times."""
    found = training.to_json()
    metrics = {name: value for name, value in found["metrics"].items() if name not in TIMES}
    return {"metrics": metrics, "details": found["details"], "versions": found["versions"]}


def _real_folders(path: Path) -> list[Path]:
    """The folders in a folder, without links."""
    return [p for p in path.iterdir() if p.is_dir() and not p.is_symlink()] if path.is_dir() else []


def _difference(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str:
    """The first setting in which two trees differ, with both values."""
    for key in sorted({*saved, *now}):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = _difference(old, new, f"{prefix}{key}.")
            if inner != "the text":
                return inner
        elif old != new:
            return f"{prefix}{key} was {old!r}, is {new!r}"
    return "the text"
