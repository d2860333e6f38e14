"""Train every variant with every seed, evaluate each, and report: only what is missing.

A run folder holds ``config.yaml``, ``seed<S>/<variant>/`` (SAEs that plain SAELens loads),
``seed<S>/checkpoints/`` while training, ``results/*.json`` and ``report.html``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from saelens_adaptive_ortho import report
from saelens_adaptive_ortho.config import ConfigError, reject
from saelens_adaptive_ortho.evaluation import EVALS, EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.experiment import Experiment
from saelens_adaptive_ortho.report import Result
from saelens_adaptive_ortho.runner import (
    AdaptiveOrthoRunner,
    AdaptiveOrthoRunnerConfig,
    Prepared,
    prepare,
    versions,
    with_sae,
)
from saelens_adaptive_ortho.storage import write_failures_named, write_json
from saelens_adaptive_ortho.training import list_checkpoints

RECORD = "ortho_run.json"
HISTORY_KEYS = ("step", "mse_loss", "ortho_loss", "explained_variance", "l0")


class Comparison:
    """Runs an :class:`Experiment` in its ``output_path``.

    Args:
        experiment: what to run.
        say: called with a line of progress at each milestone.
    """

    def __init__(self, experiment: Experiment, say: Callable[[str], None] = print) -> None:
        if experiment.runner.output_path is None:
            raise reject("output_path", None, "a comparison needs a folder to write to.")
        self.experiment = experiment
        self.say = say
        self.root = Path(experiment.runner.output_path)
        self.results = self.root / "results"
        self.prepared: Prepared | None = None

    def run(self, fresh: bool = False) -> list[Result]:
        """Do what is missing; returns every result, failed evaluations included.

        Args:
            fresh: delete this folder's SAEs, checkpoints and results first.

        Raises:
            ConfigError: a setting that cannot work, or SAEs of other settings in the folder.
            StorageError: something could not be written; what was finished before survives.
        """
        if fresh:
            self.clear()
        for name in self.experiment.evals:
            try:
                EVALS[name].check()
            except EvaluationError as error:
                raise reject("evals", name, f"{error}, or take it off the list.") from error
        self.prepared = prepare(self.experiment.runner, self.root / "cache")
        self._refuse_other_settings()
        with write_failures_named(self.root, "SAEs and results finished before are intact."):
            self._write_config()
            for seed in self.experiment.seeds:
                self.train(seed)
                for variant in self.experiment.variants:
                    self.evaluate(variant, seed)
            results = report.load_results(self.root, list(self.experiment.variants))
            report.write_summary(self.root)
            page = report.write_report(self.root)
        self.say(f"Report: {page}")
        return results

    def clear(self) -> None:
        """Delete the SAEs, checkpoints and results of this folder (and nothing else)."""
        for path in [*self.root.glob("seed[0-9]*"), self.results, self.root / "cache"]:
            if path.is_dir():
                shutil.rmtree(path)

    # ------------------------------------------------------------------ train

    def train(self, seed: int) -> None:
        """Train the variants of a seed that are not exported yet, on one activation stream."""
        missing = {
            name: changes
            for name, changes in self.experiment.variants.items()
            if not self._record(name, seed).is_file()
        }
        if not missing:
            self.say(f"Seed {seed}: every variant is trained already.")
            return
        folder = self.root / f"seed{seed}"
        cfg = self._seeded(seed, checkpoint_path=str(folder / "checkpoints"))
        runner = self._runner(cfg, missing, folder / "checkpoints")
        self.say(f"Seed {seed}: training {', '.join(missing)}")
        runner.trainer.fit()
        for name in missing:
            runner.export(name, self._sae_dir(name, seed))
            self._write_training(name, seed, runner)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def _runner(
        self, cfg: AdaptiveOrthoRunnerConfig, variants: dict[str, dict[str, Any]], folder: Path
    ) -> AdaptiveOrthoRunner:
        """A runner at the newest checkpoint that is whole and of these settings, or at step 0."""
        for checkpoint in reversed(list_checkpoints(folder)):
            # A new one each time: a checkpoint may turn out damaged when half of it is loaded.
            runner = AdaptiveOrthoRunner(cfg, variants, self.prepared)
            try:
                runner.trainer.load_checkpoint(checkpoint)
            except ConfigError as error:
                self.say(f"Not resuming: {error}")
                continue
            self.say(f"Resuming from {checkpoint}")
            return runner
        return AdaptiveOrthoRunner(cfg, variants, self.prepared)

    def _write_training(self, variant: str, seed: int, runner: AdaptiveOrthoRunner) -> None:
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
        fingerprint = runner.configs[variant].fingerprint(runner.corpora)
        self._write_result(
            "training",
            variant,
            seed,
            Outcome(metrics, details),
            state.seconds[variant],
            fingerprint,
        )
        # Last, so that an SAE counts as trained only when all of it is on disk.
        write_json(
            self._record(variant, seed),
            {"fingerprint": fingerprint, "settings": runner.configs[variant].settings()},
        )

    # --------------------------------------------------------------- evaluate

    def evaluate(self, variant: str, seed: int) -> None:
        """Run the evaluations of one SAE that have no result yet; a failure stops only itself."""
        assert self.prepared is not None
        context = EvalContext(
            cfg=self._seeded(seed),
            model=self.prepared.model,
            corpora=self.prepared.corpora,
            sae_dir=self._sae_dir(variant, seed),
            variant=variant,
            seed=seed,
            work_dir=self.root / "cache",
            raw_dir=self.results / "sae_bench",
        )
        for name, settings in self.experiment.evals.items():
            fingerprint = self._eval_fingerprint(name, settings, context)
            if self._has_result(name, variant, seed, fingerprint):
                continue
            self.say(f"Seed {seed}: evaluating {variant} ({name})")
            started = time.perf_counter()
            try:
                outcome = EVALS[name].run(context, settings)
            except Exception as error:  # the other evaluations go on; the report says why
                reason = str(error) if isinstance(error, EvaluationError) else repr(error)
                self.say(f"Seed {seed}: {name} of {variant} failed: {reason}")
                outcome = reason
            seconds = time.perf_counter() - started
            self._write_result(name, variant, seed, outcome, seconds, fingerprint)

    def _eval_fingerprint(self, name: str, settings: dict[str, Any], context: EvalContext) -> str:
        parts = [
            name,
            EVALS[name].version,
            vars(EVALS[name].settings(**settings)),
            context.sae_digest(),
            [c.fingerprint for c in context.corpora],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _has_result(self, name: str, variant: str, seed: int, fingerprint: str) -> bool:
        path = report.result_path(self.root, variant, seed, name)
        if not path.is_file():
            return False
        found = report.load_result(path)
        return found.ok and found.fingerprint == fingerprint

    def _write_result(
        self,
        name: str,
        variant: str,
        seed: int,
        outcome: Outcome | str,
        seconds: float,
        fingerprint: str,
    ) -> None:
        failed = isinstance(outcome, str)
        report.write_result(
            report.result_path(self.root, variant, seed, name),
            Result(
                eval=name,
                variant=variant,
                seed=seed,
                status="failed" if failed else "ok",
                reason=outcome if failed else None,
                seconds=seconds,
                metrics={} if failed else outcome.metrics,
                details={} if failed else outcome.details,
                fingerprint=fingerprint,
                versions=versions(),
            ),
        )

    # ------------------------------------------------------------------ paths

    def _sae_dir(self, variant: str, seed: int) -> Path:
        return self.root / f"seed{seed}" / variant

    def _record(self, variant: str, seed: int) -> Path:
        return self._sae_dir(variant, seed) / RECORD

    def _seeded(self, seed: int, checkpoint_path: str | None = None) -> AdaptiveOrthoRunnerConfig:
        return replace(self.experiment.runner, seed=seed, checkpoint_path=checkpoint_path)

    def _refuse_other_settings(self) -> None:
        """An SAE in the folder must be of these settings, or results would be mixed up."""
        assert self.prepared is not None
        for seed in self.experiment.seeds:
            for variant, changes in self.experiment.variants.items():
                record = self._record(variant, seed)
                if not record.is_file():
                    continue
                cfg = with_sae(self._seeded(seed), changes)
                saved = json.loads(record.read_text())
                if saved["fingerprint"] != cfg.fingerprint(self.prepared.corpora):
                    differing = _difference(saved["settings"], cfg.settings())
                    raise reject(
                        "output_path",
                        str(self.root),
                        f"holds {variant} of seed {seed} trained with other settings or data "
                        f"({differing}). Choose another output_path, or start over with --fresh.",
                    )

    def _write_config(self) -> None:
        plain = json.loads(json.dumps(self.experiment.runner.to_dict(), default=str))
        plain["sae"].pop("metadata", None)
        tree = {
            **plain,
            "variants": self.experiment.variants,
            "seeds": self.experiment.seeds,
            "evals": self.experiment.evals,
        }
        report.write_text_atomic(self.root / "config.yaml", yaml.safe_dump(tree, sort_keys=False))


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
