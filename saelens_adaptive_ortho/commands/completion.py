"""``adaptive-ortho --print-completion SHELL``: completion of commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")
EXTRA = "saelens-adaptive-ortho[completion]"


class PrintCompletion(argparse.Action):
    """Print the completion for a shell, and exit. The package ``shtab`` writes it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        try:
            import shtab  # pyright: ignore[reportMissingImports]  # an extra
        except ModuleNotFoundError:
            parser.error(f"--print-completion needs the package 'shtab': pip install '{EXTRA}'")
        for action in _actions(parser):
            if action.type in (str, Path):  # most texts name a file or a folder
                vars(action)["complete"] = shtab.FILE
        print(shtab.complete(parser, values))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
