"""The manifest of a sweep: its axes, its SAEs, and the units of work that train and judge them.

It is one JSON file in the sweep's folder, ``sweep.json``. Every worker and the report read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.checksums import breaks_seal
from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import write_sealed

MANIFEST = "sweep.json"
UNITS = "units"  # folder of the units' folders
VERSION = 1
REMEDY = "`adaptive-ortho sweep CONFIG` writes it again."


@dataclass(frozen=True)
class Point:
    """One SAE of a sweep.

    Args:
        id: digest of all settings that decide what it learns.
        variant: its name in the comparison of its unit.
        base: the variant of the config that it comes from; empty if the config has none.
        seed: its seed.
        values: its value on each axis, by the axis's name. An axis whose field the variant itself
            sets is not there.
    """

    id: str
    variant: str
    base: str
    seed: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """SAEs that one process trains together and judges: a comparison in a folder of its own.

    Args:
        name: digest of its SAEs.
        label: model, hook and seed in words.
        points: its SAEs. They have the same model, hook, text and seed.
        settings: its experiment, as a tree of settings without ``output_path``.
        memory: bytes that its SAEs need at the very least.
        size: a number that grows with its time: weights times tokens.
    """

    name: str
    label: str
    points: Sequence[Point]
    settings: Mapping[str, Any]
    memory: int
    size: float


@dataclass(frozen=True)
class Manifest:
    """A sweep.

    Args:
        name: name of the config.
        axes: the values of each axis, by the name of its field, in the order of the config. The
            last one is ``seed``.
        units: the units of work.
        cwd: working directory of the command that made the sweep; relative paths start there. The
            home folder is written ``~``.
        config: text of the config, with everything that it extends.
        copy_to: URL where a copy of each finished unit is kept; empty for none.
    """

    name: str
    axes: Mapping[str, Sequence[Any]]
    units: Sequence[Unit]
    cwd: str = ""
    config: str = ""
    copy_to: str = ""
    version: int = field(default=VERSION)

    def unit(self, name: str) -> Unit:
        """The unit of this name.

        Raises:
            ConfigError: there is none.
        """
        for unit in self.units:
            if unit.name == name:
                return unit
        names = ", ".join(unit.name for unit in self.units[:8])
        more = f" and {len(self.units) - 8} more (see {MANIFEST})" if len(self.units) > 8 else ""
        raise reject("UNIT", name, f"the sweep has no such unit. It has {names}{more}.")

    @property
    def points(self) -> list[tuple[Unit, Point]]:
        """All SAEs, each with its unit."""
        return [(unit, point) for unit in self.units for point in unit.points]


def unit_folder(sweep: Path, unit: str) -> Path:
    """The folder of a unit's comparison."""
    return sweep / UNITS / unit


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / MANIFEST).is_file()


def write_manifest(sweep: Path, manifest: Manifest) -> None:
    """Write the manifest atomically.

    Raises:
        StorageError: it could not be written.
    """
    write_sealed(sweep / MANIFEST, asdict(manifest))


def read_manifest(sweep: Path) -> Manifest:
    """The manifest of a sweep.

    Raises:
        ConfigError: there is none, it is damaged, or another version of the package wrote it.
    """
    path = sweep / MANIFEST
    try:
        return parse_manifest(path.read_bytes(), "SWEEP", str(path))
    except FileNotFoundError:
        rule = f"holds no {MANIFEST}. `adaptive-ortho sweep CONFIG` starts a sweep and writes it."
        raise reject("SWEEP", str(sweep), rule) from None
    except OSError as error:
        raise reject("SWEEP", str(path), f"cannot be read ({error}). {REMEDY}") from error


def parse_manifest(raw: bytes, field: str, where: str) -> Manifest:
    """The manifest in the content of its file.

    Args:
        raw: the content.
        field: the setting that names the place, for errors.
        where: the file.

    Raises:
        ConfigError: it is damaged, or another version of the package wrote it.
    """
    try:
        text = raw.decode()
        found = json.loads(text)
        if not isinstance(found, dict) or breaks_seal(text, found):
            raise ValueError("it is not as it was written")
        if found["version"] != VERSION:
            rule = f"is a sweep of version {found['version']}; this program reads {VERSION}."
            raise reject(field, where, f"{rule} {REMEDY}")
        return _built(found)
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise reject(field, where, f"cannot be read ({error}). {REMEDY}") from error


def _built(found: Mapping[str, Any]) -> Manifest:
    units = [
        Unit(**{**unit, "points": [Point(**point) for point in unit["points"]]})
        for unit in found["units"]
    ]
    words = (found["cwd"], found["config"], found.get("copy_to", ""))
    return Manifest(found["name"], found["axes"], units, *words)
