"""How a metric is presented: its label, its unit, and which way is better.

A metric's key is ``{eval}/{name}``, for example ``core/pooled/explained_variance`` or
``subspace/principal_angle/mean_deg``. `describe` looks the name up among the metrics of its
evaluation after taking out the corpus (``pooled``, ``forget``, ``retain``), and falls back on ever
shorter prefixes, so that ``condition_number`` covers every group. A number after an underscore is
looked up as ``{n}`` and put into the label. An unknown key is shown under its own name and has no
direction.
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

    ``qualifier`` names the corpus or group the value belongs to ("" where there is none);
    ``direction`` is None where neither way is better. ``template`` is the name with ``{n}`` for
    ``number``, where it has one.
    """

    key: str
    name: str
    qualifier: str
    unit: str
    direction: Direction | None
    template: str = ""
    number: str = ""

    @property
    def label(self) -> str:
        """Name with its qualifier: ``explained variance, pooled``."""
        return f"{self.name}, {self.qualifier}" if self.qualifier else self.name

    @property
    def full_label(self) -> str:
        """The label with the evaluation before it where it needs one: ``TPP: score, ...``."""
        short = evaluation(self.key.split("/")[0]).short
        return f"{short}: {self.label}" if short else self.label

    @property
    def arrow(self) -> str:
        """``↑`` where higher is better, ``↓`` where lower is, else an empty string."""
        return {"higher": "↑", "lower": "↓"}.get(self.direction or "", "")

    def with_number(self, number: str) -> str:
        """The name with other text in the place of its number: ``score, 10 / 50 latents``."""
        return self.template.replace("{n}", number)


def describe(key: str) -> MetricInfo:
    """Label, unit and direction of ``key`` (``{eval}/{name}``)."""
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
            )
    name = " ".join(parts[1:] or parts).replace("_", " ")
    return MetricInfo(key, name, domain, "", None)
