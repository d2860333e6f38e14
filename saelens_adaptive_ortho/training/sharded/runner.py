"""The runner of one SAE whose latents are divided among the processes of torchrun."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.saes.sae import TrainingSAE

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.host.switch_config import SwitchConfig
from saelens_adaptive_ortho.text.shared_reads import SharedReads
from saelens_adaptive_ortho.training.lockstep import LockstepTrainer
from saelens_adaptive_ortho.training.memory import check_memory
from saelens_adaptive_ortho.training.runner import (
    EXPORT_SURVIVES,
    AdaptiveOrthoRunner,
    Prepared,
    prepare,
    seeded,
    with_metadata,
)
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig
from saelens_adaptive_ortho.training.sharded.files import shared_folder, write_gathered
from saelens_adaptive_ortho.training.sharded.layout import Layout
from saelens_adaptive_ortho.training.sharded.ranks import Ranks, sharing, world_size
from saelens_adaptive_ortho.training.sharded.sae import SHARDED
from saelens_adaptive_ortho.training.sharded.trainer import ShardedLockstep, ShardedStore
from saelens_adaptive_ortho.training.store import StratifiedActivationsStore

MODES = ("off", "adaptive")
NORMALISATIONS = ("none", "expected_average_only_in")
AFFINITIES = ("unsuppressed", "lift", "overlap", "group")
SWITCHES = ("ortho_clip_norm",)  # the only switch that a divided SAE can have


def check_processes(shards: int) -> None:
    """Refuse a number of processes that is not ``ortho_shards``.

    Raises:
        ConfigError: torchrun has started another number of processes.
    """
    started = world_size()
    if started == shards:
        return
    if shards == 1:
        rule = (
            f"{started} processes are started, and each would train the same SAE. Set "
            f"ortho_shards: {started} to divide the SAE among them, or start one process."
        )
    else:
        rule = (
            f"needs as many processes; {started} is started. Start them with "
            f"`torchrun --nproc-per-node {shards} -m saelens_adaptive_ortho train ...`."
        )
    raise reject("ortho_shards", shards, rule)


def check_sharded(cfg: AdaptiveOrthoRunnerConfig) -> None:
    """Refuse settings of an SAE that cannot be divided among processes.

    Raises:
        ConfigError: the message names field, value and remedy.
    """
    sae, shards = cfg.sae, cfg.ortho_shards
    if sae.architecture() not in SHARDED:
        _refuse("architecture", sae.architecture(), f"one of {', '.join(SHARDED)}")
    if sae.d_sae % shards:
        rule = f"must be a multiple of ortho_shards = {shards}: each process has as many latents."
        raise reject("sae.d_sae", sae.d_sae, rule)
    _check_latents(sae, shards)
    for name, allowed in {
        "ortho_mode": MODES,
        "normalize_activations": NORMALISATIONS,
        "ortho_affinity": AFFINITIES,
        "use_sparse_activations": (False,),
        "lp_norm": (1.0,),
        "jumprelu_sparsity_loss_mode": ("step", "tanh"),
    }.items():
        if (value := getattr(sae, name, allowed[0])) not in allowed:
            _refuse(name, value, " or ".join(map(str, allowed)))
    for field in fields(SwitchConfig):
        value = getattr(sae, field.name)
        if field.name not in SWITCHES and value != field.default:
            _refuse(field.name, value, str(field.default))
    for name in ("prefetch_llm_batches", "ortho_cache_activations", "compile_llm"):
        if value := getattr(cfg, name):
            raise reject(name, value, "is not possible with ortho_shards. Turn it off.")
    _check_devices(cfg)


def _check_latents(sae: Any, shards: int) -> None:
    """A process needs at least the latents that a batch row or a list of neighbours has."""
    needed = {"k": getattr(sae, "k", 0)}
    if sae.ortho_mode != "off":
        needed["ortho_neighbours"] = sae.ortho_neighbours + 1
    for name, n in needed.items():
        if sae.d_sae // shards < n:
            rule = (
                f"{sae.d_sae // shards} latents of {sae.d_sae} in each of {shards} processes are "
                f"too few for {name}={getattr(sae, name)}. Lower it, or raise sae.d_sae."
            )
            raise reject("ortho_shards", shards, rule)


def _check_devices(cfg: AdaptiveOrthoRunnerConfig) -> None:
    for name in ("device", "llm_device", "act_store_device"):
        value = getattr(cfg, name)
        if value not in (None, "with_model", "cpu", "cuda"):
            rule = "with ortho_shards, each process chooses its own card. Use cuda or cpu."
            raise reject(name, value, rule)


def _refuse(name: str, value: object, allowed: str) -> None:
    raise reject(f"sae.{name}", value, f"is not possible with ortho_shards. Use {allowed}.")


class ShardedRunner(AdaptiveOrthoRunner):
    """The runner of one process. All processes make one, with the same config.

    Args:
        cfg: the configuration; ``sae.d_sae`` is the number of latents of the whole SAE.
        ranks: the processes.
        prepared: model and corpora; by default the first process prepares them before the others.
        on_log: function that is called with each row of the history.
    """

    sharded = True

    def __init__(
        self,
        cfg: AdaptiveOrthoRunnerConfig,
        ranks: Ranks,
        prepared: Prepared | None = None,
        on_log: Callable[[int, dict[str, dict[str, float]]], None] | None = None,
    ) -> None:
        check_sharded(cfg)
        check_memory([cfg], sharing(str(cfg.device)))
        self.ranks = ranks
        if prepared is None:
            cache = Path(cfg.output_path) / "cache" if cfg.output_path else None
            with ranks.first():  # the others read the tokens that it writes
                prepared = prepare(cfg, cache)
        super().__init__(cfg, prepared=prepared, on_log=on_log)

    def _build_store(self, reads: SharedReads | None) -> StratifiedActivationsStore:
        args = self.model, self.cfg, self.corpora, self.cfg.seed, reads
        store = ShardedStore.build(*args)
        assert isinstance(store, ShardedStore)
        store.ranks = self.ranks
        return store

    def _build_sae(self, cfg: AdaptiveOrthoRunnerConfig) -> TrainingSAE[Any]:
        layout = Layout(self.ranks, cfg.sae.d_sae)
        # Drawn on a CPU, where numbers do not depend on how many are drawn at a time.
        part = replace(deepcopy(cfg.sae), d_sae=layout.n, device="cpu")
        sae_class = SHARDED[part.architecture()]
        sae = with_metadata(seeded(cfg.seed, lambda: sae_class(part, layout)), cfg)
        return sae.to(cfg.device)

    def _build_trainer(self, **settings: Any) -> LockstepTrainer:
        return ShardedLockstep(self.ranks, **settings)

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        if self.ranks.rank:
            yield
            return
        with super()._tracked():
            yield

    def export(
        self, name: str, target: Path, also: Mapping[str, dict[str, Any]] | None = None
    ) -> Path:
        """Write atomically an SAE that SAELens can load without this package, as one file.

        Every rank calls this. The first one gathers the weights, some rows at a time.

        Raises:
            StorageError: the SAE could not be written. An earlier export survives.
        """
        sae, ranks, d_sae = self.saes[name], self.ranks, self.configs[name].sae.d_sae
        state = sae.state_dict()
        sae.process_state_dict_for_saving_inference(state)
        sparsity = ranks.gather(self.trainer.trainers[name].log_feature_sparsity)
        with shared_folder(ranks, target, EXPORT_SURVIVES, keep_others=True) as folder:
            write_gathered(state, folder / SAE_WEIGHTS_FILENAME, Layout(ranks, d_sae))
            if ranks.rank == 0:
                config = {**sae.cfg.get_inference_sae_cfg_dict(), "d_sae": d_sae}
                (folder / SAE_CFG_FILENAME).write_text(json.dumps(config))
                self._describe(name, folder, sparsity, also)
        return target
