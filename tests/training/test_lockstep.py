"""Lockstep training: bit-identical resuming, equality with SAELens, and clear errors."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.constants import SAE_WEIGHTS_FILENAME, TRAINER_STATE_FILENAME
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelens_adaptive_ortho.checksums import SUMS
from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.host.architectures import ARCHITECTURES
from saelens_adaptive_ortho.host.config import OrthoConfig
from saelens_adaptive_ortho.host.penalty_mixin import AdaptiveOrthoMixin
from saelens_adaptive_ortho.signals import STOP_SIGNALS
from saelens_adaptive_ortho.training import lockstep, store
from saelens_adaptive_ortho.training.lockstep import (
    STATE_FILE,
    Interrupted,
    NonFiniteLossError,
    list_checkpoints,
)
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared, prepare
from saelens_adaptive_ortho.training.store import StratifiedActivationsStore

MakeConfig = Callable[..., Any]
STANDARD = {"architecture": "adaptive_ortho_standard", "k": None, "l1_coefficient": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "batchtopk adaptive": {"ortho_mode": "adaptive"},
    "standard fixed": STANDARD | {"ortho_mode": "fixed", "ortho_chunk_size": 16},
}


@pytest.fixture
def make_runner(
    make_config: MakeConfig, prepared: Prepared, tmp_path: Path
) -> Callable[..., AdaptiveOrthoRunner]:
    """A runner on the shared test data; it saves checkpoints in ``tmp_path / "checkpoints"``."""

    def make(
        sae: dict[str, Any] | None = None,
        variants: dict[str, dict[str, Any]] | None = None,
        checkpoints: int = 0,
        **changes: Any,
    ) -> AdaptiveOrthoRunner:
        folder = str(tmp_path / "checkpoints") if checkpoints else None
        cfg = make_config(sae, checkpoint_path=folder, n_checkpoints=checkpoints, **changes)
        return AdaptiveOrthoRunner(cfg, variants, prepared)

    return make


def assert_same_state(ours: Any, theirs: Any) -> None:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    different = [k for k in theirs if not torch.equal(ours[k], theirs[k])]
    assert not different


# -------------------------------------------------------------------- resuming


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_at_any_checkpoint_gives_same_state(
    make_runner: Callable[..., AdaptiveOrthoRunner], tmp_path: Path, kind: str
) -> None:
    whole = make_runner(KINDS[kind])
    whole.trainer.fit()
    assert any(key.startswith("ortho_") for key in whole.sae.state_dict())
    make_runner(KINDS[kind], checkpoints=2).trainer.fit()
    found = list_checkpoints(tmp_path / "checkpoints")
    assert [p.name for p in found] == ["step_000000008", "step_000000016"]
    for checkpoint in found:
        resumed = make_runner(KINDS[kind])
        torch.manual_seed(int(checkpoint.name[-2:]) + 100)  # resuming must not depend on it
        resumed.trainer.load_checkpoint(checkpoint)
        resumed.trainer.fit()
        assert_same_state(resumed.sae, whole.sae)
        history = resumed.trainer.state.history["sae"]
        assert [r["step"] for r in history] == [1, 4, 8, 12, 16, 20, 24]
        assert history == whole.trainer.state.history["sae"]
        assert resumed.sae.cfg.metadata.l0 == whole.sae.cfg.metadata.l0


def test_resuming_with_three_corpora_gives_same_state(
    make_config: MakeConfig, model: Any, tiny: Any, tmp_path: Path
) -> None:
    corpora = {
        "forget": str(tiny.forget),
        "retain": str(tiny.retain),
        "near": {"path": str(tiny.forget), "share": 0.25},
        "unseen": {"path": str(tiny.forget), "share": 0},
        "forget_test": str(tiny.retain),
    }
    changes = {"ortho_corpora": corpora, "checkpoint_path": str(tmp_path), "n_checkpoints": 2}
    cfg = make_config(KINDS["batchtopk adaptive"], **changes)
    data = prepare(cfg, model=model)
    whole = AdaptiveOrthoRunner(cfg, None, data)
    whole.trainer.fit()
    # The statistics of the SAE know two sides: the forget rows, and all other rows.
    forget, others_seen = whole.sae.state_dict()["ortho_samples"].tolist()
    assert forget == others_seen > 0
    # Corpora that are only evaluated may differ.
    others = {k: v for k, v in corpora.items() if k != "unseen"} | {
        "forget_test": corpora["forget"]
    }
    other = make_config(KINDS["batchtopk adaptive"], ortho_corpora=others)
    found = list_checkpoints(tmp_path)
    assert len(found) == 2
    for checkpoint in found:
        resumed = AdaptiveOrthoRunner(other, None, prepare(other, model=model))
        resumed.trainer.load_checkpoint(checkpoint)
        resumed.trainer.fit()
        assert_same_state(resumed.sae, whole.sae)
    # Another share is another training.
    changed = make_config(
        KINDS["batchtopk adaptive"],
        ortho_corpora=corpora | {"near": {"path": str(tiny.forget), "share": 0.5}},
    )
    refused = AdaptiveOrthoRunner(changed, None, prepare(changed, model=model))
    with pytest.raises(ConfigError, match="resume_from_checkpoint"):
        refused.trainer.load_checkpoint(found[0])


def test_checkpoint_restores_global_rng(
    make_runner: Callable[..., AdaptiveOrthoRunner],
) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    saved = make_runner(checkpoints=1).trainer.save_checkpoint()
    assert saved is not None
    torch.manual_seed(12)
    make_runner().trainer.load_checkpoint(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_only_two_newest_checkpoints_are_kept(
    make_runner: Callable[..., AdaptiveOrthoRunner], tmp_path: Path
) -> None:
    make_runner(checkpoints=5).trainer.fit()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step_000000016",
        "step_000000020",
    ]


def test_old_checkpoints_do_not_replace_new_ones(
    make_runner: Callable[..., AdaptiveOrthoRunner], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    make_runner(checkpoints=2).trainer.fit()
    (folder / "step_000000008").rename(folder / "step_000000800")
    (folder / "step_000000016").rename(folder / "step_000000900")
    make_runner(checkpoints=5).trainer.fit()
    assert {"step_000000016", "step_000000020"} <= {p.name for p in folder.iterdir()}


def send_at(step: int, number: int) -> Callable[..., None]:
    """An ``on_log`` that sends this process a signal at a step."""
    return lambda at, _: os.kill(os.getpid(), number) if at == step else None


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_stop_signal_saves_a_checkpoint(
    make_runner: Callable[..., AdaptiveOrthoRunner], tmp_path: Path, number: signal.Signals
) -> None:
    stopped = make_runner(checkpoints=1)
    stopped.trainer.on_log = send_at(4, number)
    handler = signal.getsignal(number)
    message = rf"{number.name}: stopped at step 4 of 24; saved .*step_000000004"
    with pytest.raises(Interrupted, match=message) as caught:
        stopped.trainer.fit()
    assert caught.value.status == 128 + number
    assert signal.getsignal(number) is handler
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == ["step_000000004"]


@pytest.mark.parametrize("step", [4, 24])
def test_training_resumes_after_a_stop_signal(
    make_runner: Callable[..., AdaptiveOrthoRunner], tmp_path: Path, step: int
) -> None:
    whole = make_runner()
    whole.trainer.fit()
    stopped = make_runner(checkpoints=1)
    stopped.trainer.on_log = send_at(step, signal.SIGUSR1)
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 24"):
        stopped.trainer.fit()
    resumed = make_runner()
    resumed.trainer.load_checkpoint(tmp_path / "checkpoints" / f"step_{step:09d}")
    resumed.trainer.fit()
    assert_same_state(resumed.sae, whole.sae)
    assert resumed.trainer.state.history == whole.trainer.state.history


def test_stop_signal_without_checkpoints(
    make_runner: Callable[..., AdaptiveOrthoRunner],
) -> None:
    stopped = make_runner()
    stopped.trainer.on_log = send_at(4, signal.SIGHUP)
    with pytest.raises(Interrupted, match=r"SIGHUP: stopped at step 4 of 24 \(checkpoints are off"):
        stopped.trainer.fit()


# ------------------------------------------------------------- checkpoints by time


def test_checkpoints_by_time(
    make_runner: Callable[..., AdaptiveOrthoRunner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, runner = make_runner(checkpoints=1), make_runner(checkpoints=1)
    plain.trainer.fit()
    shutil.rmtree(tmp_path / "checkpoints")
    steps: list[int] = []
    save = runner.trainer.save_checkpoint

    def counted() -> Path | None:
        steps.append(runner.trainer.state.n_training_steps)
        return save()

    # A step takes a minute.
    clock = lambda: 60.0 * runner.trainer.state.n_training_steps  # noqa: E731
    monkeypatch.setattr(lockstep.time, "monotonic", clock)
    monkeypatch.setattr(runner.trainer, "save_checkpoint", counted)
    runner.trainer.checkpoint_every_minutes = 5
    runner.trainer.fit()
    assert steps == [5, 10, 12, 17, 22]  # that of n_checkpoints is at 12
    assert_same_state(runner.sae, plain.sae)
    assert runner.trainer.state.history == plain.trainer.state.history


def test_checkpoints_by_time_change_no_digest(make_config: MakeConfig, prepared: Prepared) -> None:
    plain, timed = make_config(), make_config(checkpoint_every_minutes=0.5)
    assert timed.checkpoint_every_minutes == 0.5
    assert timed.settings() == plain.settings()
    assert timed.fingerprint(prepared.corpora) == plain.fingerprint(prepared.corpora)


@pytest.mark.parametrize("minutes", [0, -1, "5"])
def test_bad_time_between_checkpoints_is_refused(make_config: MakeConfig, minutes: object) -> None:
    with pytest.raises(ConfigError, match=f"checkpoint_every_minutes={minutes!r}"):
        make_config(checkpoint_every_minutes=minutes)


# -------------------------------------------------------------------- starting

MEAN = {"ortho_b_dec_init": "mean"}


@pytest.mark.parametrize("normalisation", ["none", "expected_average_only_in"])
def test_b_dec_starts_at_mean_of_first_batches(
    make_runner: Callable[..., AdaptiveOrthoRunner], normalisation: str
) -> None:
    def start(**changes: Any) -> AdaptiveOrthoRunner:
        sae = {"ortho_mode": "off", "normalize_activations": normalisation}
        runner = make_runner(sae, lr=1e-12, **changes)
        runner.trainer.fit()  # it also folds the norm into the weights
        return runner

    stock, ours = start(), start(**MEAN)
    store, n = ours.activations_store, ours.cfg.n_batches_for_norm_estimate
    store.seek(0)
    batches = iter(store)
    mean = torch.cat([next(batches) for _ in range(n)]).mean(0)
    assert mean.norm() > 0.1
    torch.testing.assert_close(ours.sae.b_dec, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stock.sae.b_dec, torch.zeros_like(mean), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.sae.W_enc, stock.sae.W_enc)


def test_resuming_does_not_set_b_dec_again(
    make_runner: Callable[..., AdaptiveOrthoRunner], tmp_path: Path
) -> None:
    whole = make_runner(checkpoints=1, **MEAN)
    whole.trainer.fit()
    checkpoint = list_checkpoints(tmp_path / "checkpoints")[0]
    resumed = make_runner(**MEAN)
    resumed.trainer.load_checkpoint(checkpoint)
    resumed.trainer.fit()
    assert_same_state(resumed.sae, whole.sae)
    with pytest.raises(ConfigError, match="other settings"):
        make_runner().trainer.load_checkpoint(checkpoint)


# -------------------------------------------------------------------- lockstep


def test_lockstep_equals_training_alone(
    make_runner: Callable[..., AdaptiveOrthoRunner],
) -> None:
    variants = {
        "off": {"ortho_mode": "off"},
        "fixed": {"ortho_mode": "fixed", "ortho_chunk_size": 16},
        "adaptive": {},
        "standard": {"architecture": "adaptive_ortho_standard"},
    }
    together = make_runner(variants=variants)
    together.trainer.fit()
    for name, changes in variants.items():
        torch.manual_seed(len(name))
        alone = make_runner(variants={name: changes})
        alone.trainer.fit()
        assert_same_state(together.saes[name], alone.saes[name])
    weights = [sae.W_dec for sae in together.saes.values()]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])


@pytest.mark.parametrize(
    ("sae", "stock"), [({}, "batchtopk"), (STANDARD, "standard")], ids=["batchtopk", "standard"]
)
@pytest.mark.parametrize("sparse_products", [False, True])
def test_mode_off_equals_sae_lens_trainer(
    make_runner: Callable[..., AdaptiveOrthoRunner],
    sae: dict[str, Any],
    stock: str,
    sparse_products: bool,
) -> None:
    ours = make_runner(sae | {"ortho_mode": "off"}, ortho_sparse_products=sparse_products)
    stock_class, stock_config = get_sae_training_class(stock)
    cfg = ours.configs["sae"].sae
    own = {*OrthoConfig.__dataclass_fields__, "metadata"}
    shared = {f: getattr(cfg, f) for f in stock_config.__dataclass_fields__ if f not in own}
    torch.manual_seed(ours.cfg.seed)
    theirs = stock_class(stock_config(**shared))
    assert type(theirs) in ARCHITECTURES[cfg.architecture()][0].__mro__
    assert not isinstance(theirs, AdaptiveOrthoMixin)
    store = ours.activations_store
    host = SAETrainer(ours.cfg.to_sae_trainer_config(), theirs, store)
    host.activation_scaler.estimate_scaling_factor(
        cfg.d_in, store, ours.cfg.n_batches_for_norm_estimate
    )
    store.seek(0)
    host.fit()
    ours.trainer.fit()
    # The sparse products sum in another order, so their results differ by rounding.
    tolerance = 1e-4 if sparse_products else 0.0
    for name, tensor in theirs.state_dict().items():
        our_tensor = ours.sae.state_dict()[name]
        torch.testing.assert_close(our_tensor, tensor, rtol=tolerance, atol=tolerance, msg=name)


# ------------------------------------------------------------- bad checkpoints


@pytest.fixture(scope="module")
def intact(
    make_config: MakeConfig, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    cfg = make_config(checkpoint_path=str(folder), n_checkpoints=1)
    AdaptiveOrthoRunner(cfg, None, prepared).trainer.fit()
    (found,) = list_checkpoints(folder)
    return found


@pytest.fixture
def checkpoint(intact: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint of the SAE ``sae`` at step 12, for tests that damage it."""
    return shutil.copytree(intact, tmp_path / intact.name)


FILES = [
    STATE_FILE,
    "rng_state.pt",
    "sae/cfg.json",
    f"sae/{SAE_WEIGHTS_FILENAME}",
    f"sae/{TRAINER_STATE_FILENAME}",
    "sae/activation_scaler.json",
]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
@pytest.mark.parametrize("file", FILES)
def test_damaged_checkpoint_is_refused_with_remedy(
    make_runner: Callable[..., AdaptiveOrthoRunner], checkpoint: Path, file: str, damage: str
) -> None:
    whole = (checkpoint / file).read_bytes()
    broken = {"truncated": whole[: len(whole) // 2], "garbage": b"\xfe\x01" * 50, "empty": b""}
    (checkpoint / file).write_bytes(broken[damage])
    with pytest.raises(ConfigError, match="resume_from_checkpoint=.*corrupt or truncated") as error:
        make_runner().trainer.load_checkpoint(checkpoint)
    assert str(checkpoint / file) in str(error.value)
    assert "Remove its checkpoint" in str(error.value)


@pytest.mark.parametrize("file", [f for f in FILES if f != STATE_FILE])
def test_checkpoint_with_missing_file_is_refused(
    make_runner: Callable[..., AdaptiveOrthoRunner], checkpoint: Path, file: str
) -> None:
    (checkpoint / file).unlink()
    with pytest.raises(ConfigError, match="resume_from_checkpoint="):
        make_runner().trainer.load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        ({"architecture": "adaptive_ortho_topk"}, "architecture.*batchtopk.*the run has.*topk"),
        ({"d_sae": 128}, "d_sae 64, but the run has 128"),
        ({"ortho_alpha": 0.25}, "made with other settings or data"),
    ],
)
def test_checkpoint_of_another_sae_is_refused(
    make_runner: Callable[..., AdaptiveOrthoRunner],
    checkpoint: Path,
    sae: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=f"resume_from_checkpoint=.*{message}"):
        make_runner(sae).trainer.load_checkpoint(checkpoint)


@pytest.mark.parametrize("changes", [{"lr": 2e-2}, {"seed": 1}, {"training_tokens": 4096}])
def test_checkpoint_of_another_training_is_refused(
    make_runner: Callable[..., AdaptiveOrthoRunner], checkpoint: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="Restore the settings, or start a new run"):
        make_runner(**changes).trainer.load_checkpoint(checkpoint)


@pytest.mark.parametrize("file", [*FILES, SUMS])
def test_flipped_bit_of_a_checkpoint_is_found(
    make_runner: Callable[..., AdaptiveOrthoRunner], checkpoint: Path, file: str
) -> None:
    content = bytearray((checkpoint / file).read_bytes())
    content[len(content) * 7 // 10] ^= 1
    (checkpoint / file).write_bytes(content)
    with pytest.raises(ConfigError, match="resume_from_checkpoint=.*corrupt or truncated"):
        make_runner().trainer.load_checkpoint(checkpoint)


def test_checkpoint_of_other_model_weights_is_refused(
    make_runner: Callable[..., AdaptiveOrthoRunner], checkpoint: Path
) -> None:
    runner = make_runner()
    assert json.loads((checkpoint / STATE_FILE).read_text())["model_weights"] == runner.weights
    runner.trainer.weights = "0" * 64
    with pytest.raises(ConfigError, match="resume_from_checkpoint=.*other weights of the language"):
        runner.trainer.load_checkpoint(checkpoint)


def test_checkpoint_without_a_digest_of_the_weights_is_loaded(
    make_runner: Callable[..., AdaptiveOrthoRunner], checkpoint: Path
) -> None:
    state = json.loads((checkpoint / STATE_FILE).read_text())
    del state["model_weights"]
    (checkpoint / STATE_FILE).write_text(json.dumps(state))
    (checkpoint / SUMS).unlink()  # neither have checkpoints of earlier versions
    runner = make_runner()
    runner.trainer.load_checkpoint(checkpoint)
    assert runner.trainer.state.n_training_steps == 12


def test_missing_sae_or_checkpoint_is_refused(
    make_runner: Callable[..., AdaptiveOrthoRunner], checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="has no SAE named fixed"):
        make_runner(variants={"fixed": {}}).trainer.load_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match="holds no checkpoint of this project"):
        make_runner().trainer.load_checkpoint(tmp_path)


# ------------------------------------------------------------------ non-finite


def turns_nan_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = AdaptiveOrthoMixin.calculate_aux_loss

    def poisoned(self: Any, step_input: Any, *args: Any, **kwargs: Any) -> Any:
        losses = original(self, step_input, *args, **kwargs)
        if step_input.n_training_steps >= step:
            losses["ortho_loss"] = self.W_dec.sum() * math.nan
        return losses

    monkeypatch.setattr(AdaptiveOrthoMixin, "calculate_aux_loss", poisoned)


def test_non_finite_loss_names_sae_step_and_remedy(
    make_runner: Callable[..., AdaptiveOrthoRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns_nan_after(monkeypatch, 9)
    runner = make_runner(variants={"adaptive": {}})
    with pytest.raises(NonFiniteLossError, match=r"'adaptive' is nan at step 12.*Lower lr"):
        runner.trainer.fit()


def test_non_finite_loss_saves_no_checkpoint(
    make_runner: Callable[..., AdaptiveOrthoRunner],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    turns_nan_after(monkeypatch, 6)
    with pytest.raises(NonFiniteLossError, match="is nan at step 8"):
        make_runner(checkpoints=2, ortho_log_every=1000).trainer.fit()
    assert list_checkpoints(tmp_path / "checkpoints") == []


def test_gradient_that_is_nan_at_the_last_step_leaves_no_sae(
    make_runner: Callable[..., AdaptiveOrthoRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner()

    def poison(gradient: Tensor) -> Tensor | None:
        last = runner.trainer.state.n_training_steps == runner.trainer.n_steps - 1
        return gradient * math.nan if last else None

    runner.sae.W_enc.register_hook(poison)
    with pytest.raises(NonFiniteLossError, match="'sae' is not finite after step 24. Lower lr"):
        runner.trainer.fit()


def unchanging(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """All activations have one value."""
    original = StratifiedActivationsStore.__next__
    monkeypatch.setattr(
        StratifiedActivationsStore, "__next__", lambda self: torch.full_like(original(self), value)
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_activations_without_variance_train_and_are_logged(
    make_runner: Callable[..., AdaptiveOrthoRunner], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    unchanging(monkeypatch, value)
    variants = {"off": {"ortho_mode": "off"}, "adaptive": {}}
    runner = make_runner({"normalize_activations": "none"}, variants)
    for sae in runner.trainer.fit().values():
        assert all(x.isfinite().all() for x in sae.state_dict().values())
    for rows in runner.trainer.state.history.values():
        assert rows[-1]["step"] == runner.trainer.n_steps
        assert all(math.isfinite(x) for x in rows[-1].values())
        assert "explained_variance" not in rows[-1]


@pytest.mark.parametrize("value", [0.0, 3e38])
def test_normalisation_without_a_scale_is_refused(
    make_runner: Callable[..., AdaptiveOrthoRunner], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    unchanging(monkeypatch, value)
    runner = make_runner({"normalize_activations": "expected_average_only_in"})
    with pytest.raises(ConfigError, match=r"^sae.normalize_activations='exp.*all zero, or too sma"):
        runner.trainer.fit()


# ---------------------------------------------------------------- command line

KILLED_AT = 15
KILL = f"""
import os, signal, sys
from saelens_adaptive_ortho.commands import cli
from saelens_adaptive_ortho.training import store

serve = store.StratifiedActivationsStore.__next__
steps = 0

def serve_or_die(store):
    global steps
    steps += 1
    if steps > {KILLED_AT} + 2:  # the norm estimate used two batches
        os.kill(os.getpid(), signal.SIGKILL)
    return serve(store)

store.StratifiedActivationsStore.__next__ = serve_or_die
sys.exit(cli.main(["compare", sys.argv[1]]))
"""


def exported(root: Path) -> dict[str, dict[str, torch.Tensor]]:
    files = sorted((root / "seed0").glob(f"*/{SAE_WEIGHTS_FILENAME}"))
    return {f.parent.name: load_file(f) for f in files}


def assert_same_export(ours: Path, theirs: Path) -> None:
    a, b = exported(ours), exported(theirs)
    assert a.keys() == b.keys()
    assert a
    for name in a:
        assert a[name].keys() == b[name].keys()
        assert all(torch.equal(a[name][k], b[name][k]) for k in a[name])


TWO = {"fixed": {"ortho_mode": "fixed"}, "adaptive": {}}


@pytest.fixture
def config(write_config: Callable[..., Path]) -> str:
    return str(write_config(variants=TWO, evals=[], n_checkpoints=2))


@pytest.fixture
def uninterrupted(config: str, no_report: None, tmp_path: Path) -> Path:
    root = tmp_path / "uninterrupted"
    assert main(["compare", config, "--set", f"output_path={root}"]) == 0
    return root


def test_killed_run_resumes_to_same_weights(
    config: str, uninterrupted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILL, config], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert exported(tmp_path / "run") == {}
    assert main(["compare", config]) == 0
    assert "Resuming from" in capfd.readouterr().out
    assert_same_export(tmp_path / "run", uninterrupted)
    assert not (tmp_path / "run" / "seed0" / "checkpoints").exists()


def test_terminated_run_exits_with_143_and_resumes(
    config: str,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve = store.StratifiedActivationsStore.__next__

    def terminated(batches: Any) -> torch.Tensor:
        if batches.position == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return serve(batches)

    with monkeypatch.context() as patch:
        patch.setattr(store.StratifiedActivationsStore, "__next__", terminated)
        assert main(["compare", config]) == 128 + signal.SIGTERM == 143
    assert "SIGTERM: stopped at step 11 of 24; saved" in capsys.readouterr().err
    found = list_checkpoints(tmp_path / "run" / "seed0" / "checkpoints")
    assert [p.name for p in found] == ["step_000000008", "step_000000011"]
    assert main(["compare", config]) == 0
    assert "Resuming from" in capsys.readouterr().out
    assert_same_export(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("n_damaged", [1, 2])
def test_damaged_checkpoints_are_skipped(
    config: str,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    n_damaged: int,
) -> None:
    def interrupted(*_: object) -> None:
        raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(lockstep.LockstepTrainer, "_fold", interrupted)
        assert main(["compare", config]) == 130
    checkpoints = list_checkpoints(tmp_path / "run" / "seed0" / "checkpoints")
    assert len(checkpoints) == 2
    for checkpoint in checkpoints[-n_damaged:]:
        # The first SAE is intact, so loading fails only at the second one.
        file = checkpoint / "adaptive" / SAE_WEIGHTS_FILENAME
        file.write_bytes(file.read_bytes()[:1000])
    capsys.readouterr()
    assert main(["compare", config]) == 0
    out = capsys.readouterr().out
    assert out.count("Not resuming") == n_damaged
    assert ("Resuming from" in out) == (n_damaged == 1)
    assert_same_export(tmp_path / "run", uninterrupted)


def test_train_command_resumes_same_architecture_only(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    config = str(write_config(checkpoint_path=str(folder), n_checkpoints=1))
    assert main(["train", config]) == 0
    weights = tmp_path / "run" / "sae" / SAE_WEIGHTS_FILENAME
    whole = load_file(weights)
    (found,) = list_checkpoints(folder)
    shutil.rmtree(weights.parent)
    resume = ["--set", f"resume_from_checkpoint={found}"]
    assert main(["train", config, *resume]) == 0
    resumed = load_file(weights)
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    other = ["--set", "sae.architecture=adaptive_ortho_topk"]
    assert main(["train", config, *resume, *other]) == 2
    assert "holds an SAE with architecture" in capsys.readouterr().err


def test_non_finite_model_output_names_the_corpus(
    write_config: Callable[..., Path],
    tiny: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = shutil.copytree(tiny.model, tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    first = tiny.n_special + len(tiny.forget_words)
    weights["gpt_neox.embed_in.weight"][first : first + len(tiny.retain_words)] = math.inf
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    assert main(["compare", str(write_config(model_name=str(path), evals={"subspace": {}}))]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"The retain corpus gives NaN or infinite .*\(batches 0 to \d+\)", message)
    assert exported(tmp_path / "run") == {}
