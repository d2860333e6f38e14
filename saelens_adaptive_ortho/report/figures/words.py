"""What a page says about a point of an unlearning figure when the pointer is on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from saelens_adaptive_ortho.report.formatting import MINUS, capital, number, value_decimals
from saelens_adaptive_ortho.results import Result

#: The name of a metric that reads a frontier: its part, damage or accuracy, and the limit.
_READING = re.compile(r"(?P<part>\w+)/forget_(?P<kind>damage|accuracy)_at_(?P<limit>[\d.]+)")


def value(found: float, unit: str = "") -> str:
    """Three significant figures and the unit."""
    return f"{number(found, value_decimals([found], figures=3))} {unit}".rstrip()


def sae_words(variant: str, seed: int) -> str:
    """The name of an SAE."""
    return f"{variant}, seed {seed}"


def interventions(result: Result, part: str) -> list[str]:
    """What each point of a part of the frontiers does to the model; empty texts if unknown.

    Results of earlier versions do not hold it.
    """
    n = len(result.details.get("points", {}).get(part, []))
    found = result.details.get("interventions", {}).get(part, [])
    return [_intervention(one, part) for one in found] if len(found) == n else [""] * n


def _intervention(found: Sequence[Any], part: str) -> str:
    """In words: number of latents or directions, strength, and gate."""
    n, strength, gate = found
    if part == "bounded":
        return f"{n} directions, {strength:.0%} removed everywhere"
    where = "no gate" if gate is None else f"gate {gate:.1%} of the tokens"
    times = f"{MINUS}{strength:.3g} \N{MULTIPLICATION SIGN}"
    return f"{n} latents clamped at {times} their mean activation, {where}"


def damages(part: str, x: float, y: float) -> str:
    """The forget and retain damage of a point, or the accuracies."""
    if part == "mcq":
        return f"forget accuracy {value(y)}, retain accuracy {value(x)}"
    return f"forget damage {value(y, 'nats')}, retain damage {value(x, 'nats')}"


def best_within(result: Result, name: str) -> str:
    """The measured point that comes closest to a reading of a frontier, in words.

    Args:
        result: result of the unlearning evaluation.
        name: name of the metric, such as ``token/forget_damage_at_0.10``.

    Returns:
        The words; empty if the metric is no such reading, or no point is known.
    """
    reading = _READING.fullmatch(name)
    if reading is None:
        return ""
    part, limit = reading["part"], float(reading["limit"])
    accuracy = reading["kind"] == "accuracy"
    points = result.details.get("points", {}).get(part, [])
    allowed = [
        (y if accuracy else -y, x, y, words)
        for (x, y), words in zip(points, interventions(result, part), strict=True)
        if words and (x >= limit if accuracy else x <= limit)
    ]
    if not allowed:
        return ""
    _, x, y, words = min(allowed)
    return f"Best measured setting: {words}\n{capital(damages(part, x, y))}"
