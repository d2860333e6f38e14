"""A command is an object: its name, its options, and what runs it.

Options are a dataclass. A field is an option of the same name (``context_size`` is
``--context-size``); its type, its default and its help (the ``Args:`` of the class's docstring)
come from the dataclass alone. Metadata of a field:

- ``positional``: an argument without a flag; the value is its name in the usage line
- ``metavar``: the name of the value in the usage line

Bounds stand in the annotation, as everywhere (``settings``).

Nothing here loads torch: a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

import docstring_parser


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Args:
        name: as it is typed.
        help: a sentence.
        options: dataclass of its options.
        run: does the work; returns the exit status.
        resume: what a user can do after an interruption.
        more: text below the options in its help.
        commands: commands of its own, instead of options and ``run``.
    """

    name: str
    help: str
    options: type | None = None
    run: Callable[[Any], int] | None = None
    resume: str = ""
    more: Callable[[], str] | None = None
    commands: tuple[Command, ...] = ()


class Parser(argparse.ArgumentParser):
    """One line for an error, with the nearest option; text of the help that is made on demand."""

    def __init__(self, *args: Any, more: Callable[[], str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=_Formatter, **kwargs)
        self.more = more

    def format_help(self) -> str:
        if self.more is not None:
            self.epilog = self.more()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        # Here and not in the parser above: only this one knows what is near.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown: {' '.join(unknown)}.{self._nearest(unknown)}")
        return found, unknown

    def _nearest(self, unknown: Sequence[str]) -> str:
        known = [flag for action in self._actions for flag in action.option_strings]
        for word in unknown:
            flag = word.partition("=")[0]
            near = difflib.get_close_matches(flag, known, n=1) if flag.startswith("-") else []
            if near:
                return f" Did you mean {near[0]}?"
        return ""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


def build_parser(prog: str, description: str, commands: Sequence[Command]) -> Parser:
    """The parser of all commands; ``namespace.command`` is what was chosen."""
    parser = Parser(prog=prog, description=description)
    _add_commands(parser, commands)
    return parser


def _add_commands(parser: Parser, commands: Sequence[Command]) -> None:
    below = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands:
        sub = below.add_parser(
            command.name, help=command.help, description=command.help, more=command.more
        )
        sub.set_defaults(command=command)
        if command.commands:
            _add_commands(sub, command.commands)
        elif command.options is not None:
            add_options(sub, command.options)


def run(command: Command, namespace: argparse.Namespace) -> int:
    """Run a command with the options that were given.

    Raises:
        ConfigError: an option that cannot work.
    """
    assert command.run is not None
    assert command.options is not None
    given = {f.name: getattr(namespace, f.name) for f in fields(command.options)}
    return command.run(command.options(**given))


def add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """An option of the parser for each field of a dataclass."""
    hints = typing.get_type_hints(options)
    texts = field_help(options)
    for f in fields(options):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        given = default is not MISSING
        text = texts[f.name].replace("%", "%%")
        kind, many = _kind(hints[f.name])
        positional = f.metadata.get("positional")
        if positional is not None:
            number = "+" if many else "?" if given else None
            parser.add_argument(
                f.name, metavar=positional, type=kind, nargs=number, help=text, default=default
            )
            continue
        flag = f"--{f.name.replace('_', '-')}"
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
            continue
        if given and not many and default is not None:
            text = f"{text} (default: {default})"
        parser.add_argument(
            flag,
            type=kind,
            action="append" if many else "store",
            required=not given,
            default=default if given else None,
            metavar=f.metadata.get("metavar") or f.name.rpartition("_")[2].upper(),
            help=f"{text} (repeatable)" if many else text,
        )


def _kind(hint: Any) -> tuple[type, bool]:
    """The type of one value of an option, and whether there may be several."""
    if get_origin(hint) is list:
        return get_args(hint)[0], True
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    assert len(kinds) == 1
    assert kinds[0] in (bool, int, float, str, Path)
    return kinds[0], False


def field_help(cls: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say about each field, under ``Args:``."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base) or not base.__doc__:
            continue
        for param in docstring_parser.parse(base.__doc__).params:
            text = " ".join((param.description or "").split()).removesuffix(".")
            for name in param.arg_name.split(","):
                found[name.strip()] = re.sub(r"``(.*?)``", r"`\1`", text)
    return found


def paragraphs(text: str, indent: int, width: int = 96) -> str:
    """A text as lines that are indented from the second one on."""
    return textwrap.fill(" ".join(text.split()), width, subsequent_indent=" " * indent)


def say(line: str) -> None:
    """Print a line of progress without breaking a progress bar."""
    from tqdm.auto import tqdm

    tqdm.write(line)
