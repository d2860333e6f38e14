"""The costs of a comparison in words: what a plan expects, and what a training has taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saelens_adaptive_ortho.experiments.experiment import Experiment
from saelens_adaptive_ortho.report.formatting import duration
from saelens_adaptive_ortho.results import ResultError, load_results
from saelens_adaptive_ortho.training.costs import Costs, Taken


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
        "SAEs": f"{n} ({_number(len(costs.step_seconds), 'variant')} x {_number(seeds, 'seed')}), "
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
        finished = f"{_number(done, 'finished SAE')} in {experiment.runner.output_path}"
        parts.append(f"{', '.join(estimated)} for {_number(n, 'SAE')}, estimated from {finished}")
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
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _number(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
