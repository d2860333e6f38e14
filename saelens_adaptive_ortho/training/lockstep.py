"""Training of several SAEs in lockstep on one activation stream, with bit-identical resuming.

SAELens's own ``SAETrainer`` trains each SAE through its public ``step``, with a separate optimiser,
schedules and activation scaler. This module adds the shared batches, atomic checkpoints, the
history, and a clear error if a loss is not finite.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from torch import Tensor

from saelens_adaptive_ortho.checksums import SUMS, files_named, find_damage
from saelens_adaptive_ortho.devices import check_placed
from saelens_adaptive_ortho.errors import ConfigError, Explained, reject
from saelens_adaptive_ortho.files import atomic_directory, delete_files, remove_empty, write_json
from saelens_adaptive_ortho.host.trainer import build_trainer
from saelens_adaptive_ortho.progress import progress
from saelens_adaptive_ortho.signals import Interrupted, signal_name, stop_noted
from saelens_adaptive_ortho.training.store import StratifiedActivationsStore, fill_caches

STATE_FILE = "lockstep_state.json"
RNG_FILE = "rng_state.pt"
SHARDS = "shard_*_of_*.safetensors"  # parts of a checkpoint with ortho_shards
# The other files of a checkpoint, of a version without sums, too.
FILES = {
    STATE_FILE,
    RNG_FILE,
    SUMS,
    ACTIVATION_SCALER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    TRAINER_STATE_FILENAME,
}
_STEP = re.compile(r"\.?step_\d+.*")
KEPT_CHECKPOINTS = 2
REMEDY = (
    "Lower lr or ortho_coefficient, or normalise the activations "
    "(sae.normalize_activations: expected_average_only_in)."
)


class NonFiniteLossError(Explained, RuntimeError):
    """A loss or a weight became NaN or infinite. The message names the SAE and the step."""


@dataclass
class LockstepState:
    """The part of a checkpoint that is not in the SAEs and their trainers."""

    n_training_steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)


class LockstepTrainer:
    """Trains ``saes`` on the batches of one store. All SAEs take the same steps.

    An SAE trained together with others is bit-identical to the same SAE trained alone.

    Args:
        cfg: SAELens's trainer settings for all SAEs.
        saes: the SAEs by name.
        store: the activation stream.
        checkpoint_dir: folder of the checkpoints; None for no checkpoints.
        fingerprint: digest of settings and data. A checkpoint with another fingerprint is refused.
        weights: digest of the language model's weights. A checkpoint with another one is refused;
            one without any (of an earlier version) is not.
        checkpoint_every_minutes: time between checkpoints, beside those of ``cfg.n_checkpoints``;
            None for no others.
        log_every: steps between rows of the history.
        prefetch: number of batches that a thread prepares in advance.
        sparse_products: use the products of :mod:`saelens_adaptive_ortho.maths.sparse`; otherwise
            those of SAELens.
        b_dec_at_mean: start ``b_dec`` at the mean of the first batches, not at zero.
        on_log: function that is called with ``(step, {name: row})`` for each row.
    """

    def __init__(
        self,
        cfg: SAETrainerConfig,
        saes: dict[str, TrainingSAE[Any]],
        store: StratifiedActivationsStore,
        checkpoint_dir: Path | None = None,
        fingerprint: str = "",
        weights: str = "",
        checkpoint_every_minutes: float | None = None,
        log_every: int = 50,
        prefetch: int = 0,
        sparse_products: bool = False,
        b_dec_at_mean: bool = False,
        on_log: Callable[[int, dict[str, dict[str, float]]], None] | None = None,
    ) -> None:
        if not saes:
            raise ConfigError("variants={}: name at least one SAE to train.")
        self.cfg = cfg
        self.saes = saes
        for sae in saes.values():
            sae.ortho_sparse_products = sparse_products  # type: ignore[assignment]
        self.store = store
        self.checkpoint_dir = checkpoint_dir
        self.fingerprint = fingerprint
        self.weights = weights
        self.checkpoint_every_minutes = checkpoint_every_minutes
        self.log_every = log_every
        self.prefetch = prefetch
        self.b_dec_at_mean = b_dec_at_mean
        self.on_log = on_log
        self.state = LockstepState(
            seconds={name: 0.0 for name in [*saes, "activations"]},
            history={name: [] for name in saes},
        )
        trainer_cfg = replace(
            cfg,
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainers = {name: self._build_trainer(trainer_cfg, sae) for name, sae in saes.items()}
        self.n_steps = -(-cfg.total_training_samples // cfg.train_batch_size_samples)
        self._outputs: dict[str, TrainStepOutput] = {}
        self._saved_step = -1
        self._saved_at = 0.0
        self.checkpoint_steps = {
            round(self.n_steps * i / (cfg.n_checkpoints + 1))
            for i in range(1, cfg.n_checkpoints + 1)
        } - {0, self.n_steps}

    def _build_trainer(self, cfg: SAETrainerConfig, sae: TrainingSAE[Any]) -> SAETrainer[Any, Any]:
        return build_trainer(cfg, sae, data_provider=iter(()))

    # ------------------------------------------------------------------- loop

    def fit(self) -> dict[str, TrainingSAE[Any]]:
        """Train to the end, then fold the activation norm into the weights as SAELens does.

        Raises:
            NonFiniteLossError: a loss or a weight is NaN or infinite.
            NonFiniteActivationsError: an activation is NaN or infinite.
            Interrupted: a signal asked the process to stop. A checkpoint is saved first.
            StorageError: a checkpoint could not be written. Earlier checkpoints survive.
        """
        fit_together([self])
        return self.saes

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.state.n_training_steps >= self.n_steps

    def begin(self) -> None:
        """Everything before the first step: places, normalisation, the start of ``b_dec``."""
        for name, sae in self.saes.items():
            check_placed(f"the SAE {name}", sae.to(self.cfg.device), "device", self.cfg.device)
        self._estimate_normalisation()
        if self.b_dec_at_mean and self.state.n_training_steps == 0:
            self._start_b_dec_at_mean()
        self.store.seek(self.state.n_training_steps)

    @contextmanager
    def steps(self, where: str = "") -> Iterator[Callable[[], None]]:
        """A function that takes the next step: it trains, logs, and saves what is due.

        Args:
            where: beginning of the progress bar's text.
        """
        batch_size = self.cfg.train_batch_size_samples
        bar = progress(
            total=self.n_steps * batch_size,
            initial=self.state.n_training_steps * batch_size,
            desc=f"{where}Training {', '.join(self.saes)}",
            unit=" tokens",
            unit_scale=True,
            smoothing=0.05,
            leave=True,
        )
        self._saved_at = time.monotonic()
        with bar, self._batches() as batches:

            def take() -> None:
                self._outputs = self._step(batches)
                bar.update(batch_size)
                step = self.state.n_training_steps
                if step % self.log_every == 0 or step in {1, self.n_steps}:
                    self._log(self._outputs, bar)
                if step in self.checkpoint_steps or self._is_due(self._saved_at):
                    self.save_now()

            yield take

    def save_now(self) -> Path | None:
        """Save a checkpoint of the last step, unless it has one, or checkpoints are off."""
        step = self.state.n_training_steps
        if self._saved_step == step:
            return self._checkpoint_of(step)
        self._refuse_non_finite(self._outputs)  # otherwise every resumed run fails too
        self._refuse_non_finite_weights()
        self._saved_step, self._saved_at = step, time.monotonic()
        return self.save_checkpoint()

    def finish(self) -> None:
        """Everything after the last step: the norm of the activations goes into the weights."""
        for name, trainer in self.trainers.items():
            trainer.sae.ortho_project()
            self._fold(name, trainer)
            trainer.set_final_sae_metadata()
        self._refuse_non_finite_weights()

    def stop_signal(self, number: int | None) -> int | None:
        """The signal after which this step is the last one; None if training goes on.

        Args:
            number: the signal that this process has got, or None.
        """
        return number

    def _is_due(self, saved_at: float) -> bool:
        """Whether ``checkpoint_every_minutes`` have passed, and training goes on."""
        minutes = self.checkpoint_every_minutes
        if minutes is None or self.state.n_training_steps == self.n_steps:
            return False
        return time.monotonic() - saved_at >= 60 * minutes

    @contextmanager
    def _batches(self) -> Iterator[Iterator[Tensor]]:
        if not self.prefetch:
            yield iter(self.store)
            return
        prefetching = PrefetchingIterator(iter(self.store), prefetch=self.prefetch)
        try:
            yield prefetching
        finally:
            prefetching.close()

    def _step(self, batches: Iterator[Tensor]) -> dict[str, TrainStepOutput]:
        started = time.perf_counter()
        batch = next(batches)
        check_placed("a batch of activations", batch, "act_store_device", str(self.store.device))
        self.state.seconds["activations"] += time.perf_counter() - started
        outputs = {}
        for name, trainer in self.trainers.items():
            started = time.perf_counter()
            trainer.maybe_reset_sparsity()
            outputs[name] = trainer.step(batch)
            trainer.n_training_steps += 1
            self.state.seconds[name] += time.perf_counter() - started
        self.state.n_training_steps += 1
        return outputs

    def _estimate_normalisation(self) -> None:
        """Estimate each kind of normalisation once from the first batches, for all SAEs."""
        for kind in ("expected_average_only_in", "covariance_whitening"):
            needing = [
                t
                for t in self.trainers.values()
                if t.sae.cfg.normalize_activations == kind
                and t.activation_scaler.scaling_factor is None
                and t.activation_scaler.whitening is None
            ]
            if not needing:
                continue
            self.store.seek(0)
            scaler = needing[0].activation_scaler
            if not self._estimate(kind, scaler, needing[0].sae.cfg.d_in):
                raise reject(
                    "sae.normalize_activations",
                    kind,
                    f"the first {self.cfg.n_batches_for_norm_estimate} batches of activations are "
                    "all zero, or too small or too large for it. Use another hook_name, or none.",
                )
            for trainer in needing[1:]:
                trainer.activation_scaler.scaling_factor = scaler.scaling_factor
                trainer.activation_scaler.whitening = scaler.whitening

    def _estimate(self, kind: str, scaler: ActivationScaler, d_in: int) -> bool:
        """Estimate a normalisation from the next batches. Returns whether there is one."""
        n = self.cfg.n_batches_for_norm_estimate
        try:
            if kind == "covariance_whitening":
                scaler.estimate_whitening(d_in, self.store, n)
                whitening = scaler.whitening
                return whitening is not None and bool(whitening.matrix.isfinite().all())
            scaler.estimate_scaling_factor(d_in, self.store, n)
        except (ZeroDivisionError, torch.linalg.LinAlgError):  # a mean norm of 0, or one row
            return False
        factor = scaler.scaling_factor
        return factor is not None and 0 < factor < torch.finfo(torch.float32).max

    @torch.no_grad()
    def _start_b_dec_at_mean(self) -> None:
        """Set ``b_dec`` to the mean activation of the first batches, as the SAE sees it."""
        self.store.seek(0)
        batches = iter(self.store)
        n = self.cfg.n_batches_for_norm_estimate
        mean = torch.stack([next(batches).double().mean(0) for _ in range(n)]).mean(0)
        for trainer in self.trainers.values():
            b_dec = trainer.sae.b_dec
            b_dec.copy_(trainer.activation_scaler(mean.to(b_dec.dtype)[None])[0])

    def _fold(self, name: str, trainer: SAETrainer[Any, Any]) -> None:
        scaler, sae = trainer.activation_scaler, self.saes[name]
        if scaler.scaling_factor is not None:
            sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
            scaler.scaling_factor = None
        if scaler.whitening is not None:
            sae.fold_activation_whitening(
                mean=scaler.whitening.mean,
                whitening_matrix=scaler.whitening.matrix,
                unwhitening_matrix=scaler.whitening.inverse_matrix,
            )
            scaler.whitening = None

    @torch.no_grad()
    def _log(self, outputs: dict[str, TrainStepOutput], bar: Any) -> None:
        self._refuse_non_finite(outputs)
        step = self.state.n_training_steps
        rows = {}
        for name, output in outputs.items():
            trainer = self.trainers[name]
            logged = trainer.build_train_step_log_dict(output, trainer.n_training_samples)
            row = {k.removeprefix("losses/").removeprefix("metrics/"): v for k, v in logged.items()}
            rows[name] = {"step": step, **{k: v for k, v in row.items() if math.isfinite(v)}}
            self.state.history[name].append(rows[name])
        bar.set_postfix_str(
            ", ".join(
                # A batch without variance has no explained variance.
                f"{name} {row.get('explained_variance', math.nan):.3f}"
                for name, row in rows.items()
            )
            + " explained",
            refresh=False,
        )
        if self.on_log is not None:
            self.on_log(step, rows)

    def _refuse_non_finite(self, outputs: dict[str, TrainStepOutput]) -> None:
        for name, output in outputs.items():
            loss = float(output.loss.detach())
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"The loss of {name!r} is {loss} at step {self.state.n_training_steps}. "
                    f"{REMEDY}"
                )

    def _refuse_non_finite_weights(self) -> None:
        """A step whose loss is finite can still have a gradient that is not."""
        for name, sae in self.saes.items():
            for weights, parameter in sae.named_parameters():
                if not bool(parameter.isfinite().all()):
                    raise NonFiniteLossError(
                        f"{weights} of {name!r} is not finite after step "
                        f"{self.state.n_training_steps}. {REMEDY}"
                    )

    # ------------------------------------------------------------ checkpoints

    def save_checkpoint(self) -> Path | None:
        """Write a checkpoint atomically, then delete all but the newest two."""
        target = self._checkpoint_of(self.state.n_training_steps)
        if target is None or self.checkpoint_dir is None:
            return None
        kept = list_checkpoints(self.checkpoint_dir)
        survives = f"{kept[-1]} is intact." if kept else "There was no earlier checkpoint."
        with self._new_checkpoint(target, survives) as temporary:
            for name, trainer in self.trainers.items():
                trainer.save_checkpoint(checkpoint_name=name, base_path=temporary)
            self._write_state(temporary)
        self._delete_old(target)
        return target

    def _new_checkpoint(self, target: Path, survives: str) -> AbstractContextManager[Path]:
        return atomic_directory(target, survives, sums=True, keep_others=True)

    def _write_state(self, folder: Path) -> None:
        torch.save({"cpu": torch.get_rng_state()}, folder / RNG_FILE)
        identity = {"fingerprint": self.fingerprint, "model_weights": self.weights}
        write_json(folder / STATE_FILE, {**identity, **vars(self.state)})

    def _delete_old(self, newest: Path) -> None:
        # Checkpoints of later steps come from another run. They must not replace those of this run.
        ours = [c for c in list_checkpoints(newest.parent) if c.name <= newest.name]
        for old in ours[:-KEPT_CHECKPOINTS]:
            with suppress(OSError):  # it is tried again after the next checkpoint
                delete_checkpoint(old)

    def _checkpoint_of(self, step: int) -> Path | None:
        return None if self.checkpoint_dir is None else self.checkpoint_dir / f"step_{step:09d}"

    def load_checkpoint(self, path: str | Path) -> None:
        """Load a checkpoint, so that training continues from it.

        Raises:
            ConfigError: there is no checkpoint, it has other settings, SAEs, architectures or
                weights of the language model, or it is corrupt or truncated.
        """
        path = Path(path)
        where = "resume_from_checkpoint"
        if not (path / STATE_FILE).is_file():
            raise reject(
                where, str(path), f"holds no checkpoint of this project: {STATE_FILE} is missing."
            )
        if (damaged := self._damage(path)) is not None:
            raise _corrupt(damaged, "its SHA-256 is another one, or it is missing")
        with corruption_named(path / STATE_FILE):
            saved = json.loads((path / STATE_FILE).read_text())
            fingerprint = saved.pop("fingerprint")
            weights = saved.pop("model_weights", self.weights)
            state = LockstepState(**saved)
        missing = [name for name in self.saes if not (path / name / "cfg.json").is_file()]
        if missing:
            raise reject(where, str(path), f"has no SAE named {', '.join(missing)}.")
        for name, sae in self.saes.items():
            _check_same_architecture(path / name, sae)
        if fingerprint != self.fingerprint:
            raise reject(
                where,
                str(path),
                "was made with other settings or data, so the resumed run would differ from it. "
                "Restore the settings, or start a new run.",
            )
        if weights != self.weights:
            raise reject(
                where,
                str(path),
                "was made with other weights of the language model (SHA-256 "
                f"{weights[:12]}..., now {self.weights[:12]}...), so the resumed run would differ "
                "from it. Restore the weights, or start a new run.",
            )
        for name, trainer in self.trainers.items():
            self._load_one(path / name, trainer)
        with corruption_named(path / RNG_FILE) as file:
            torch.set_rng_state(torch.load(file, weights_only=True)["cpu"])
        self.state = state

    def _damage(self, path: Path) -> Path | None:
        """The first damaged file of a checkpoint; None if it is whole."""
        return find_damage(path)

    def _load_one(self, folder: Path, trainer: SAETrainer[Any, Any]) -> None:
        """Load one SAE and the state of its trainer."""
        if not (folder / SAE_WEIGHTS_FILENAME).is_file() and any(folder.glob(SHARDS)):
            rule = "was made with ortho_shards. Set ortho_shards, and start with torchrun."
            raise reject("resume_from_checkpoint", str(folder.parent), rule)
        with corruption_named(folder / ACTIVATION_SCALER_CFG_FILENAME) as file:
            json.loads(file.read_text())
        with corruption_named(folder / TRAINER_STATE_FILENAME):
            trainer.load_trainer_state(folder)
        with corruption_named(folder / SAE_WEIGHTS_FILENAME):
            trainer.sae.load_weights_from_checkpoint(folder)


def fit_together(trainers: Sequence[LockstepTrainer]) -> None:
    """Train to the end, one step of each trainer after the other.

    Each SAE is bit-identical to that of :meth:`LockstepTrainer.fit`. If the stores share their
    reads of the model (:class:`~saelens_adaptive_ortho.text.shared_reads.SharedReads`), it reads
    each text once for all of them.

    Raises:
        Interrupted: a signal asked the process to stop. Each trainer saves a checkpoint first.
        Other errors: see :meth:`LockstepTrainer.fit`.
    """
    started = time.perf_counter()
    fill_caches([trainer.store for trainer in trainers])
    seconds = (time.perf_counter() - started) / len(trainers)
    for trainer in trainers:
        trainer.state.seconds["activations"] += seconds
        trainer.begin()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_noted())
        steps = []
        for trainer in trainers:
            where = f"{trainer.store.hook_name}: " if len(trainers) > 1 else ""
            steps.append((trainer, stack.enter_context(trainer.steps(where))))
        while not all(trainer.finished for trainer in trainers):
            for trainer, take in steps:
                if not trainer.finished:
                    take()
            if (number := trainers[0].stop_signal(stop.number)) is not None:
                raise _interrupted(number, trainers)
    for trainer in trainers:
        trainer.finish()


def _interrupted(number: int, trainers: Sequence[LockstepTrainer]) -> Interrupted:
    saved = [str(path) for trainer in trainers if (path := trainer.save_now())]
    where = f"; saved {', '.join(saved)}" if saved else " (checkpoints are off)"
    step = min(trainer.state.n_training_steps for trainer in trainers)
    return Interrupted(
        f"{signal_name(number)}: stopped at step {step} of {trainers[0].n_steps}{where}", number
    )


def list_checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints of a folder, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.glob("step_*") if (p / STATE_FILE).is_file())


def holds_checkpoints(directory: Path) -> bool:
    """Whether a folder has files of checkpoints, also of unfinished ones."""
    return any(_is_unfinished(step) or _files_of(step) for step in _steps(directory))


def delete_checkpoints(directory: Path) -> None:
    """Delete all checkpoints of a folder, and the folder if it is empty then.

    Only what a checkpoint consists of is deleted; files of somebody else stay.

    Raises:
        OSError: a file could not be deleted.
    """
    for step in _steps(directory):
        delete_checkpoint(step)
    remove_empty(directory, directory.parent)


def delete_checkpoint(path: Path) -> None:
    """Delete one checkpoint, except for files that somebody else has put there.

    Raises:
        OSError: a file could not be deleted.
    """
    if _is_unfinished(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        return
    # Without its state it is no checkpoint any more. The sums are last: after a kill, the rest is
    # known by them.
    delete_files(path, [STATE_FILE, *sorted(_files_of(path) - {SUMS}), SUMS])
    for folder in [*_real_folders(path), path]:  # of a process that was killed while it deleted
        remove_empty(folder, folder.parent)


def _steps(directory: Path) -> list[Path]:
    """Everything in a folder of checkpoints that has the name of a step; no links."""
    found = sorted(directory.iterdir()) if directory.is_dir() else []
    return [path for path in found if _STEP.fullmatch(path.name) and not path.is_symlink()]


def _is_unfinished(path: Path) -> bool:
    """Whether it is what :func:`~.files.atomic_directory` has beside a folder, while it writes."""
    return path.name.startswith(".")


def _files_of(path: Path) -> set[str]:
    """The files of a checkpoint: in its sums, which may be damaged, or of known names."""
    inside = [*path.glob("*"), *path.glob("*/*")] if path.is_dir() else []
    known = [file for file in inside if file.is_file() and _is_of_checkpoint(file.name)]
    return files_named(path) | {file.relative_to(path).as_posix() for file in known}


def _is_of_checkpoint(name: str) -> bool:
    return name in FILES or fnmatch(name, SHARDS)


def _real_folders(path: Path) -> list[Path]:
    found = path.iterdir() if path.is_dir() else ()
    return [inside for inside in found if inside.is_dir() and not inside.is_symlink()]


def _check_same_architecture(path: Path, sae: TrainingSAE[Any]) -> None:
    with corruption_named(path / SAE_CFG_FILENAME) as file:
        saved = json.loads(file.read_text())
    for name, expected in {
        "architecture": sae.cfg.architecture(),
        "d_in": sae.cfg.d_in,
        "d_sae": getattr(sae, "ortho_width", sae.cfg.d_sae),
    }.items():
        if saved.get(name) != expected:
            raise reject(
                "resume_from_checkpoint",
                str(path),
                f"holds an SAE with {name} {saved.get(name)!r}, but the run has {expected!r}.",
            )


@contextmanager
def corruption_named(file: Path) -> Iterator[Path]:
    """Turn an error from reading a damaged file into a :class:`ConfigError` that names it."""
    try:
        yield file
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        text = str(error).split("\n")[0][:200]
        raise _corrupt(file, f"{type(error).__name__}: {text}") from error


def _corrupt(file: Path, reason: str) -> ConfigError:
    return reject(
        "resume_from_checkpoint",
        str(file),
        f"is corrupt or truncated ({reason}). Remove its checkpoint and resume from an earlier "
        "one.",
    )
