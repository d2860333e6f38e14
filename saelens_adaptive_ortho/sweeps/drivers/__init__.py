"""The kinds of drivers, by name. A driver starts units of a sweep somewhere (:mod:`.contract`)."""

from __future__ import annotations

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.plugins import Table
from saelens_adaptive_ortho.sweeps.drivers.contract import Driver, Kind, Needs
from saelens_adaptive_ortho.sweeps.drivers.local import LOCAL
from saelens_adaptive_ortho.sweeps.drivers.ray_cluster import RAY
from saelens_adaptive_ortho.sweeps.drivers.slurm import SLURM

EXAMPLE = "--on local:2"
GROUP = "saelens_adaptive_ortho.drivers"
KINDS = (LOCAL, RAY, SLURM)
TABLE = Table(Kind, GROUP, KINDS)


def find_driver(on: str, needs: Needs) -> Driver:
    """The driver that ``--on NAME:ARGUMENT`` names.

    Raises:
        ConfigError: there is no such kind, or it cannot work here with this argument.
    """
    name, _, argument = on.partition(":")
    if name not in TABLE.names():
        forms = [f"{kind.form} ({kind.help})" for kind in TABLE.own.values()]
        others = [f"{name} (of another package)" for name in TABLE.names() if name not in TABLE.own]
        rule = f"{name!r} is no kind of place. Give {EXAMPLE}, for example. Known: "
        raise reject("--on", on, f"{rule}{', '.join([*forms, *others])}.")
    return TABLE.find("--on", name).open(argument, needs)
