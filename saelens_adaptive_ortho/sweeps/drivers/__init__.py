"""The kinds of drivers, by name. A driver starts units of a sweep somewhere (:mod:`.contract`)."""

from __future__ import annotations

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.plugins import Table
from saelens_adaptive_ortho.sweeps.drivers.contract import Driver, Kind, Needs
from saelens_adaptive_ortho.sweeps.drivers.local import LOCAL
from saelens_adaptive_ortho.sweeps.drivers.ray_cluster import RAY
from saelens_adaptive_ortho.sweeps.drivers.slurm import SLURM

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
        forms = [kind.form for kind in TABLE.own.values()]
        others = [name for name in TABLE.names() if name not in TABLE.own]
        raise reject("--on", on, f"must be one of {', '.join([*forms, *others])}.")
    return TABLE.find("--on", name).open(argument, needs)
