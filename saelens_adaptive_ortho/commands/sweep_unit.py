"""``adaptive-ortho sweep-unit``: one unit of a sweep, as its drivers start it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path

from saelens_adaptive_ortho.commands.options import Command, say


@dataclass(frozen=True, kw_only=True)
class SweepUnitOptions:
    """The unit.

    Args:
        sweep: folder of the sweep.
        unit: name of the unit, as in its sweep.json.
        ticket: text that identifies the task; by default a new one.
    """

    sweep: Path = field(metadata={"positional": "SWEEP"})
    unit: str = field(metadata={"positional": "UNIT"})
    ticket: str = ""


def run(options: SweepUnitOptions) -> int:
    """Do the unit, unless it is whole or another process does it."""
    from saelens_adaptive_ortho.sweeps.working import do_unit

    ticket = options.ticket or uuid.uuid4().hex
    return do_unit(options.sweep.absolute(), options.unit, ticket, say=say)


COMMAND = Command(
    name="sweep-unit",
    help="Do one unit of a sweep, as a worker of `sweep` does; for batch systems and by hand.",
    options=SweepUnitOptions,
    run=run,
    resume="The same command continues.",
)
