"""Objects that other packages add by entry point: penalties, affinities, evaluations."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import entry_points


@cache
def load(group: str, kind: type) -> dict[str, object]:
    """The objects of an entry-point group by name, from every installed package.

    An entry that cannot be loaded, or is no ``kind``, is left out with a warning that names it:
    a broken package must not break what works without it.

    Args:
        group: of entry points, such as ``saelens_adaptive_ortho.evaluations``.
        kind: what each entry must be an instance of.
    """
    found: dict[str, object] = {}
    for entry in sorted(entry_points(group=group), key=lambda e: (e.name, e.value)):
        try:
            value = entry.load()
        except Exception as error:  # whatever the other package does at import
            warnings.warn(_left_out(group, entry.name, entry.value, repr(error)), stacklevel=2)
            continue
        if not isinstance(value, kind):
            why = f"it is a {type(value).__name__}, not a {kind.__name__}"
            warnings.warn(_left_out(group, entry.name, entry.value, why), stacklevel=2)
            continue
        found.setdefault(entry.name, value)
    return found


def _left_out(group: str, name: str, value: str, why: str) -> str:
    return f"The entry point {name} = {value} of the group {group} is left out: {why}."
