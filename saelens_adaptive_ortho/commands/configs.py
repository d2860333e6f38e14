"""``adaptive-ortho config``: list and copy the shipped configs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from saelens_adaptive_ortho.commands.options import Command, NoOptions
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.experiments.shipped import described_configs, shipped_configs
from saelens_adaptive_ortho.files import check_writable, write_failures_named, write_text_atomic
from saelens_adaptive_ortho.settings import parse_yaml


def copy_config(name: str, dest: str | Path = ".") -> list[Path]:
    """Copy a shipped config, and the files that it ``extends``, into a folder.

    A file that it extends may exist in the folder already, if its content is the same.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: the name is unknown, or a file is in the way. Nothing is written then.
        StorageError: a file could not be written.
    """
    shipped = shipped_configs()
    name = name.removesuffix(".yaml")
    if name not in shipped:
        near = difflib.get_close_matches(name, shipped, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise reject("NAME", name, f"no such config; known: {', '.join(shipped)}.{hint}")
    dest = Path(dest)
    if dest.exists() and not dest.is_dir():
        raise reject("DEST", str(dest), "is a file; name a folder.")
    sources = list(_with_extended(shipped[name]))
    texts = {dest / source.name: source.read_text(encoding="utf-8") for source in sources}
    for path, text in texts.items():
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        if path.exists() and not (same and path.stem != name):
            raise reject(
                "DEST",
                str(path),
                "is there already and is not overwritten. Remove it, or choose another folder.",
            )
    check_writable("DEST", dest)
    for path, text in texts.items():
        with write_failures_named(path, "Nothing was overwritten."):
            write_text_atomic(path, text)
    return list(texts)


def _with_extended(path: Path) -> Iterator[Path]:
    while True:
        yield path
        base = parse_yaml(path.read_text(encoding="utf-8"), str(path)).get("extends")
        if base is None:
            return
        path = path.parent / base


@dataclass(frozen=True, kw_only=True)
class CopyOptions:
    """The config to copy, and the folder.

    Args:
        name: name of a shipped config, e.g. demo.
        dest: folder for the copy; by default the working directory.
    """

    name: str = field(metadata={"positional": "NAME"})
    dest: Path = field(default=Path("."), metadata={"positional": "DEST"})


def run_list(_: NoOptions) -> int:
    """Print the name and the first line of each config."""
    described = described_configs()
    width = max(map(len, described))
    for name, text in described.items():
        print(f"{name:<{width}}  {text}")
    return 0


def run_copy(options: CopyOptions) -> int:
    """Copy the config, and print the paths of the files."""
    for path in copy_config(options.name, options.dest):
        print(path)
    return 0


COMMAND = Command(
    name="config",
    help="List the configs that ship with the package, or copy one with the files that it extends.",
    commands=(
        Command(
            name="list",
            help="Show the name and the first line of each.",
            options=NoOptions,
            run=run_list,
            needs_sae_lens=False,
        ),
        Command(
            name="copy",
            help="Write NAME.yaml and the files that it extends.",
            options=CopyOptions,
            run=run_copy,
            needs_sae_lens=False,
        ),
    ),
)
