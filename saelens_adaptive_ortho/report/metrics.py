"""How a metric is presented: its label, its unit, and its better direction.

The key of a metric is ``{eval}/{name}``, for example ``core/pooled/explained_variance`` or
``subspace/principal_angle/mean_deg``. `describe` removes the corpus (``pooled``, ``forget``,
``retain``, or any corpus if the evaluation is ``by_corpus``) from the name and looks it up among
the metrics of the evaluation. If the name is not there, it tries shorter and shorter prefixes, so
that ``condition_number`` covers every group. A number after an underscore is looked up as ``{n}``,
the name of a corpus as ``{corpus}``, and both are put into the label. An unknown key is shown under
its own name and has no direction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from saelens_adaptive_ortho.evaluations import DOMAINS, evaluation
from saelens_adaptive_ortho.evaluations.contract import Direction, Metric, name_pattern

_NUMBER = re.compile(r"(?<=_)\d+(?:\.\d+)?(?=[_/]|$)")


@dataclass(frozen=True)
class MetricInfo:
    """How to present the metric ``key``.

    ``qualifier`` names the corpus or group of the value; it is empty if there is none.
    ``direction`` is None if no direction is better. If the name contains a number, ``number`` is
    that number and ``template`` is the name with ``{n}`` in its place.
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

    def with_number(self, number: str) -> str:
        """Return the name with ``number`` in place of its number: ``score, 10 / 50 latents``."""
        return self.template.replace("{n}", number)


def describe(key: str) -> MetricInfo:
    """Return label, unit and direction of ``key`` (``{eval}/{name}``)."""
    parts = key.split("/")
    info = evaluation(parts[0])
    domain = ""
    if len(parts) > 2 and (info.by_corpus or parts[1] in DOMAINS):
        domain = parts.pop(1)
    for length in range(len(parts), 1, -1):
        known, n = _known(info.metrics, "/".join(parts[1:length]))
        if known is not None:
            n = n if "{n}" in known.label else ""
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


def _known(metrics: Mapping[str, Metric], name: str) -> tuple[Metric | None, str]:
    """The metric of this name, and the number in the name.

    In the label of the metric, the name of a corpus replaces ``{corpus}``.
    """
    numbers = _NUMBER.findall(name)
    for template in (name, _NUMBER.sub("{n}", name)):
        if template in metrics:
            return metrics[template], numbers[0] if numbers else ""
    for template, metric in metrics.items():
        match = name_pattern(template).fullmatch(name) if "{corpus}" in template else None
        if match is not None:
            named = metric._replace(label=metric.label.replace("{corpus}", match["corpus"]))
            return named, match.groupdict().get("n") or ""
    return None, ""
