"""One run trains an SAE for a world, a base architecture, a mode and a seed, and measures it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAE, TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from saelens_adaptive_ortho.checksums import find_damage
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import (
    atomic_directory,
    read_cached,
    recover_directory,
    write_json,
)
from saelens_adaptive_ortho.host.architectures import PREFIX, construct_sae
from saelens_adaptive_ortho.host.config import (
    ortho_coefficient,
    penalty_named,
    without_defaults_added_later,
)
from saelens_adaptive_ortho.host.trainer import build_trainer
from saelens_adaptive_ortho.settings import (
    Seed,
    apply_override,
    check_fields,
    check_one_of,
    check_value,
    parse,
)
from saelens_adaptive_ortho.signals import Interrupted, Stop, signal_name, stop_noted
from saelens_adaptive_ortho.synthetic.metrics import feature_metrics
from saelens_adaptive_ortho.synthetic.pool import Batches, Pool, PoolSettings, load_pool
from saelens_adaptive_ortho.synthetic.selectivity import domain_metrics
from saelens_adaptive_ortho.synthetic.separation import separation_metrics
from saelens_adaptive_ortho.synthetic.worlds import WORLDS, DomainsWorld, World
from saelens_adaptive_ortho.training.lockstep import NonFiniteLossError

BASES = ("standard", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk")
CHECKPOINT_FILE = "synthetic_run.json"
GROUPS = ("world", "train", "pool")
"""Settings outside the SAE config have one of these names and a dot as prefix."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training of an SAE: Adam in float32, with a constant learning rate by default.

    Args:
        steps: training steps.
        batch_size: samples per step.
        lr: learning rate.
        lr_warm_up_steps, lr_decay_steps: steps of linear warm-up at the start, and of linear decay
            at the end.
        dead_feature_window: a latent that does not fire for this many steps is dead, and the
            auxiliary loss acts on it.
        forget_share: share of the forget domain in each batch, in (0, 1). It has no effect in a
            world with one domain.
    """

    steps: PositiveInt
    lr: PositiveFloat
    batch_size: Annotated[int, Field(ge=2)] = 1024
    lr_warm_up_steps: NonNegativeInt = 0
    lr_decay_steps: NonNegativeInt = 0
    dead_feature_window: PositiveInt = 1000
    forget_share: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.lr_warm_up_steps + self.lr_decay_steps > self.steps:
            raise reject(
                "lr_decay_steps",
                self.lr_decay_steps,
                f"warm-up and decay do not fit into {self.steps} steps.",
            )

    @property
    def forget_rows(self) -> int:
        """Number of rows of a batch from the forget domain: at least one, and not all."""
        return min(max(round(self.batch_size * self.forget_share), 1), self.batch_size - 1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """All settings that determine the result of a run. :func:`build_run` builds one."""

    world: World
    base: str
    mode: str
    seed: int
    sae: Any
    train: TrainSettings
    pool: PoolSettings

    def settings(self) -> dict[str, Any]:
        """All settings as JSON, including defaults."""
        sae = {
            f.name: getattr(self.sae, f.name)
            for f in fields(self.sae)
            if f.init and f.name not in {"metadata", "device", "dtype"}
        }
        sae = without_defaults_added_later(sae)
        sae["ortho_coefficient"] = ortho_coefficient(self.sae)
        return {
            "world": self.world.settings(),
            "base": self.base,
            "mode": self.mode,
            "seed": self.seed,
            "sae": json.loads(json.dumps(sae)),
            "train": dataclasses.asdict(self.train),
            "pool": dataclasses.asdict(self.pool),
        }

    def digest(self) -> str:
        """Twelve hexadecimal digits that identify the settings."""
        text = json.dumps(self.settings(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def build_run(
    world: str,
    base: str = "batchtopk",
    mode: str = "adaptive",
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> Run:
    """Check all settings, and fill in the defaults.

    Args:
        world: a name in ``WORLDS``.
        base: name of the stock architecture.
        mode: ``ortho_mode``.
        seed: seed of the initial weights, the order of samples, and the penalty's random draws.
        settings: fields of the SAE config by name. The keys ``world``, ``train`` and ``pool`` hold
            fields of those settings. The world gives the defaults of d_sae, k, steps and learning
            rate. The defaults of ``ortho_*`` fields are the same as in any config.

    Raises:
        ConfigError: a name is unknown or a value cannot work. This is checked before any work.
    """
    check_one_of("world", world, WORLDS)
    check_one_of("base", base, BASES)
    penalty_named("mode", mode)
    check_value("seed", seed, Seed)
    given = dict(settings or {})
    parts = {name: given.pop(name, {}) for name in GROUPS}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise reject(
                name, part, f"must be a mapping; set its fields, as in {name}.FIELD=VALUE."
            )
    built: World = parse(WORLDS[world], parts["world"], "world.")
    defaults = dict(built.training)
    by_world = {f.name: defaults[f.name] for f in fields(TrainSettings) if f.name in defaults}
    train = parse(TrainSettings, {**by_world, **parts["train"]}, "train.")
    sae = _sae_config(built, base, mode, seed, given, train)
    return Run(
        world=built,
        base=base,
        mode=mode,
        seed=seed,
        sae=sae,
        train=train,
        pool=parse(PoolSettings, parts["pool"], "pool."),
    )


def parse_settings(overrides: list[str]) -> dict[str, Any]:
    """Convert ``field=value`` texts (values are YAML) to the tree that :func:`build_run` takes.

    Raises:
        ConfigError: a text has no ``=``.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override.removeprefix("sae."))
    return tree


def train_sae(
    run: Run, pool: Pool, checkpoints: Path | None = None, checkpoint_every: int = 5000
) -> tuple[TrainingSAE[Any], float]:
    """Train the SAE of a run on a pool, in SAELens's own training loop.

    The SAE depends only on the run and the pool. An interrupted training that continues gives an
    SAE that is equal bit by bit.

    Args:
        checkpoints: folder for a checkpoint, which is written every ``checkpoint_every`` steps. A
            killed run of the same settings continues from it, unless it is damaged. None writes no
            checkpoints.

    Returns:
        The SAE, and the seconds of the training loop.

    Raises:
        NonFiniteLossError: training diverged.
        StorageError: a checkpoint could not be written.
        Interrupted: a signal asked the process to stop. A checkpoint is saved first.
    """
    train = run.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        sae = get_sae_training_class(PREFIX + run.base)[0](run.sae)
    batches = Batches(pool, train.batch_size, run.seed, train.forget_rows)
    trainer = build_trainer(
        cfg=SAETrainerConfig(
            total_training_samples=train.steps * train.batch_size,
            train_batch_size_samples=train.batch_size,
            lr=train.lr,
            lr_end=0.0 if train.lr_decay_steps else train.lr,
            lr_warm_up_steps=train.lr_warm_up_steps,
            lr_decay_steps=train.lr_decay_steps,
            dead_feature_window=train.dead_feature_window,
            n_batches_for_norm_estimate=min(100, train.steps),
            n_checkpoints=0 if checkpoints is None else (train.steps - 1) // checkpoint_every,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=batches,
    )
    seconds = 0.0
    if checkpoints is not None:
        seconds = _resume(trainer, checkpoints, run.digest())
        trainer.checkpoint_thresholds = [
            n for n in trainer.checkpoint_thresholds if n > trainer.n_training_samples
        ]
        batches.seek(trainer.n_training_steps)
    started = time.perf_counter() - seconds

    def save(n_steps: int) -> None:
        assert checkpoints is not None
        _save(trainer, n_steps, checkpoints, run.digest(), time.perf_counter() - started)

    def until_stopped(stop: Stop) -> Iterator[Tensor]:
        for batch in batches:
            done = trainer.n_training_steps
            if stop.number:
                if checkpoints is not None and done > 0:
                    save(done)
                where = f"; saved {checkpoints}" if checkpoints is not None and done > 0 else ""
                raise Interrupted(
                    f"{signal_name(stop.number)}: stopped at step {done} of {train.steps}{where}",
                    stop.number,
                )
            yield batch

    def save_of_step(checkpoint_path: Path | None) -> None:  # noqa: ARG001  # SAELens's signature
        # SAELens increases the step count only after it has saved the checkpoint of a step.
        save(trainer.n_training_steps + 1)

    trainer.save_checkpoint_fn = save_of_step
    with stop_noted() as stop:
        trainer.data_provider = until_stopped(stop)
        trainer.fit()
    seconds = time.perf_counter() - started
    if not all(bool(p.isfinite().all()) for p in sae.parameters()):
        raise NonFiniteLossError(
            f"Training diverged (mode {run.mode}, {run.world.name} world): weights are not finite. "
            "Lower train.lr or ortho_coefficient."
        )
    return sae, seconds


def _save(
    trainer: SAETrainer[Any, Any], n_steps: int, folder: Path, digest: str, seconds: float
) -> None:
    with atomic_directory(folder, "The checkpoint before is intact.", sums=True) as temporary:
        trainer.sae.save_model(temporary)
        current = trainer.n_training_steps
        trainer.n_training_steps = n_steps
        trainer.save_trainer_state(temporary)
        trainer.n_training_steps = current
        write_json(temporary / CHECKPOINT_FILE, {"digest": digest, "seconds": seconds})


def _resume(trainer: SAETrainer[Any, Any], folder: Path, digest: str) -> float:
    """Load a checkpoint of these settings, if there is one, and return its training seconds.

    A damaged one is not loaded: a warning names the file, and training starts over. Checkpoints of
    earlier versions have no sums.
    """
    recover_directory(folder)
    if not (folder / CHECKPOINT_FILE).is_file():
        return 0.0
    if (damaged := find_damage(folder)) is not None:
        warnings.warn(
            f"{damaged} is damaged: its SHA-256 is another one, or it is missing. Training starts "
            "at step 0.",
            stacklevel=3,
        )
        return 0.0
    saved = read_cached(folder / CHECKPOINT_FILE)
    if not isinstance(saved, dict) or saved.get("digest") != digest:
        return 0.0
    trainer.load_trainer_state(folder)
    trainer.sae.load_weights_from_checkpoint(folder)
    return float(saved["seconds"])


def execute(
    run: Run, cache: str | Path, checkpoints: Path | None = None, checkpoint_every: int = 5000
) -> dict[str, Any]:
    """Train an SAE and measure it.

    Returns:
        The content of a result file: the metrics of :func:`metrics.feature_metrics`, in the
        domains world also those of :func:`selectivity.domain_metrics` and
        :func:`separation.separation_metrics`, ``training_seconds``, and the settings.

    Raises:
        NonFiniteLossError: training diverged.
        StorageError: the pool or a checkpoint could not be written.
    """
    pool = load_pool(run.world, cache, run.pool)
    sae, seconds = train_sae(run, pool, checkpoints, checkpoint_every)
    result: dict[str, Any] = {
        **feature_metrics(sae, pool, run.train.batch_size),
        "training_seconds": seconds,
    }
    if isinstance(run.world, DomainsWorld):
        stock = exported(sae)
        metrics, details = domain_metrics(stock, pool)
        separation, references = separation_metrics(stock, pool, run.world.pair_indices())
        result |= {**metrics, **separation, "domains": {**details, "references": references}}
    if checkpoints is not None:
        (checkpoints / CHECKPOINT_FILE).unlink(missing_ok=True)  # a part of it is no checkpoint
        shutil.rmtree(checkpoints, ignore_errors=True)
    return {**result, "settings": run.settings()}


def exported(sae: TrainingSAE[Any]) -> SAE[Any]:
    """The inference SAE that plain SAELens loads from an export."""
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(folder)


def _sae_config(
    world: World, base: str, mode: str, seed: int, given: dict[str, Any], train: TrainSettings
) -> Any:
    """The config of the plugin's architecture; the world gives the defaults."""
    for name in ("d_in", "ortho_mode", "architecture", "device", "dtype"):
        if name in given:
            remedy = {"ortho_mode": "use --mode.", "architecture": "use --base."}
            raise reject(name, given[name], remedy.get(name, "is not to be set here."))
    defaults: dict[str, Any] = {
        "d_in": _d_in(world),
        "d_sae": world.training["d_sae"],
        "ortho_mode": mode,
        "ortho_seed": seed,
    }
    d_sae, k = given.get("d_sae", defaults["d_sae"]), world.training["k"]
    if "topk" in base:
        defaults["k"] = k if "batchtopk" in base else round(k)
    if base == "matryoshka_batchtopk" and isinstance(d_sae, int):
        # The shares of SynthSAEBench's Matryoshka SAE (128, 512 and 2,048 of 4,096 latents).
        defaults["matryoshka_widths"] = [
            width for width in (d_sae // 32, d_sae // 8, d_sae // 2, d_sae) if width > 0
        ]
    if base == "jumprelu":
        defaults |= {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(k)}
    cfg = construct_sae(PREFIX + base, {**defaults, **given}, "")
    if world.n_domains == 2:
        cfg = dataclasses.replace(cfg, ortho_forget_rows=train.forget_rows)
    return cfg


def _d_in(world: World) -> int:
    return int(getattr(world, "hidden_dim", 0)) or 768 // int(getattr(world, "scale", 1))
