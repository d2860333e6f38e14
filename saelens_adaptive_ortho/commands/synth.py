"""``adaptive-ortho synth``: train one SAE on a synthetic world, and measure what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.settings import Seed, check_fields


@dataclass(frozen=True, kw_only=True)
class SynthOptions:
    """The world, the SAE, and the output file.

    Args:
        world: name of the world: hierarchy, cluster, domains, or synthsaebench16k.
        json: output file for the metrics.
        base: architecture: standard, topk, batchtopk, jumprelu, or matryoshka_batchtopk.
        mode: penalty: off, gram, fixed, adaptive, or a penalty of another installed package.
        alpha: ortho_alpha, the sharing allowed.
        coefficient: ortho_coefficient, lambda.
        seed: seed of the initial weights and of the order of samples.
        world_seed: seed of the world and its samples.
        scale: divide the sizes of synthsaebench16k by this number.
        cache: folder of sample pools; each pool is drawn once.
        checkpoint_every: number of steps between checkpoints.
        set: set a field of the SAE, or world.FIELD, train.FIELD, pool.FIELD, e.g. --set k=8
            --set ortho_affinity=overlap --set world.cosine=.6 --set train.steps=1000.
    """

    world: str
    json: Path = field(metadata={"metavar": "OUT"})
    base: str = "batchtopk"
    mode: str = "adaptive"
    alpha: float | None = None
    coefficient: float | None = None
    seed: Seed = 0
    world_seed: Seed | None = None
    scale: PositiveInt | None = None
    cache: Path = field(default=Path("runs/synthetic_pools"), metadata={"metavar": "FOLDER"})
    checkpoint_every: PositiveInt = field(default=5000, metadata={"metavar": "STEPS"})
    set: list[str] = field(default_factory=list, metadata={"metavar": "FIELD=VALUE"})

    def __post_init__(self) -> None:
        check_fields(self, prefix="--")


def run(options: SynthOptions) -> int:
    """Train the SAE, measure it, write the metrics and show them."""
    from rich.console import Console
    from rich.table import Table

    from saelens_adaptive_ortho.errors import reject
    from saelens_adaptive_ortho.files import check_writable, remove_litter_of, write_sealed
    from saelens_adaptive_ortho.locks import run_lock
    from saelens_adaptive_ortho.synthetic.run import build_run, execute, parse_settings

    world_run = build_run(
        options.world, options.base, options.mode, options.seed, _settings(options, parse_settings)
    )
    out = options.json
    if out.is_dir():
        raise reject("--json", str(out), "is a folder. Name a file in it.")
    check_writable("--json", out.parent)
    check_writable("--cache", options.cache)
    checkpoints = out.with_name(f"{out.name}.checkpoint")
    with run_lock("--json", out, "adaptive-ortho synth"):
        remove_litter_of(out)
        result = execute(world_run, options.cache, checkpoints, options.checkpoint_every)
        write_sealed(out, result)
    table = Table("metric", "value")
    for name, value in result.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4g}")
    Console().print(table)
    say(f"Saved: {out}")
    return 0


def _settings(options: SynthOptions, parse: Any) -> dict[str, Any]:
    """The tree of settings of ``--set``, overridden by settings with their own option."""
    settings: dict[str, Any] = parse(options.set)
    by_option = {"ortho_alpha": options.alpha, "ortho_coefficient": options.coefficient}
    settings |= {name: value for name, value in by_option.items() if value is not None}
    for name, value in (("seed", options.world_seed), ("scale", options.scale)):
        if value is not None:
            settings.setdefault("world", {})[name] = value
    return settings


COMMAND = Command(
    name="synth",
    help="Train one SAE on a synthetic world, and measure how well it finds the true features.",
    options=SynthOptions,
    run=run,
    resume="The same command continues at the last checkpoint, if there is one.",
)
