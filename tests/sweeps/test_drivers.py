"""Drivers: how ``--on`` is read, and processes of this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.sweeps.drivers import find_driver
from saelens_adaptive_ortho.sweeps.drivers.contract import Needs, Phase, State, Task
from saelens_adaptive_ortho.sweeps.drivers.local import LocalDriver, Running, visible_cards

CPU, CUDA = Needs("cpu", 1, 1), Needs("cuda", 1, 1)


@pytest.mark.parametrize(
    "on",
    ["local:0", "local", "local:", "local:-1", "local:two", "local:2000", "local:²", "lokal:2"],
)
def test_bad_place_is_refused(on: str) -> None:
    with pytest.raises(ConfigError, match="--on=.*local:"):
        find_driver(on, CPU)


def test_absent_card_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="device: cuda, and torch can use no card here"):
        find_driver("local:2", CUDA)


def test_each_process_has_one_of_the_visible_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = find_driver("local:3", CUDA)
    assert isinstance(driver, LocalDriver)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in driver.places] == ["0", "1", "0"]
    assert visible_cards({"CUDA_VISIBLE_DEVICES": "5, GPU-7,"}) == ["5", "GPU-7"]


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for n, threads in ((1, "8"), (3, "2"), (16, "1")):
        driver = find_driver(f"local:{n}", CPU)
        assert isinstance(driver, LocalDriver)
        assert driver.capacity() == n
        assert driver.places == [{"OMP_NUM_THREADS": threads}] * n
    monkeypatch.setenv("MKL_NUM_THREADS", "4")  # the user has chosen
    driver = find_driver("local:2", CPU)
    assert isinstance(driver, LocalDriver)
    assert driver.places == [{}, {}]


def task(folder: Path, unit: str = "u") -> Task:
    return Task(unit, folder, f"ticket of {unit}", folder / "logs" / f"{unit}.log", folder)


def ended(driver: LocalDriver, handle: Running) -> State:
    while not (state := driver.poll(handle)).ended:
        time.sleep(0.005)
    return state


def test_process_has_place_folder_and_log(tmp_path: Path) -> None:
    words = 'echo "$PLACE of $2 in $PWD"; echo wrong >&2; [ $PLACE = one ]'
    driver = LocalDriver(
        [{"PLACE": "one"}, {"PLACE": "two"}],
        ["place 1", "place 2"],
        lambda task: ["/bin/sh", "-c", words, *task.command()[2:]],
    )
    first, second = driver.submit(task(tmp_path, "u")), driver.submit(task(tmp_path, "v"))
    assert ended(driver, first) == State(Phase.DONE, 0, where="place 1")
    assert ended(driver, second) == State(Phase.FAILED, 1, where="place 2")
    assert driver.poll(second) == State(Phase.FAILED, 1, where="place 2")
    log = tmp_path / "logs" / "u.log"
    assert log.read_text() == f"one of {tmp_path} in {tmp_path}\nwrong\n"
    # The place is free again, and the log grows.
    assert ended(driver, driver.submit(task(tmp_path, "u"))).where == "place 1"
    assert log.read_text().count("wrong") == 2


def test_process_is_stopped_and_killed(tmp_path: Path) -> None:
    words = "trap 'exit 143' TERM; trap '' INT; echo ready; while true; do sleep 0.01; done"
    driver = LocalDriver([{}], ["here"], lambda _: ["/bin/sh", "-c", words])
    log = tmp_path / "logs" / "u.log"
    for now, status in ((False, 143), (True, -signal.SIGKILL)):
        handle = driver.submit(task(tmp_path))
        while not log.read_text():
            time.sleep(0.005)
        log.write_text("")
        assert os.getsid(handle.process.pid) != os.getsid(0)  # Ctrl-C does not reach it
        assert driver.poll(handle).phase is Phase.RUNNING
        driver.cancel(handle, now)
        assert ended(driver, handle).status == status
        driver.cancel(handle, now)  # it has ended
    driver.close()


def test_program_that_is_missing_is_an_error_of_this_unit(tmp_path: Path) -> None:
    driver = LocalDriver([{}], ["here"], lambda _: ["/no/such/program"])
    with pytest.raises(OSError, match="/no/such/program"):
        driver.submit(task(tmp_path))
    assert not driver.taken


def test_unknown_kind_of_place_lists_the_forms_and_an_example() -> None:
    with pytest.raises(ConfigError) as error:
        find_driver("lokal:2", CPU)
    message = str(error.value)
    assert message.startswith("--on='lokal:2': 'lokal' is no kind of place. Give --on local:2")
    for form in ("local:N (N processes on this machine)", "ray[:ADDRESS] (", "slurm:OPTIONS ("):
        assert form in message
