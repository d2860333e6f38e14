"""One unit of a sweep in this process: what is done, what is written down, what stays loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho import files
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.judging.unlearning import references
from saelens_adaptive_ortho.manifests import Manifest, Unit, unit_folder, write_manifest
from saelens_adaptive_ortho.results import load_result
from saelens_adaptive_ortho.signals import Interrupted
from saelens_adaptive_ortho.sweeps import working
from saelens_adaptive_ortho.sweeps.attempts import Attempt, Attempts
from saelens_adaptive_ortho.sweeps.axes import build_sweep
from saelens_adaptive_ortho.sweeps.drivers.contract import (
    CRASHED,
    HELD,
    INCOMPLETE,
    OK,
    REFUSED,
    Task,
)
from saelens_adaptive_ortho.sweeps.folder import find_fault, is_whole
from saelens_adaptive_ortho.sweeps.packing import pack
from saelens_adaptive_ortho.sweeps.working import Kept, do_task, do_unit
from saelens_adaptive_ortho.training import lockstep, runner
from tests.sweeps.helpers import LAYERS

QUICK = {
    "n_contexts": 8,
    "n_select_contexts": 8,
    "n_choose_contexts": 4,
    "n_reference_contexts": 8,
    "counts": [5],
    "specificities": [1.1],
    "replicates": 20,
}

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def sweep(make_sweep: Callable[..., Manifest], tmp_path: Path) -> Manifest:
    """Two units of one SAE each; the manifest is in ``tmp_path``."""
    return make_sweep(tmp_path)


def newest(sweep: Path, unit: Unit) -> Attempt:
    found = Attempts(sweep).newest_of(unit.name)
    assert found is not None
    return found


def test_unit_is_done_once(sweep: Manifest, tmp_path: Path, capsys: Any) -> None:
    unit = sweep.units[0]
    assert do_unit(tmp_path, unit.name, "a") == OK
    attempt = newest(tmp_path, unit)
    assert (attempt.ended, attempt.status, attempt.ticket) == ("whole", OK, "a")
    assert attempt.seconds > 0
    assert is_whole(tmp_path, unit, attempt)
    capsys.readouterr()
    assert do_unit(tmp_path, unit.name, "b") == OK
    assert "is whole already" in capsys.readouterr().out
    assert newest(tmp_path, unit) == attempt
    # A damaged SAE makes it not whole; it is done again.
    weights = unit_folder(tmp_path, unit.name) / "seed0" / "alpha=0.5" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is damaged" in str(find_fault(tmp_path, unit))
    assert do_unit(tmp_path, unit.name, "c") == OK
    assert find_fault(tmp_path, unit) is None
    assert newest(tmp_path, unit).number == 2


def test_unit_of_another_process_is_left_alone(sweep: Manifest, tmp_path: Path) -> None:
    unit = sweep.units[0]
    assert Attempts(tmp_path).claim(unit.name, "theirs") is not None
    assert do_unit(tmp_path, unit.name, "mine") == HELD
    assert newest(tmp_path, unit).ticket == "theirs"
    assert not unit_folder(tmp_path, unit.name).exists()


def test_setting_that_cannot_work_is_written_down(
    sweep: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("hook_name='x': no such hook.")

    monkeypatch.setattr(working, "build_experiment", refuse)
    assert do_unit(tmp_path, sweep.units[0].name, "a") == REFUSED
    attempt = newest(tmp_path, sweep.units[0])
    assert (attempt.ended, attempt.reason) == ("failed", "hook_name='x': no such hook.")
    assert "no such hook" in capsys.readouterr().err


def test_error_of_a_library_is_written_down(
    sweep: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(working.Comparison, "run", fail)
    assert do_unit(tmp_path, sweep.units[0].name, "a") == CRASHED
    attempt = newest(tmp_path, sweep.units[0])
    assert (attempt.ended, attempt.reason) == ("failed", "RuntimeError: CUDA out of memory")
    assert "Traceback" in capsys.readouterr().err


def test_failed_evaluation_is_written_down(
    sweep: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saelens_adaptive_ortho.judging import geometry

    def fail(*_: object) -> None:
        raise RuntimeError("no such corpus")

    with monkeypatch.context() as patched:
        patched.setattr(geometry, "run", fail)
        assert do_unit(tmp_path, sweep.units[0].name, "a") == INCOMPLETE
    attempt = newest(tmp_path, sweep.units[0])
    assert attempt.ended == "incomplete"
    assert "subspace of alpha=0.5" in attempt.reason
    assert not is_whole(tmp_path, sweep.units[0], attempt)
    assert do_unit(tmp_path, sweep.units[0].name, "b") == OK


def test_full_disk_fails_one_unit_and_harms_no_other(
    sweep: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sweep.units
    atomic = files.atomic_directory

    @contextmanager
    def full(target: Path, *args: Any, **kwargs: Any) -> Iterator[Path]:
        with atomic(target, *args, **kwargs) as temporary:
            if first.name in str(target):
                raise OSError(28, "No space left on device")
            yield temporary

    with monkeypatch.context() as patched:
        patched.setattr(runner, "atomic_directory", full)
        assert do_unit(tmp_path, first.name, "a") == REFUSED
        assert do_unit(tmp_path, second.name, "a") == OK
    assert "No space left on device" in newest(tmp_path, first).reason
    assert do_unit(tmp_path, first.name, "b") == OK


def test_signal_is_written_down_and_passed_on(
    sweep: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = lockstep.LockstepTrainer._step

    def stop(self: Any, batches: Any) -> Any:
        if self.state.n_training_steps == 5:
            raise Interrupted("interrupted by SIGTERM", 15)
        return step(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(lockstep.LockstepTrainer, "_step", stop)
        with pytest.raises(Interrupted):
            do_unit(tmp_path, sweep.units[0].name, "a")
    attempt = newest(tmp_path, sweep.units[0])
    assert (attempt.ended, attempt.status) == ("stopped", 143)
    assert do_unit(tmp_path, sweep.units[0].name, "b") == OK


def test_model_stays_loaded_between_tasks(
    sweep: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = runner.models.load_language_model

    def count(name: str, *args: Any, **kwargs: Any) -> Any:
        loaded.append(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(runner.models, "load_language_model", count)
    kept = Kept()
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    before = os.getcwd()
    for unit in sweep.units:
        log = tmp_path / "logs" / f"{unit.name}.log"
        task = Task(unit.name, tmp_path, unit.name, log, elsewhere)
        assert do_task(task, kept) == OK
        assert "training alpha=0.5" in log.read_text()
    assert len(loaded) == 1
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2  # forget and retain
    assert os.getcwd() == before
    # The SAEs are those of processes that load the model themselves.
    alone = tmp_path / "alone"
    write_manifest(alone, sweep)
    for unit in sweep.units:
        assert do_unit(alone, unit.name, "a") == OK
        path = Path("seed0") / "alpha=0.5" / "sae_weights.safetensors"
        ours, theirs = (unit_folder(root, unit.name) / path for root in (tmp_path, alone))
        assert ours.read_bytes() == theirs.read_bytes()


def test_evaluations_are_set_up_once_for_all_units(
    sweep_settings: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = sweep_settings(tmp_path, times=4, seed=[0, 1])  # until latents are specific to a corpus
    manifest = pack(build_sweep({**tree, "evals": {"unlearning": QUICK}}))
    assert len(manifest.units) == 4
    made: list[str] = []
    ceilings = references.ceilings

    def count(*args: Any) -> Any:
        made.append("ceilings")
        return ceilings(*args)

    monkeypatch.setattr(references, "ceilings", count)
    together, alone = tmp_path / "together", tmp_path / "alone"
    write_manifest(together, manifest)
    write_manifest(alone, manifest)
    for unit in manifest.units:
        assert do_unit(together, unit.name, "a") == OK
    assert len(made) == len(LAYERS)
    # The numbers of the unit that found the set-up are those of one that makes it.
    last = manifest.units[-1]
    assert do_unit(alone, last.name, "a") == OK
    assert len(made) == len(LAYERS) + 1
    ours, theirs = (
        load_result(next((unit_folder(root, last.name) / "results").glob("*__unlearning.json")))
        for root in (together, alone)
    )
    assert (ours.metrics, ours.details) == (theirs.metrics, theirs.details)


def test_unknown_unit_is_named(sweep: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="UNIT='nobody'"):
        do_unit(tmp_path, "nobody", "a")


def test_home_folder_is_not_told(sweep: Manifest, tmp_path: Path) -> None:
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert not found["cwd"].startswith(str(Path.home()))


def test_unit_with_too_little_text_for_an_evaluation_is_refused(
    sweep: Manifest, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("sae_bench")
    units = [
        replace(unit, settings={**unit.settings, "evals": {"core": {"batch_size_prompts": 17}}})
        for unit in sweep.units
    ]
    write_manifest(tmp_path, replace(sweep, units=units))
    assert do_unit(tmp_path, units[0].name, "a") == REFUSED
    message = "evals.core: the forget corpus has 16 held-out contexts, fewer"
    assert message in capsys.readouterr().err
    assert newest(tmp_path, units[0]).reason.startswith(message)
    assert not list(unit_folder(tmp_path, units[0].name).glob("seed*"))
