"""``adaptive-ortho penalties``: penalties and affinities, with those of installed packages."""

from __future__ import annotations

from dataclasses import dataclass

from saelens_adaptive_ortho.commands.options import Command
from saelens_adaptive_ortho.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PenaltiesOptions:
    """There are none."""


def run(_: PenaltiesOptions) -> int:
    """Print the tables of penalties and of affinities."""
    from saelens_adaptive_ortho.maths.affinity import AFFINITIES
    from saelens_adaptive_ortho.maths.penalties import PENALTIES

    for field, table in (("ortho_mode", PENALTIES), ("ortho_affinity", AFFINITIES)):
        print(f"{field}:")
        for name in table.names():
            try:
                print(f"  {name:<16}{table.find(field, name).help}")
            except ConfigError as error:  # of one package; the others are listed all the same
                print(f"  {name:<16}cannot be used: {error}")
    return 0


COMMAND = Command(
    name="penalties",
    help="List penalties and affinities, those of installed packages included.",
    options=PenaltiesOptions,
    run=run,
)
