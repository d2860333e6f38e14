"""``sweep``, ``plan``, ``check`` and ``report`` of a small sweep, with a driver in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.manifests import read_manifest, write_manifest
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.sweeps import starting
from saelens_adaptive_ortho.sweeps.drivers.contract import Driver, Needs, Phase, State, Task
from saelens_adaptive_ortho.sweeps.pricing import known_seconds, makespan
from saelens_adaptive_ortho.sweeps.scheduling import Status
from saelens_adaptive_ortho.sweeps.status import time_left
from saelens_adaptive_ortho.sweeps.working import Kept, do_task


class InThisProcess:
    """A driver that does a unit when it is asked for it, and keeps the model loaded."""

    def __init__(self) -> None:
        self.kept, self.done = Kept(), list[str]()

    def capacity(self) -> int:
        return 1

    def submit(self, task: Task) -> Task:
        self.done.append(task.unit)
        return task

    def poll(self, handle: Task) -> State:
        status = do_task(handle, self.kept)
        return State(Phase.FAILED if status else Phase.DONE, status)

    def cancel(self, handle: Task, now: bool = False) -> None:
        pass

    def close(self) -> None:
        self.done.append("closed")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> InThisProcess:
    found = InThisProcess()

    def find(on: str, needs: Needs) -> Driver:
        assert needs.device == "cpu"
        assert needs.memory > 0
        return found

    monkeypatch.setattr(starting, "find_driver", find)
    return found


@pytest.fixture
def config(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    tree = settings(
        sweep={"sae.ortho_alpha": [0, 1], "seed": [0, 1]},
        evals={"subspace": {"n_contexts": 8}},
        output_path=str(tmp_path / "sweep"),
    )
    path = tmp_path / "alphas.yaml"
    path.write_text(dump_yaml(tree))
    return path


@pytest.mark.slow
def test_sweep_is_planned_run_continued_and_reported(
    config: Path, driver: InThisProcess, tmp_path: Path, capsys: Any, no_report: None
) -> None:
    sweep = tmp_path / "sweep"
    assert main(["check", str(config)]) == 0
    assert "4 SAEs in 2 units" in capsys.readouterr().out
    assert not sweep.exists()
    assert main(["plan", str(config), "--steps", "1"]) == 0
    out = capsys.readouterr().out
    assert "2 of 4 SAEs in all, 0 of them finished" in out
    assert "2 at a time" in out
    assert main(["sweep", str(config)]) == 0
    out = capsys.readouterr().out
    manifest = read_manifest(sweep)
    names = [unit.name for unit in manifest.units]
    assert sorted(driver.done) == sorted([*names, "closed"])
    assert "All 2 units are finished." in out
    assert f"Report: {sweep / 'report.html'}" in out
    assert "4 of 4 SAEs finished" in (sweep / "report.html").read_text()
    assert set(known_seconds(sweep, manifest)) == set(names)
    # The same command, and the folder, do nothing more.
    for path in (config, sweep):
        driver.done.clear()
        assert main(["sweep", str(path)]) == 0
        assert driver.done == ["closed"]
    # A sweep that grows does what is new.
    driver.done.clear()
    assert main(["sweep", str(config), "--set", "sweep.sae.ortho_alpha=[0, 0.5, 1]"]) == 0
    assert len(driver.done) == 2 + 1
    assert not set(driver.done) & set(names)
    capsys.readouterr()
    assert main(["plan", str(sweep), "--steps", "1"]) == 0
    assert "4 of 6 SAEs in all, 4 of them finished" in capsys.readouterr().out
    assert main(["report", str(sweep)]) == 0
    assert len(json.loads((sweep / "summary.json").read_text())["settings"]) == 3


def test_failed_unit_is_in_the_status_and_in_the_report(
    config: Path, driver: InThisProcess, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    from saelens_adaptive_ortho.sweeps import working

    monkeypatch.setattr(working.Comparison, "run", lambda *_, **__: 1 / 0)
    assert main(["sweep", str(config)]) == 1
    out = capsys.readouterr().out
    assert "failed: ZeroDivisionError: division by zero" in out
    assert "Traceback" in out  # the end of the log
    assert "0 of 2 units are finished" in out
    assert "0 of 4 SAEs are finished; the report says what is missing." in out
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "ZeroDivisionError" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "local:0"], "--on='local:0'"),
        (["--tries", "0"], "--tries=0"),
        (["--stuck-after", "4"], "--stuck-after=4.0: must be at least 5 minutes"),
        (["--stuck-after", "nan"], "--stuck-after=nan"),
        (["--set", "device=cuda:1"], "device='cuda:1': a sweep chooses the card"),
        (["--set", "ortho_corpora.forget=nowhere.jsonl"], "nowhere.jsonl"),
        (["--set", "model_name=no/model"], "model_name"),
        (["--set", "sweep.sae.kk=[1]"], "sweep.sae.kk"),
        (["--set", "evals={core: {n_contexts: 0}}"], "evals.core.n_contexts"),
    ],
)
def test_bad_input_is_said_before_anything_is_written(
    config: Path, tmp_path: Path, capsys: Any, words: list[str], message: str
) -> None:
    assert main(["sweep", str(config), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_check_finds_a_hook_that_the_model_lacks(config: Path, tmp_path: Path, capsys: Any) -> None:
    hooks = "sweep.hook_name=[blocks.1.hook_resid_post, blocks.9.hook_resid_post]"
    assert main(["check", str(config), "--set", hooks]) == 2
    assert "hook_name='blocks.9.hook_resid_post'" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_file_in_the_way_of_a_folder_is_named(config: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "sweep").mkdir()
    file = tmp_path / "sweep" / "cache"
    file.touch()
    assert main(["sweep", str(config)]) == 2
    assert f"output_path='{file}': cannot be written" in capsys.readouterr().err


def test_folder_takes_no_settings(config: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    assert main(["sweep", str(folder)]) == 2
    assert "holds no sweep.json" in capsys.readouterr().err
    opened = starting.open_sweep(str(config))
    write_manifest(folder, opened.manifest)
    assert starting.open_sweep(str(folder)).manifest == opened.manifest
    assert main(["sweep", str(folder), "--set", "lr=1"]) == 2
    assert "Name the config to change them" in capsys.readouterr().err


def test_makespan_is_that_of_the_longest_first() -> None:
    assert makespan([3, 3, 2, 2, 2], 2) == 7
    assert makespan([3, 3, 2, 2, 2], 1) == 12
    assert makespan([5], 8) == 5


def test_time_left_counts_what_has_passed() -> None:
    status = {
        "a": Status("whole", seconds=10.0),
        "b": Status("running", seconds=4.0),
        "c": Status("open"),
        "d": Status("failed"),
    }
    assert time_left(status, {}, 1) == pytest.approx(6 + 10)
    assert time_left(status, {"c": 40.0}, 2) == pytest.approx((25 - 4 + 40) / 2)
    late = {"a": Status("whole", seconds=10.0), "b": Status("running", seconds=40.0)}
    assert time_left(late, {}, 1) is None
    assert time_left({"a": status["a"]}, {}, 1) is None
    assert time_left({"c": status["c"]}, {}, 1) is None
