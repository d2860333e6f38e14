"""The command line ``adaptive-ortho``. Each command is a module with its options and ``run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from saelens_adaptive_ortho import __version__
from saelens_adaptive_ortho.commands import (
    analyse,
    browse,
    check,
    compare,
    completion,
    configs,
    demo,
    doctor,
    evaluations,
    export_merged,
    export_tasks,
    fetch_model,
    fetch_text,
    init,
    judge,
    make_report,
    penalties,
    plan,
    push,
    sae_lens,
    sweep,
    sweep_unit,
    synth,
    tables,
    train,
    unlearn,
)
from saelens_adaptive_ortho.commands.options import Command, Parser, build_parser, run
from saelens_adaptive_ortho.errors import Explained
from saelens_adaptive_ortho.progress import calm_bars
from saelens_adaptive_ortho.signals import Interrupted, stop_raises

PROG = "adaptive-ortho"
# PyTorch reads it at its first large tensor. With large pages of memory (Linux), a training step on
# a CPU takes a sixth less time.
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"

#: The commands, in the order of the help.
COMMANDS: tuple[Command, ...] = (
    demo.COMMAND,
    init.COMMAND,
    compare.COMMAND,
    train.COMMAND,
    sweep.COMMAND,
    judge.COMMAND,
    unlearn.COMMAND,
    export_merged.COMMAND,
    export_tasks.COMMAND,
    browse.COMMAND,
    push.COMMAND,
    analyse.COMMAND,
    synth.COMMAND,
    check.COMMAND,
    plan.COMMAND,
    doctor.COMMAND,
    configs.COMMAND,
    fetch_model.COMMAND,
    fetch_text.COMMAND,
    make_report.COMMAND,
    evaluations.COMMAND,
    penalties.COMMAND,
    sae_lens.COMMAND,
    sweep_unit.COMMAND,
    tables.COMMAND,
)


def parser() -> Parser:
    """The parser of the command line. It stores the chosen :class:`Command` as ``command``."""
    description = "Sparse autoencoders whose latents are kept apart adaptively."
    found = build_parser(PROG, description, COMMANDS)
    version = f"{PROG} {__version__}"
    found.add_argument("--version", action="version", version=version, help="show the version")
    found.add_argument(
        "--print-completion",
        action=completion.PrintCompletion,
        choices=completion.SHELLS,
        metavar="SHELL",
        help=f"print the completion for a shell: {', '.join(completion.SHELLS)}",
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status.

    The status is 0 after success, 1 if an evaluation failed, and 2 for bad input. After a signal it
    is 128 plus the number of the signal: 130 for INT, 143 for TERM, 129 for HUP.
    """
    os.environ.setdefault(LARGE_PAGES, "1")
    argv = list(sys.argv[1:] if argv is None else argv)
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            rule = "is not UTF-8 text. Give it in UTF-8."
            print(f"{PROG}: error: the argument {argument!a} {rule}", file=sys.stderr)
            return 2
    host = argv[:1] == [sae_lens.COMMAND.name]  # SAELens parses its options
    args = None if host else parser().parse_args(argv)
    try:
        if args is None or args.command.needs_sae_lens:
            # It registers the architectures, which the program has not done yet.
            import_module("saelens_adaptive_ortho.host.architectures")
        if args is None:
            return sae_lens.run(argv[1:])  # SAELens handles signals itself
        with stop_raises(), calm_bars():
            return run(args.command, args)
    except Explained as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        message = str(error) or "interrupted"
        _say_last(f"{PROG}: {message}. {args.command.resume if args else ''}".rstrip())
        return error.status if isinstance(error, Interrupted) else 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has what it wants
        _to_nowhere(sys.stdout)
        return 0
    except OSError as error:  # a file or folder that the user named, or may not use
        if error.filename is None or error.strerror is None:
            raise
        print(f"{PROG}: error: {error.filename!r}: {error.strerror}", file=sys.stderr)
        return 2


def _say_last(line: str) -> None:
    """Print a line at the end of an interrupted command. After SIGHUP, the terminal may be gone."""
    try:
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:
        _to_nowhere(sys.stderr)
        _to_nowhere(sys.stdout)


def _to_nowhere(stream: TextIO) -> None:
    """Send what is still in a stream to nowhere. Otherwise Python fails when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
