"""The costs of a comparison in words: what a plan expects, and what a training has taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saelens_adaptive_ortho.experiments.experiment import Experiment
from saelens_adaptive_ortho.report.formatting import counted, duration
from saelens_adaptive_ortho.results import ResultError, load_results
from saelens_adaptive_ortho.training.costs import Costs, Taken
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig
from saelens_adaptive_ortho.training.sharded.costs import ShardedCosts, Term

TOPIC = 13  # characters of a topic before its words


def together(experiment: Experiment, costs: Sequence[Costs]) -> str:
    """The costs of all hooks, in words. The model reads each text once for all of them."""
    seeds, cached = len(experiment.seeds), experiment.runner.ortho_cache_activations
    read = max(one.activation_seconds for one in costs)
    alone = [replace(one, activation_seconds=0.0).seconds(seeds) for one in costs]
    reading = replace(costs[0], step_seconds={}, activation_seconds=read).seconds(seeds, cached)
    disk = sum(one.export * seeds + one.checkpoints + one.cache for one in costs)
    return f"training {duration(sum(alone) + reading)}, disk {gb(disk)}"


def described(experiment: Experiment, costs: Costs) -> dict[str, str]:
    """The costs in words, by topic."""
    cfg, seeds = experiment.runner, len(experiment.seeds)
    n = len(costs.step_seconds) * seeds
    cached = cfg.ortho_cache_activations
    steps = ", ".join(f"{name} {1e3 * s:,.0f} ms" for name, s in costs.step_seconds.items())
    d_in, widest = cfg.sae.d_in, max(costs.parameters.values())
    disk = f"{gb(costs.export * seeds)} for SAEs, up to {gb(costs.checkpoints)} for checkpoints"
    if cached:
        disk += f", {gb(costs.cache)} for cached activations that are not there yet"
    return {
        "model": f"{cfg.model_name}, {cfg.hook_name}, width {d_in:,}",
        "SAEs": f"{n} ({counted(len(costs.step_seconds), 'variant')} x {counted(seeds, 'seed')}), "
        f"{cfg.sae.d_sae:,} latents, up to {widest / 1e6:,.1f} M parameters",
        "steps": f"{costs.steps:,} of {costs.batch:,} tokens for each SAE",
        "a step": f"{steps}; the model's batch {1e3 * costs.activation_seconds:,.0f} ms",
        "speed": f"{costs.tokens_per_second:,.0f} tokens/s, from text to all SAEs of a seed",
        "training": f"{duration(costs.seconds())} for a seed, "
        f"{duration(costs.seconds(seeds, cached))} for all",
        "memory": f"{gb(costs.memory + costs.buffer)} at the peak, of which {gb(costs.buffer)} "
        "for shuffled activations",
        "disk": disk,
        "evaluations": evaluations_in_words(experiment),
    }


def sharded_in_words(cfg: AdaptiveOrthoRunnerConfig, costs: ShardedCosts) -> dict[str, str]:
    """The costs of an SAE that is divided among processes in words, by topic."""
    steps = -(-cfg.training_tokens // cfg.train_batch_size_tokens)
    checkpoints = costs.checkpoints * costs.checkpoint
    disk = f"{gb(costs.export)} for the SAE, up to {gb(checkpoints)} for checkpoints"
    if checkpoints:
        disk += f" ({costs.checkpoints} of {gb(costs.checkpoint)})"
    memory = [f"at most {gb(costs.peak)} a card; of what is for a moment, only the largest counts"]
    memory += [f"{gb(term.size):>9}  {term.what}: {term.how}" for term in costs.memory]
    exchanged = [f"at most {gb(costs.per_step)} a card and step, on average"]
    exchanged += [
        f"{gb(term.size):>9}  {_when(term)}{term.what}: {term.how}" for term in costs.exchanged
    ]
    return {
        "model": f"{cfg.model_name}, {cfg.hook_name}, width {cfg.sae.d_in:,}",
        "SAE": f"{cfg.sae.d_sae:,} latents in {costs.processes} processes, "
        f"{costs.latents:,} (n) each",
        "steps": f"{steps:,} of {cfg.train_batch_size_tokens:,} tokens",
        "memory": _indented(memory),
        "exchanged": _indented(exchanged),
        "host": f"about {gb(costs.host)} of memory for each process at the start, where weights "
        "are drawn",
        "disk": disk,
        "time": "not estimated: it depends on the cards and on what connects them",
    }


def sharded_table(costs: ShardedCosts, exchanged: bool = False) -> str:
    """The memory of a card, or what a card exchanges, as a table in markdown."""
    if exchanged:
        rows = [(f"{_when(t)}{t.what}", t.how, gb(t.size)) for t in costs.exchanged]
        rows.append(("**together, at most**", "a step, on average", f"**{gb(costs.per_step)}**"))
        head = "| what | how | a card |"
    else:
        rows = [(t.what, t.how, gb(t.size)) for t in costs.memory]
        how = "what is there for a moment is not there at once"
        rows.append(("**together, at most**", how, f"**{gb(costs.peak)}**"))
        head = "| what | formula | size |"
    return "\n".join([head, "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def _when(term: Term) -> str:
    return "" if term.every == 1 else f"every {_ordinal(term.every)} step: "


def _ordinal(n: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th") if n % 100 not in (11, 12, 13) else "th"
    return f"{n}{ending}"


def _indented(lines: Sequence[str]) -> str:
    """Lines below each other, beside the topic."""
    return f"\n{'':{TOPIC}}".join(lines)


def evaluations_in_words(experiment: Experiment) -> str:
    """How long the evaluations will take, from the SAEs that are evaluated already.

    Nothing is estimated without such an SAE: the time depends on model, vocabulary, settings and
    data of the evaluation, and on what it keeps for the next SAE.
    """
    if not experiment.evals:
        return "none"
    n = len(experiment.variants) * len(experiment.seeds)
    took = _evaluation_seconds(experiment)
    estimated = [
        f"{name} {duration(sum(seconds) / len(seconds) * n)}" for name, seconds in took.items()
    ]
    unknown = [name for name in experiment.evals if name not in took]
    parts = []
    if estimated:
        done = max(map(len, took.values()))
        finished = f"{counted(done, 'finished SAE')} in {experiment.runner.output_path}"
        parts.append(f"{', '.join(estimated)} for {counted(n, 'SAE')}, estimated from {finished}")
    if unknown:
        parts.append(
            f"{', '.join(unknown)} not estimated (no SAE of this folder is evaluated yet); often "
            "they take longer than the training. compare says the time after the first SAE"
        )
    return "; ".join(parts)


def _evaluation_seconds(experiment: Experiment) -> dict[str, list[float]]:
    """Seconds of each evaluation, for every SAE of the run folder that has its result."""
    root, took = experiment.runner.output_path, dict[str, list[float]]()
    if root is None or not (Path(root) / "results").is_dir():
        return took
    try:
        results = load_results(root, list(experiment.variants))
    except ResultError:  # no result yet, or a damaged one, which compare will name
        return took
    for result in (r for r in results if r.ok and r.eval in experiment.evals):
        if result.seconds is not None:
            took.setdefault(result.eval, []).append(result.seconds)
    return took


def taken_in_words(taken: Taken) -> str:
    """What a training has cost, in the words of the plan."""
    total, n = sum(taken.seconds.values()), len(taken.seconds) - 1
    names = {"activations": "the model"}
    parts = ", ".join(
        f"{names.get(name, name)} {seconds / total:.0%}" for name, seconds in taken.seconds.items()
    )
    return (
        f"{taken.tokens:,} tokens in {duration(total)}, {taken.tokens_per_second:,.0f} tokens/s "
        f"from text to {'the SAE' if n == 1 else f'{n} SAEs'} ({parts})"
    )


def gb(size: int) -> str:
    """Bytes in GB, MB or kB, rounded to three digits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
