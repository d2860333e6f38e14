"""An SAE that is divided among processes learns what one process learns, up to rounding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from safetensors.torch import load_file
from torch import Tensor

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.maths import device
from saelens_adaptive_ortho.signals import Interrupted
from saelens_adaptive_ortho.training.lockstep import list_checkpoints
from saelens_adaptive_ortho.training.runner import (
    AdaptiveOrthoRunner,
    Prepared,
    build_sae,
    prepare,
)
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig
from saelens_adaptive_ortho.training.sharded.layout import AXES
from saelens_adaptive_ortho.training.sharded.ranks import Ranks
from saelens_adaptive_ortho.training.sharded.runner import (
    ShardedRunner,
    check_processes,
    check_sharded,
)
from tests.ranks import run_ranks
from tests.tiny import BATCH, D_SAE, STEPS

MakeConfig = Callable[..., AdaptiveOrthoRunnerConfig]

TOPK = {"architecture": "adaptive_ortho_topk"}
STANDARD = {"architecture": "adaptive_ortho_standard", "k": None, "l1_coefficient": 0.1}
JUMPRELU = {"architecture": "adaptive_ortho_jumprelu", "k": None, "l0_coefficient": 0.1}
DOUBLE = {"dtype": "float64"}
# Equal up to rounding: these come from sums in float32.
FLOAT32_SUMS = {"ortho_total", "ortho_squares", "ortho_joint_own", "ortho_joint_other"}


def divided(
    cfg: AdaptiveOrthoRunnerConfig,
    prepared: Prepared,
    size: int = 2,
    change: Callable[[ShardedRunner], None] | None = None,
) -> tuple[dict[str, Tensor], list[list[dict[str, float]]]]:
    """Train in ``size`` processes; return the state of the whole SAE, and each rank's history."""

    def work(ranks: Ranks) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        runner = ShardedRunner(replace(cfg, ortho_shards=size), ranks, prepared)
        if change is not None:
            change(runner)
        runner.run()
        return dict(runner.sae.state_dict()), runner.trainer.state.history["sae"]

    states, histories = zip(*run_ranks(size, work), strict=True)
    return joined(states), list(histories)


def joined(states: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    """The state of the whole SAE. What every rank has is the same on each of them."""
    whole = {}
    for name, x in states[0].items():
        if (axis := AXES[name]) is None:
            assert all(torch.equal(x, other[name]) for other in states[1:]), name
            whole[name] = x
        else:
            whole[name] = torch.cat([state[name] for state in states], dim=axis)
    return whole


def difference(found: Tensor, expected: Tensor) -> float:
    """``|found - expected| / |expected|``."""
    return float((found.double() - expected.double()).norm() / (expected.double().norm() + 1e-30))


def assert_equal_training(
    cfg: AdaptiveOrthoRunnerConfig,
    prepared: Prepared,
    size: int = 2,
    bound: float = 1e-5,
    lists: bool = True,
) -> list[dict[str, float]]:
    """Both ways of training end in the same weights, and log the same. Returns the history."""
    one = AdaptiveOrthoRunner(cfg, prepared=prepared)
    one.run()
    found, histories = divided(cfg, prepared, size)
    expected = dict(one.sae.state_dict())
    assert found.keys() == expected.keys()
    for name, parameter in one.sae.named_parameters():
        assert difference(found[name], parameter.detach()) <= bound, name
    if lists:
        exact = {"ortho_neighbours", "ortho_partner", "ortho_group_ids", "ortho_domain_ids"}
        for name in exact & expected.keys():
            assert torch.equal(found[name], expected[name]), name
        for name in FLOAT32_SUMS & expected.keys():
            assert difference(found[name], expected[name]) < 1e-5, name
    assert all(history == histories[0] for history in histories)
    for row, other in zip(histories[0], one.trainer.state.history["sae"], strict=True):
        assert row.keys() ^ other.keys() <= {"grad_norm"}  # SAELens's own trainer has no such row
        for key in row.keys() & other.keys():
            assert row[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), key
    return histories[0]


# ------------------------------------------------------------------------- equality


@pytest.mark.parametrize("size", [2, 4])
def test_initial_weights_are_those_of_one_process(make_config: MakeConfig, size: int) -> None:
    cfg = make_config(TOPK, seed=3)
    whole = build_sae(cfg)
    before = torch.get_rng_state()

    def work(ranks: Ranks) -> dict[str, Tensor]:
        runner = ShardedRunner.__new__(ShardedRunner)
        runner.ranks = ranks
        sae = runner._build_sae(replace(cfg, ortho_shards=size))
        assert sae.W_dec.shape == (D_SAE // size, cfg.sae.d_in)
        assert torch.equal(torch.get_rng_state(), before)
        return dict(sae.state_dict())

    found = joined(tuple(run_ranks(size, work)))
    for name, x in whole.state_dict().items():
        assert torch.equal(found[name], x), name


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_few_steps_equal_one_process(
    make_config: MakeConfig, prepared: Prepared, size: int
) -> None:
    # Latents die, and the auxiliary loss revives some of them.
    cfg = make_config({}, lr=1e-3, dead_feature_window=4, ortho_log_every=6)
    history = assert_equal_training(cfg, prepared, size)
    assert max(row["auxiliary_reconstruction_loss"] for row in history) > 0
    assert max(row["ortho_loss"] for row in history) > 0
    assert max(row["separation_loss"] for row in history) > 0


@pytest.mark.slow
@pytest.mark.parametrize("sae", [{}, STANDARD], ids=["batchtopk", "standard"])
def test_paths_of_a_gpu_equal_one_process(
    make_config: MakeConfig, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, sae: Any
) -> None:
    monkeypatch.setattr(device, "on_gpu", lambda _: True)
    cfg = make_config(
        sae,
        training_tokens=40 * BATCH,
        lr=1e-3,
        dead_feature_window=10,
        ortho_sparse_products=False,
    )
    # There, cosines are compared in half precision, so other ones of equal pairs may be chosen.
    assert_equal_training(cfg, prepared, bound=1e-3, lists=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "sae",
    [{}, TOPK, STANDARD, JUMPRELU, {"ortho_mode": "off"}],
    ids=["batchtopk", "topk", "standard", "jumprelu", "off"],
)
def test_200_steps_equal_one_process(
    make_config: MakeConfig, prepared: Prepared, sae: dict[str, Any], dtype: str
) -> None:
    cfg = make_config(
        {**sae, "dtype": dtype},
        dtype=dtype,
        training_tokens=200 * BATCH,
        lr=1e-3,
        dead_feature_window=50,
        ortho_log_every=100,
    )
    # Statistics of the penalty and JumpReLU's threshold stay in float32 in any case.
    bound = 1e-5 if dtype == "float32" else 1e-12 if "ortho_mode" in sae else 1e-7
    assert_equal_training(cfg, prepared, bound=bound, lists=dtype == "float64")


@pytest.mark.slow
@pytest.mark.parametrize(
    "sae",
    [
        {"ortho_affinity": "group", "ortho_weighting": "uniform"},
        {"ortho_affinity": "overlap", "ortho_ordering": "symmetric", "ortho_min_captured": 0.0},
        {"ortho_affinity": "lift", "rescale_acts_by_decoder_norm": False},
        {"ortho_separated": "both", "ortho_clip_norm": 0.01},
        {"normalize_activations": "none", "ortho_scale_free": False, "aux_loss_coefficient": 0.0},
        {"decoder_init_norm": None, "apply_b_dec_to_input": False},
        {**JUMPRELU, "jumprelu_sparsity_loss_mode": "tanh", "pre_act_loss_coefficient": 1e-2},
    ],
    ids=["group", "overlap", "lift", "both", "plain", "norms", "tanh"],
)
def test_settings_equal_one_process(
    make_config: MakeConfig, prepared: Prepared, sae: dict[str, Any]
) -> None:
    cfg = make_config(
        {**sae, **DOUBLE}, **DOUBLE, training_tokens=40 * BATCH, lr=1e-3, dead_feature_window=10
    )
    assert_equal_training(cfg, prepared, bound=1e-7)


@pytest.mark.slow
def test_one_corpus_and_start_at_mean(make_config: MakeConfig, tiny: Any) -> None:
    cfg = make_config(
        DOUBLE, **DOUBLE, ortho_corpora={}, dataset_path=str(tiny.retain), ortho_b_dec_init="mean"
    )
    assert_equal_training(cfg, prepare(cfg), bound=1e-12)


# -------------------------------------------------------------- export and checkpoints


def test_export_is_that_of_one_process(
    make_config: MakeConfig, prepared: Prepared, tmp_path: Path
) -> None:
    cfg = make_config(lr=1e-3)
    one = AdaptiveOrthoRunner(replace(cfg, output_path=str(tmp_path / "one")), prepared=prepared)
    one.run()
    divided(replace(cfg, output_path=str(tmp_path / "two")), prepared)
    ours, theirs = (SAE.load_from_disk(tmp_path / run / "sae") for run in ("two", "one"))
    assert type(ours) is type(theirs)
    assert ours.cfg.architecture() == "jumprelu"
    assert ours.cfg.to_dict() == theirs.cfg.to_dict()
    x = torch.randn(50, cfg.sae.d_in, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    files = [{f.name for f in (tmp_path / run / "sae").iterdir()} for run in ("one", "two")]
    assert files[0] == files[1]
    for name in ("sparsity.safetensors", SAE_WEIGHTS_FILENAME):
        found, expected = (load_file(tmp_path / run / "sae" / name) for run in ("two", "one"))
        assert found.keys() == expected.keys()
        for key, x in expected.items():
            torch.testing.assert_close(found[key], x, rtol=1e-4, atol=1e-5)


def test_resumed_training_is_the_same_to_the_bit(
    make_config: MakeConfig, prepared: Prepared, tmp_path: Path
) -> None:
    cfg = make_config(lr=1e-3, checkpoint_path=str(tmp_path), n_checkpoints=2)
    whole, histories = divided(cfg, prepared)
    folder = tmp_path / f"step_{STEPS // 3:09d}"
    assert len(list((folder / "sae").glob("shard_*"))) == 2
    resumed, again = divided(replace(cfg, resume_from_checkpoint=str(folder)), prepared)
    assert all(torch.equal(resumed[name], x) for name, x in whole.items())
    assert again == histories


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_another_number_of_processes_continues(
    make_config: MakeConfig, prepared: Prepared, tmp_path: Path, size: int
) -> None:
    cfg = make_config(DOUBLE, **DOUBLE, checkpoint_path=str(tmp_path), n_checkpoints=2)
    whole, _ = divided(cfg, prepared)
    folder = tmp_path / f"step_{STEPS // 3:09d}"
    other, _ = divided(replace(cfg, resume_from_checkpoint=str(folder)), prepared, size)
    for name, x in whole.items():
        assert difference(other[name], x) < 1e-6, name


def test_all_ranks_stop_at_a_signal_of_one(
    make_config: MakeConfig, prepared: Prepared, tmp_path: Path
) -> None:
    cfg = make_config(checkpoint_path=str(tmp_path), ortho_shards=2)

    def work(ranks: Ranks) -> str:
        runner = ShardedRunner(cfg, ranks, prepared)
        if ranks.rank == 1:
            runner.trainer.on_log = lambda step, _: (
                os.kill(os.getpid(), signal.SIGUSR1) if step == 4 else None
            )
        with pytest.raises(Interrupted) as caught:
            runner.run()
        return str(caught.value)

    texts = run_ranks(2, work)
    assert texts[0] == texts[1]
    assert "SIGUSR1: stopped at step 4 of 24; saved" in texts[0]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000000004"]


def test_checkpoint_of_the_other_kind_is_refused(
    make_config: MakeConfig, prepared: Prepared, tmp_path: Path
) -> None:
    cfg = make_config(checkpoint_path=str(tmp_path / "two"), n_checkpoints=1)
    divided(cfg, prepared)
    one = AdaptiveOrthoRunner(replace(cfg, checkpoint_path=str(tmp_path / "one")), None, prepared)
    one.run()
    (saved,) = list_checkpoints(tmp_path / "two")
    with pytest.raises(ConfigError, match="was made with ortho_shards"):
        one.trainer.load_checkpoint(saved)
    (other,) = list_checkpoints(tmp_path / "one")

    def load(path: Path) -> Callable[[Ranks], str]:
        def work(ranks: Ranks) -> str:
            runner = ShardedRunner(replace(cfg, ortho_shards=2), ranks, prepared)
            with pytest.raises(ConfigError) as caught:
                runner.trainer.load_checkpoint(path)
            return str(caught.value)

        return work

    assert "was made without ortho_shards" in run_ranks(2, load(other))[1]
    part = saved / "sae" / "shard_00001_of_00002.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    assert all(f"{part}" in text and "corrupt" in text for text in run_ranks(2, load(saved)))


def test_failed_write_of_one_rank_stops_all(
    make_config: MakeConfig, prepared: Prepared, tmp_path: Path
) -> None:
    cfg = make_config(checkpoint_path=str(tmp_path), ortho_shards=2)

    def work(ranks: Ranks) -> str:
        runner = ShardedRunner(cfg, ranks, prepared)
        if ranks.rank == 1:

            def full(**_: object) -> None:
                raise OSError(28, "No space left on device")

            runner.trainer.trainers["sae"].save_checkpoint = full  # type: ignore[method-assign]
        with pytest.raises((OSError, RuntimeError)) as caught:
            runner.trainer.save_checkpoint()
        return str(caught.value)

    assert all("No space left" in text for text in run_ranks(2, work))
    assert list_checkpoints(tmp_path) == []


# -------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("sae", "changes", "message"),
    [
        ({"architecture": "adaptive_ortho_gated", "k": None}, {}, "sae.architecture"),
        ({"ortho_mode": "fixed"}, {}, "sae.ortho_mode='fixed'.*off or adaptive"),
        ({"d_sae": 65}, {}, "sae.d_sae=65: must be a multiple of ortho_shards = 2"),
        ({"k": 40}, {}, "ortho_shards=2: 32 latents of 64 .* too few for k=40"),
        ({"ortho_neighbours": 32}, {}, "too few for ortho_neighbours=32"),
        ({"normalize_activations": "layer_norm"}, {}, "sae.normalize_activations"),
        ({"ortho_unit_norm": True}, {}, "sae.ortho_unit_norm=True.*Use False"),
        ({"ortho_accumulation": 2}, {}, "sae.ortho_accumulation=2"),
        ({**TOPK, "use_sparse_activations": True}, {}, "sae.use_sparse_activations"),
        ({**STANDARD, "lp_norm": 2.0}, {}, "sae.lp_norm=2.0"),
        ({}, {"prefetch_llm_batches": True}, "prefetch_llm_batches=True.*Turn it off"),
        ({}, {"ortho_cache_activations": True}, "ortho_cache_activations"),
        ({}, {"device": "cuda:0"}, "device='cuda:0'.*each process chooses its own card"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    make_config: MakeConfig, sae: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    cfg = make_config(sae, ortho_shards=2, **changes)
    with pytest.raises(ConfigError, match=message):
        check_sharded(cfg)


@pytest.mark.parametrize(
    ("started", "shards", "message"),
    [
        ("3", 1, "ortho_shards=1: 3 processes are started.*Set ortho_shards: 3"),
        ("1", 2, "ortho_shards=2: needs as many processes; 1 is started.*--nproc-per-node 2"),
        ("4", 2, "ortho_shards=2: needs as many"),
    ],
)
def test_other_number_of_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, started: str, shards: int, message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", started)
    with pytest.raises(ConfigError, match=message):
        check_processes(shards)
    monkeypatch.setenv("WORLD_SIZE", str(shards))
    check_processes(shards)


def test_only_train_divides_an_sae(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(write_config(ortho_shards=2))]) == 2
    assert "ortho_shards=2: only `train` divides an SAE" in capsys.readouterr().err


def test_runner_of_one_process_refuses_shards(make_config: MakeConfig, prepared: Prepared) -> None:
    with pytest.raises(ConfigError, match="only `adaptive-ortho train` divides an SAE"):
        AdaptiveOrthoRunner(make_config(ortho_shards=2), prepared=prepared)


def test_shards_change_no_digest(make_config: MakeConfig, prepared: Prepared) -> None:
    plain, shards = make_config(), make_config(ortho_shards=4)
    assert shards.settings() == plain.settings()
    assert shards.fingerprint(prepared.corpora) == plain.fingerprint(prepared.corpora)


# -------------------------------------------------------------------------- torchrun


def torchrun(config: Path, *overrides: str, size: int = 2) -> list[str]:
    """The command line that trains with torchrun on this machine."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    command += ["-m", "saelens_adaptive_ortho", "train", str(config)]
    settings = [f"ortho_shards={size}", *overrides]
    return [sys.executable, *command, *(word for s in settings for word in ("--set", s))]


@pytest.mark.slow
def test_killed_run_continues(write_config: Callable[..., Path], tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    config = write_config(
        training_tokens=400 * BATCH, n_checkpoints=19, checkpoint_path=str(checkpoints), lr=1e-3
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    whole = subprocess.run(
        torchrun(config, f"output_path={tmp_path / 'whole'}", "checkpoint_path=null"),
        env=environment, check=False, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert whole.stdout.count("Saved: ") + whole.stderr.count("Saved: ") == 1
    running = subprocess.Popen(torchrun(config), env=environment, stderr=subprocess.DEVNULL)
    while len(list_checkpoints(checkpoints)) < 2:
        assert running.poll() is None
        time.sleep(0.2)
    children = subprocess.run(
        ["pgrep", "-P", str(running.pid)], check=True, capture_output=True, text=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)  # one of the ranks
    assert running.wait(timeout=300) != 0
    newest = list_checkpoints(checkpoints)[-1]
    assert json.loads((newest / "lockstep_state.json").read_text())["n_training_steps"] < 400
    again = subprocess.run(
        torchrun(config, f"resume_from_checkpoint={newest}"),
        env=environment, check=False, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr[-3000:]
    for name, x in load_file(tmp_path / "whole" / "sae" / SAE_WEIGHTS_FILENAME).items():
        assert torch.equal(load_file(tmp_path / "run" / "sae" / SAE_WEIGHTS_FILENAME)[name], x)
