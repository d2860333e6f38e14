"""Checkpoints restore everything, and exports need only SAELens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelens_adaptive_ortho import ARCHITECTURES
from saelens_adaptive_ortho.host.architectures import PREFIX
from saelens_adaptive_ortho.maths.penalties import PENALTIES

Build = Callable[..., Any]
INFERENCE_CLASS = {
    "adaptive_ortho_standard": "StandardSAE",
    "adaptive_ortho_topk": "TopKSAE",
    "adaptive_ortho_batchtopk": "JumpReLUSAE",
    "adaptive_ortho_jumprelu": "JumpReLUSAE",
    "adaptive_ortho_gated": "GatedSAE",
    "adaptive_ortho_matryoshka_batchtopk": "JumpReLUSAE",
}
WEIGHTS = "sae_weights.safetensors"

every_architecture = pytest.mark.parametrize("name", list(ARCHITECTURES))
every_mode = pytest.mark.parametrize("mode", ["off", "groups", *PENALTIES.own])


def mode_fields(mode: str) -> dict[str, Any]:
    """The fields of a mode; ``groups`` has the penalty on activations alone."""
    groups = {"ortho_mode": "off", "ortho_separation": 1.0}
    return groups if mode == "groups" else {"ortho_mode": mode}


def assert_same_state(one: Any, two: Any, prefix: str = "") -> None:
    mine, theirs = one.state_dict(), two.state_dict()
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        if key.startswith(prefix):
            assert theirs[key].dtype == value.dtype, key
            assert torch.equal(theirs[key], value), key


def groups_logged(output: Any) -> dict[str, float]:
    return {k: v for k, v in output.metrics.items() if k.startswith("ortho_groups/")}


@pytest.fixture
def trained(build_sae: Build, make_trainer: Build, make_batches: Build, train: Build) -> Build:
    def run(name: str, **fields: Any) -> Any:
        sae = build_sae(name, **fields)
        train(make_trainer(sae), make_batches(6, d_in=sae.cfg.d_in))
        return sae

    return run


# ------------------------------------------------------------- checkpoints


@every_architecture
@every_mode
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpoint_restores_buffers_exactly(
    trained: Build, tmp_path: Path, name: str, mode: str, dtype: str
) -> None:
    sae = trained(name, **mode_fields(mode), dtype=dtype, ortho_forget_rows=8)
    if mode == "adaptive":
        sae.ortho_samples += 1001  # 1000 in bf16
        sae.ortho_group_ids[0] = 65_537  # 65536 in bf16
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert type(loaded) is type(sae)
    assert loaded.cfg == sae.cfg
    assert loaded.W_dec.dtype == sae.W_dec.dtype
    assert torch.equal(loaded.W_dec, sae.W_dec)
    assert_same_state(sae, loaded, prefix="ortho_")


@every_architecture
def test_fresh_sae_loads_checkpoint_weights(
    trained: Build, build_sae: Build, tmp_path: Path, name: str
) -> None:
    sae = trained(name)
    sae.save_model(tmp_path)
    fresh = build_sae(name, seed=1)
    assert not torch.equal(fresh.W_dec, sae.W_dec)
    fresh.load_weights_from_checkpoint(tmp_path)
    assert_same_state(sae, fresh)


def test_checkpoint_from_before_kept_pairs_loads_and_chooses_at_once(
    trained: Build, make_trainer: Build, make_batches: Build, train: Build, tmp_path: Path
) -> None:
    sae = trained("adaptive_ortho_topk")
    sae.save_model(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    tensors = load_file(file)
    for name in ("ortho_partner", "ortho_push", "ortho_churn"):
        del tensors[name]
    save_file(tensors, file)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert (loaded.ortho_partner == -1).all()
    assert torch.equal(loaded.ortho_neighbours, sae.ortho_neighbours)
    trainer = make_trainer(loaded)
    trainer.n_training_steps = 3  # no lists, groups or statistics change at this step
    train(trainer, make_batches(1))
    assert (loaded.ortho_partner >= 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_byte_encoding_keeps_odd_sizes(
    trained: Build, build_sae: Build, tmp_path: Path, dtype: str
) -> None:
    odd = {"d_in": 15, "d_sae": 63, "ortho_neighbours": 3, "ortho_sketch_size": 7, "dtype": dtype}
    sae = trained("adaptive_ortho_standard", **odd)
    sae.save_model(tmp_path)
    fresh = build_sae("adaptive_ortho_standard", seed=1, **odd)
    fresh.load_weights_from_checkpoint(tmp_path)
    assert_same_state(sae, fresh)
    assert_same_state(sae, TrainingSAE.load_from_disk(tmp_path))


def test_checkpoint_in_other_dtype_keeps_statistics(trained: Build, tmp_path: Path) -> None:
    sae = trained("adaptive_ortho_topk")
    sae.ortho_samples += 1001
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path, dtype="bfloat16")
    assert loaded.W_dec.dtype == torch.bfloat16
    assert_same_state(sae, loaded, prefix="ortho_")


@every_architecture
@every_mode
def test_resumed_training_equals_uninterrupted(
    build_sae: Build,
    make_trainer: Build,
    make_batches: Build,
    train: Build,
    tmp_path: Path,
    name: str,
    mode: str,
) -> None:
    fields = {**mode_fields(mode), "ortho_forget_rows": 8, "ortho_warm_up_steps": 9}
    fields |= {"ortho_refresh_every": 4, "ortho_statistics_every": 2}
    batches, stop = make_batches(12), 7
    whole = build_sae(name, **fields)
    expected = train(make_trainer(whole), batches)

    first = build_sae(name, **fields)
    trainer = make_trainer(first)
    train(trainer, batches[:stop])
    first.save_model(tmp_path)
    trainer.save_trainer_state(tmp_path)

    second = build_sae(name, seed=1, **fields)
    trainer = make_trainer(second)
    trainer.load_trainer_state(tmp_path)
    second.load_weights_from_checkpoint(tmp_path)
    assert trainer.n_training_steps == stop
    outputs = train(trainer, batches[stop:])
    assert_same_state(whole, second)
    assert [groups_logged(o) for o in outputs] == [groups_logged(o) for o in expected[stop:]]


# ------------------------------------------------------------------ export


def reconstruct_with_threshold(sae: Any, x: Tensor) -> Tensor:
    """Output at inference: BatchTopK uses its threshold, the others compute as in training."""
    with torch.no_grad():
        if "batchtopk" not in sae.cfg.architecture():
            return sae(x)
        _, hidden_pre = sae.encode_with_hidden_pre(x)
        return sae.decode(hidden_pre.relu() * (hidden_pre > sae.topk_threshold))


@every_architecture
@every_mode
def test_export_equals_stock_export(
    trained: Build,
    build_sae: Build,
    make_batches: Build,
    tmp_path: Path,
    name: str,
    mode: str,
) -> None:
    fields = {**mode_fields(mode), "ortho_forget_rows": 8}
    sae, x = trained(name, **fields), make_batches(1)[0]
    expected = reconstruct_with_threshold(sae, x)
    twin = build_sae(name.removeprefix(PREFIX), seed=1)
    twin.load_state_dict({k: v for k, v in sae.state_dict().items() if not k.startswith("ortho_")})
    twin.save_inference_model(tmp_path / "stock")
    sae.save_inference_model(tmp_path / "ours")

    ours, stock = (load_file(tmp_path / which / WEIGHTS) for which in ("ours", "stock"))
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[key], stock[key]) for key in stock)
    loaded = SAE.load_from_disk(tmp_path / "ours")
    assert type(loaded).__name__ == INFERENCE_CLASS[name]
    assert type(loaded).__module__.startswith("sae_lens.")
    assert loaded.cfg.metadata.training_architecture == name
    assert loaded.cfg.metadata.training_architecture_details["ortho_mode"] == fields["ortho_mode"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), expected, rtol=1e-5, atol=1e-5)


def test_export_leaves_training_sae_unchanged(trained: Build, tmp_path: Path) -> None:
    sae = trained("adaptive_ortho_batchtopk")
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    sae.save_inference_model(tmp_path)
    assert before.keys() == sae.state_dict().keys()
    assert all(torch.equal(sae.state_dict()[key], value) for key, value in before.items())


LOAD_WITHOUT_THE_PLUGIN = """
import json, sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "saelens_adaptive_ortho":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
import torch
from safetensors.torch import load_file
from sae_lens import SAE

root = Path(sys.argv[1])
report = {}
for name, expected in load_file(root / "expected.safetensors").items():
    sae = SAE.load_from_disk(root / name)
    with torch.no_grad():
        out = sae(load_file(root / "input.safetensors")["x"])
    report[name] = [type(sae).__name__, float((out - expected).abs().max())]
assert "saelens_adaptive_ortho" not in sys.modules
print(json.dumps(report))
"""


def test_export_loads_without_this_package(
    trained: Build, make_batches: Build, tmp_path: Path
) -> None:
    x, expected = make_batches(1)[0], {}
    for name in ARCHITECTURES:
        sae = trained(name)
        expected[name] = reconstruct_with_threshold(sae, x).contiguous()
        sae.save_inference_model(tmp_path / name)
    save_file(expected, tmp_path / "expected.safetensors")
    save_file({"x": x}, tmp_path / "input.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_THE_PLUGIN, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert {name: kind for name, (kind, _) in report.items()} == INFERENCE_CLASS
    assert max(error for _, error in report.values()) < 1e-5
    assert max(float(out.abs().max()) for out in expected.values()) > 0.1
