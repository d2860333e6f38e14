"""``adaptive-ortho``: the command line; each command is a module with its options and ``run``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from saelens_adaptive_ortho.commands import (
    analyse,
    check,
    compare,
    configs,
    evaluations,
    judge,
    make_report,
    penalties,
    sae_lens,
    synth,
    tables,
    train,
)
from saelens_adaptive_ortho.commands.options import Command, Parser, build_parser, run
from saelens_adaptive_ortho.errors import Explained

PROG = "adaptive-ortho"

#: In the order of the help.
COMMANDS: tuple[Command, ...] = (
    compare.COMMAND,
    train.COMMAND,
    judge.COMMAND,
    analyse.COMMAND,
    synth.COMMAND,
    check.COMMAND,
    configs.COMMAND,
    make_report.COMMAND,
    evaluations.COMMAND,
    penalties.COMMAND,
    sae_lens.COMMAND,
    tables.COMMAND,
)


def parser() -> Parser:
    """The parser of the command line; ``command`` is the chosen :class:`Command`."""
    description = "Sparse autoencoders with adaptively orthogonal decoder directions."
    return build_parser(PROG, description, COMMANDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit status: 0 done, 1 an evaluation failed, 2 bad input, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == [sae_lens.COMMAND.name]:  # its options are SAELens's to parse
        return sae_lens.run(argv[1:])
    args = parser().parse_args(argv)
    try:
        return run(args.command, args)
    except Explained as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        message = str(error) or "interrupted"
        print(f"{PROG}: {message}. {args.command.resume}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
