"""Awkward batches: no variance, one row, zeros, constants, huge and tiny values. All stays finite.

Each base architecture trains in each mode and with each switch and normalisation, in float32 and
under bf16 autocast, with the project's trainer. A case is the same in every run.
"""

from __future__ import annotations

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
from saelens_adaptive_ortho.host.switch_config import UNDONE_NORMALISATIONS
from saelens_adaptive_ortho.maths.affinity import AFFINITIES
from saelens_adaptive_ortho.maths.penalties import PENALTIES
from saelens_adaptive_ortho.progress import calm_bars
from saelens_adaptive_ortho.training.lockstep import LockstepTrainer, NonFiniteLossError
from tests.campaign.figures import FULL, record
from tests.host.test_switch_battery import IMPOSSIBLE, SWITCHES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

Build = Callable[..., Any]
D_IN, D_SAE, BATCH, FORGET = 16, 64, 64, 16
# Steps of a case of test_modes and of test_settings.
STEPS, STEPS_OF_SETTINGS = (1000, 100) if FULL else (40, 20)
# Every n-th pair of a base and a condition, so that each of both is in the sample.
STRIDE = 1 if FULL else 5
LOOK_EVERY = 10  # steps between looks at every number; the losses are looked at after every step

# --------------------------------------------------------------------------------- conditions


def ordinary(draw: torch.Generator) -> Tensor:
    """Sparse sums of features. The first rows, those of the forget corpus, have other features."""
    features = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(0))
    acts = torch.rand(BATCH, 40, generator=draw)
    rows = (acts * (acts > 0.9)) @ features
    rows[:FORGET] = rows[:FORGET].flip(-1) + 0.5
    return rows


def constant_column(draw: torch.Generator) -> Tensor:
    rows = ordinary(draw)
    rows[:, 3] = 7.0
    return rows


def missing_corpus(draw: torch.Generator) -> Tensor:
    """In some batches one corpus gives only zeros."""
    rows = ordinary(draw)
    corpora = [slice(0), slice(FORGET), slice(FORGET, None)]
    rows[corpora[int(torch.randint(3, (), generator=draw))]] = 0
    return rows


def large_value(draw: torch.Generator) -> Tensor:
    rows = ordinary(draw)
    rows[int(torch.randint(BATCH, (), generator=draw)), 5] = 1e6
    return rows


def one_latent(draw: torch.Generator) -> Tensor:
    """Rows along the first axis, which only one latent reads: see :func:`silence_others`."""
    rows = torch.zeros(BATCH, D_IN)
    rows[:, 0] = torch.rand(BATCH, generator=draw)
    return rows


def scaled(by: float) -> Callable[[torch.Generator], Tensor]:
    return lambda draw: ordinary(draw) * by


AWKWARD: dict[str, Callable[[torch.Generator], Tensor]] = {
    "no variance": lambda draw: ordinary(draw)[-1:].repeat(BATCH, 1),
    "all zero": lambda _: torch.zeros(BATCH, D_IN),
    "constant column": constant_column,
    "missing corpus": missing_corpus,
    "scale 1e4": scaled(1e4),
    "scale 1e6": scaled(1e6),
    "scale 1e-6": scaled(1e-6),
    "scale 1e-30": scaled(1e-30),
    "one large value": large_value,
    "large mean": lambda draw: ordinary(draw) + 1e5,
    "duplicates": lambda draw: ordinary(draw)[::FORGET].repeat_interleave(FORGET, 0),
    "one latent": one_latent,
}


def mixture(draw: torch.Generator) -> Tensor:
    """An awkward batch now and then."""
    kinds = [ordinary] * 2 * len(AWKWARD) + [*AWKWARD.values()]
    return kinds[int(torch.randint(len(kinds), (), generator=draw))](draw)


CONDITIONS = {
    "ordinary": ordinary,
    "one row": lambda draw: ordinary(draw)[-1:],
    **AWKWARD,
    "mixture": mixture,
}


def silence_others(sae: Any) -> None:
    """Latent 0 reads the first axis, and no other latent fires."""
    with torch.no_grad():
        sae.W_enc[:, 0] = torch.eye(D_IN)[0]
        for name in ("b_enc", "b_gate"):
            if getattr(sae, name, None) is not None:
                getattr(sae, name)[1:] = -10.0


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
        draw = torch.Generator().manual_seed(zlib.crc32(f"{self.position}".encode()))
        self.position += 1
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
SETTINGS: dict[str, dict[str, Any]] = {
    **SWITCHES,
    **{
        kind: {"normalize_activations": kind}
        for kind in ("expected_average_only_in", "covariance_whitening", *UNDONE_NORMALISATIONS)
    },
    **{f"affinity {name}": {"ortho_affinity": name} for name in AFFINITIES.own},
    "symmetric": {"ortho_ordering": "symmetric", "ortho_weighting": "uniform"},
    "not scale-free": {"ortho_scale_free": False},
    "every step": {"ortho_statistics_every": 1, "ortho_refresh_every": 1, "ortho_min_captured": 0},
    "schedule": {
        "ortho_curriculum_start": 1.0,
        "ortho_curriculum_steps": 9,
        "ortho_fade_start_step": 12,
        "ortho_fade_end_step": 16,
        "ortho_warm_up_steps": 5,
    },
    "bfloat16": {"dtype": "bfloat16"},
    "uncentred input": {"apply_b_dec_to_input": False},
}
SETTINGS_OF_TOPK = {"decoder norms": {"rescale_acts_by_decoder_norm": False}}
SETTINGS_OF: dict[str, dict[str, dict[str, Any]]] = {
    "adaptive_ortho_topk": SETTINGS_OF_TOPK,
    "adaptive_ortho_batchtopk": SETTINGS_OF_TOPK,
    "adaptive_ortho_matryoshka_batchtopk": {
        **SETTINGS_OF_TOPK,
        "loss of each level": {"use_matryoshka_aux_loss": True},
    },
    "adaptive_ortho_jumprelu": {
        "tanh": {
            "jumprelu_sparsity_loss_mode": "tanh",
            "pre_act_loss_coefficient": 3e-6,
            "jumprelu_ste_to_input": True,
        },
        "quadratic": {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 4.0},
    },
}
# There is no scale if there is no norm. (In float32, the square of 1e-30 is 0.)
REFUSED = {("expected_average_only_in", condition) for condition in ("all zero", "scale 1e-30")}


def settings_of(name: str) -> dict[str, dict[str, Any]]:
    """What a base may set, by name: one thing that has a say in the numbers, or some."""
    own = {**SETTINGS, **SETTINGS_OF.get(name, {})}
    return {key: fields for key, fields in own.items() if (name, key) not in IMPOSSIBLE}


# ------------------------------------------------------------------------------------- checks


def faults_of(sae: Any, trainer: Any) -> list[str]:
    """What is not finite or not valid in an SAE, its statistics and its optimiser."""
    state = {**sae.state_dict(), "firings": trainer.act_freq_scores}
    for number, slots in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimiser {number} {slot}": torch.as_tensor(v) for slot, v in slots.items()}
    found = [f"{key} is not finite" for key, x in state.items() if not x.isfinite().all()]
    return found or [text for text, holds in promises(sae) if not bool(holds)]


def inside(x: Tensor, low: float, high: float) -> Tensor:
    return ((x >= low) & (x <= high)).all()


def promises(sae: Any) -> Iterator[tuple[str, Any]]:
    """What is wrong if a promise does not hold, and whether it holds."""
    cfg, latents = sae.cfg, torch.arange(sae.cfg.d_sae)
    rate = 1 + 1e-5  # rounded
    if cfg.ortho_unit_norm:
        # Rows are renormalised before each step, so they are one step away.
        yield "a decoder row has no norm", sae.W_dec.detach().float().norm(dim=1).min() > 0.5
    if hasattr(sae, "ortho_leaning"):
        yield "a leaning is outside [-1, 1]", inside(sae.ortho_leaning, -1, 1)
        yield "a corpus rate is outside [0, 1]", inside(sae._corpus_rates.rates(), 0, rate)
    if hasattr(sae, "ortho_scale"):
        yield "the scale is negative", sae.ortho_scale.min() >= 0
    if not hasattr(sae, "ortho_neighbours"):
        return
    lists, groups = sae.ortho_neighbours, sae.ortho_group_ids
    yield "a neighbour is no latent", inside(lists, 0, cfg.d_sae - 1)
    yield "a latent is its own neighbour", (lists != latents.unsqueeze(1)).all()
    ordered = lists.sort(dim=1).values
    yield "a neighbour is twice in a list", (ordered[:, 1:] != ordered[:, :-1]).all()
    yield "a group has not the name of its first latent", (groups[groups] == groups).all()
    yield "a group has the name of a later latent", ((groups >= 0) & (groups <= latents)).all()
    yield "a domain is unknown", inside(sae.ortho_domain_ids, -1, 2)
    yield "a captured share is outside [0, 1]", inside(sae.ortho_captured[:2], 0, 1)
    pairs = sae.ortho_pairs()
    yield "an affinity is outside [0, 1]", inside(pairs.affinities(), 0, 1)
    yield "a firing rate is outside [0, 1]", inside(pairs.firing_rates(), 0, rate)
    yield "an energy is negative or not finite", inside(pairs.energies(), 0, 1e30)
    yield "a partner is not in its list", (lists == sae.ortho_partner.unsqueeze(1)).any(1).all()
    yield "a push is negative", sae.ortho_push.min() >= 0


def faults_of_step(name: str, output: Any) -> list[str]:
    """What is not finite in the output of a training step."""
    losses = {"loss": output.loss, **output.losses}
    losses = {key: float(loss.detach()) for key, loss in losses.items()}
    found = [f"{key} is {loss}" for key, loss in losses.items() if not math.isfinite(loss)]
    for key in ("sae_out", "feature_acts"):
        if not getattr(output, key).isfinite().all():
            found.append(f"{key} is not finite")
    return [f"{name}: {fault}" for fault in found]


# ------------------------------------------------------------------------------------ campaign


def trained(
    saes: dict[str, Any], condition: str, steps: int, autocast: bool = False, **more: Any
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
    batches: Any = Batches(condition, next(iter(saes.values())).dtype)
    trainer = LockstepTrainer(cfg, saes, batches, log_every=LOOK_EVERY, **more)
    if condition == "one latent":
        for sae in saes.values():
            silence_others(sae)
    trainer.begin()
    with trainer.steps() as take:
        while not trainer.finished:
            take()
            step, found = trainer.state.n_training_steps, []
            for name, sae in saes.items():
                found += faults_of_step(name, trainer._outputs[name])
                if not found and (step % LOOK_EVERY == 0 or step in (1, 2, steps)):
                    found += [f"{name}: {x}" for x in faults_of(sae, trainer.trainers[name])]
            if found:
                return [f"step {step}: {fault}" for fault in found]
    trainer.finish()
    return []


def exported(sae: Any, folder: Path) -> list[str]:
    """What is wrong with the export, as SAELens reads it. Stock SAEs divide by norms, even by 0."""
    sae.save_inference_model(folder)
    loaded = SAE.load_from_disk(folder)
    rows = ordinary(torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = loaded(rows[rows.norm(dim=1) > 0].to(loaded.dtype))
    return [] if out.isfinite().all() else ["its export gives NaN or infinity"]


class Campaign:
    """Counts cases, and keeps what goes wrong."""

    def __init__(self, build_sae: Build, folder: Path) -> None:
        self.build_sae, self.folder = build_sae, folder
        self.started = time.perf_counter()
        self.counts = Counter({"cases": 0, "steps": 0, "refused": 0})
        self.faults: list[str] = []

    def case(
        self,
        base: str,
        condition: str,
        settings: dict[str, dict[str, Any]],
        steps: int,
        autocast: bool,
        **more: Any,
    ) -> None:
        """Train an SAE for each of the ``settings`` in lockstep."""
        common = {"d_in": D_IN, "d_sae": D_SAE, "ortho_refresh_every": 20}
        # A batch of two corpora has rows of both.
        common["ortho_forget_rows"] = 0 if condition == "one row" else FORGET
        saes = {name: self.build_sae(base, **(common | own)) for name, own in settings.items()}
        expected = any((name, condition) in REFUSED for name in settings)
        refused = False
        try:
            found = trained(saes, condition, steps, autocast, **more)
            for name, sae in saes.items():
                found = found or [f"{name}: {fault}" for fault in exported(sae, self.folder)]
        except ConfigError as error:
            refused = "activations are all zero, or too small" in str(error)
            found = [] if refused else [str(error)]
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"[:300]]
        if refused != expected and not found:
            found = [f"{list(saes)}: refused is {refused}"]
        self.counts.update(cases=len(saes), refused=refused)
        self.counts["steps"] += 0 if refused else steps * len(saes)
        precision = "bf16 autocast" if autocast else "float32"
        self.faults += [f"{base}, {condition}, {precision}: {fault}" for fault in found[:2]]

    def close(self, kind: str) -> None:
        seconds = round(time.perf_counter() - self.started)
        record(f"numbers: {kind}", **self.counts, not_finite=len(self.faults), seconds=seconds)
        assert not self.faults, "\n".join(self.faults)
        assert self.counts["steps"]


@pytest.fixture
def campaign(build_sae: Build, tmp_path: Path) -> Iterator[Campaign]:
    with calm_bars():
        yield Campaign(build_sae, tmp_path)


def sample() -> list[tuple[int, str, str]]:
    """Number, base and condition of each case."""
    pairs = product(enumerate(ARCHITECTURES), enumerate(CONDITIONS))
    chosen = [(base, condition) for (i, base), (j, condition) in pairs if (i + j) % STRIDE == 0]
    return [(number, base, condition) for number, (base, condition) in enumerate(chosen)]


@pytest.mark.parametrize("precision", ["float32", "bf16 autocast"])
def test_modes(campaign: Campaign, precision: str) -> None:
    for _, base, condition in sample():
        campaign.case(base, condition, MODES, STEPS, precision != "float32", sparse_products=True)
    campaign.close(f"modes, {precision}")


def test_settings(campaign: Campaign) -> None:
    for number, base, condition in sample():
        own = list(settings_of(base).items())
        for i in range(0 if FULL else number % 3, len(own), 1 if FULL else 3):
            autocast = (number + i) % 2 == 1
            more = {"sparse_products": number % 3 > 0, "b_dec_at_mean": i % 2 == 0}
            campaign.case(
                base, condition, dict(own[i : i + 1]), STEPS_OF_SETTINGS, autocast, **more
            )
    campaign.close("switches and normalisations")


# ------------------------------------------------------------------------------ beyond float32


@pytest.mark.parametrize("base", list(ARCHITECTURES))
def test_values_beyond_float32(
    build_sae: Build, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    """Their squares are infinite, and so is the loss: an error at the first step names the SAE.

    The squares of the gradients, which SAELens's clip adds up, are infinite from about 1e10 on.
    The clip then makes each step 0, so the weights stay as they were. A normalisation helps.
    """
    conditions = {"scale 1e12": scaled(1e12), "scale 1e20": scaled(1e20)}
    for condition, make in conditions.items():
        monkeypatch.setitem(CONDITIONS, condition, make)
    common = {"d_in": D_IN, "d_sae": D_SAE, "ortho_forget_rows": FORGET}
    normalised = {**common, "normalize_activations": "expected_average_only_in"}
    bias = "b_gate" if base.endswith("gated") else "b_enc"
    for mode, own in MODES.items():
        with pytest.raises(NonFiniteLossError, match=f"'{mode}' is (inf|nan) at step 1. .*normal"):
            trained({mode: build_sae(base, **common, **own)}, "scale 1e20", 5)
        for fields, learns in ((common, False), (normalised, True)):
            sae, start = (build_sae(base, **fields, **own) for _ in range(2))
            assert trained({mode: sae}, "scale 1e12", 5) == []
            assert learns != torch.equal(getattr(sae, bias), getattr(start, bias))
