"""Every switch on every architecture: resume, export, precision, and its purpose."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAE
from torch import Tensor

from saelens_adaptive_ortho import ARCHITECTURES
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.host.switch_config import SKIP_EXPORTS, UNDONE_NORMALISATIONS
from saelens_adaptive_ortho.host.switch_mixin import LatentHookPoint
from saelens_adaptive_ortho.host.trainer import SwitchTrainer, build_trainer
from saelens_adaptive_ortho.maths.geometry import mean_max_cosine

Build = Callable[..., Any]
BATCH, STEPS, STOP = 32, 12, 7
PREFIX = "adaptive_ortho_"

SWITCHES: dict[str, dict[str, Any]] = {
    "unit_norm": {"ortho_unit_norm": True},
    "accumulation": {"ortho_accumulation": 3},
    "clip": {"ortho_clip_norm": 0.5},
    "own_lr": {"ortho_lr_power": 0.5},
    "skip": {"ortho_skip_rank": 2},
    "dropout": {"ortho_dropout": 0.3},
    "unlock": {"ortho_unlock_start": 0.25, "ortho_unlock_growth": 0.25, "ortho_unlock_every": 3},
    "latent_norm": {"ortho_latent_norm": True},
    "orthogonal": {"ortho_decoder_init": "orthogonal"},
    "data": {"ortho_decoder_init": "data"},
}
ALL = {k: v for fields in SWITCHES.values() for k, v in fields.items()}
IMPOSSIBLE = {
    *((f"{PREFIX}{base}", "skip") for base in ("topk", "gated")),
    (f"{PREFIX}gated", "unlock"),
}
SCHEDULE = {"ortho_refresh_every": 4, "ortho_statistics_every": 2, "ortho_warm_up_steps": 5}
CASES = [(a, s) for a in ARCHITECTURES for s in SWITCHES if (a, s) not in IMPOSSIBLE]
every_case = pytest.mark.parametrize(("name", "switch"), CASES)


def trainer_of(sae: Any, steps: int = STEPS, batch: int = BATCH, **overrides: Any) -> Any:
    fields: dict[str, Any] = {"lr": 1e-2, "lr_end": 1e-3, "dead_feature_window": 5, **overrides}
    cfg = SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, **fields
    )
    return build_trainer(cfg, sae, iter(()))


def combined(name: str) -> dict[str, Any]:
    """All switches that the architecture allows, together."""
    fields = dict(ALL)
    if (name, "skip") in IMPOSSIBLE:
        fields["ortho_skip_rank"] = 0
    if (name, "unlock") in IMPOSSIBLE:
        fields["ortho_unlock_start"] = 1.0
    return fields


def fields_of(name: str, switch: str) -> dict[str, Any]:
    return SCHEDULE | (combined(name) if switch == "all" else SWITCHES[switch])


def reconstruct(sae: Any, x: Tensor) -> Tensor:
    """Output at inference: BatchTopK uses its threshold, the others compute as in training."""
    with torch.no_grad():
        if "batchtopk" not in sae.cfg.architecture():
            return sae(x)
        _, pre = sae.encode_with_hidden_pre(x)
        return sae.decode(pre.relu() * (pre > sae.topk_threshold))


def assert_same(a: Any, b: Any) -> None:
    theirs = b.state_dict()
    for key, value in a.state_dict().items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize(("name", "switch"), [*CASES, *((name, "all") for name in ARCHITECTURES)])
def test_switch_resumes_exports_and_keeps_global_rng(
    build_sae: Build,
    make_batches: Build,
    train: Build,
    tmp_path: Path,
    name: str,
    switch: str,
) -> None:
    fields = fields_of(name, switch)
    batches = make_batches(STEPS)
    whole = build_sae(name, **fields)
    rng = torch.get_rng_state()
    outputs = train(trainer_of(whole), batches)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(output.loss.isfinite() for output in outputs)

    first = build_sae(name, **fields)
    trainer = trainer_of(first)
    train(trainer, batches[:STOP])
    first.save_model(tmp_path / "checkpoint")
    trainer.save_trainer_state(tmp_path / "checkpoint")
    second = build_sae(name, seed=1, **fields)
    trainer = trainer_of(second)
    trainer.load_trainer_state(tmp_path / "checkpoint")
    second.load_weights_from_checkpoint(tmp_path / "checkpoint")
    train(trainer, batches[STOP:])
    assert_same(whole, second)

    x = batches[0]
    expected = reconstruct(whole, x)
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    whole.save_inference_model(tmp_path / "export")
    assert all(torch.equal(before[key], value) for key, value in whole.state_dict().items())
    loaded = SAE.load_from_disk(tmp_path / "export")
    assert type(loaded).__module__.startswith("sae_lens.")
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-5)
    if fields.get("ortho_skip_rank"):
        assert loaded.cfg.architecture() == SKIP_EXPORTS[name.removeprefix(PREFIX)]
        assert float(loaded.W_skip.detach().abs().max()) > 0


@every_case
def test_switch_changes_trained_weights(
    build_sae: Build, make_batches: Build, train: Build, name: str, switch: str
) -> None:
    plain, changed = build_sae(name), build_sae(name, **SWITCHES[switch])
    for sae in (plain, changed):
        train(trainer_of(sae), make_batches(STEPS))
    assert not torch.equal(plain.W_dec, changed.W_dec)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_all_switches_together_train_in_bf16(
    build_sae: Build, make_batches: Build, train: Build, name: str
) -> None:
    sae = build_sae(name, dtype="bfloat16", **fields_of(name, "all"))
    outputs = train(trainer_of(sae), make_batches(STEPS))
    assert all(output.loss.isfinite() for output in outputs)
    assert all(parameter.isfinite().all() for parameter in sae.parameters())
    for buffer in ("ortho_mean_square", "ortho_lr_rates"):
        assert getattr(sae, buffer).dtype == torch.float32


def test_trained_sae_can_be_copied(build_sae: Build, make_batches: Build, train: Build) -> None:
    name = f"{PREFIX}matryoshka_batchtopk"
    sae = build_sae(name, **combined(name))
    batches = make_batches(STEPS)
    train(trainer_of(sae), batches)
    twin = copy.deepcopy(sae)
    train(trainer_of(twin), batches)
    with torch.no_grad():
        twin.W_dec.zero_()
    assert float(sae.W_dec.detach().abs().max()) > 0
    torch.testing.assert_close(reconstruct(sae, batches[0]), reconstruct(sae, batches[0]))


# ---------------------------------------------------------------- the loop


def test_accumulation_equals_one_large_batch(
    build_sae: Build, make_batches: Build, train: Build
) -> None:
    name, batches = f"{PREFIX}standard", make_batches(4)
    small = build_sae(name, ortho_mode="off", ortho_accumulation=4)
    large = build_sae(name, ortho_mode="off", ortho_clip_norm=1.0)
    initial = small.W_dec.detach().clone()
    small_trainer = trainer_of(small, lr_scheduler_name="constant")
    train(small_trainer, batches[:3])
    assert torch.equal(small.W_dec, initial)  # weights do not change before the window is full
    (last,) = train(small_trainer, batches[3:])
    (only,) = train(
        trainer_of(large, batch=4 * BATCH, lr_scheduler_name="constant"),
        batches.reshape(1, 4 * BATCH, -1),
    )
    torch.testing.assert_close(small.W_dec, large.W_dec, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(last.metrics["grad_norm"], only.metrics["grad_norm"])
    assert "grad_norm" in last.metrics


def test_incomplete_last_window_is_used(
    build_sae: Build, make_batches: Build, train: Build
) -> None:
    sae = build_sae(f"{PREFIX}topk", ortho_accumulation=4)
    trainer = trainer_of(sae, steps=6)
    train(trainer, make_batches(4))
    before = sae.W_dec.detach().clone()
    train(trainer, make_batches(2))
    assert not torch.equal(sae.W_dec, before)
    assert all(parameter.grad is None for parameter in sae.parameters())


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_clip_norm_1_equals_sae_lens_step(
    build_sae: Build, make_batches: Build, make_trainer: Build, train: Build, name: str
) -> None:
    host, own = build_sae(name), build_sae(name, ortho_clip_norm=1.0)
    train(make_trainer(host, total_training_samples=STEPS * BATCH), make_batches(STEPS))
    trainer = trainer_of(own)
    assert isinstance(trainer, SwitchTrainer)
    outputs = train(trainer, make_batches(STEPS))
    assert_same(host, own)
    assert all(float(output.metrics["grad_norm"]) > 0 for output in outputs)


def test_rare_latents_learn_faster_within_bounds(
    build_sae: Build, make_batches: Build, train: Build
) -> None:
    fields = {"ortho_mode": "off", "ortho_lr_power": 1.0}
    sae = build_sae(f"{PREFIX}standard", **fields)
    plain = build_sae(f"{PREFIX}standard", ortho_mode="off", ortho_clip_norm=1.0)
    trainers = trainer_of(sae), trainer_of(plain)
    for trainer in trainers:
        train(trainer, make_batches(1))
    plain.load_state_dict({k: v for k, v in sae.state_dict().items() if not k.startswith("ortho_")})
    trainers[1].optimizer.load_state_dict(trainers[0].optimizer.state_dict())
    before = sae.W_dec.detach().clone()
    sae.ortho_lr_rates = torch.cat([torch.full((32,), 0.5), torch.full((32,), 1e-6)])
    for trainer in trainers:
        (output,) = train(trainer, make_batches(1))
        if trainer is trainers[0]:
            lowest, highest = (
                float(output.metrics[f"ortho_lr/{k}"]) for k in ("lowest", "highest")
            )
    assert lowest >= sae.cfg.ortho_lr_min * 0.999
    assert highest <= sae.cfg.ortho_lr_max * 1.001
    ratio = (sae.W_dec.detach() - before).norm(dim=1)
    ratio = ratio / (plain.W_dec.detach() - before).norm(dim=1)
    assert float(ratio[:32].max()) < 1 < float(ratio[32:].min())


@pytest.mark.parametrize("switch", ["accumulation", "clip", "own_lr"])
def test_sae_lens_trainer_refuses_loop_switches(
    build_sae: Build, make_batches: Build, make_trainer: Build, train: Build, switch: str
) -> None:
    (field, value), *_ = SWITCHES[switch].items()
    sae = build_sae(f"{PREFIX}topk", ortho_mode="off", **SWITCHES[switch])
    with pytest.raises(ConfigError, match=f"{field}={value!r}: .*AdaptiveOrthoRunner"):
        train(make_trainer(sae), make_batches(1))


# --------------------------------------------------------------- unit norm


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_unit_norm_rows_have_tangent_gradients(
    build_sae: Build, make_batches: Build, train: Build, name: str
) -> None:
    sae = build_sae(name, ortho_unit_norm=True, ortho_coefficient=1.0)
    trainer = trainer_of(sae)
    gradients = []
    watched = sae.W_dec.register_hook(lambda g: gradients.append(None))
    train(trainer, make_batches(3))
    watched.remove()
    sae.ortho_project()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(len(sae.W_dec)))
    # After one more backward pass, no component of the gradient changes a norm.
    captured: list[Tensor] = []
    sae.W_dec.register_hook(lambda g: captured.append(g.clone()))
    W = sae.W_dec.detach().clone()
    train(trainer, make_batches(1))
    assert float((captured[0] * W).sum(1).abs().max()) < 1e-4 * float(captured[0].norm() + 1)
    assert float(captured[0].norm()) > 0


# -------------------------------------------------------------------- skip


def test_skip_starts_at_zero_and_keeps_other_weights(build_sae: Build, make_batches: Build) -> None:
    name = f"{PREFIX}batchtopk"
    plain, skip = build_sae(name), build_sae(name, ortho_skip_rank=3)
    assert torch.equal(plain.W_dec, skip.W_dec)
    x = make_batches(1)[0]
    with torch.no_grad():
        assert torch.equal(plain(x), skip(x))
        skip.ortho_skip_out.normal_()
        assert not torch.equal(plain(x), skip(x))


def test_skip_refuses_decode_without_input(build_sae: Build, make_batches: Build) -> None:
    sae = build_sae(f"{PREFIX}standard", ortho_skip_rank=3)
    x = make_batches(1)[0]
    acts = sae.encode(x)
    sae.decode(acts)
    with pytest.raises(RuntimeError, match="depends on the input"):
        sae.decode(acts)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("name", [f"{PREFIX}standard", f"{PREFIX}jumprelu"])
def test_whitening_and_norm_folds_include_skip(
    build_sae: Build, make_batches: Build, name: str, apply_b_dec_to_input: bool
) -> None:
    fields = {"ortho_skip_rank": 3, "apply_b_dec_to_input": apply_b_dec_to_input}
    sae = build_sae(name, **fields)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (sae.ortho_skip_out, sae.b_dec, sae.b_enc):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = make_batches(1)[0]
    mean = torch.randn(16, generator=generator)
    M = torch.eye(16) + 0.1 * torch.randn(16, 16, generator=generator)
    with torch.no_grad():
        expected = sae((x - mean) @ M) @ M.inverse() + mean
        sae.fold_activation_whitening(mean, M, M.inverse())
        torch.testing.assert_close(sae(x), expected, rtol=1e-4, atol=1e-4)
        expected = sae(x)
        sae.fold_activation_norm_scaling_factor(0.25)
        torch.testing.assert_close(sae(4 * x), 4 * expected, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------- dropout


def test_dropout_only_in_training_reconstruction(
    build_sae: Build, make_batches: Build, train: Build
) -> None:
    name, x = f"{PREFIX}topk", make_batches(1)
    plain, dropped = build_sae(name), build_sae(name, ortho_dropout=0.5)
    with torch.no_grad():
        assert torch.equal(plain(x[0]), dropped(x[0]))
    (a,), (b,) = (train(trainer_of(sae, lr=0.0), x) for sae in (plain, dropped))
    assert torch.equal(a.feature_acts, b.feature_acts)
    assert not torch.equal(a.sae_out, b.sae_out)
    # The next step has another mask.
    (c,) = train_at_step(build_sae(name, ortho_dropout=0.5), x, 1, train)
    assert not torch.equal(b.sae_out, c.sae_out)
    (d,) = train_at_step(build_sae(name, ortho_dropout=0.5), x, 0, train)
    assert torch.equal(b.sae_out, d.sae_out)


def train_at_step(sae: Any, x: Tensor, step: int, train: Build) -> Any:
    trainer = trainer_of(sae, lr=0.0)
    trainer.n_training_steps = step
    return train(trainer, x)


def test_dropout_refuses_sparse_activations(build_cfg: Build) -> None:
    with pytest.raises(ConfigError, match="use_sparse_activations: false"):
        build_cfg(f"{PREFIX}topk", ortho_dropout=0.5, use_sparse_activations=True)


# --------------------------------------------------------------- unlocking


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if (n, "unlock") not in IMPOSSIBLE])
def test_locked_latents_are_silent_and_not_dead(
    build_sae: Build, make_batches: Build, train: Build, name: str
) -> None:
    sae = build_sae(name, ortho_coefficient=5.0, ortho_clip_norm=1.0, **SWITCHES["unlock"])
    initial = copy.deepcopy(sae.state_dict())
    outputs = train(trainer_of(sae), make_batches(3))
    assert int(outputs[-1].metrics["ortho_unlocked"]) == 16
    for output in outputs:
        assert float(output.feature_acts[:, 16:].detach().abs().max()) == 0
        assert float(output.feature_acts[:, :16].detach().abs().max()) > 0
    for key in ("W_dec", "W_enc", "b_enc", "threshold"):
        if key in initial:
            now, then = sae.state_dict()[key], initial[key]
            now, then = (now.T, then.T) if key == "W_enc" else (now, then)
            assert torch.equal(now[16:], then[16:]), key
            if key == "W_dec":
                assert not torch.equal(now[:16], then[:16])


def test_aux_loss_revives_no_locked_latent(
    build_sae: Build, make_batches: Build, train: Build
) -> None:
    sae = build_sae(
        f"{PREFIX}topk", ortho_mode="off", ortho_unlock_start=0.25, ortho_unlock_every=11
    )
    trainer = trainer_of(sae, steps=100, dead_feature_window=1)
    initial = sae.W_dec.detach().clone()
    trainer.n_forward_passes_since_fired += 10  # every latent counts as dead
    (output,) = train(trainer, make_batches(1))
    assert float(output.losses["auxiliary_reconstruction_loss"].detach()) > 0
    assert torch.equal(sae.W_dec[16:], initial[16:])


def test_early_export_keeps_locked_latents_silent(
    build_sae: Build, make_batches: Build, train: Build, tmp_path: Path
) -> None:
    for name in (f"{PREFIX}topk", f"{PREFIX}batchtopk", f"{PREFIX}standard"):
        sae = build_sae(name, **SWITCHES["unlock"])
        x = make_batches(2)
        train(trainer_of(sae), x)
        sae.save_inference_model(tmp_path / name)
        loaded = SAE.load_from_disk(tmp_path / name)
        with torch.no_grad():
            assert float(loaded.encode(x[0])[:, 16:].abs().max()) == 0
            torch.testing.assert_close(loaded(x[0]), reconstruct(sae, x[0]), rtol=1e-4, atol=1e-5)


def test_too_slow_unlocking_is_refused_at_start(
    build_sae: Build,
) -> None:
    sae = build_sae(f"{PREFIX}topk", **SWITCHES["unlock"])
    with pytest.raises(ConfigError, match="unlocked at step 9, but training has 9 steps"):
        trainer_of(sae, steps=9)
    trainer_of(sae, steps=10)


# --------------------------------------- feature-wise scaling, initialisation


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_latent_norm_gives_pre_activations_unit_rms(
    build_sae: Build, make_batches: Build, train: Build, name: str
) -> None:
    sae = build_sae(name, ortho_latent_norm=True)
    with torch.no_grad():
        sae.W_enc *= torch.logspace(-2, 2, 64)
    assert isinstance(sae.hook_sae_acts_pre, LatentHookPoint)
    seen = []
    sae.hook_sae_acts_pre.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    train(trainer_of(sae, lr=0.0), make_batches(1))
    rms = seen[0].square().mean(0).sqrt()
    torch.testing.assert_close(rms, torch.ones(64), rtol=1e-4, atol=1e-4)


def test_orthogonal_init_cosines_and_tied_encoder(
    build_sae: Build,
) -> None:
    name = f"{PREFIX}batchtopk"
    stock = build_sae(name, d_sae=16, ortho_neighbours=4)
    orthogonal = build_sae(name, d_sae=16, ortho_neighbours=4, ortho_decoder_init="orthogonal")
    assert mean_max_cosine(stock.W_dec.detach()) > 0.2
    assert mean_max_cosine(orthogonal.W_dec.detach()) < 1e-6
    torch.testing.assert_close(orthogonal.W_dec.norm(dim=1), stock.W_dec.norm(dim=1))
    assert torch.equal(orthogonal.W_enc, orthogonal.W_dec.T)


def test_data_init_happens_once_from_first_batch(
    build_sae: Build, make_batches: Build, train: Build
) -> None:
    sae = build_sae(f"{PREFIX}topk", ortho_decoder_init="data")
    x = make_batches(1)
    x[..., 8:] = 0  # half of the dimensions are never used
    train(trainer_of(sae, lr=0.0), x)
    assert float(sae.W_dec[:, 8:].detach().abs().max()) == 0
    torch.testing.assert_close(sae.b_dec.detach(), x[0].mean(0))
    before = sae.W_dec.detach().clone()
    train(trainer_of(sae, lr=0.0), make_batches(2)[1:])  # a new trainer begins at step 0 again
    assert torch.equal(sae.W_dec, before)


def test_neighbours_are_searched_after_data_init(
    build_sae: Build, make_batches: Build, train: Build
) -> None:
    sae = build_sae(f"{PREFIX}topk", ortho_decoder_init="data", ortho_coefficient=1.0)
    train(trainer_of(sae, lr=0.0), make_batches(1))
    before = sae.ortho_neighbours.clone()
    sae.ortho_search(1)
    # The data hold equal rows, whose order in a list is not defined.
    assert torch.equal(sae.ortho_neighbours.sort(1).values, before.sort(1).values)


# ------------------------------------------------------------- usefulness


@pytest.mark.parametrize("switch", list(SWITCHES))
def test_switch_learns_planted_features(
    build_sae: Build, make_batches: Build, train: Build, switch: str
) -> None:
    fields = SWITCHES[switch]
    if switch == "unlock":
        fields = fields | {"ortho_unlock_every": 20}
    sae = build_sae(f"{PREFIX}batchtopk", ortho_coefficient=0.05, **fields)
    batches = make_batches(200)
    train(trainer_of(sae, steps=200), batches)
    x = batches[:20].flatten(0, 1)
    error = (x - reconstruct(sae, x)).square().sum()
    explained = 1 - float(error / (x - x.mean(0)).square().sum())
    assert math.isfinite(explained)
    assert explained > 0.6


@pytest.mark.parametrize("base", ["topk", "batchtopk"])
@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_aux_loss_works_with_undone_normalisation(
    build_sae: Build, make_batches: Build, train: Build, base: str, kind: str
) -> None:
    x = make_batches(STEPS) + 1
    sae = build_sae(f"{PREFIX}{base}", ortho_mode="off", normalize_activations=kind)
    trainer = trainer_of(sae, dead_feature_window=1)
    trainer.n_forward_passes_since_fired += 10
    (output,) = train(trainer, x[:1])
    assert float(output.losses["auxiliary_reconstruction_loss"].detach()) > 0
    # If all activations have the same norm and mean, the loss equals that without normalisation:
    # the reconstruction from dead latents is scaled back before the residual is subtracted.
    losses = []
    for norm in ("none", kind):
        twin = build_sae(f"{PREFIX}{base}", ortho_mode="off", normalize_activations=norm)
        rows = torch.randn(BATCH, 16, generator=torch.Generator().manual_seed(0))
        rows = rows - rows.mean(-1, keepdim=True)
        rows = rows / rows.std(-1, keepdim=True)  # already normalised
        dead = torch.ones(64, dtype=torch.bool)
        _, pre = twin.encode_with_hidden_pre(rows)
        losses.append(twin.calculate_topk_aux_loss(rows, 0.5 * rows, pre, dead).detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=0.1, atol=0)
    scaled = build_sae(f"{PREFIX}{base}", ortho_mode="off", normalize_activations=kind)
    _, pre = scaled.encode_with_hidden_pre(300 * rows)
    large = scaled.calculate_topk_aux_loss(300 * rows, 150 * rows, pre, dead).detach()
    torch.testing.assert_close(large, 300**2 * losses[1], rtol=1e-3, atol=0)


every_undone = pytest.mark.parametrize("kind", UNDONE_NORMALISATIONS)


@every_undone
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_rows_of_zeros_have_no_norm_and_train(
    build_sae: Build, make_batches: Build, train: Build, name: str, kind: str
) -> None:
    x = make_batches(STEPS)
    x[:, 3], x[5] = 0, 0
    sae = build_sae(name, normalize_activations=kind)
    for output in train(trainer_of(sae, dead_feature_window=1), x):
        assert all(loss.isfinite() for loss in output.losses.values())
        assert output.sae_out.isfinite().all()
    assert all(value.isfinite().all() for value in sae.state_dict().values())


@every_undone
@pytest.mark.parametrize("base", ["standard", "topk", "batchtopk", "jumprelu", "gated"])
def test_undone_normalisation_equals_that_of_sae_lens(
    build_sae: Build, make_batches: Build, base: str, kind: str
) -> None:
    x = make_batches(1)[0] + 1
    host, own = (
        build_sae(name, normalize_activations=kind, **fields)
        for name, fields in ((base, {}), (PREFIX + base, {"ortho_mode": "off"}))
    )
    with torch.no_grad():
        assert torch.equal(own(x), host(x))
        assert torch.equal(own(300 * x), host(300 * x))
    with pytest.raises(RuntimeError, match="depends on the input"):
        own.decode(torch.zeros(BATCH, 64))


@every_undone
def test_each_matryoshka_level_is_in_units_of_the_input(
    build_sae: Build, make_batches: Build, train: Build, kind: str
) -> None:
    x = make_batches(1) + 1
    losses = []
    for scale in (1, 300):
        sae = build_sae(f"{PREFIX}matryoshka_batchtopk", normalize_activations=kind)
        (output,) = train(trainer_of(sae), scale * x)
        losses.append(output.losses["inner_mse_loss_16"].detach() / scale**2)
        error = output.sae_out - output.sae_in
        torch.testing.assert_close(output.losses["mse_loss"], error.square().sum(1).mean())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
    assert losses[0] > 0


@every_undone
def test_auxiliary_loss_of_each_level_is_refused(build_cfg: Build, kind: str) -> None:
    fields = {"normalize_activations": kind, "use_matryoshka_aux_loss": True}
    with pytest.raises(ConfigError, match=f"use_matryoshka_aux_loss=True: .*{kind}"):
        build_cfg(f"{PREFIX}matryoshka_batchtopk", **fields)
