"""``adaptive-ortho sweep``: every SAE of a sweep, on as many workers as there are."""

from __future__ import annotations

from dataclasses import dataclass, field

from saelens_adaptive_ortho.commands.options import Command


def _drivers() -> str:
    from saelens_adaptive_ortho.sweeps.drivers import TABLE

    kinds = TABLE.every().values()
    width = max(len(kind.form) for kind in kinds)
    lines = [f"  {kind.form:<{width}}  {kind.help}" for kind in kinds]
    return "where units run (--on):\n" + "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The sweep, and where it runs.

    Args:
        sweep: config with the key `sweep`, or the folder of a sweep that was started before.
        set: override a setting, e.g. --set sae.k=16. Of two values for one setting, the last one
            counts.
        on: where the units run, e.g. local:2 for two processes on this machine.
        tries: how many times a unit may lose its process before it counts as failed.
        stuck_after: kill a unit of this command whose log and folder have not changed for this
            many minutes (at least 5), and continue it from its last checkpoint. Training writes a
            line each minute, but a unit that loads a model, waits for the text that another one
            tokenises, or runs an evaluation of SAEBench may be silent for much longer. Without this
            option, a unit that hangs is waited for.
    """

    sweep: str = field(metadata={"positional": "SWEEP"})
    set: list[str] = field(default_factory=list, metadata={"metavar": "KEY=VALUE"})
    on: str = field(default="local:1", metadata={"metavar": "WHERE"})
    tries: int = 6
    stuck_after: float | None = field(default=None, metadata={"metavar": "MINUTES"})


def run(options: SweepOptions) -> int:
    """Do all units that are not whole, and write the report of the sweep."""
    from rich.console import Console

    from saelens_adaptive_ortho.errors import reject
    from saelens_adaptive_ortho.files import new_folders_removed
    from saelens_adaptive_ortho.sweeps.starting import open_sweep, run_sweep

    if options.tries < 1:
        raise reject("--tries", options.tries, "must be at least 1.")
    minutes = options.stuck_after
    if minutes is not None and not 5 <= minutes < float("inf"):
        rule = "must be at least 5 minutes: while it trains, a unit writes a line each minute."
        raise reject("--stuck-after", minutes, rule)
    opened = open_sweep(options.sweep, options.set)
    stuck_after = None if minutes is None else 60 * minutes
    with new_folders_removed([opened.folder]):
        return run_sweep(opened, options.on, options.tries, Console(), stuck_after)


COMMAND = Command(
    name="sweep",
    help="Train and judge every SAE of a sweep, on several GPUs or machines; then report.",
    options=SweepOptions,
    run=run,
    more=_drivers,
    resume="The same command continues.",
)
