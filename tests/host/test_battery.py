"""The same tests for every architecture and mode, trained by SAELens's own trainer."""

from __future__ import annotations

import copy
import importlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import (
    TrainCoefficientConfig,
    TrainingSAE,
    TrainingSAEConfig,
    TrainStepInput,
)
from torch import Tensor

import saelens_adaptive_ortho
from saelens_adaptive_ortho import ARCHITECTURES, register
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.host import architectures
from saelens_adaptive_ortho.host.config import (
    DEFAULT_SEPARATION,
    ortho_field_names,
    separation_coefficient,
)
from saelens_adaptive_ortho.host.penalty_mixin import CHECK_EVERY, AdaptiveOrthoMixin
from saelens_adaptive_ortho.host.sparse_mixin import SparseStepMixin
from saelens_adaptive_ortho.maths import coactivation, separation
from saelens_adaptive_ortho.maths.directions import decoder_directions
from saelens_adaptive_ortho.maths.geometry import mean_max_cosine
from saelens_adaptive_ortho.maths.neighbours import top_similar
from saelens_adaptive_ortho.maths.penalties import PENALTIES
from saelens_adaptive_ortho.maths.penalties.adaptive import DEFAULT_COEFFICIENTS
from saelens_adaptive_ortho.maths.penalties.fixed import fixed_penalty
from saelens_adaptive_ortho.maths.penalties.gram import gram_penalty

Build = Callable[..., Any]
LOWER_COSINES = ["gram", "fixed", "adaptive"]  # other penalties need not lower cosines

every_architecture = pytest.mark.parametrize("name", list(ARCHITECTURES))
every_mode = pytest.mark.parametrize("mode", list(PENALTIES.own))


def stock_name(name: str) -> str:
    return name.removeprefix(architectures.PREFIX)


def step_input(sae: Any, batch: Tensor, step: int = 0) -> TrainStepInput:
    coefficients = {
        name: getattr(value, "value", value) for name, value in sae.get_coefficients().items()
    }
    return TrainStepInput(
        sae_in=batch,
        coefficients=coefficients,
        dead_neuron_mask=None,
        n_training_steps=step,
        is_logging_step=False,
    )


# ------------------------------------------------------------ registration


def test_all_stock_architectures_are_registered() -> None:
    stock = ["standard", "topk", "batchtopk", "jumprelu", "gated", "matryoshka_batchtopk"]
    assert list(ARCHITECTURES) == [f"adaptive_ortho_{name}" for name in stock]
    for name, pair in ARCHITECTURES.items():
        assert SAE_TRAINING_CLASS_REGISTRY[name] == pair


def test_registering_again_changes_nothing() -> None:
    before = dict(SAE_TRAINING_CLASS_REGISTRY)
    register()
    assert before == SAE_TRAINING_CLASS_REGISTRY


def test_reloading_the_module_changes_nothing() -> None:
    before, names = dict(SAE_TRAINING_CLASS_REGISTRY), dict(vars(architectures))
    try:
        importlib.reload(architectures)
        assert before == SAE_TRAINING_CLASS_REGISTRY
    finally:  # the reload made new classes, which other tests must not use
        vars(architectures).update(names)
    assert saelens_adaptive_ortho.ARCHITECTURES is architectures.ARCHITECTURES


@every_architecture
def test_leaf_class_bases_are_mixins_and_stock_class(name: str) -> None:
    sae_class, config_class = ARCHITECTURES[name]
    stock_class, stock_config = SAE_TRAINING_CLASS_REGISTRY[stock_name(name)]
    sparse = issubclass(sae_class, SparseStepMixin)
    assert sparse == (stock_name(name) not in {"gated", "jumprelu"})
    mixins = (AdaptiveOrthoMixin, SparseStepMixin) if sparse else (AdaptiveOrthoMixin,)
    assert sae_class.__bases__ == (*mixins, stock_class)
    assert issubclass(config_class, stock_config)
    assert config_class.architecture() == name


@every_architecture
def test_config_round_trips_through_json(build_cfg: Build, name: str) -> None:
    cfg = build_cfg(
        name,
        ortho_mode="fixed",
        ortho_alpha=0.25,
        ortho_curriculum_start=0.01,
        ortho_curriculum_steps=7,
        ortho_fade_start_step=8,
        ortho_fade_end_step=9,
        ortho_scale_free=False,
    )
    restored = TrainingSAEConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert type(restored) is type(cfg)
    assert restored == cfg


@every_architecture
def test_inference_config_has_ortho_fields_in_metadata_only(build_cfg: Build, name: str) -> None:
    exported = json.loads(json.dumps(build_cfg(name).get_inference_sae_cfg_dict()))
    details = exported["metadata"]["training_architecture_details"]
    assert exported["metadata"]["training_architecture"] == name
    assert set(ortho_field_names()) <= set(details)
    assert not any(key.startswith("ortho_") for key in exported)


# ------------------------------------------------- equality with SAELens


@pytest.fixture(scope="module")
def stock_run(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build
) -> Callable[[str], tuple[Any, Tensor]]:
    """The stock SAE after 50 steps, and the global RNG state after its training."""
    runs: dict[str, tuple[Any, Tensor]] = {}

    def run(name: str) -> tuple[Any, Tensor]:
        if name not in runs:
            sae = build_sae(stock_name(name))
            train(make_trainer(sae), make_batches(50))
            runs[name] = sae, torch.get_rng_state()
        return runs[name]

    return run


@every_architecture
@pytest.mark.parametrize(
    "fields",
    [
        {"ortho_mode": "off"},
        {"ortho_mode": "gram", "ortho_coefficient": 0.0},
        {"ortho_mode": "fixed", "ortho_coefficient": 0.0},
        {
            "ortho_mode": "adaptive",
            "ortho_coefficient": 0.0,
            "ortho_separation": 0.0,
            "ortho_forget_rows": 8,
        },
        {"ortho_mode": "off", "ortho_separation": 1.0},  # without a forget corpus it is absent
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()),
)
def test_off_and_zero_coefficient_equal_stock_training(
    build_sae: Build,
    make_trainer: Build,
    make_batches: Build,
    train: Build,
    stock_run: Callable[[str], tuple[Any, Tensor]],
    name: str,
    fields: dict[str, Any],
) -> None:
    stock, rng_state = stock_run(name)
    ours = build_sae(name, **fields)
    initial = copy.deepcopy(ours.state_dict())
    train(make_trainer(ours), make_batches(50))
    assert torch.equal(torch.get_rng_state(), rng_state)
    trained = ours.state_dict()
    for key, value in stock.state_dict().items():
        assert torch.equal(trained[key], value), key
    assert not torch.equal(trained["W_dec"], initial["W_dec"])
    extra = set(trained) - set(stock.state_dict())
    assert all(key.startswith("ortho_") for key in extra)
    assert bool(extra) == (fields["ortho_mode"] != "off")


@every_architecture
@pytest.mark.parametrize("mode", LOWER_COSINES)
def test_penalty_lowers_cosines_and_keeps_global_rng(
    build_sae: Build,
    make_trainer: Build,
    make_batches: Build,
    train: Build,
    stock_run: Callable[[str], tuple[Any, Tensor]],
    name: str,
    mode: str,
) -> None:
    stock, rng_state = stock_run(name)
    ours = build_sae(
        name,
        ortho_mode=mode,
        ortho_coefficient=2.0,
        ortho_chunk_size=32,
        # With energy weighting, latents that hardly fire in 50 steps are hardly pushed.
        ortho_weighting="uniform",
    )
    outputs = train(make_trainer(ours), make_batches(50))
    assert all(output.loss.isfinite() for output in outputs)
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert mean_max_cosine(ours.W_dec.detach()) < mean_max_cosine(stock.W_dec.detach()) - 0.01


# -------------------------------------------------------------- separation


def two_corpora(batches: Tensor, rows: int = 8) -> Tensor:
    """Batches whose forget rows have features of their own."""
    moved = batches.clone()
    moved[:, :rows] = batches[:, :rows].flip(-1) + 0.5
    return moved


@every_architecture
def test_separation_is_part_of_the_loss(build_sae: Build, make_batches: Build, name: str) -> None:
    batch = two_corpora(make_batches(1))[0]
    stock = build_sae(stock_name(name))
    fields = {"ortho_mode": "off", "ortho_separation": 0.7, "ortho_alpha": 0.0}
    ours = build_sae(name, ortho_forget_rows=8, **fields)
    plain = stock.training_forward_pass(step_input(stock, batch))
    output = ours.training_forward_pass(step_input(ours, batch))
    acts = plain.feature_acts
    rates = torch.stack([(acts[:8] > 0).float().mean(0), (acts[8:] > 0).float().mean(0)])
    leaning = separation.leanings(rates, ours.cfg.ortho_alpha, ours.cfg.ortho_sharing_ratio)
    torch.testing.assert_close(ours.ortho_leaning, leaning)
    if not ours.cfg.to_dict().get("rescale_acts_by_decoder_norm"):
        acts = acts * stock.W_dec.norm(dim=-1)
    expected = 0.7 * 4 * separation.separation_penalty(acts, leaning, 8)  # every 4th step
    assert expected > 0
    torch.testing.assert_close(output.losses["separation_loss"], expected)
    torch.testing.assert_close(output.loss, plain.loss + expected)


@every_architecture
def test_separation_silences_forget_latents_on_retain_rows(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build, name: str
) -> None:
    def crossing(strength: float) -> float:
        """Squared activations of the first 16 latents on retain rows, after training."""
        fields = {"ortho_statistics_every": 1, "ortho_refresh_every": 1000}
        sae = build_sae(
            name, ortho_mode="off", ortho_separation=strength, ortho_forget_rows=8, **fields
        )
        if strength:
            sae.ortho_leaning[:16] = 1.0
        trainer, state = make_trainer(sae), torch.get_rng_state()
        trainer.n_training_steps = 1  # leanings are formed again at step 1000 only
        outputs = train(trainer, two_corpora(make_batches(60)))
        assert torch.equal(torch.get_rng_state(), state)
        acts = torch.stack([o.feature_acts.detach() for o in outputs[-12:]])
        return float(acts[:, 8:, :16].square().mean())

    assert crossing(3.0) < 0.2 * crossing(0.0)


def test_separation_acts_on_every_nth_step_only(build_sae: Build, make_batches: Build) -> None:
    sae = build_sae(
        "adaptive_ortho_topk",
        ortho_mode="off",
        ortho_separation=1.0,
        ortho_alpha=0.0,
        ortho_forget_rows=8,
        ortho_statistics_every=3,
    )
    batch = two_corpora(make_batches(1))[0]
    found = [
        float(sae.training_forward_pass(step_input(sae, batch, step)).losses["separation_loss"])
        for step in range(7)
    ]
    assert [loss > 0 for loss in found] == [True, False, False, True, False, False, True]


def test_number_of_forget_latents_is_logged(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build
) -> None:
    sae = build_sae(
        "adaptive_ortho_topk", ortho_mode="off", ortho_separation=1.0, ortho_forget_rows=8
    )
    trainer = make_trainer(sae)
    output = train(trainer, two_corpora(make_batches(3)))[-1]
    log = trainer.build_train_step_log_dict(output, n_training_samples=1)
    expected = float(sae.ortho_leaning.clamp(min=0).sum())
    assert expected > 0
    assert log["metrics/ortho_leaning_to_forget"] == pytest.approx(expected)


def test_separation_warms_up(build_sae: Build) -> None:
    sae = build_sae(
        "adaptive_ortho_topk", ortho_separation=2.0, ortho_forget_rows=8, ortho_warm_up_steps=5
    )
    assert sae.get_coefficients()["separation"] == TrainCoefficientConfig(2.0, 5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ortho_mode": "adaptive"}, DEFAULT_SEPARATION),
        ({"ortho_mode": "fixed"}, 0.0),
        ({"ortho_mode": "off"}, 0.0),
        ({"ortho_mode": "off", "ortho_separation": 0.3}, 0.3),
        ({"ortho_mode": "adaptive", "ortho_separation": 0.0}, 0.0),
    ],
)
def test_default_separation_belongs_to_the_mode_adaptive(
    build_cfg: Build, fields: dict[str, Any], expected: float
) -> None:
    assert separation_coefficient(build_cfg("adaptive_ortho_topk", **fields)) == expected


# --------------------------------------------------------------- gradients


def one_live_pair(d_in: int = 16, d_sae: int = 32) -> Tensor:
    """Rows 0 and 1 have an angle of 45 degrees; every other cosine is 0, -1 or -0.7."""
    e = torch.eye(d_in)
    return torch.cat([e[:1], e[:1] + e[1:2], -e[:2], e[2:], -e[2:]])[:d_sae]


@every_architecture
@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({"ortho_mode": "gram"}, None),
        ({"ortho_mode": "fixed"}, [0, 1]),
        ({"ortho_mode": "adaptive", "ortho_ordering": "symmetric"}, [0, 1]),
        ({"ortho_mode": "adaptive"}, [1]),  # latent 0 fires more often and gets no gradient
    ],
    ids=["gram", "fixed", "symmetric", "frequency"],
)
def test_gradient_reaches_only_rows_of_active_pairs(
    build_sae: Build, make_batches: Build, name: str, fields: dict[str, Any], rows: list[int] | None
) -> None:
    widths = {"matryoshka_widths": [8, 32]} if "matryoshka" in name else {}
    sae = build_sae(name, d_sae=32, ortho_neighbours=31, **widths, **fields)
    sae.W_dec.data = one_live_pair()
    if fields["ortho_mode"] == "adaptive":
        sae.ortho_samples += 100
        sae.ortho_fired[0, :2] += torch.tensor([20.0, 10.0])
        sae.ortho_squares += 1.0  # every latent contributes the same
    output = sae.training_forward_pass(step_input(sae, make_batches(1)[0]))
    output.losses["ortho_loss"].backward()
    for parameter_name, parameter in sae.named_parameters():
        if parameter_name != "W_dec":
            assert parameter.grad is None, parameter_name
    live = sae.W_dec.grad.abs().sum(-1).nonzero().flatten().tolist()
    assert live[:1] if rows is None else live == rows


@every_architecture
def test_loss_includes_weighted_penalty(build_sae: Build, make_batches: Build, name: str) -> None:
    batch = make_batches(1)[0]
    stock, ours = build_sae(stock_name(name)), build_sae(name, ortho_mode="gram")
    plain = stock.training_forward_pass(step_input(stock, batch))
    output = ours.training_forward_pass(step_input(ours, batch))
    variance = (batch - batch.mean(0)).square().sum(-1).mean()
    penalty = gram_penalty(ours.W_dec)
    torch.testing.assert_close(output.losses["ortho_loss"], 0.05 * variance * penalty)
    torch.testing.assert_close(output.loss, plain.loss + output.losses["ortho_loss"])


# ----------------------------------------------------------- coefficients


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"ortho_coefficient": 0.8, "ortho_warm_up_steps": 4},
            [0.0, 0.2, 0.4, 0.6, 0.8, 0.8],
        ),
        (
            {
                "ortho_coefficient": 0.5,
                "ortho_curriculum_start": 0.1,
                "ortho_curriculum_steps": 4,
            },
            [0.1, 0.2, 0.3, 0.4, 0.5, 0.5],
        ),
        (
            {
                "ortho_coefficient": 0.8,
                "ortho_fade_start_step": 2,
                "ortho_fade_end_step": 6,
            },
            [0.8, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0],
        ),
        (
            {
                "ortho_coefficient": 0.5,
                "ortho_warm_up_steps": 2,
                "ortho_curriculum_start": 0.1,
                "ortho_curriculum_steps": 4,
                "ortho_fade_start_step": 4,
                "ortho_fade_end_step": 6,
            },
            [0.0, 0.5 * 0.2, 0.3, 0.4, 0.5, 0.25, 0.0],
        ),
        (
            {"ortho_mode": "fixed", "ortho_coefficient": 0.1, "ortho_every": 5},
            [0.5, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.5],
        ),
    ],
    ids=["warm-up", "curriculum", "fade", "all", "every-fifth"],
)
def test_lambda_follows_its_schedule(
    build_sae: Build,
    make_trainer: Build,
    make_batches: Build,
    train: Build,
    fields: dict[str, Any],
    expected: list[float],
) -> None:
    fields = {"ortho_mode": "gram", "ortho_scale_free": False} | fields
    sae = build_sae("adaptive_ortho_standard", **fields)
    W, mode = sae.W_dec.detach(), sae.cfg.ortho_mode
    penalty = gram_penalty(W) if mode == "gram" else fixed_penalty(W, torch.arange(len(W)))
    # With lr 0 the penalty is constant, so its loss shows the coefficient.
    outputs = train(make_trainer(sae, lr=0.0), make_batches(len(expected)))
    found = [float(output.losses["ortho_loss"].detach() / penalty) for output in outputs]
    assert found == pytest.approx(expected, rel=1e-5)


def test_scale_is_running_variance_of_input(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build
) -> None:
    sae = build_sae("adaptive_ortho_topk", ortho_mode="gram")
    trainer, batches = make_trainer(sae), make_batches(2)
    v = [(b - b.mean(0)).square().sum(-1).mean() for b in batches]
    (output,) = train(trainer, batches[:1])
    torch.testing.assert_close(output.metrics["ortho_scale"](), v[0])
    (output,) = train(trainer, batches[1:])
    torch.testing.assert_close(output.metrics["ortho_scale"](), (0.99 * v[0] + v[1]) / 1.99)


@every_mode
def test_scale_free_penalty_grows_like_squared_norm(
    build_sae: Build, make_batches: Build, mode: str
) -> None:
    """The reconstruction error grows in the same way, so one lambda works for any norm."""
    batch = make_batches(1)[0]
    losses = []
    for norm in (1.0, 300.0):
        sae = build_sae("adaptive_ortho_batchtopk", ortho_mode=mode)
        sae.training_forward_pass(step_input(sae, norm * batch))  # counts the energies
        output = sae.training_forward_pass(step_input(sae, norm * batch, 1))
        losses.append(float(output.losses["ortho_loss"].detach()))
    assert losses[1] / losses[0] == pytest.approx(300.0**2, rel=1e-4)


# -------------------------------------------------------- numbers and devices


@every_architecture
@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
def test_bf16_training_keeps_float32_statistics(
    build_sae: Build,
    make_trainer: Build,
    make_batches: Build,
    train: Build,
    name: str,
    precision: str,
) -> None:
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    sae = build_sae(name, dtype=dtype, ortho_forget_rows=8)
    trainer = make_trainer(sae, autocast=precision == "autocast")
    outputs = train(trainer, make_batches(12))
    for output in outputs:
        assert output.loss.isfinite()
        assert all(loss.isfinite() for loss in output.losses.values())
    assert sae.W_dec.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    assert all(parameter.isfinite().all() for parameter in sae.parameters())
    assert all(counts.dtype == torch.float32 for counts in sae.ortho_state)
    assert sae.ortho_neighbours.dtype == sae.ortho_group_ids.dtype == torch.int64
    assert float(sae.ortho_samples.sum()) > 0


def test_autocast_keeps_search_and_counts_exact(
    build_sae: Build, make_batches: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coactivation, "random_signs", lambda n, r, seed, step: torch.ones(n, r))
    sae = build_sae("adaptive_ortho_standard")
    sae.b_enc.data += 1000.0  # every latent fires on every row
    batch = make_batches(1, batch=1001)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sae.training_forward_pass(step_input(sae, batch))
    exact, _ = top_similar(decoder_directions(sae.W_dec.detach()), sae.cfg.ortho_neighbours)
    assert torch.equal(sae.ortho_neighbours, exact)
    assert torch.equal(sae.ortho_sketch, torch.full((64, 32), 1001.0))  # bf16 would give 1000


def test_casting_keeps_counts_and_ids(build_sae: Build) -> None:
    sae = build_sae("adaptive_ortho_jumprelu")
    sae.ortho_samples += 1001
    before = {key: value.clone() for key, value in sae.named_buffers()}
    sae.to(torch.bfloat16)
    assert sae.W_dec.dtype == torch.bfloat16
    for key, value in sae.named_buffers():
        assert value.dtype == before[key].dtype, key
        assert torch.equal(value, before[key]), key


@pytest.mark.filterwarnings("ignore:Sparse invariant:UserWarning")
def test_sparse_activations_train_like_dense_ones(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build
) -> None:
    # SAELens 6.54 cannot differentiate sparse activations rescaled by decoder norms on a CPU.
    fields = {"rescale_acts_by_decoder_norm": False}
    dense, sparse = (
        build_sae("adaptive_ortho_topk", use_sparse_activations=flag, **fields)
        for flag in (False, True)
    )
    outputs = [train(make_trainer(sae), make_batches(1))[0] for sae in (dense, sparse)]
    assert [output.feature_acts.is_sparse for output in outputs] == [False, True]
    assert float(dense.ortho_joint.sum()) > 0
    for key, value in dense.ortho_state._asdict().items():
        assert torch.equal(getattr(sparse.ortho_state, key), value), key
    torch.testing.assert_close(sparse.W_dec, dense.W_dec)
    further = train(make_trainer(sparse), make_batches(12))
    assert all(output.loss.isfinite() for output in further)


# ------------------------------------------------------ batches and refreshes


@pytest.mark.parametrize("forget_rows", [32, 33, 1000])
def test_too_many_forget_rows_are_refused(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build, forget_rows: int
) -> None:
    sae = build_sae("adaptive_ortho_batchtopk", ortho_forget_rows=forget_rows)
    with pytest.raises(ConfigError, match=f"ortho_forget_rows={forget_rows}: .* only 32 rows"):
        train(make_trainer(sae), make_batches(1))


@pytest.mark.parametrize("first_step", [0, 7])
def test_first_step_searches_neighbours(
    build_sae: Build, make_batches: Build, first_step: int
) -> None:
    sae = build_sae("adaptive_ortho_standard")
    assert (sae.ortho_neighbours == -1).all()
    expected, _ = top_similar(decoder_directions(sae.W_dec.detach()), 8)
    output = sae.training_forward_pass(step_input(sae, make_batches(1)[0], first_step))
    assert torch.equal(sae.ortho_neighbours, expected)
    assert output.metrics["ortho_groups/grouped"] == 0


# Lists are searched on every 6th step, statistics counted on every 4th.
SIX_AND_FOUR = {"ortho_refresh_every": 6, "ortho_min_captured": 0.0, "ortho_statistics_every": 4}


def test_lists_and_counts_change_only_on_their_steps(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build
) -> None:
    sae = build_sae("adaptive_ortho_batchtopk", **SIX_AND_FOUR)
    trainer = make_trainer(sae, lr=0.1)
    refreshed, counted = [], []
    for step, batch in enumerate(make_batches(13)):
        neighbours, samples = sae.ortho_neighbours, sae.ortho_samples
        train(trainer, batch.unsqueeze(0))
        if not torch.equal(neighbours, sae.ortho_neighbours):
            refreshed.append(step)
        if not torch.equal(samples, sae.ortho_samples):
            counted.append(step)
    assert refreshed == [0, 6, 12]
    assert counted == [0, 4, 8, 12]
    assert float(sae.ortho_samples) == pytest.approx(32 * (1 + 0.99 + 0.99**2 + 0.99**3))


def test_pairs_are_chosen_when_lists_or_statistics_have_changed(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build
) -> None:
    sae = build_sae("adaptive_ortho_batchtopk", **SIX_AND_FOUR)
    assert (sae.ortho_partner == -1).all()
    trainer = make_trainer(sae, lr=0.1)
    chosen = []
    for step, batch in enumerate(make_batches(13)):
        partner = sae.ortho_partner
        train(trainer, batch.unsqueeze(0))
        if sae.ortho_partner is not partner:
            chosen.append(step)
            inside = sae.ortho_neighbours == sae.ortho_partner.unsqueeze(1)
            assert inside.any(1).all()
    # Lists change at steps 0, 6 and 12; statistics are counted at the end of steps 0, 4, 8, 12.
    assert chosen == [0, 1, 5, 6, 9, 12]


def test_steps_between_choices_use_the_kept_pairs(build_sae: Build, make_batches: Build) -> None:
    sae = build_sae("adaptive_ortho_topk", ortho_ordering="symmetric", ortho_weighting="uniform")

    def loss(step: int) -> Tensor:
        output = sae.training_forward_pass(step_input(sae, make_batches(1)[0], step))
        return output.losses["ortho_loss"].detach() / sae._scale() / 0.05

    for step in (0, 1, 2):
        loss(step)
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.roll(1, dims=0))  # other pairs are similar now
    D = decoder_directions(sae.W_dec.detach())
    cosine = (D * D[sae.ortho_partner]).sum(1).relu()
    expected = (sae.ortho_push.amax(0) * cosine.square()).sum()
    torch.testing.assert_close(loss(3), expected)
    assert loss(5) > 1.5 * expected  # chosen again, after the count of step 4


def test_no_pairs_are_chosen_without_a_penalty(build_sae: Build, make_batches: Build) -> None:
    sae = build_sae("adaptive_ortho_topk", ortho_coefficient=0.0)
    sae.training_forward_pass(step_input(sae, make_batches(1)[0]))
    assert (sae.ortho_partner == -1).all()


def test_low_captured_share_refreshes_lists_at_once(build_sae: Build, make_batches: Build) -> None:
    sae = build_sae("adaptive_ortho_topk", ortho_neighbours=1, ortho_refresh_every=100)

    def lists_after(step: int) -> Tensor:
        sae.training_forward_pass(step_input(sae, make_batches(1)[0], step))
        return sae.ortho_neighbours

    fresh = lists_after(0)
    assert lists_after(CHECK_EVERY) is fresh  # every latent is captured
    assert sae.ortho_captured.tolist() == [1, 1, 1, 1]
    with torch.no_grad():
        sae.W_dec[:16] = sae.W_dec[16:32]  # half of the latents have a new nearest neighbour
    D = decoder_directions(sae.W_dec.detach())
    cosines = (D @ D.T).fill_diagonal_(-1)
    share = (cosines.gather(1, fresh).squeeze(1) >= cosines.amax(1) - 0.01).float().mean()
    assert 0.2 < share <= 0.5
    assert lists_after(CHECK_EVERY + 1) is fresh  # no check at this step
    assert torch.equal(lists_after(2 * CHECK_EVERY), top_similar(D, 1)[0])
    assert sae.ortho_captured.tolist() == [share, share, 1 + share, 2]
    again = lists_after(3 * CHECK_EVERY)
    assert again is lists_after(100 + CHECK_EVERY)
    assert sae.ortho_captured[0] == 1
    # Lists are refreshed after ortho_refresh_every steps, even if they capture enough.
    assert lists_after(100 + 2 * CHECK_EVERY) is not again


def test_logged_metrics_are_finite_numbers(
    build_sae: Build, make_trainer: Build, make_batches: Build, train: Build
) -> None:
    trainer = make_trainer(build_sae("adaptive_ortho_gated", ortho_forget_rows=8))
    output = train(trainer, make_batches(12))[-1]
    log = trainer.build_train_step_log_dict(output, n_training_samples=1)
    fields = ("n_groups", "largest", "grouped", "churn", "forget", "retain", "shared")
    ours = ["metrics/ortho_scale", *(f"metrics/ortho_groups/{field}" for field in fields)]
    assert all(math.isfinite(log[key]) for key in [*ours, "losses/ortho_loss"])
    assert log["details/ortho_coefficient"] == DEFAULT_COEFFICIENTS["energy"]


DEGENERATE = {
    "constant rows": lambda: torch.ones(64, 16),
    "zero rows": lambda: torch.zeros(64, 16),
    "one row": lambda: torch.randn(1, 16, generator=torch.manual_seed(0)),
    "tiny rows": lambda: 1e-30 * torch.randn(64, 16, generator=torch.manual_seed(0)),
    "one large value": lambda: torch.zeros(64, 16).index_put(
        (torch.tensor(3), torch.tensor(5)), torch.tensor(1e6)
    ),
}


@every_architecture
@pytest.mark.parametrize("mode", ["off", *PENALTIES.own])
def test_degenerate_batches_give_finite_losses_and_gradients(
    build_sae: Build, name: str, mode: str
) -> None:
    for kind, make in DEGENERATE.items():
        sae, batch = build_sae(name, ortho_mode=mode), make()
        for step in range(3):
            output = sae.training_forward_pass(step_input(sae, batch, step))
            assert math.isfinite(float(output.loss.detach())), kind
            output.loss.backward()
        for parameter in sae.parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), kind


@pytest.mark.parametrize("affinity", ["lift", "overlap", "group"])
def test_training_sae_finds_planted_groups_and_domains(build_sae: Build, affinity: str) -> None:
    """The SAE copies its 8 inputs, and the inputs have a known structure."""
    sae = build_sae(
        "adaptive_ortho_standard",
        d_in=8,
        d_sae=8,
        ortho_affinity=affinity,
        ortho_neighbours=7,
        ortho_sketch_size=512,
        ortho_refresh_every=20,
        ortho_statistics_every=1,
        ortho_forget_rows=16,
    )
    sae.W_enc.data, sae.W_dec.data = torch.eye(8), torch.eye(8)
    generator = torch.Generator().manual_seed(0)
    for step in range(21):
        x = (torch.rand(64, 8, generator=generator) < 0.3).float()
        x[:, 1], x[:, 4] = x[:, 0], x[:, 3]  # latents 0 and 1, and 3 and 4, fire together
        x[16:, [0, 1, 2]] = 0  # these fire on the forget corpus only
        x[:16, [3, 4, 5]] = 0  # these fire on the retain corpus only
        sae.training_forward_pass(step_input(sae, x, step))
    assert sae.ortho_group_ids.tolist() == [0, 0, 2, 3, 3, 5, 6, 7]
    assert sae.ortho_domain_ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    s = torch.zeros(8, 8).scatter(1, sae.ortho_neighbours, sae.ortho_affinities())
    assert (s[:3, 3:6] == 0).all()
    assert (s[3:6, :3] == 0).all()
    assert (s[[0, 1, 3, 4], [1, 0, 4, 3]] > 0.95).all()
    assert (s[:6, 6:] <= 0.5).all()


@pytest.mark.parametrize("name", ["adaptive_ortho_standard", "adaptive_ortho_batchtopk"])
def test_energies_equal_output_contributions(
    build_sae: Build, make_batches: Build, name: str
) -> None:
    sae = build_sae(name, ortho_weighting="energy", ortho_statistics_every=1)
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.5, 2.0, len(sae.W_dec)).unsqueeze(1)
        (x,) = make_batches(1)
        sae.training_forward_pass(step_input(sae, x, 0))
        acts = sae.training_forward_pass(step_input(sae, x, 1)).feature_acts
        # The contribution of one latent to the output, squared and averaged over rows.
        expected = torch.zeros(sae.cfg.d_sae)
        nothing = sae.decode(torch.zeros_like(acts))
        for i in range(sae.cfg.d_sae):
            alone = torch.zeros_like(acts)
            alone[:, i] = acts[:, i]
            expected[i] = (sae.decode(alone) - nothing).square().sum(1).mean()
        variance = (x - x.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(
        sae.ortho_pairs().energies() * variance, expected, rtol=1e-3, atol=1e-6
    )
    assert expected.max() > 0


@every_architecture
def test_sae_from_config_dict_has_same_architecture(build_cfg: Build, name: str) -> None:
    sae = TrainingSAE.from_dict(build_cfg(name).to_dict())
    assert type(sae) is ARCHITECTURES[name][0]
