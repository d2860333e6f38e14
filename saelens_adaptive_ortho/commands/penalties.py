"""``adaptive-ortho penalties``: list the penalties and affinities of all installed packages."""

from __future__ import annotations

from saelens_adaptive_ortho.commands.options import Command, NoOptions
from saelens_adaptive_ortho.errors import ConfigError

SEPARATION = (
    "squared activations of latents that lean to the forget corpus, on retain text: "
    "1/B sum_{b in retain} sum_i (1 - alpha s_i) a_bi^2"
)


def run(_: NoOptions) -> int:
    """Print the tables of penalties and of affinities."""
    from saelens_adaptive_ortho.maths.affinity import AFFINITIES
    from saelens_adaptive_ortho.maths.penalties import PENALTIES

    for field, table in (("ortho_mode", PENALTIES), ("ortho_affinity", AFFINITIES)):
        print(f"{field}:")
        for name in table.names():
            try:
                print(f"  {name:<16}{table.find(field, name).help}")
            except ConfigError as error:  # one broken package must not hide the others
                print(f"  {name:<16}cannot be used: {error}")
    print("ortho_separation, beside any mode, with a forget and a retain corpus:")
    print(f"  {'L_sep':<16}{SEPARATION}")
    return 0


COMMAND = Command(
    name="penalties",
    help="List penalties and affinities, including those of other installed packages.",
    options=NoOptions,
    run=run,
)
