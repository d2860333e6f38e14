"""The command line ``adaptive-ortho``. Each command is a module with its options and ``run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from saelens_adaptive_ortho.commands import (
    analyse,
    check,
    compare,
    configs,
    doctor,
    evaluations,
    fetch_model,
    fetch_text,
    judge,
    make_report,
    penalties,
    plan,
    sae_lens,
    synth,
    tables,
    train,
)
from saelens_adaptive_ortho.commands.options import Command, Parser, build_parser, run
from saelens_adaptive_ortho.errors import Explained

PROG = "adaptive-ortho"

#: The commands, in the order of the help.
COMMANDS: tuple[Command, ...] = (
    compare.COMMAND,
    train.COMMAND,
    judge.COMMAND,
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
    tables.COMMAND,
)


def parser() -> Parser:
    """The parser of the command line. It stores the chosen :class:`Command` as ``command``."""
    description = "Sparse autoencoders with adaptively orthogonal decoder directions."
    return build_parser(PROG, description, COMMANDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status.

    The status is 0 after success, 1 if an evaluation failed, 2 for bad input, and 130 after an
    interruption.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    host = argv[:1] == [sae_lens.COMMAND.name]  # SAELens parses its options
    args = None if host else parser().parse_args(argv)
    try:
        return sae_lens.run(argv[1:]) if args is None else run(args.command, args)
    except Explained as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        message = str(error) or "interrupted"
        print(f"{PROG}: {message}. {args.command.resume if args else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
