"""The table of evaluations: built-in ones, and those that other packages register.

A new evaluation needs a file here with its settings and its :class:`Evaluation`, a module in
``judging/`` with ``run``, and a line in :data:`BUILT_IN`. Another package registers its object in
the entry-point group ``saelens_adaptive_ortho.evaluations``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from saelens_adaptive_ortho.evaluations.absorption import ABSORPTION
from saelens_adaptive_ortho.evaluations.contract import (
    DOMAINS,
    Evaluation,
    Figure,
    Metric,
    Published,
    name_pattern,
)
from saelens_adaptive_ortho.evaluations.core import CORE
from saelens_adaptive_ortho.evaluations.ravel import RAVEL
from saelens_adaptive_ortho.evaluations.sae_probes import SAE_PROBES
from saelens_adaptive_ortho.evaluations.scr import SCR
from saelens_adaptive_ortho.evaluations.sparse_probing import SPARSE_PROBING
from saelens_adaptive_ortho.evaluations.subspace import SUBSPACE
from saelens_adaptive_ortho.evaluations.tpp import TPP
from saelens_adaptive_ortho.evaluations.training import TRAINING
from saelens_adaptive_ortho.evaluations.unlearning import UNLEARNING
from saelens_adaptive_ortho.plugins import Table
from saelens_adaptive_ortho.settings import check_one_of

__all__ = [
    "BUILT_IN",
    "DOMAINS",
    "GROUP",
    "Evaluation",
    "Figure",
    "Metric",
    "Published",
    "essential_keys",
    "evaluation",
    "find_runnable",
    "every",
    "glance_keys",
    "headline_keys",
    "in_order",
    "primary_keys",
    "runnable",
]

GROUP = "saelens_adaptive_ortho.evaluations"

#: The built-in evaluations, in the order of the report.
BUILT_IN: tuple[Evaluation, ...] = (
    CORE,
    SUBSPACE,
    UNLEARNING,
    SPARSE_PROBING,
    SAE_PROBES,
    ABSORPTION,
    TPP,
    SCR,
    RAVEL,
    TRAINING,
)
TABLE = Table(Evaluation, GROUP, BUILT_IN)


def every() -> dict[str, Evaluation]:
    """All evaluations by name: first the built-in ones, then those of other packages."""
    return TABLE.every()


def runnable() -> dict[str, Evaluation]:
    """The evaluations that judge a finished SAE."""
    return {name: e for name, e in every().items() if e.module}


def find_runnable(field: str, name: Any) -> Evaluation:
    """The evaluation of a finished SAE that the setting ``field`` names.

    Raises:
        ConfigError: there is none of that name, or the package that offers it cannot be used.
    """
    known = runnable()
    if isinstance(name, str) and name not in {*known, *TABLE.own} and name in TABLE.names():
        TABLE.find(field, name)  # raises, and says why
    check_one_of(field, name, known)
    return known[name]


def evaluation(name: str) -> Evaluation:
    """The evaluation ``name``. An unknown one gets a title, but no metrics and no verdict."""
    words = name.replace("_", " ")
    return every().get(name) or Evaluation(name, words[:1].upper() + words[1:])


def in_order(names: Iterable[str]) -> list[str]:
    """The distinct ``names``: known ones in the table's order, then others sorted by name."""
    present, known = set(names), every()
    return [n for n in known if n in present] + sorted(present - set(known))


def headline_keys(keys: Iterable[str]) -> list[str]:
    """The headline metrics among ``keys``, in the table's order."""
    return _among(keys, (key for e in every().values() for key in e.keys(e.headline)))


def glance_keys(keys: Iterable[str]) -> list[str]:
    """The few metrics that a terminal and the headline figure show, in the table's order."""
    return _among(keys, (key for e in every().values() for key in e.keys(e.glance)))


def essential_keys(keys: Iterable[str]) -> list[str]:
    """The metrics of the short table among ``keys``, in the table's order."""
    names = ((e, dict.fromkeys((*e.essential, *e.primary))) for e in every().values())
    return _among(keys, (key for e, wanted in names for key in e.keys(wanted)))


def primary_keys(keys: Iterable[str]) -> list[str]:
    """The primary metrics among ``keys``, in the table's order."""
    return _among(keys, (key for e in every().values() for key in e.keys(e.primary)))


def _among(keys: Iterable[str], wanted: Iterable[str]) -> list[str]:
    present, listed = list(dict.fromkeys(keys)), list(wanted)
    found: dict[str, None] = {}
    for key in listed:
        # A key without a placeholder comes in its own place.
        pattern = name_pattern(key)
        others = [k for k in present if k not in listed and pattern.fullmatch(k)]
        found |= dict.fromkeys([key] if key in present else others)
    return list(found)
