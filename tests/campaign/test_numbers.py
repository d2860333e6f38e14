"""Awkward batches: no variance, one row, zeros, constants, huge and tiny values. All stays finite.

Each base architecture trains in each mode and with each switch and normalisation, in float32 and
under bf16 autocast, by the project's trainer. Case N is the same in every run.
"""

from __future__ import annotations

import functools
import math
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho import ARCHITECTURES
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.host.config import DEFAULT_SEPARATION
from saelens_adaptive_ortho.host.penalty_mixin import AdaptiveOrthoMixin
from saelens_adaptive_ortho.maths.affinity import AFFINITIES
from saelens_adaptive_ortho.maths.penalties import PENALTIES
from saelens_adaptive_ortho.training import lockstep
from saelens_adaptive_ortho.training.lockstep import LockstepTrainer
from tests.campaign.figures import FULL, record
from tests.host.test_switch_battery import IMPOSSIBLE, PREFIX, SWITCHES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

Build = Callable[..., Any]
D_IN, D_SAE, BATCH, FORGET = 16, 64, 64, 16
STEPS = 1000 if FULL else 60
STEPS_OF_SETTINGS = 200 if FULL else 30
STRIDE = 1 if FULL else 3  # every base and every condition is in each sample
CHECKED_EVERY = 10  # steps between looks at every number
EVERY = {"ortho_refresh_every": 10, "ortho_statistics_every": 2, "ortho_chunk_size": 32}

# --------------------------------------------------------------------------------- conditions

Draw = torch.Generator


def ordinary(draw: Draw) -> Tensor:
    """Sparse sums of features; the first rows, of the forget corpus, have other features."""
    features = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(0))
    acts = torch.rand(BATCH, 40, generator=draw)
    rows = (acts * (acts > 0.9)) @ features
    rows[:FORGET] = rows[:FORGET].flip(-1) + 0.5
    return rows


def equal_rows(draw: Draw) -> Tensor:
    return ordinary(draw)[-1:].repeat(BATCH, 1)


def constant_column(draw: Draw) -> Tensor:
    rows = ordinary(draw)
    rows[:, 3] = 7.0
    return rows


def duplicates(draw: Draw) -> Tensor:
    return ordinary(draw)[[0, FORGET, FORGET + 1]].repeat_interleave(BATCH // 2, 0)[:BATCH]


def missing_corpus(draw: Draw) -> Tensor:
    """One corpus gives zeros, so nothing but biases fires there."""
    rows = ordinary(draw)
    which = int(torch.randint(3, (), generator=draw))
    rows[[slice(0), slice(FORGET), slice(FORGET, None)][which]] = 0
    return rows


def large_value(draw: Draw) -> Tensor:
    rows = ordinary(draw)
    rows[int(torch.randint(BATCH, (), generator=draw)), 5] = 1e6
    return rows


def one_latent(draw: Draw) -> Tensor:
    """Along the first axis only; see :func:`silence_others`."""
    rows = torch.zeros(BATCH, D_IN)
    rows[:, 0] = torch.rand(BATCH, generator=draw)
    return rows


def scaled(by: float) -> Callable[[Draw], Tensor]:
    return lambda draw: ordinary(draw) * by


def offset(by: float) -> Callable[[Draw], Tensor]:
    """A mean that is far larger than the spread, so differences lose digits."""
    return lambda draw: ordinary(draw) + by


AWKWARD: dict[str, Callable[[Draw], Tensor]] = {
    "no variance": equal_rows,
    "one row": lambda draw: ordinary(draw)[-1:],
    "all zero": lambda _: torch.zeros(BATCH, D_IN),
    "constant column": constant_column,
    "missing corpus": missing_corpus,
    "scale 1e4": scaled(1e4),
    "scale 1e6": scaled(1e6),
    "scale 1e-6": scaled(1e-6),
    "scale 1e-30": scaled(1e-30),
    "one large value": large_value,
    "large mean": offset(1e5),
    "duplicates": duplicates,
    "one latent": one_latent,
}


def mixture(draw: Draw) -> Tensor:
    """An awkward batch now and then. A batch of two corpora always has all its rows."""
    if torch.rand((), generator=draw) < 0.7:
        return ordinary(draw)
    kinds = [make for name, make in AWKWARD.items() if name != "one row"]
    return kinds[int(torch.randint(len(kinds), (), generator=draw))](draw)


CONDITIONS = {"ordinary": ordinary, **AWKWARD, "mixture": mixture}


class Batches:
    """A stream of one condition. Batch ``t`` depends on ``t`` alone, as in the project's store."""

    device = torch.device("cpu")

    def __init__(self, condition: str, dtype: torch.dtype) -> None:
        self.condition, self.dtype, self.position = condition, dtype, 0

    def seek(self, step: int) -> None:
        self.position = step

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        seed = zlib.crc32(f"{self.condition} {self.position}".encode())
        self.position += 1
        draw = torch.Generator().manual_seed(seed)
        return CONDITIONS[self.condition](draw).to(self.dtype)


# ----------------------------------------------------------------------------------- settings

MODES: dict[str, dict[str, Any]] = {
    "off": {"ortho_mode": "off"},
    **{mode: {"ortho_mode": mode} for mode in PENALTIES.own},
    "groups": {
        "ortho_mode": "off",
        "ortho_separation": DEFAULT_SEPARATION,
        "ortho_separated": "both",
    },
}
NORMALISATIONS = (
    "expected_average_only_in",
    "covariance_whitening",
    "constant_norm_rescale",
    "layer_norm",
)


def settings_of(name: str) -> dict[str, dict[str, Any]]:
    """Everything else that a config may set and that has a say in the numbers, by name."""
    found = {switch: fields for switch, fields in SWITCHES.items()}
    found = {switch: f for switch, f in found.items() if (name, switch) not in IMPOSSIBLE}
    found |= {kind: {"normalize_activations": kind} for kind in NORMALISATIONS}
    found |= {f"affinity {own}": {"ortho_affinity": own} for own in AFFINITIES.own}
    found["symmetric"] = {"ortho_ordering": "symmetric", "ortho_weighting": "uniform"}
    found["not scale free"] = {"ortho_scale_free": False}
    found["schedule"] = {
        "ortho_curriculum_start": 1.0,
        "ortho_curriculum_steps": 9,
        "ortho_fade_start_step": 15,
        "ortho_fade_end_step": 20,
        "ortho_warm_up_steps": 5,
    }
    found["bfloat16"] = {"dtype": "bfloat16"}
    found["b_dec in the encoder"] = {"apply_b_dec_to_input": False}
    if "matryoshka" in name:
        found["loss of each level"] = {"use_matryoshka_aux_loss": True}
    if "topk" in name:
        found["decoder norms"] = {"rescale_acts_by_decoder_norm": False}
    if name.endswith("jumprelu"):
        found["tanh"] = {
            "jumprelu_sparsity_loss_mode": "tanh",
            "pre_act_loss_coefficient": 3e-6,
            "jumprelu_ste_to_input": True,
        }
        found["quadratic"] = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 4.0}
    return found


# Without a norm there is no scale.
REFUSED = {("expected_average_only_in", kind) for kind in ("all zero", "scale 1e-30")}


def silence_others(sae: Any) -> None:
    """Latent 0 reads the first axis, and no other latent fires."""
    biases = [getattr(sae, name, None) for name in ("b_enc", "b_gate")]
    with torch.no_grad():
        sae.W_enc[:, 0] = torch.eye(D_IN)[0]
        for bias in biases:
            if bias is not None:
                bias[1:] = -10.0


# ------------------------------------------------------------------------------------- checks


def faults_of(sae: Any, trainer: Any) -> list[str]:
    """What is not finite or not valid in an SAE, its statistics and its optimiser."""
    state = {**sae.state_dict(), "firings": trainer.act_freq_scores}
    for number, slots in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimiser {number} {slot}": torch.as_tensor(v) for slot, v in slots.items()}
    found = [f"{key} is not finite" for key, x in state.items() if not x.isfinite().all()]
    return found or [text for text, wrong in _rules(sae) if bool(wrong)]


def _rules(sae: Any) -> Iterator[tuple[str, Any]]:
    """Rules that the buffers promise, and whether each is broken."""
    cfg, latents = sae.cfg, torch.arange(sae.cfg.d_sae)
    if cfg.ortho_unit_norm:
        norms = sae.W_dec.detach().float().norm(dim=1)
        # Rows are renormalised before each step, so they are at most one step away.
        yield "a decoder row has no norm", (norms < 0.5).any()
    if sae._separates():
        yield "a leaning is not in [-1, 1]", (sae.ortho_leaning.abs() > 1).any()
        rates = sae._corpus_rates.rates()
        yield "a corpus rate is not in [0, 1]", ((rates < 0) | (rates > 1 + 1e-5)).any()
    if sae._ortho_penalty is None:
        return
    yield "the scale is negative", (sae.ortho_scale < 0).any()
    if not sae._keeps_lists():
        return
    lists, groups, domains = sae.ortho_neighbours, sae.ortho_group_ids, sae.ortho_domain_ids
    yield "a neighbour is no latent", ((lists < 0) | (lists >= cfg.d_sae)).any()
    yield "a latent is its own neighbour", (lists == latents.unsqueeze(1)).any()
    ordered = lists.sort(dim=1).values
    yield "a neighbour is in a list twice", (ordered[:, 1:] == ordered[:, :-1]).any()
    yield "a group is not named after its first latent", (groups[groups] != groups).any()
    yield "a group is named after a later latent", ((groups < 0) | (groups > latents)).any()
    yield "a domain is unknown", ((domains < -1) | (domains > 2)).any()
    captured = sae.ortho_captured[:2]
    yield "a captured share is not in [0, 1]", ((captured < 0) | (captured > 1)).any()
    pairs = sae.ortho_pairs()
    shares = pairs.affinities()
    yield "an affinity is not in [0, 1]", not bool(((shares >= 0) & (shares <= 1)).all())
    rates = pairs.firing_rates()
    yield "a firing rate is not in [0, 1]", not bool(((rates >= 0) & (rates <= 1 + 1e-5)).all())
    energies = pairs.energies()
    yield "an energy is not finite or negative", not bool(((energies >= 0) & energies.isfinite()).all())
    partner, push = sae.ortho_partner, sae.ortho_push
    yield "a partner is not in the list", not bool((lists == partner.unsqueeze(1)).any(1).all())
    yield "a push is negative", (push < 0).any()


def losses_of(outputs: dict[str, Any]) -> list[str]:
    """Losses and metrics of a step that are not finite."""
    found = []
    for name, output in outputs.items():
        losses = {"loss": output.loss, **output.losses}
        found += [
            f"{name}: {key} is {float(loss)}"
            for key, loss in losses.items()
            if not math.isfinite(float(loss.detach()))
        ]
        if not output.sae_out.isfinite().all() or not output.feature_acts.isfinite().all():
            found.append(f"{name}: activations or output are not finite")
    return found


def trained(
    saes: dict[str, AdaptiveOrthoMixin], condition: str, steps: int, autocast: bool, **more: Any
) -> list[str]:
    """Train SAEs in lockstep on one condition, and return what goes wrong first."""
    rows = 1 if condition == "one row" else BATCH
    cfg = SAETrainerConfig(
        total_training_samples=steps * rows,
        train_batch_size_samples=rows,
        lr=1e-2,
        lr_end=1e-3,
        autocast=autocast,
        dead_feature_window=5,
        feature_sampling_window=20,
        n_batches_for_norm_estimate=4,
    )
    dtype = next(iter(saes.values())).dtype
    trainer = LockstepTrainer(cfg, saes, Batches(condition, dtype), log_every=10, **more)  # type: ignore[arg-type]
    if condition == "one latent":
        for sae in saes.values():
            silence_others(sae)
    trainer.begin()
    with trainer.steps() as take:
        while not trainer.finished:
            take()
            step = trainer.state.n_training_steps
            found = losses_of(trainer._outputs)
            if not found and (step % CHECKED_EVERY == 0 or step in (1, 2, steps)):
                for name, sae in saes.items():
                    found += [f"{name}: {x}" for x in faults_of(sae, trainer.trainers[name])]
            if found:
                return [f"step {step}: {x}" for x in found]
    trainer.finish()
    return []


def exported(sae: Any, folder: Path) -> list[str]:
    """What is wrong with the export, read by SAELens, on ordinary rows."""
    sae.save_inference_model(folder)
    loaded = SAE.load_from_disk(folder)
    with torch.no_grad():
        out = loaded(ordinary(torch.Generator().manual_seed(1)))
    return [] if out.isfinite().all() else ["the export gives NaN or infinity"]


class Campaign:
    """Counts cases and steps, and keeps the first fault of each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, time.perf_counter()
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def case(
        self,
        what: str,
        saes: dict[str, Any],
        condition: str,
        steps: int,
        autocast: bool,
        **more: Any,
    ) -> None:
        refused = False
        try:
            found = trained(saes, condition, steps, autocast, **more)
            for name, sae in saes.items():
                if not found:
                    found = [f"{name}: {x}" for x in exported(sae, self.folder)]
        except ConfigError as error:
            refused = True
            found = [] if "activations are all zero, or too small" in str(error) else [str(error)]
        except Exception as error:
            found = [f"{type(error).__name__}: {str(error)[:200]}"]
        if refused != any((name, condition) in REFUSED for name in saes):
            found.append(f"{'/'.join(saes)}: refused is {refused}")
        self.counts["refused, as it should"] += refused
        self.counts["cases"] += len(saes)
        self.counts["steps"] += steps * len(saes)
        self.faults += [f"{what}, {condition}, {'bf16' if autocast else 'float32'}: {x}" for x in found[:3]]

    def close(self, kind: str) -> None:
        seconds = round(time.perf_counter() - self.started, 1)
        record(
            f"numbers: {kind}",
            **self.counts,
            not_finite_or_not_valid=len(self.faults),
            seconds=seconds,
        )
        assert not self.faults, "\n".join(self.faults)
        assert self.counts["cases"]


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    monkeypatch.setattr(lockstep, "tqdm", functools.partial(lockstep.tqdm, disable=True))
    return Campaign(tmp_path)


def sample() -> Iterator[tuple[int, str, str]]:
    """Number, base and condition of the cases; every base and condition has some."""
    for number, (base, condition) in enumerate(product(enumerate(ARCHITECTURES), enumerate(CONDITIONS))):
        (i, name), (j, kind) = base, condition
        if (i + j) % STRIDE == 0:
            yield number, name, kind


@pytest.mark.parametrize("precision", ["float32", "bf16 autocast"])
def test_modes(campaign: Campaign, build_sae: Build, precision: str) -> None:
    for _, name, condition in sample():
        rows = 0 if condition == "one row" else FORGET
        fields = {"d_in": D_IN, "d_sae": D_SAE, "ortho_forget_rows": rows, **EVERY}
        saes = {mode: build_sae(name, **fields, **own) for mode, own in MODES.items()}
        sparse = precision == "float32"
        campaign.case(name, saes, condition, STEPS, not sparse, sparse_products=sparse)
    campaign.close(precision)


def test_settings(campaign: Campaign, build_sae: Build) -> None:
    for number, name, condition in sample():
        rows = 0 if condition == "one row" else FORGET
        fields = {"d_in": D_IN, "d_sae": D_SAE, "ortho_forget_rows": rows, **EVERY}
        for i, (setting, own) in enumerate(settings_of(name).items()):
            more = {"b_dec_at_mean": i % 2 == 0, "sparse_products": number % 4 > 1}
            saes = {setting: build_sae(name, **(fields | own))}
            campaign.case(name, saes, condition, STEPS_OF_SETTINGS, number % 2 == 1, **more)
    campaign.close("switches and normalisations")
