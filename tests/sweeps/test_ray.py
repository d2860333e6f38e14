"""A Ray cluster of two nodes on this machine: a node is lost, a worker is killed, units go on."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.manifests import Manifest
from saelens_adaptive_ortho.sweeps.attempts import Attempts
from saelens_adaptive_ortho.sweeps.drivers import ray_cluster
from saelens_adaptive_ortho.sweeps.drivers.contract import Needs, Phase
from saelens_adaptive_ortho.sweeps.drivers.ray_cluster import open_ray
from saelens_adaptive_ortho.sweeps.scheduling import Scheduler
from tests.sweeps import dying
from tests.sweeps.helpers import (
    assert_as_serial,
    has_checkpoint,
    note_written,
    task_of,
    waits,
    written,
)

ROOT = Path(__file__).parents[2]
CPU, CUDA = Needs("cpu", 1, 1), Needs("cuda", 1, 1)
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def _offline() -> None:
    """A cluster on this machine is reached by sockets; nothing here names another machine."""


@contextmanager
def as_before() -> Iterator[None]:
    """Undo what importing or starting Ray changes in this process."""
    environment, path, hook = dict(os.environ), list(sys.path), sys.excepthook
    handler = signal.getsignal(signal.SIGTERM)
    yield
    sys.path[:], sys.excepthook = path, hook
    signal.signal(signal.SIGTERM, handler)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]


@pytest.fixture(scope="module")
def ray() -> None:
    with as_before():
        pytest.importorskip("ray")


@pytest.fixture
def undone() -> Iterator[None]:
    with as_before():
        yield


# -------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("argument", "needs", "words"),
    [
        ("head", CPU, "HOST:PORT"),
        ("head:0", CPU, "HOST:PORT"),
        ("ray://head:10001", CPU, "HOST:PORT"),
        ("head:6379?gpus=0.5", CPU, "the device is cpu"),
        ("head:6379?gpus=2", CUDA, "at most 1"),
        ("head:6379?gpus=0", CUDA, "above 0"),
        ("head:6379?gpus=nan", CUDA, "above 0"),
        ("head:6379?cpus=-1", CPU, "above 0"),
        ("?gpus", CUDA, "gpus=NUMBER"),
        ("?gpus=half", CUDA, "gpus=NUMBER"),
        ("?gpus=1&gpus=0.5", CUDA, "gpus=NUMBER"),
        ("?memory=1", CUDA, "gpus=NUMBER"),
    ],
)
def test_bad_argument_is_refused(argument: str, needs: Needs, words: str) -> None:
    with pytest.raises(ConfigError, match="--on='ray:") as error:
        open_ray(argument, needs)
    assert words in str(error.value)


def test_address_that_nobody_answers_is_refused_at_once(ray: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match="nobody answers there within 5 s"):
        open_ray(f"127.0.0.1:{port}", CPU)


def test_address_where_something_else_answers_is_refused(
    ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "CONNECT", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="no Ray cluster answers there within 2 s"):
            open_ray(address, CPU)


@pytest.mark.parametrize(
    ("has", "share", "places"),
    [
        ({"CPU": 8.0}, {"CPU": 1.0}, 8),
        ({"CPU": 8.0}, {"CPU": 3.0}, 2),
        ({"CPU": 8.0, "GPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}, 4),
        ({"CPU": 8.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 0.3}, 6),  # three on each card, not 3.33
        ({"CPU": 2.0, "GPU": 4.0}, {"CPU": 1.0, "GPU": 0.5}, 2),
        ({"CPU": 8.0}, {"CPU": 1.0, "GPU": 0.5}, 0),
        ({}, {"CPU": 1.0}, 0),
    ],
)
def test_places_of_a_node(has: dict[str, float], share: dict[str, float], places: int) -> None:
    assert ray_cluster._places({"Resources": has}, share) == places


# ------------------------------------------------------------- a real cluster


@pytest.fixture(scope="module")
def one_cluster(ray: None) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with as_before():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.second = None
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cluster(one_cluster: Any) -> Any:
    """A cluster of two nodes. A test may take the second one away."""
    if one_cluster.second not in one_cluster.worker_nodes:
        with as_before():
            one_cluster.second = one_cluster.add_node(num_cpus=1)
    return one_cluster


@slow
def test_refusals_and_a_unit_that_is_stopped(
    cluster: Any,
    undone: None,
    make_sweep: Callable[..., Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigError, match=r"no node has 1 CPU and 0\.5 GPU .* 1 CPU, 0 GPU"):
        open_ray(f"{cluster.address}?gpus=0.5", CUDA)
    with pytest.raises(ConfigError, match=r"no node has 2 CPU .* 1 CPU, 0 GPU"):
        open_ray(f"{cluster.address}?cpus=2", CPU)

    def elsewhere(folder: Path | None) -> Path:  # a folder that only this process sees
        return tmp_path / "not there"

    with monkeypatch.context() as patch:
        patch.setattr(ray_cluster, "_mark", elsewhere)
        patch.setattr(ray_cluster.keeping, "SEEN", 0.0)
        with pytest.raises(ConfigError, match="does not see .* at the same path"):
            open_ray(cluster.address, Needs("cpu", 1, 1, tmp_path))

    manifest = make_sweep(tmp_path, times=400)
    first, second = (unit.name for unit in manifest.units)
    driver = open_ray(cluster.address, Needs("cpu", 1, 2, tmp_path))
    try:
        assert signal.getsignal(signal.SIGTERM) == handler
        assert driver.capacity() == 2
        handles = [driver.submit(task_of(tmp_path, unit)) for unit in (first, second)]
        waiting = driver.submit(task_of(tmp_path, first, "another"))  # there is no third place
        for handle, unit in zip(handles, (first, second), strict=True):
            waits(driver, handle, lambda _, unit=unit: has_checkpoint(tmp_path, unit))
        assert driver.poll(waiting).phase is Phase.WAITING
        driver.cancel(waiting)
        assert waits(driver, waiting).phase is Phase.FAILED
        running = driver.poll(handles[0])
        assert running.phase is Phase.RUNNING
        assert running.where == f"node {socket.gethostname()}"
        driver.cancel(handles[0])
        driver.cancel(handles[1], now=True)
        assert waits(driver, handles[0]).status == 128 + signal.SIGTERM
        assert waits(driver, handles[1]).status == -signal.SIGKILL
        newest = Attempts(tmp_path).newest()
        assert newest[first].ended == "stopped"
        assert "; saved " in newest[first].reason
        assert not any(attempt.process.lives() for attempt in newest.values())
    finally:
        driver.close()
    assert not list(tmp_path.glob(f"{ray_cluster.MARKER}*"))


# Where five units are killed, each once; the last one with its worker process of Ray.
STAGES = (dying.CLAIM, dying.CHECKPOINT, dying.SAE, dying.RESULT, dying.WORKER)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@slow
def test_twelve_units_with_five_kills_and_a_lost_node_are_the_serial_ones(
    cluster: Any,
    undone: None,
    make_sweep: Callable[..., Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_report: None,
) -> None:
    monkeypatch.setattr(ray_cluster.keeping, "MODULE", dying.__name__)
    monkeypatch.setattr(ray_cluster, "IDLE", 1.0)  # what the lost node did goes to the other one
    sweep, fates = tmp_path / "sweep", tmp_path / "fates"
    manifest = make_sweep(sweep, **{"seed": [0, 1, 2, 3, 4, 5], "sae.ortho_alpha": [0, 1]})
    units = sorted(unit.name for unit in manifest.units)  # in the order of their turns
    assert len(units) == 12
    fates.mkdir()
    for unit, stage in zip(units[::2], STAGES, strict=False):
        (fates / f"{unit}.fate").write_text(stage)
    [raylet] = cluster.second.all_processes["raylet"]
    attempts, hold = Attempts(sweep), fates / "hold"
    damages, noted = list[str](), dict[Path, tuple[int, int]]()

    def damage(_: float) -> None:
        """Take the second node away while it trains a unit and others are finished."""
        note_written(sweep, manifest, noted)
        if not damages and sum(attempts.count(unit, "whole") for unit in units) >= 4:
            hold.touch()
            damages.append("hold")
        for held in fates.glob("*.held") if damages == ["hold"] else ():
            attempt = attempts.newest_of(held.stem)
            assert attempt is not None
            if parent_of(parent_of(attempt.process.pid)) == raylet.process.pid:
                cluster.remove_node(cluster.second, allow_graceful=False)
                damages.append(held.stem)
                hold.unlink()
        time.sleep(0.02)

    said: list[str] = []
    driver = open_ray(cluster.address, Needs("cpu", 1, len(units), sweep))
    assert isinstance(driver, ray_cluster.RayDriver)
    driver.environment |= {dying.FOLDER: str(fates), "PYTHONPATH": str(ROOT)}
    try:
        scheduler = Scheduler(sweep, manifest, driver, say=said.append, sleep=damage)
        status = scheduler.run()
        assert {one.now for one in status.values()} == {"whole"}, said
        newest = attempts.newest()
        # Each was lost where it was killed, and nowhere else. After it was whole, nothing was done.
        assert not list(fates.glob("*.fate"))
        lost = Counter({unit: attempts.count(unit, "lost") for unit in units})
        assert lost == Counter([*units[: 2 * len(STAGES) : 2], *damages[1:]])
        assert lost.total() == 6
        assert all(attempts.count(unit, "whole") == 1 for unit in units)
        assert all(attempt.ended == "whole" for attempt in newest.values())
        # A process keeps the model: the last units of the node that is left were in one.
        assert len({a.process.pid for a in newest.values()}) < len(newest)
        assert Scheduler(sweep, manifest, driver, say=said.append).run() == status
        assert attempts.newest() == newest
        assert driver.capacity() == 1
    finally:
        driver.close()
    # Nothing that was whole was written again, by those that went on after a kill or by others.
    note_written(sweep, manifest, noted)
    assert {file: written(file) for file in noted} == noted
    assert_as_serial(sweep, manifest, tmp_path / "serial")
