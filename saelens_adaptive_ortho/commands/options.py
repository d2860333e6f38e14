"""A command is an object with a name, options, and a function that runs it.

The options are a dataclass. Each field is an option of the same name: ``context_size`` is
``--context-size``. The dataclass alone gives its type, its default, and its help (the ``Args:`` of
the docstring). A field may have this metadata:

- ``positional``: the option is an argument without a flag; the value is its name in the usage line
- ``metavar``: the name of the option's value in the usage line

Bounds are part of the annotation, as in all settings (``settings``).

This module does not load torch. A command imports what it needs when it runs.
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
        name: name on the command line.
        help: a sentence for the help.
        options: dataclass of the command's options.
        run: function that does the work and returns the exit status.
        resume: advice for the user after an interruption.
        more: function that returns a text for the end of the help.
        commands: subcommands, instead of options and ``run``.
        needs_sae_lens: whether SAELens must know the architectures. A command that only reads files
            of results or settings starts faster without it.
    """

    name: str
    help: str
    options: type | None = None
    run: Callable[[Any], int] | None = None
    resume: str = ""
    more: Callable[[], str] | None = None
    commands: tuple[Command, ...] = ()
    needs_sae_lens: bool = True


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The command has no options."""


class Parser(argparse.ArgumentParser):
    """A parser with one-line errors that suggest the nearest option, and a lazy end of the help."""

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
        # The parent parser would report the error, but only this parser knows the near options.
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
    """The parser of all commands. It stores the chosen command as ``namespace.command``."""
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
    """Run a command with the given options.

    Raises:
        ConfigError: an option cannot work.
    """
    assert command.run is not None
    assert command.options is not None
    given = {f.name: getattr(namespace, f.name) for f in fields(command.options)}
    return command.run(command.options(**given))


class _Once(argparse.Action):
    """An option with one value. A second one is an error: it would silently replace the first."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        given: set[str] = namespace.__dict__.setdefault("given_once", set())
        if self.dest in given:
            raise argparse.ArgumentError(self, "is given twice; give it once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """Add an option to the parser for each field of a dataclass."""
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
            action="append" if many else _Once,
            required=not given,
            default=default if given else None,
            metavar=f.metadata.get("metavar") or f.name.rpartition("_")[2].upper(),
            help=f"{text} (repeatable)" if many else text,
        )


def _kind(hint: Any) -> tuple[type, bool]:
    """The type of an option's value, and whether the option may have several values."""
    if get_origin(hint) is list:
        return get_args(hint)[0], True
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    assert len(kinds) == 1
    assert kinds[0] in (bool, int, float, str, Path)
    return kinds[0], False


def field_help(cls: type) -> dict[str, str]:
    """The help of each field, from the ``Args:`` of a dataclass's docstring and of its bases."""
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
    """``text``, wrapped; all lines but the first one are indented."""
    return textwrap.fill(" ".join(text.split()), width, subsequent_indent=" " * indent)


def say(line: str) -> None:
    """Print a line of progress without breaking a progress bar."""
    from tqdm.auto import tqdm

    tqdm.write(line)
