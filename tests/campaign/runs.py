"""A small ``compare`` in a folder of its own, and what it leaves there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.report.page import run as page
from saelens_adaptive_ortho.settings import dump_yaml
from saelens_adaptive_ortho.text import models
from saelens_adaptive_ortho.text.activation_cache import FOLDER_VARIABLE
from tests.campaign.processes import Ended, in_child
from tests.tiny import BATCH, Tiny


@dataclass(frozen=True)
class Run:
    """A comparison that writes only below ``root``: its run folder, and cached activations."""

    config: Path
    root: Path
    log: Path

    def compare(self, before: Callable[[], None] = lambda: None) -> Ended:
        """Run the command in a child that calls ``before`` first."""

        def work() -> int:
            before()
            return main(["compare", str(self.config)])

        return in_child(work, self.log)


def small_run(
    tiny: Tiny,
    settings: Callable[..., dict[str, Any]],
    model: Any,
    folder: Path,
    patch: pytest.MonkeyPatch,
    **changes: Any,
) -> Run:
    """Two variants, one seed, six steps, checkpoints and cached activations.

    The model is the one in memory, and no figure is drawn, so that a run takes about a second.
    """
    run = Run(folder / "small.yaml", folder / "work", folder / "log")
    tree = settings(
        variants={"fixed": {"ortho_mode": "fixed"}, "adaptive": {}},
        output_path=str(run.root / "run"),
        training_tokens=6 * BATCH,
        n_checkpoints=2,
        ortho_cache_activations=True,
        ortho_holdout_contexts=4,
        evals={"subspace": {"n_contexts": 4}},
        **changes,
    )
    run.config.write_text(dump_yaml(tree))
    patch.setenv(FOLDER_VARIABLE, str(run.root / "cache"))
    patch.setattr(models, "load_language_model", lambda *args, **named: model)
    patch.setattr(page, "run_figures", lambda *args: {})
    return run


def content(root: Path) -> dict[str, Any]:
    """Every file and folder below ``root``: its bytes, or its JSON without what tells the time."""
    return {str(p.relative_to(root)): _read(p) for p in sorted(root.rglob("*"))}


def _read(path: Path) -> Any:
    if path.is_dir():
        return "folder"
    if path.suffix == ".html":
        return "page"  # it shows times
    data = path.read_bytes()
    if path.suffix != ".json":
        return data
    try:
        return _without_times(json.loads(data))
    except ValueError:  # it is damaged
        return data


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not _timed(k)}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _timed(key: str) -> bool:
    """Whether a value changes with the duration of a run, as the sum of a result does."""
    return "seconds" in key or key == "sha256"


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of files that are missing, too many, or different."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]
