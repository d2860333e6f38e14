"""Train and judge the many runs of a sweep, in one or several processes.

Each finished run is a line in the file of its stage; finished runs are skipped. The stages are:

* ``coarse`` tries every setting with one seed;
* ``final`` compares baseline, fixed at its best coefficient, and adaptive at its defaults, over
  several seeds and world seeds;
* ``transfer`` makes the same comparison in worlds with other parameters;
* ``width`` makes the same comparison with other numbers of latents;
* ``separation`` compares the two halves of the penalty, in domains worlds where forgetting costs.

The best coefficient is that of the coarse results. The stage ``separation`` does not use it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm.auto import tqdm

from evals.compact import append_run, read_runs
from evals.synthetic.tables import ONE_WORLD, SEPARATION_METRICS
from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import (
    StorageError,
    check_writable,
    read_cached,
    remove_litter_of,
    write_sealed,
)
from saelens_adaptive_ortho.host.config import (
    DEFAULT_SEPARATION,
    OrthoOrdering,
    OrthoWeighting,
    ortho_coefficient,
)
from saelens_adaptive_ortho.locks import run_lock
from saelens_adaptive_ortho.maths.affinity import AFFINITIES
from saelens_adaptive_ortho.progress import progress
from saelens_adaptive_ortho.signals import Interrupted, stop_raises
from saelens_adaptive_ortho.synthetic.pool import load_pool
from saelens_adaptive_ortho.synthetic.run import BASES, Run, build_run, execute, parse_settings
from saelens_adaptive_ortho.synthetic.worlds import WORLDS

ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
LAMBDAS = {
    "fixed": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "gram": (0.1, 1.0, 10.0),  # larger, as most pairs in its mean are nearly orthogonal
    "adaptive": (0.1, 0.3, 1.0, 3.0),
}
WIDTH_FACTORS = (0.5, 1.0, 2.0)
CHOICES = {
    "affinity": tuple(AFFINITIES.own),
    "weighting": get_args(OrthoWeighting),
    "ordering": get_args(OrthoOrdering),
}
TRANSFER: dict[str, tuple[dict[str, Any], ...]] = {
    "hierarchy": ({"world": {"exponent": 0.3}}, {"world": {"exponent": 0.8}}, {"k": 4}, {"k": 9}),
    "cluster": (
        {"world": {"cosine": 0.2}},
        {"world": {"cosine": 0.6}},
        {"world": {"feature_exponent": 0.3}},
        {"k": 4},
        {"k": 9},
    ),
    "domains": (
        {"world": {"cosine": 0.25}},
        {"world": {"cosine": 0.75}},
        {"world": {"exponent": 0.2}},
        {"k": 3},
        {"k": 6},
    ),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"mode": "off"},
    "fixed": {"mode": "fixed"},
    "directions": {"mode": "adaptive", "ortho_separation": 0.0},
    "groups": {"mode": "off", "ortho_separation": DEFAULT_SEPARATION},
    "adaptive": {"mode": "adaptive"},
}
"""Mode and SAE settings of each variant of the stage ``separation``."""
SEPARATION_WORLDS: tuple[dict[str, float], ...] = (
    {"pairs": 48, "cosine": 0.8, "leak": 0.1},
    {"pairs": 48, "cosine": 0.7, "leak": 0.1, "partner_rate": 0.2},
    {"pairs": 48, "cosine": 0.8, "leak": 0.2, "partner_rate": 0.2},
    {"pairs": 48, "cosine": 0.9, "leak": 0.3, "partner_rate": 0.2},
)
"""Domains worlds in which one latent serves nearly every pair, so that forgetting costs."""
TRANSFER_WORLD_SEED = 10  # not used by other stages
DEFAULT_WORLDS = ("hierarchy", "cluster", "domains")
COST = 0.005
"""Largest loss of explained variance that is allowed when the coefficient of fixed is chosen."""
DEFAULT_BASES = ("batchtopk", "matryoshka_batchtopk")
SEEDS = (0, 1, 2, 3, 4)
WORLD_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Args:
        run: settings of the run.
        method: baseline, fixed, fixed_one, gram or adaptive, or a name in :data:`VARIANTS`; a
            line in the figures.
        axis: the setting that differs from the defaults of the method or the world, or "".
    """

    run: Run
    method: str
    axis: str = ""

    @property
    def name(self) -> str:
        """Name of the run in its stage; runs with different settings have different names."""
        run = self.run
        parts = [run.world.name, run.base, self.method]
        parts += [self.axis] if self.axis else []
        parts += [f"w{run.world.seed}", f"s{run.seed}", run.digest()[:8]]
        return "__".join(parts)


class SweepError(RuntimeError):
    """Some runs failed, and the others are finished."""


# --------------------------------------------------------------------- stages


def coarse_jobs(
    worlds: Sequence[str],
    bases: Sequence[str],
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> list[Job]:
    """Return the jobs of the coarse stage: every mode with each of its lambdas.

    The first base also has each choice, alpha and schedule of adaptive, one at a time. A choice
    that equals the default is not run twice.
    """
    jobs = []
    for world in worlds:
        for base in bases:

            def job(
                method: str, axis: str = "", world: str = world, base: str = base, **sae: Any
            ) -> Job:
                mode = "off" if method == "baseline" else method
                run = build_run(world, base, mode, seed, {**(settings or {}), **sae})
                return Job(run, method, axis)

            default = job("adaptive")
            jobs += [job("baseline"), default]
            changed = [
                job(method, f"lambda={x:g}", ortho_coefficient=x)
                for method, grid in LAMBDAS.items()
                for x in grid
            ]
            if base == bases[0]:
                changed += [job("adaptive", f"alpha={x:g}", ortho_alpha=x) for x in ALPHAS]
                for axis, choices in CHOICES.items():
                    field = f"ortho_{axis}"
                    changed += [job("adaptive", f"{axis}={x}", **{field: x}) for x in choices]
                changed += [
                    job("adaptive", f"schedule={name}", **sae)
                    for name, sae in _schedules(default.run).items()
                ]
            jobs += [j for j in changed if j.run.digest() != default.run.digest()]
    return jobs


def _schedules(run: Run) -> dict[str, dict[str, Any]]:
    steps, coefficient = run.train.steps, ortho_coefficient(run.sae)
    return {
        "warm_up": {"ortho_warm_up_steps": steps // 5},
        "curriculum": {
            "ortho_curriculum_start": coefficient / 10,
            "ortho_curriculum_steps": steps // 2,
        },
        "fade": {"ortho_fade_start_step": steps // 2, "ortho_fade_end_step": 4 * steps // 5},
    }


def final_jobs(
    worlds: Sequence[str],
    bases: Sequence[str],
    best: Callable[[str, str], float],
    seeds: Sequence[int] = SEEDS,
    world_seeds: Sequence[int] = WORLD_SEEDS,
    settings: dict[str, Any] | None = None,
) -> list[Job]:
    """Return the jobs of the final stage: three methods on all seeds and world seeds.

    The methods are baseline, fixed at ``best(world, base)``, and adaptive at its defaults. Worlds
    other than :data:`ONE_WORLD` also have ``fixed_one``: fixed with the coefficient that is best in
    :data:`ONE_WORLD`. It stands for a user who does not know which world the data resemble.
    """
    jobs = []
    for world in worlds:
        for base in bases:
            for world_seed in world_seeds:
                for seed in seeds:
                    fixed = {"fixed": best(world, base)}
                    if world != ONE_WORLD:
                        fixed["fixed_one"] = best(ONE_WORLD, base)
                    jobs += _methods(world, base, fixed, seed, world_seed, settings)
    return jobs


def width_jobs(
    worlds: Sequence[str],
    bases: Sequence[str],
    best: Callable[[str, str], float],
    seeds: Sequence[int] = SEEDS[:3],
    settings: dict[str, Any] | None = None,
) -> list[Job]:
    """Return jobs of the three methods with half, once and twice the usual number of latents."""
    jobs = []
    for world in worlds:
        default = WORLDS[world]().training["d_sae"]
        for base in bases:
            for factor in WIDTH_FACTORS:
                for seed in seeds:
                    sae = {**(settings or {}), "d_sae": int(default * factor)}
                    fixed = {"fixed": best(world, base)}
                    jobs += _methods(world, base, fixed, seed, None, sae)
    return jobs


def transfer_jobs(
    worlds: Sequence[str],
    bases: Sequence[str],
    best: Callable[[str, str], float],
    seeds: Sequence[int] = SEEDS[:2],
    settings: dict[str, Any] | None = None,
) -> list[Job]:
    """Return jobs of the three methods in worlds with other parameters.

    The coefficients are those that were tuned in the unchanged world.
    """
    jobs = []
    for world in worlds:
        for change in TRANSFER.get(world, ()):
            label = _label({**change, **change.get("world", {})})
            changed = {**(settings or {}), **change}
            changed["world"] = {**(settings or {}).get("world", {}), **change.get("world", {})}
            for base in bases:
                fixed = {"fixed": best(world, base)}
                for seed in seeds:
                    group = _methods(world, base, fixed, seed, TRANSFER_WORLD_SEED, changed)
                    jobs += [dataclasses.replace(job, axis=label) for job in group]
    return jobs


def separation_jobs(
    bases: Sequence[str],
    variants: Sequence[str],
    seeds: Sequence[int] = SEEDS[:2],
    settings: dict[str, Any] | None = None,
) -> list[Job]:
    """Return jobs of the named variants in each of :data:`SEPARATION_WORLDS`."""
    jobs = []
    for world in SEPARATION_WORLDS:
        axis = _label({k: v for k, v in world.items() if k != "pairs"})
        for base in bases:
            for seed in seeds:
                for name in variants:
                    changed = {**(settings or {}), **VARIANTS[name]}
                    changed["world"] = {**world, **changed.get("world", {})}
                    run = build_run("domains", base, changed.pop("mode"), seed, changed)
                    jobs.append(Job(run, name, axis))
    return jobs


def _label(changes: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in changes.items() if k != "world")


def _methods(
    world: str,
    base: str,
    fixed: dict[str, float],
    seed: int,
    world_seed: int | None,
    settings: dict[str, Any] | None,
) -> list[Job]:
    """Return jobs of baseline, fixed and adaptive that are equal in all other settings.

    ``fixed`` gives the coefficient of each variety of fixed, by method name.
    """
    common = dict(settings or {})
    if world_seed is not None:
        common["world"] = {**common.get("world", {}), "seed": world_seed}
    jobs = [Job(build_run(world, base, "off", seed, common), "baseline")]
    for method, coefficient in fixed.items():
        changed = {**common, "ortho_coefficient": coefficient}
        jobs.append(Job(build_run(world, base, "fixed", seed, changed), method))
    return [*jobs, Job(build_run(world, base, "adaptive", seed, common), "adaptive")]


def score(result: dict[str, Any]) -> float:
    """Return the score that decides which coefficient is best.

    It is the mean of F1 and MCC, and in the domains world the area of the selectivity frontier.
    """
    if "selectivity_area" in result:
        return result["selectivity_area"]
    return (result["f1"] + result["mcc"]) / 2


def best_coefficient(
    results: Sequence[dict[str, Any]], world: str, base: str, mode: str = "fixed"
) -> float:
    """Return the coefficient with the highest :func:`score` among the coarse results.

    Only results that lose at most :data:`COST` of explained variance against the baseline count.
    Adaptive has to meet the same bound. If every coefficient loses more, the one that loses least
    is best.

    Raises:
        ConfigError: there are no coarse results of the mode, or none of the baseline.
    """
    of_world = [
        r
        for r in results
        if (r["settings"]["world"]["name"], r["settings"]["base"]) == (world, base)
    ]
    baselines = [r["explained_variance"] for r in of_world if r["settings"]["mode"] == "off"]
    found = [r for r in of_world if r["settings"]["mode"] == mode]
    if not found or not baselines:
        raise reject(
            "stage",
            "final",
            f"no coarse results of mode {mode} and of the baseline, world {world}, base {base}; "
            "run the coarse stage first, or give --fixed-coefficient.",
        )
    least = sum(baselines) / len(baselines) - COST
    affordable = [r for r in found if r["explained_variance"] >= least] or [
        max(found, key=lambda r: r["explained_variance"])
    ]
    return float(max(affordable, key=score)["settings"]["sae"]["ortho_coefficient"])


# -------------------------------------------------------------------- running

METRICS = (
    "mcc",
    "f1",
    "precision",
    "recall",
    "uniqueness",
    "explained_variance",
    "l0",
    "dead_latents",
    "mean_max_cosine",
    "selectivity_area",
    *SEPARATION_METRICS,
    "training_seconds",
)
"""Metrics of a run that are kept in the file of its stage, if the run has them."""
SAE_SETTINGS = ("d_sae", "k", "ortho_coefficient", "ortho_alpha")
"""Settings of the SAE that are kept; the digest in the name of the run covers all settings."""


def compact(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Return a run as it stands in the file of its stage.

    It holds the place in the sweep and the values that tables and figures use.
    """
    settings = result["settings"]
    kept: dict[str, Any] = {"name": job.name, "method": job.method, "axis": job.axis}
    kept |= {name: result[name] for name in METRICS if name in result}
    kept["settings"] = {
        **{name: settings[name] for name in ("world", "base", "mode", "seed")},
        "sae": {name: settings["sae"][name] for name in SAE_SETTINGS if name in settings["sae"]},
    }
    if "domains" in result:
        shown = ("frontier", "references")
        kept["domains"] = {name: result["domains"][name] for name in shown}
    return kept


def load_results(path: str | Path) -> list[dict[str, Any]]:
    """Return the runs in the file of a stage, sorted by name; an empty list if there is no file.

    Raises:
        ConfigError: a line is not a result.
    """
    by_name: dict[str, dict[str, Any]] = {}
    for result in read_runs(path):
        if "name" not in result or "world" not in (result.get("settings") or {}):
            raise reject("results", str(path), "a line of it is not a result; delete that line.")
        by_name[result["name"]] = result
    return [by_name[name] for name in sorted(by_name)]


def run_jobs(
    jobs: Sequence[Job],
    out: str | Path,
    cache: str | Path,
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run the jobs that have no line in the file ``out`` yet, and return the results of all jobs.

    The name of a run depends on all its settings. So the same call continues a killed sweep, and a
    run with a changed setting is a new run. The folder named like ``out`` without its suffix holds
    checkpoints, and finished results until they are moved to ``out``. Each run uses one thread.

    Raises:
        ConfigError: the number of workers is not positive, or a folder cannot be written.
        SweepError: some runs failed; it is raised when the others are done.
    """
    if not isinstance(workers, int) or workers < 1:
        raise reject("--workers", workers, "must be a whole number of at least 1.")
    out = Path(out)
    work = out.with_suffix("")
    check_writable("--out", work)
    check_writable("--cache", cache)
    for path in sorted(work.glob("[!.]*.json")):  # results that a killed sweep did not move
        _collect(path, out)
    unique = {job.name: job for job in jobs}
    finished = {result["name"] for result in load_results(out)}
    pending = {n: j for n, j in unique.items() if n not in finished}
    say(f"{len(unique)} runs, {len(unique) - len(pending)} finished already.")
    foreign = finished - set(unique)
    if foreign:
        say(f"{out} also holds {len(foreign)} results that are not of these settings.")
    # Pools are drawn here, one after the other: two workers would draw the same pool twice.
    worlds = {(j.run.world, j.run.pool): j.run for j in pending.values()}
    for run in worlds.values():
        load_pool(run.world, cache, run.pool)
    failed: dict[str, str] = {}
    with progress(
        total=len(unique), initial=len(unique) - len(pending), desc="Runs", leave=True
    ) as bar:
        for name, error in _outcomes(pending, work, cache, workers):
            if error is not None:
                failed[name] = error
                say(f"{name} failed: {error}")
            else:
                _collect(work / f"{name}.json", out)
            bar.update()
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(pending)} runs failed (first: {next(iter(failed.values()))}). "
            "The same command runs them again."
        )
    with contextlib.suppress(OSError):  # not empty if another sweep uses it, too
        work.rmdir()
    return [result for result in load_results(out) if result["name"] in unique]


def _collect(path: Path, out: Path) -> None:
    """Move a finished run from its own file into ``out``.

    If the process is killed in between, the run is in both. A damaged file is deleted with a
    warning, and the run is done again.
    """
    result = read_cached(path)  # None if another sweep of the same stage has moved it
    if isinstance(result, dict):
        append_run(out, result)
    path.unlink(missing_ok=True)


def _outcomes(
    pending: dict[str, Job], work: Path, cache: str | Path, workers: int
) -> Iterator[tuple[str, str | None]]:
    if workers == 1:
        for name, job in pending.items():
            yield name, _run_one(job, work, cache)
        return
    with (
        _quiet_children(),
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor,
    ):
        futures = {executor.submit(_run_one, j, work, cache): n for n, j in pending.items()}
        try:
            for future in as_completed(futures):
                error = future.exception()
                yield futures[future], future.result() if error is None else repr(error)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


@contextmanager
def _quiet_children() -> Iterator[None]:
    """Switch off the progress bars of child processes, which would overwrite each other.

    tqdm reads the environment variable when it is imported.
    """
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


def _run_one(job: Job, work: Path, cache: str | Path) -> str | None:
    """Run a job and write its result; return the error as text, or None."""
    torch.set_num_threads(1)
    out = work / f"{job.name}.json"
    try:
        with run_lock("run", out, "a sweep"):
            remove_litter_of(out)
            result = execute(job.run, cache, work / f"{job.name}.checkpoint")
            write_sealed(out, compact(job, result))
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


# --------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Exit status: 0 done, 1 runs failed, 2 bad input, 128 plus its number after a signal.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["coarse", "final", "transfer", "width", "separation"])
    parser.add_argument(
        "--out", default="evals/synthetic/results", help="results go to OUT/STAGE.jsonl"
    )
    parser.add_argument("--cache", default="runs/synthetic_pools")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--worlds", default=",".join(DEFAULT_WORLDS))
    parser.add_argument("--bases", default=",".join(DEFAULT_BASES))
    parser.add_argument(
        "--seeds", default=None, help="comma-separated; default: those of the stage"
    )
    parser.add_argument("--world-seeds", default=",".join(map(str, WORLD_SEEDS)), help="final only")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="separation only")
    parser.add_argument("--fixed-coefficient", type=float, help="instead of the best one")
    parser.add_argument("--only", default="", help="run only jobs whose name contains this")
    parser.add_argument("--list", action="store_true", help="list the runs, run nothing")
    parser.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[])
    args = parser.parse_args(argv)
    try:
        jobs = [j for j in _jobs(args) if args.only in j.name]
        if args.list:
            print("\n".join(job.name for job in jobs))
            return 0
        out = Path(args.out) / f"{args.stage}.jsonl"
        with stop_raises():
            run_jobs(jobs, out, args.cache, args.workers, tqdm.write)
    except (ConfigError, StorageError, SweepError) as error:
        print(f"sweep: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, SweepError) else 2
    except KeyboardInterrupt as error:
        print("sweep: interrupted. The same command continues.", file=sys.stderr)
        return error.status if isinstance(error, Interrupted) else 130
    return 0


def _jobs(args: argparse.Namespace) -> list[Job]:
    worlds, bases = args.worlds.split(","), args.bases.split(",")
    variants = args.variants.split(",")
    for field, given, known in (
        ("--worlds", worlds, WORLDS),
        ("--bases", bases, BASES),
        ("--variants", variants, VARIANTS),
    ):
        for name in given:
            if name not in known:
                raise reject(field, name, f"must be among {', '.join(known)}.")
    settings = parse_settings(args.set)
    if args.stage == "coarse":
        return [
            job
            for seed in _numbers("--seeds", args.seeds or "0")
            for job in coarse_jobs(worlds, bases, seed, settings)
        ]
    if args.stage == "separation":
        seeds = _numbers("--seeds", args.seeds or ",".join(map(str, SEEDS[:2])))
        return separation_jobs(bases, variants, seeds, settings)
    coarse = load_results(Path(args.out) / "coarse.jsonl")

    def best(world: str, base: str) -> float:
        if args.fixed_coefficient is not None:
            return args.fixed_coefficient
        return best_coefficient(coarse, world, base)

    for stage, jobs, count in (("width", width_jobs, 3), ("transfer", transfer_jobs, 2)):
        if args.stage == stage:
            seeds = _numbers("--seeds", args.seeds or ",".join(map(str, SEEDS[:count])))
            return jobs(worlds, bases, best, seeds, settings)
    seeds = _numbers("--seeds", args.seeds or ",".join(map(str, SEEDS)))
    world_seeds = _numbers("--world-seeds", args.world_seeds)
    return final_jobs(worlds, bases, best, seeds, world_seeds, settings)


def _numbers(field: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise reject(field, text, "must be whole numbers with commas between.") from error


if __name__ == "__main__":
    sys.exit(main())
