"""Settings of all tests: shape checks, one thread, tiers by folder, and builders of tiny SAEs."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# nohup, which may have started these tests, lets a process ignore SIGHUP, and a shell that starts
# them in the background SIGINT.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# What a shell sets decides no test. It is removed before a library reads it. Nothing is read from
# the caches of the user or written there.
FOREIGN = re.compile(
    r"(HF|HUGGING\w*|TRANSFORMERS|DATASETS|WANDB|TQDM|MPL\w*|XDG_CACHE|\w*COLOR)(_.*)?|.*_proxy",
    re.IGNORECASE,
)
for name in filter(FOREIGN.fullmatch, list(os.environ)):
    del os.environ[name]
CACHES = tempfile.TemporaryDirectory(prefix="adaptive-ortho-tests-")
os.environ.update(
    HF_HOME=f"{CACHES.name}/huggingface",
    ADAPTIVE_ORTHO_CACHE=f"{CACHES.name}/adaptive-ortho",
    COLUMNS="80",
    # The command line sets it. So tests before and after its first call have the same.
    THP_MEM_ALLOC_ENABLE="1",
)

SHAPED_MODULES = (
    "maths.directions",
    "maths.penalties",
    "maths.neighbours",
    "maths.coactivation",
    "maths.affinity",
    "maths.grouping",
    "maths.schedule",
    "maths.geometry",
    "maths.switches",
    "maths.similar_pairs",
    "maths.frontier",
    "maths.erasure",
    "synthetic.worlds",
    "synthetic.pool",
    "synthetic.selectivity",
)

# Every test checks the shapes in the signatures of these modules. The hook has to be installed
# before they are imported.
install_import_hook(
    [f"saelens_adaptive_ortho.{name}" for name in SHAPED_MODULES],
    # An int is accepted as a float, because configs may say `ortho_alpha: 1`.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
torch.set_num_threads(1)

# The same examples in every run, however long a busy machine takes for one of them. Other examples
# are tried with --hypothesis-profile=search.
hypothesis.settings.register_profile(
    "search", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "repeatable", hypothesis.settings.get_profile("search"), derandomize=True
)
hypothesis.settings.load_profile("repeatable")

pytest_plugins = ["tests.tiny", "tests.packages", "tests.state"]

# The fast tier leaves out the tests of these folders and files (see the Makefile). A single slow
# test has its own mark.
TIERS = {
    "text/hub": "hub",
    "evals": "studies",
    "judging/saebench": "saebench",
    "host/test_compile.py": "compile",
}
# Each worker imports torch, which takes about 0.7 GB.
MOST_WORKERS = 8

D_IN, D_SAE, K = 16, 64, 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of a folder of :data:`TIERS` with its tier."""
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here)
        for folder, mark in TIERS.items():
            if place.is_relative_to(folder):
                item.add_marker(mark)


def pytest_xdist_auto_num_workers() -> int:
    """Return the workers of ``-n auto``: one for each core that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def _build_cfg(architecture: str, **overrides: Any) -> Any:
    """Return a tiny config of any registered training architecture, stock or ours."""
    from sae_lens.registry import get_sae_training_class

    import saelens_adaptive_ortho  # noqa: F401  registers our architectures

    fields: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
    if "topk" in architecture:
        fields["k"] = K
    if "matryoshka" in architecture:
        fields["matryoshka_widths"] = [16, D_SAE]
    if architecture.startswith("adaptive_ortho_"):
        fields |= {"ortho_neighbours": 8, "ortho_sketch_size": 32, "ortho_refresh_every": 10}
    return get_sae_training_class(architecture)[1](**(fields | overrides))


def _build_sae(architecture: str, seed: int = 0, **overrides: Any) -> Any:
    """Return the SAE of :func:`_build_cfg`, with weights drawn from ``seed``."""
    from sae_lens.registry import get_sae_training_class

    cfg = _build_cfg(architecture, **overrides)
    torch.manual_seed(seed)
    return get_sae_training_class(architecture)[0](cfg)


@pytest.fixture(scope="session")
def build_cfg() -> Callable[..., Any]:
    return _build_cfg


@pytest.fixture(scope="session")
def build_sae() -> Callable[..., Any]:
    return _build_sae
