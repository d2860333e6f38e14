"""The configs that ship with the package, by name.

The repository has them in ``configs/``, and a wheel has them inside the package.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from saelens_adaptive_ortho.errors import reject

PACKAGE = Path(__file__).parents[1]


def shipped_configs() -> dict[str, Path]:
    """The files of the shipped configs by name, sorted by name."""
    inside = PACKAGE / "configs"
    folder = inside if inside.is_dir() else PACKAGE.parent / "configs"  # in a wheel: inside
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def described_configs() -> dict[str, str]:
    """The first line of each shipped config (a comment), by name."""
    return {
        name: path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        for name, path in shipped_configs().items()
    }


def find_config(path: str | Path) -> Path:
    """The file ``path``, or the shipped config of that name.

    An existing file takes precedence. Only a bare name (``demo``) stands for a shipped config.

    Raises:
        ConfigError: the file does not exist, and has the name of a shipped config, or is a bare
            name that no shipped config has.
    """
    path = Path(path)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if path.name == str(path) and path.name in shipped:
        return shipped[path.name]
    if path.stem in shipped and not path.exists():
        raise reject(
            "config",
            str(path),
            f"no such file. `adaptive-ortho config copy {path.stem}` writes {path.stem}.yaml, "
            f"which ships with the package; the bare name {path.stem} stands for it.",
        )
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    if path.name == str(path) and not path.exists() and (near or not path.suffix):
        hint = f" Did you mean {near[0]}?" if near else ""
        raise reject(
            "config", str(path), f"no such file, and no config of that name ships with it.{hint}"
        )
    return path  # reading it will raise the right error
