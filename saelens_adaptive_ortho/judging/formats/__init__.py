"""Folders of SAEs that other libraries saved, read as SAEs of SAELens.

A format is a module of this folder with ``read(folder) -> Converted`` and a :class:`Format` in
:data:`FORMATS`. Another package registers its object in the entry-point group
``saelens_adaptive_ortho.formats``.

SAELens has readers for some of these libraries, but for the hub only. Its one reader of local
folders (sparsify) transposes the decoder, rounds to bfloat16 and subtracts ``b_dec`` by another
rule, so it is not used.

This module does not load torch, so the command line shows its help at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.plugins import Table

GROUP = "saelens_adaptive_ortho.formats"
HOST_FILES = ("cfg.json", "sae_weights.safetensors")


@dataclass(frozen=True)
class Format:
    """A kind of folder with one SAE.

    Args:
        name: name in the table.
        title: name of the library or the release, for the help.
        files: the files of such a folder, for the help.
        recognise: whether a folder is of this kind. It reads names of files and small JSON files,
            and it never raises.
        module: module with ``read(folder: Path) -> Converted`` (see ``formats.reading``). It is
            imported when an SAE is loaded.
    """

    name: str
    title: str
    files: str
    recognise: Callable[[Path], bool]
    module: str


def _has(*files: str) -> Callable[[Path], bool]:
    """A function that says whether a folder has one of these files."""
    return lambda folder: any((folder / name).is_file() for name in files)


def _is_lm_saes(folder: Path) -> bool:
    weights = any(folder.glob("sae_weights.*"))
    return weights and (folder / "config.json").is_file() and not (folder / "cfg.json").is_file()


def _is_open_sae(folder: Path) -> bool:
    """Whether the config is of an OpenSAE. Its files have the names of any model's files."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"feature_size", "input_hookpoint"} <= set(config)


_MODULES = "saelens_adaptive_ortho.judging.formats"

#: The formats of this package, in the order in which a folder is compared with them.
FORMATS: tuple[Format, ...] = (
    Format(
        "gemma_scope",
        "Gemma Scope",
        "params.npz",
        _has("params.npz"),
        f"{_MODULES}.gemma_scope",
    ),
    Format(
        "dictionary_learning",
        "dictionary_learning",
        "ae.pt, config.json",
        _has("ae.pt"),
        f"{_MODULES}.dictionary_learning",
    ),
    Format(
        "sparsify",
        "sparsify (EleutherAI)",
        "sae.safetensors, cfg.json",
        _has("sae.safetensors"),
        f"{_MODULES}.sparsify",
    ),
    Format(
        "lm_saes",
        "Llamascopium, lm-saes (OpenMOSS)",
        "sae_weights.safetensors, config.json",
        _is_lm_saes,
        f"{_MODULES}.lm_saes",
    ),
    Format(
        "open_sae",
        "OpenSAE (THU-KEG)",
        "model.safetensors, config.json",
        _is_open_sae,
        f"{_MODULES}.open_sae",
    ),
)
TABLE = Table(Format, GROUP, FORMATS)


def recognised(folder: Path) -> Format | None:
    """The format of a folder; None if SAELens saved it, or if it has no known format.

    Other packages are loaded only for a folder that is in none of our formats.
    """
    if not folder.is_dir() or all((folder / name).is_file() for name in HOST_FILES):
        return None
    for known in FORMATS:
        if known.recognise(folder):
            return known
    others = list(TABLE.every().values())[len(FORMATS) :]
    return next((other for other in others if other.recognise(folder)), None)


def titles() -> str:
    """The formats and their files, one a line."""
    rows = [("SAELens", ", ".join(reversed(HOST_FILES)))]
    rows += [(known.title, known.files) for known in TABLE.every().values()]
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"  {title:<{width}}  {files}" for title, files in rows)


def in_words() -> str:
    """The formats of other libraries and their files, in one line for an error."""
    rows = ((known.title, known.files.replace(", ", " and ")) for known in FORMATS)
    return "; ".join(f"{title}: {files}" for title, files in rows)
