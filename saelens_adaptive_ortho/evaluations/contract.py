"""An evaluation is one object with its name, help, settings, needs, metrics and figures.

The object describes what is measured and how the report shows it. Its ``module`` measures it, and
is imported only then. So the report and the command line know every evaluation without torch.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, NamedTuple

Direction = Literal["higher", "lower"]

SEED = 42  # seed of every evaluation; SAEBench's own default
AUTO = "auto"  # a source of data that depends on the model
SAE_BENCH = ("sae_bench",)
#: Metadata of a setting that earlier results do not know: its default is what they did.
ADDED_LATER = {"added_later": True}
EXTRAS = {"sae_bench": "'saelens-adaptive-ortho[bench]'"}  # what `pip install` needs
DOMAINS = ("pooled", "forget", "retain")
PLACEHOLDERS = {"n": r"\d+(?:\.\d+)?", "corpus": r"[A-Za-z0-9][A-Za-z0-9_-]*"}
FIGURES = "saelens_adaptive_ortho.report.figures"
ABLATION_CAVEAT = (
    "Read with care: “Are Sparse Autoencoder Benchmarks Reliable?” (arXiv 2605.18229) finds that "
    "TPP and SCR should not be used to rank SAEs."
)


class Metric(NamedTuple):
    """The presentation of a metric.

    Attributes:
        label: name of the metric in tables.
        unit: unit of the metric; empty if it has none.
        direction: which values are better; None if neither direction is clearly better.
        margin: largest difference between two variants that does not matter. Two variants are
            called equivalent only if a test shows that they differ by less (see
            ``report.statistics``). None: the metric never gives that verdict.
        resolution: smallest step of a value. A mean over n questions has the step 1/n; then
            ``resolution`` is the name of the metric that holds n. None: the value has no steps.
    """

    label: str
    unit: str = ""
    direction: Direction | None = None
    margin: float | None = None
    resolution: float | str | None = None


class Published(NamedTuple):
    """How to read a result file that SAEBench wrote for an evaluation.

    Attributes:
        eval_type: the ``eval_type_id`` in the file.
        read: metrics by our name, from the ``eval_result_metrics`` of the file. The measurement in
            ``module`` reads SAEBench's output by the same function. It raises a ``LookupError``, a
            ``TypeError``, an ``AttributeError`` or a ``ValueError`` if the file has another form.
        corpus: text before each name, for an evaluation that is measured by corpus.
        beside: metrics that are shown beside those of ``glance`` where published results have them.
    """

    eval_type: str
    read: Callable[[Mapping[str, Any]], dict[str, float | None]]
    corpus: str = ""
    beside: tuple[str, ...] = ()


def determining(settings: Any) -> dict[str, Any]:
    """The settings that a result depends on, without defaults of settings that were added later."""
    defaults = type(settings)()
    return {
        f.name: getattr(settings, f.name)
        for f in fields(settings)
        if f.metadata != ADDED_LATER or getattr(settings, f.name) != getattr(defaults, f.name)
    }


@dataclass(frozen=True)
class Figure:
    """A figure of an evaluation's section in the report.

    Args:
        name: name of the figure's file.
        heading: heading above the figure.
        caption: what the figure shows and how to read it.
        draw: ``module:function`` that draws the figure. It gets a
            ``report.figures.section.Section``, and returns a matplotlib figure, or None if there
            is nothing to draw.
    """

    name: str
    heading: str
    caption: str
    draw: str


@dataclass(frozen=True)
class Evaluation:
    """An evaluation. Metric names here have no prefix ``{name}/``.

    Args:
        name: name in configs and result files.
        title: heading of the evaluation's section in the report.
        description: one sentence on what the evaluation measures.
        settings: dataclass of the evaluation's settings.
        module: name of the module with ``run(context, settings) -> Outcome`` (see
            ``judging.contract``). It is imported when the evaluation runs. Empty for results that
            the training writes.
        version: raise it when the numbers change meaning; then old results are computed again.
        needs: packages that must be installed, such as those of an extra.
        metrics: metrics by name. A name may be a prefix (``condition_number`` covers every group).
            ``{n}`` in a name and in its label stands for a number, ``{corpus}`` for the name of a
            corpus.
        by_corpus: whether each metric is measured on every corpus. Then the names in result files
            begin with a corpus or ``pooled/``, and those in ``metrics`` do not.
        primary: metrics that the verdict judges, chosen before any result was seen.
        headline: metrics in the headline table. ``{corpus}`` stands for every other corpus.
        glance: metrics with a panel in the headline figure.
        essential: metrics in the short table, before those of ``primary`` that are not among them.
        short: text before a metric's label outside the section; empty if the label is clear alone.
        caveat: a warning to the reader, if the results themselves do not contain one.
        figures: figures of the section.
        published: how to read SAEBench's result files of this evaluation; None if it has none.
    """

    name: str
    title: str
    description: str = ""
    settings: type | None = None
    module: str = ""
    version: int = 1
    needs: tuple[str, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    by_corpus: bool = False
    primary: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()
    glance: tuple[str, ...] = ()
    essential: tuple[str, ...] = ()
    short: str = ""
    caveat: str = ""
    figures: tuple[Figure, ...] = ()
    published: Published | None = None

    def keys(self, names: Iterable[str]) -> list[str]:
        """Metric names with the prefix ``{name}/``."""
        return [f"{self.name}/{name}" for name in names]

    @property
    def lacks(self) -> str | None:
        """The reason why the evaluation cannot run here, or None.

        It names a package that is not installed, and says how to install it.
        """
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                source = EXTRAS.get(package, package)
                return f"needs the package {package!r}: pip install {source}"
        return None


#: A loss of accuracy that does not matter in probing.
PROBING_MARGIN = 0.01
#: The own data sets have 400 test texts, the published ones more.
_PROBING_RESOLUTION = {"accuracy": 1 / 400}


@cache
def name_pattern(name: str) -> re.Pattern[str]:
    """A pattern of the names that a name with ``{n}`` or ``{corpus}`` stands for."""
    pattern = re.escape(name)
    for placeholder, values in PLACEHOLDERS.items():
        escaped = re.escape(f"{{{placeholder}}}")
        pattern = pattern.replace(escaped, f"(?P<{placeholder}>{values})", 1)
    return re.compile(pattern)


def probe_name(name: str) -> str:
    """Our name of a probe's score in SAEBench's output: ``sae_top_1_test_auc`` has no ``test``."""
    return name.replace("_test_", "_")


def read_probes(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of both evaluations with linear probes, from SAEBench's output."""
    return {probe_name(name): value for side in metrics.values() for name, value in side.items()}


def probing_metrics() -> dict[str, Metric]:
    """The metrics of the two evaluations that use linear probes."""
    rows: dict[str, Metric] = {}
    for name, label in (("accuracy", "accuracy"), ("auc", "AUC"), ("f1", "F1")):
        step = _PROBING_RESOLUTION.get(name)
        for metric, words in ((f"sae_top_{{n}}_{name}", "k = {n}"), (f"sae_{name}", "all latents")):
            rows[metric] = Metric(f"{label}, {words}", "", "higher", PROBING_MARGIN, step)
        # Baselines without an SAE have the same value for every variant.
        rows[f"llm_{name}"] = Metric(f"{label} of the residual stream")
        rows[f"llm_top_{{n}}_{name}"] = Metric(f"{label} of {{n}} raw dimensions")
        rows[f"pca_top_{{n}}_{name}"] = Metric(f"{label} of {{n}} principal components")
    return rows
