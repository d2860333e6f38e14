"""How a metric is presented: its label, its unit, and its better direction.

The key of a metric is ``{eval}/{name}``, for example ``core/pooled/explained_variance`` or
``subspace/principal_angle/mean_deg``. `describe` removes the corpus (``pooled``, ``forget``,
``retain``) from the name and looks it up among the metrics of the evaluation. If the name is not
there, it tries shorter and shorter prefixes, so that ``condition_number`` covers every group. A
number after an underscore is looked up as ``{n}`` and put into the label. An unknown key is shown
under its own name and has no direction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from saelens_adaptive_ortho.evaluations import DOMAINS, evaluation
from saelens_adaptive_ortho.evaluations.contract import Direction

_NUMBER = re.compile(r"(?<=_)\d+(?:\.\d+)?(?=[_/]|$)")


@dataclass(frozen=True)
class MetricInfo:
    """How to present the metric ``key``.

    ``qualifier`` names the corpus or group of the value; it is empty if there is none.
    ``direction`` is None if no direction is better. If the name contains a number, ``number`` is
    that number and ``template`` is the name with ``{n}`` in its place. ``margin`` and
    ``resolution`` are those of the :class:`~saelens_adaptive_ortho.evaluations.Metric`.
    """

    key: str
    name: str
    qualifier: str
    unit: str
    direction: Direction | None
    template: str = ""
    number: str = ""
    margin: float | None = None
    resolution: float | str | None = None

    @property
    def label(self) -> str:
        """Name and qualifier: ``explained variance, pooled``."""
        return f"{self.name}, {self.qualifier}" if self.qualifier else self.name

    @property
    def full_label(self) -> str:
        """The label, after the short name of the evaluation if it has one: ``TPP: score, ...``."""
        short = evaluation(self.key.split("/")[0]).short
        return f"{short}: {self.label}" if short else self.label

    @property
    def arrow(self) -> str:
        """``↑`` if higher is better, ``↓`` if lower is better, else an empty string."""
        return {"higher": "↑", "lower": "↓"}.get(self.direction or "", "")

    @property
    def margin_text(self) -> str:
        """``0.3 nats``; an empty string without a margin."""
        return "" if self.margin is None else f"{self.margin:g} {self.unit}".rstrip()

    def with_number(self, number: str) -> str:
        """Return the name with ``number`` in place of its number: ``score, 10 / 50 latents``."""
        return self.template.replace("{n}", number)


def describe(key: str) -> MetricInfo:
    """Return label, unit and direction of ``key`` (``{eval}/{name}``)."""
    parts = key.split("/")
    metrics = evaluation(parts[0]).metrics
    domain = ""
    if len(parts) > 2 and parts[1] in DOMAINS:
        domain = parts.pop(1)
    for length in range(len(parts), 1, -1):
        prefix = "/".join(parts[1:length])
        numbers = _NUMBER.findall(prefix)
        known = metrics.get(prefix) or metrics.get(_NUMBER.sub("{n}", prefix))
        if known is not None:
            n = numbers[0] if "{n}" in known.label else ""
            qualifier = ", ".join(part for part in (domain, *parts[length:]) if part)
            return MetricInfo(
                key,
                known.label.replace("{n}", n),
                qualifier.replace("+", " + "),
                known.unit,
                known.direction,
                known.label if n else "",
                n,
                known.margin,
                known.resolution,
            )
    name = " ".join(parts[1:] or parts).replace("_", " ")
    return MetricInfo(key, name, domain, "", None)
