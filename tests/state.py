"""No test depends on those before it.

Every test begins with the same random numbers, and leaves the process as it found it.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import registry

from saelens_adaptive_ortho.evaluations import TABLE as EVALUATIONS
from saelens_adaptive_ortho.maths.affinity import AFFINITIES
from saelens_adaptive_ortho.maths.penalties import PENALTIES

# Variables that are not a test's: pytest's, and those that importing scikit-learn sets.
NOT_A_TESTS = {"PYTEST_CURRENT_TEST", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}
SIGNALS = signal.valid_signals() - {signal.SIGALRM}  # pytest-timeout's
BEFORE = pytest.StashKey[dict[str, Any]]()


def process_state() -> dict[str, Any]:
    """What a test can change for the tests after it."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    umask = os.umask(0)
    os.umask(umask)
    return {
        "environment": {n: v for n, v in os.environ.items() if n not in NOT_A_TESTS},
        "working directory": os.getcwd(),
        "umask": umask,
        "signal handlers": {n: signal.getsignal(n) for n in SIGNALS},
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "import system": (list(sys.path), list(sys.meta_path)),
        "recursion limit": sys.getrecursionlimit(),
        "hooks of the interpreter": (sys.excepthook, sys.unraisablehook, sys.displayhook),
        "logging": (logging.root.manager.disable, logging.root.level, *logging.root.handlers),
        "torch": {
            "dtype": torch.get_default_dtype(),
            "device": torch.get_default_device(),
            "threads": torch.get_num_threads(),
            "gradients": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "anomalies": torch.is_anomaly_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
            "products": torch.get_float32_matmul_precision(),
        },
        "numpy": (np.geterr(), np.get_printoptions()),
        "architectures": (
            dict(registry.SAE_CLASS_REGISTRY),
            dict(registry.SAE_TRAINING_CLASS_REGISTRY),
        ),
        "tables": [(dict(t.own), dict(t._loaded)) for t in (PENALTIES, AFFINITIES, EVALUATIONS)],
        "figures": pyplot.get_fignums() if pyplot else [],
        "style of figures": dict(pyplot.rcParams) if pyplot else None,
    }


@pytest.fixture
def handlers_restored() -> Iterator[None]:
    """For tests of SAELens's runners, which leave their handlers of INT and TERM behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "randomly_reset_seed"):
        # pytest-randomly may choose the order of the tests, but not their random numbers.
        config.option.randomly_reset_seed = False


def _seed_everything() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[BEFORE] = process_state()
    _seed_everything()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    _seed_everything()  # a fixture may have been set up for another test
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail a test after which something is not as it was before its fixtures were set up."""
    result = yield
    before, now = item.stash[BEFORE], process_state()
    if before["style of figures"] is None:  # the test was the first to import pyplot
        before["style of figures"] = now["style of figures"]
    changed = [f"{n}: {_shown(before[n], now[n])}" for n in now if before[n] != now[n]]
    if changed:
        pytest.fail("the test changed the process. " + "; ".join(changed), pytrace=False)
    return result


def _shown(before: Any, now: Any) -> str:
    """The entries of two dicts that differ, or the whole of two other values."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [n for n in before | now if before.get(n) != now.get(n)]
        return ", ".join(f"{n} was {before.get(n)!r} and is {now.get(n)!r}" for n in names)
    return f"was {before!r} and is {now!r}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say after a failure how the same order is run again; pytest-randomly is optional."""
    seed = getattr(config.option, "randomly_seed", None)
    if seed is not None and {"failed", "error"} & terminalreporter.stats.keys():
        terminalreporter.write_line(f"The same order again: --randomly-seed={seed}")
