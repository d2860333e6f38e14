"""``ray[:ADDRESS][?gpus=0.5&cpus=2]``: units on the nodes of a Ray cluster.

Each place is an actor, with its share of a node's cards and cores. It has a process that keeps the
language model while units pass through (:mod:`.keeping`). Ray chooses the node. It starts nothing
again by itself: if a node or a worker is lost, the unit's task has failed, and the scheduler
decides.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.signals import STOP_SIGNALS
from saelens_adaptive_ortho.sweeps.drivers import keeping
from saelens_adaptive_ortho.sweeps.drivers.contract import Driver, Kind, Needs, Phase, State, Task
from saelens_adaptive_ortho.sweeps.drivers.local import THREADS

ANSWER = 5.0  # seconds until something at the address must answer
CONNECT = 30.0  # seconds until the cluster must have taken us in
CHECK = 120.0  # seconds until each node must have said what it sees
LOOK = 2.0  # seconds between two looks at the nodes
IDLE = 30.0  # seconds until a place without a unit is given back to the cluster
MOST = 1024  # places; more than a cluster of any lab has
MARKER = ".ray-"
GPU = "GPU"
CPU = "CPU"
# Another process connects first, because Ray waits for minutes if nobody answers as Ray does.
PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"


@dataclass
class Held:
    """An actor, and what says on which machine it is."""

    actor: Any
    where: Any
    name: str = ""
    idle_since: float = 0.0


@dataclass
class Running:
    """A task of an actor."""

    held: Held
    done: Any
    state: State = State(Phase.WAITING)


@dataclass
class RayDriver:
    """Runs tasks in actors of a cluster.

    Args:
        ray: the library, connected.
        share: what each place takes of a node: ``CPU``, and ``GPU`` if it needs a card.
        environment: what is added to the environment of the processes.
        marker: a file in the sweep's folder that each node must see; it is removed at the end.
            None for none.
    """

    ray: Any
    share: dict[str, float]
    environment: dict[str, str]
    marker: Path | None = None
    idle: list[Held] = field(default_factory=list)
    places: int = 0
    looked: float = float("-inf")

    def capacity(self) -> int:
        if time.monotonic() - self.looked >= LOOK:
            self.looked = time.monotonic()
            fits = [_places(node, self.share) for node in _alive(self.ray)]
            self.places = min(MOST, sum(fits))
        return self.places

    def submit(self, task: Task) -> Running:
        held = self.idle.pop() if self.idle else self._new()
        words = [task.unit, str(task.folder), task.ticket, str(task.log), str(task.cwd)]
        return Running(held, held.actor.do.remote(*words))

    def poll(self, handle: Running) -> State:
        if not handle.state.ended:
            handle.state = self._state(handle)
            if handle.state.ended and handle.state.status is None:
                self.ray.kill(handle.held.actor)
            elif handle.state.ended:
                handle.held.idle_since = time.monotonic()
                self.idle.append(handle.held)
            self._give_back()
        return handle.state

    def cancel(self, handle: Running, now: bool = False) -> None:
        if handle.state.ended:
            return
        if handle.state.phase is Phase.WAITING:
            self.ray.kill(handle.held.actor)
        else:
            number = signal.SIGKILL if now else signal.SIGTERM
            handle.held.actor.stop.remote(int(number))

    def close(self) -> None:
        self.idle.clear()
        self.ray.shutdown()
        if self.marker is not None:
            self.marker.unlink(missing_ok=True)

    def _new(self) -> Held:
        """A new place. Ray finds a node for it; it may have to wait for one."""
        options = {"num_cpus": self.share[CPU], "max_restarts": 0, "max_task_retries": 0}
        if GPU in self.share:
            options["num_gpus"] = self.share[GPU]
        place = self.ray.remote(keeping.Place).options(max_concurrency=3, **options)
        actor = place.remote(self.environment, str(self.marker or ""))
        return Held(actor, actor.where.remote())

    def _state(self, handle: Running) -> State:
        held = handle.held
        if not held.name and _is_ready(self.ray, held.where):
            with suppress(self.ray.exceptions.RayError):
                held.name = f"node {self.ray.get(held.where)}"
        if not _is_ready(self.ray, handle.done):
            return State(Phase.RUNNING if held.name else Phase.WAITING, where=held.name)
        try:
            status = self.ray.get(handle.done)
        except self.ray.exceptions.RayTaskError as error:
            return State(Phase.FAILED, reason=str(error.cause), where=held.name)
        except self.ray.exceptions.RayError as error:
            where = held.name or "a node"
            reason = f"Ray lost the worker on {where} ({_last_line(str(error))})"
            return State(Phase.FAILED, reason=reason, where=held.name)
        return State(Phase.DONE if status == 0 else Phase.FAILED, status, where=held.name)

    def _give_back(self) -> None:
        """Give places that have had nothing to do for a while back to the cluster."""
        now = time.monotonic()
        for held in [h for h in self.idle if now - h.idle_since >= IDLE]:
            self.idle.remove(held)
            self.ray.kill(held.actor)


def open_ray(argument: str, needs: Needs) -> Driver:
    """A driver for the cluster at an address, or for the one that this machine belongs to.

    Raises:
        ConfigError: Ray is not installed, nobody answers at the address, no node has what a unit
            needs, or a node does not see the sweep's folder or has another version of the package.
    """
    address, share = _parse(argument, needs)
    try:
        import ray  # pyright: ignore[reportMissingImports]  # an extra
        from ray import cloudpickle  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        rule = 'needs Ray: pip install "saelens-adaptive-ortho[ray]"'
        raise _reject(argument, rule) from error
    _connect(ray, argument, address)
    cloudpickle.register_pickle_by_value(keeping)
    marker = _mark(needs.folder)
    threads = {name: os.environ[name] for name in THREADS if name in os.environ}
    environment = threads or {THREADS[0]: str(max(1, int(share[CPU])))}
    driver = RayDriver(ray, share, environment, marker)
    try:
        _check_nodes(driver, argument, needs)
    except BaseException:
        driver.close()
        raise
    return driver


def _reject(argument: str, rule: str) -> ConfigError:
    return reject("--on", f"ray:{argument}" if argument else "ray", rule)


def _parse(argument: str, needs: Needs) -> tuple[str, dict[str, float]]:
    """The address (``auto`` without one), and what each place takes of a node."""
    address, _, query = argument.partition("?")
    share = {CPU: 1.0, **({GPU: 1.0} if needs.device == "cuda" else {})}
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        given = {name.upper().removesuffix("S"): float(text) for name, text in options.items()}
    except ValueError:
        given = {"": 0.0}
    if not given.keys() <= {CPU, GPU} or len(query.split("&")) != max(1, len(given)):
        rule = "after '?' come gpus=NUMBER and cpus=NUMBER, joined by '&': ray:ADDRESS?gpus=0.5"
        raise _reject(argument, rule)
    if GPU in given and GPU not in share:
        raise _reject(argument, f"gpus is for device: cuda; the device is {needs.device}.")
    if not 0 < given.get(GPU, 1.0) <= 1:
        raise _reject(argument, "gpus must be above 0 and at most 1: a unit uses one card.")
    if not 0 < given.get(CPU, 1.0) <= MOST:
        raise _reject(argument, f"cpus must be above 0 and at most {MOST}.")
    if address and not _port(address):
        rule = "the address is that of the head node: HOST:PORT, such as 10.0.0.1:6379."
        raise _reject(argument, rule)
    return address or "auto", share | given


def _port(address: str) -> tuple[str, int] | None:
    """Host and port of an address; None if it is none."""
    host, _, port = address.rpartition(":")
    good = host and "/" not in host and port.isascii() and port.isdecimal() and len(port) <= 5
    return (host.strip("[]"), int(port)) if good and 0 < int(port) < 65536 else None


def _connect(ray: Any, argument: str, address: str) -> None:
    """Connect to a cluster, and keep the handlers of signals, which Ray replaces."""
    if place := _port(address):
        try:
            socket.create_connection(place, ANSWER).close()
        except OSError as error:
            rule = f"nobody answers there within {ANSWER:g} s ({error}). Is the head node running?"
            raise _reject(argument, rule) from error
    rule = "start a cluster (ray start --head), name the address of one, or use local:N."
    try:
        probe = [sys.executable, "-c", PROBE, address]
        done = subprocess.run(probe, capture_output=True, text=True, timeout=CONNECT, check=False)
    except subprocess.TimeoutExpired as error:
        words = f"no Ray cluster answers there within {CONNECT:g} s;"
        raise _reject(argument, f"{words} {rule}") from error
    if done.returncode != 0:
        words = f"cannot connect ({_last_line(done.stderr)})"
        raise _reject(argument, f"{words}; {rule}")
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    for number, handler in handlers.items():
        if handler is not None:  # one that Python does not know
            signal.signal(number, handler)


def _mark(folder: Path | None) -> Path | None:
    """A new file in a folder, with a name that no other file has."""
    if folder is None:
        return None
    marker = folder / f"{MARKER}{uuid.uuid4().hex}"
    marker.touch()
    return marker


def _check_nodes(driver: RayDriver, argument: str, needs: Needs) -> None:
    """Refuse a cluster that has no place for a unit, or a node that cannot do one."""
    ray = driver.ray
    nodes = _alive(ray)
    fit = [node for node in nodes if _places(node, driver.share)]
    if not fit:
        wanted = " and ".join(f"{n:g} {name}" for name, n in sorted(driver.share.items()))
        has = "; ".join(_in_words(node) for node in nodes) or "no node"
        raise _reject(argument, f"no node has {wanted} for a unit. The cluster has: {has}.")
    _, _, version = keeping.look("")
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    look, asked = ray.remote(keeping.look), list[Any]()
    for node in fit:
        there = affinity(node["NodeID"], soft=False)
        looking = look.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked.append(looking.remote(str(driver.marker or "")))
    ray.wait(asked, num_returns=len(asked), timeout=CHECK)
    for node, answer in zip(fit, asked, strict=True):
        where = node["NodeManagerHostname"]
        try:
            _, seen, found = ray.get(answer, timeout=0)
        except ray.exceptions.RayError as error:
            rule = f"the node {where} did not answer within {CHECK:g} s ({_last_line(str(error))})."
            raise _reject(argument, rule) from error
        if not seen:
            rule = "The folder must be on a file system that all nodes share, at the same path."
            raise _reject(argument, f"the node {where} does not see {needs.folder}. {rule}")
        if found != version:
            has = f"has version {found}" if found else "does not have it"
            rule = f"every node needs saelens-adaptive-ortho {version}; the node {where} {has}."
            raise _reject(argument, rule)


def _alive(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _places(node: dict[str, Any], share: dict[str, float]) -> int:
    """How many places a node has. Ray never divides one place between two cards."""
    has = node["Resources"]
    fits = [int(has.get(CPU, 0) / share[CPU] + 1e-9)]
    if GPU in share:
        fits.append(int(has.get(GPU, 0)) * int(1 / share[GPU] + 1e-9))
    return min(fits)


def _in_words(node: dict[str, Any]) -> str:
    has = node["Resources"]
    parts = ", ".join(f"{has.get(name, 0):g} {name}" for name in (CPU, GPU))
    return f"{node['NodeManagerHostname']}: {parts}"


def _is_ready(ray: Any, answer: Any) -> bool:
    ready, _ = ray.wait([answer], timeout=0)
    return bool(ready)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


RAY = Kind("ray", "ray[:ADDRESS]", "the nodes of a Ray cluster (extra `ray`)", open_ray)
