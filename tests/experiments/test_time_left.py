"""A comparison says how long the evaluations will take that are left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.experiments.comparison import Comparison
from saelens_adaptive_ortho.experiments.experiment import build_experiment
from saelens_adaptive_ortho.results import Result
from tests.report.runs import put

SAES = [(variant, seed) for seed in (0, 1) for variant in ("baseline", "adaptive")]


@pytest.mark.parametrize(
    ("core", "subspace", "said"),
    [
        ([], [], None),
        ([60.0], [40.0], "3 SAEs, about 5.0 min or less in all"),
        ([60.0, 10.0], [40.0, 20.0], "2 SAEs, about 60 s in all"),
        # The longest time is left out, also if it is not the first one.
        ([10.0, 60.0, 14.0], [20.0, 40.0, 20.0], "1 SAE, about 32 s in all"),
        ([60.0, 10.0], [40.0], "3 SAEs, about 2.3 min or less in all"),
        ([60.0, None], [], "2 SAEs, about 2.0 min or less in all"),
        ([60.0, 1.0], [], None),  # too short to be said
        ([60.0, 10.0, 10.0, 10.0], [], None),
    ],
)
def test_what_all_saes_share_counts_once(
    settings: Callable[..., dict[str, Any]],
    tmp_path: Path,
    core: list[float | None],
    subspace: list[float],
    said: str | None,
) -> None:
    tree = settings(
        variants={"baseline": {"ortho_mode": "off"}, "adaptive": {}},
        seeds=[0, 1],
        evals={"core": {}, "subspace": {}},
        output_path=str(tmp_path),
    )
    for name, took in (("core", core), ("subspace", subspace)):
        for (variant, seed), seconds in zip(SAES, took, strict=False):
            put(tmp_path, Result(name, variant, seed, seconds=seconds))
    lines: list[str] = []
    Comparison(build_experiment(tree), say=lines.append).say_time_left()
    assert lines == ([] if said is None else [f"Evaluations left: {said} (training is not in it)"])
