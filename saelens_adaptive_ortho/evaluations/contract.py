"""What an evaluation is: its name, help text, settings, needs, metrics and figures, in one object.

The object says what is measured and how it is shown; ``module`` measures it. So the report and the
command line know every evaluation without torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Direction = Literal["higher", "lower"]

SEED = 42  # of every evaluation; SAEBench's own default
AUTO = "auto"  # a source of data that depends on the model
SAE_BENCH = ("sae_bench",)
EXTRAS = {"sae_bench": "'saelens-adaptive-ortho[bench]'"}  # what installs a package
DOMAINS = ("pooled", "forget", "retain")
FIGURES = "saelens_adaptive_ortho.report.figures"
ABLATION_CAVEAT = (
    "Read with care: “Are Sparse Autoencoder Benchmarks Reliable?” (arXiv 2605.18229) finds that "
    "TPP and SCR should not be used to rank SAEs."
)


class Metric(NamedTuple):
    """How to present a metric.

    Attributes:
        label: its name in tables.
        unit: empty for none.
        direction: which way is better; None where that would be a matter of taste.
    """

    label: str
    unit: str = ""
    direction: Direction | None = None


@dataclass(frozen=True)
class Figure:
    """A figure of an evaluation's section in the report.

    Args:
        name: of its file.
        heading: above it.
        caption: what it shows and how to read it.
        draw: ``module:function``, called with a ``report.figures.section.Section``; it returns a
            matplotlib figure, or None where there is nothing to draw.
    """

    name: str
    heading: str
    caption: str
    draw: str


@dataclass(frozen=True)
class Evaluation:
    """An evaluation. Metric names are without the prefix ``{name}/``.

    Args:
        name: as in configs and result files.
        title: heading of its section.
        description: what it measures, in a sentence.
        settings: dataclass of its settings.
        module: has ``run(context, settings) -> Outcome`` (see ``judging.contract``); imported
            when the evaluation runs. Empty for results that the training writes.
        version: raised when its numbers change meaning, so that old results are made again.
        needs: packages that must be installed, such as those of an extra.
        metrics: by name. A name may be a prefix (``condition_number`` covers every group), and
            ``{n}`` stands for a number.
        primary: the metrics its verdict judges, chosen before any result was seen.
        headline: the metrics that stand in the headline table.
        glance: the metrics that get a panel in the headline figure.
        short: put before a metric's label outside the section; empty where the label says enough.
        caveat: what to know before believing it, where the results themselves say nothing.
        figures: of its section.
    """

    name: str
    title: str
    description: str = ""
    settings: type | None = None
    module: str = ""
    version: int = 1
    needs: tuple[str, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    primary: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()
    glance: tuple[str, ...] = ()
    short: str = ""
    caveat: str = ""
    figures: tuple[Figure, ...] = ()

    def keys(self, names: Iterable[str]) -> list[str]:
        """Metric names with the prefix ``{name}/``."""
        return [f"{self.name}/{name}" for name in names]

    @property
    def lacks(self) -> str | None:
        """Why it cannot run here: a package that is not installed, and how to install it."""
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                source = EXTRAS.get(package, package)
                return f"needs the package {package!r}: pip install {source}"
        return None


def probing_metrics() -> dict[str, Metric]:
    """The metrics of the two evaluations by linear probes."""
    rows: dict[str, Metric] = {}
    for name, label in (("accuracy", "accuracy"), ("auc", "AUC"), ("f1", "F1")):
        rows[f"sae_top_{{n}}_{name}"] = Metric(f"{label}, k = {{n}}", "", "higher")
        rows[f"sae_{name}"] = Metric(f"{label}, all latents", "", "higher")
        # Baselines without an SAE are the same for every variant.
        rows[f"llm_{name}"] = Metric(f"{label} of the residual stream")
        rows[f"llm_top_{{n}}_{name}"] = Metric(f"{label} of {{n}} raw dimensions")
        rows[f"pca_top_{{n}}_{name}"] = Metric(f"{label} of {{n}} principal components")
    return rows
