"""Tables of named objects: those of this package, then those of other installed packages.

A package offers an object through an entry point that has the name of the object::

    [project.entry-points."saelens_adaptive_ortho.penalties"]
    toy = "my_package.toy:TOY"

Other packages are loaded only when a name is looked up that this package does not have, and then
only the entry point of this name. A broken package therefore affects only its own names.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Protocol, TypeVar

from saelens_adaptive_ortho.errors import ConfigError, reject


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Table(Generic[T]):
    """Objects of one kind by name.

    Args:
        kind: class of the objects.
        group: entry point group in which other packages offer objects.
        own: the objects of this package. No other package can replace them.
    """

    def __init__(self, kind: type[T], group: str, own: Iterable[T]) -> None:
        self.kind, self.group = kind, group
        self.own: dict[str, T] = {one.name: one for one in own}
        self._loaded: dict[str, T] = {}
        self._every: dict[str, T] | None = None

    def names(self) -> list[str]:
        """All names, those of this package first. No other package is loaded."""
        return list(dict.fromkeys([*self.own, *(p.name for p in entry_points(group=self.group))]))

    def every(self) -> dict[str, T]:
        """All objects by name, those of this package first. Other packages are read once.

        An object is left out if it cannot be used or if this package has its name. A warning then
        names its package.
        """
        if self._every is None:
            every = dict(self.own)
            for point in entry_points(group=self.group):
                if point.name in self.own:
                    warnings.warn(
                        f"Left out of {self.group}: {point.name} = {point.value} of "
                        f"{_package(point)} has the name of one of ours.",
                        stacklevel=2,
                    )
            for name in self.names()[len(self.own) :]:
                try:
                    every[name] = self.find("name", name)
                except ConfigError as error:
                    warnings.warn(f"Left out of {self.group}: {error}", stacklevel=2)
            self._every = every
        return dict(self._every)

    def forget(self) -> None:
        """Forget the objects of other packages, because the packages may have changed."""
        self._loaded, self._every = {}, None

    def find(self, field: str, name: Any, also: Sequence[str] = ()) -> T:
        """The object that the setting ``field`` names.

        Args:
            field: name of the setting, for errors.
            name: value of the setting.
            also: other allowed values of the setting, for errors.

        Raises:
            ConfigError: the name is unknown (the message lists the known names and the nearest
                one), or the package that offers it cannot be used.
        """
        if isinstance(name, str):
            for known in (self.own, self._loaded):
                if name in known:
                    return known[name]
            offers = list(entry_points(group=self.group, name=name))
            if offers:
                self._loaded[name] = self._load(field, name, offers)
                return self._loaded[name]
        raise _unknown(field, name, [*also, *self.names()])

    def _load(self, field: str, name: str, offers: list[EntryPoint]) -> T:
        origins = [f"{p.name} = {p.value} of {_package(p)} (group {self.group})" for p in offers]
        if len(offers) > 1:
            all_origins = " and ".join(origins)
            rule = f"is offered more than once: {all_origins}. Uninstall all but one."
            raise reject(field, name, rule)
        remedy = "Repair or uninstall that package."
        try:
            found: Any = offers[0].load()
        except (Exception, SystemExit) as error:  # importing a package can raise anything
            why = f"{type(error).__name__}: {error}"
            raise reject(
                field, name, f"the entry point {origins[0]} cannot be loaded ({why}). {remedy}"
            ) from error
        if not isinstance(found, self.kind):
            what = f"gives a {type(found).__name__}, not a {self.kind.__name__}"
            raise reject(field, name, f"the entry point {origins[0]} {what}. {remedy}")
        if found.name != name:
            what = f"gives the {self.kind.__name__} {found.name!r}; both names must be equal"
            raise reject(field, name, f"the entry point {origins[0]} {what}. {remedy}")
        return found


def _package(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else point.dist.name


def _unknown(field: str, name: Any, known: Sequence[str]) -> Exception:
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return reject(field, name, f"must be one of {', '.join(known)}.{hint}")
