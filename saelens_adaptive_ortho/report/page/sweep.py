"""Write the page and the summary of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saelens_adaptive_ortho.evaluations import Evaluation, evaluation, in_order
from saelens_adaptive_ortho.files import write_json, write_text_atomic
from saelens_adaptive_ortho.manifests import UNITS, Manifest, Unit, read_manifest
from saelens_adaptive_ortho.report.figures.facets import facet_figure
from saelens_adaptive_ortho.report.figures.tradeoff import COST
from saelens_adaptive_ortho.report.formatting import (
    DASH,
    plus_minus,
    spread_decimals,
)
from saelens_adaptive_ortho.report.metrics import describe
from saelens_adaptive_ortho.report.page.parts import Drawing, render
from saelens_adaptive_ortho.report.sweeps import (
    Best,
    Missing,
    Setting,
    SweepResults,
    axis_name,
    best_settings,
    collect,
    gain_key,
    glance_keys,
    rule_text,
    shown_keys,
)

REPORT = "report.html"
SUMMARY = "summary.json"
MOST_ROWS = 40  # longer tables are folded away
CAPTION = (
    "A panel per model, hook and architecture. Large markers: means over the seeds; small dots: "
    "seeds; dashed: a variant that this axis does not change. Bands: 95% intervals paired by seed: "
    "what a seed adds to all values of a line is taken out first (Cousineau, Morey), so two "
    "values of one line may be compared by their bands."
)


@dataclass(frozen=True)
class Text:
    """A table of texts: names of columns, and rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Question:
    """The section of one evaluation: a table of all settings."""

    info: Evaluation
    table: Text

    @property
    def folded(self) -> bool:
        """Whether the table is long."""
        return len(self.table.rows) > MOST_ROWS


def write_sweep_report(sweep: Path, states: Mapping[str, str] | None = None) -> Path:
    """Write ``SWEEP/report.html`` and ``SWEEP/summary.json``, and return the path of the page.

    Args:
        sweep: the sweep's folder.
        states: what is known about units that are not whole, by name.

    Raises:
        ConfigError: the folder holds no sweep.
        StorageError: a file could not be written.
    """
    results = collect(sweep, read_manifest(sweep), states or {})
    write_json(sweep / SUMMARY, summary_json(results))
    reports = {u.name for u in results.manifest.units if (sweep / _report_of(u)).is_file()}
    return write_text_atomic(sweep / REPORT, render_sweep(results, reports))


def render_sweep(results: SweepResults, reports: set[str]) -> str:
    """Return the page as text.

    Args:
        results: the results of the sweep.
        reports: names of the units that have a report of their own.
    """
    manifest = results.manifest
    gain = gain_key(results)
    return render(
        "sweep.html.j2",
        title=f"{manifest.name}: a sweep of sparse autoencoders",
        name=manifest.name,
        axes=[(axis_name(a), ", ".join(map(_plain, v))) for a, v in manifest.axes.items()],
        finished=results.finished,
        total=len(manifest.points),
        missing=[_missing_row(one) for one in results.missing],
        rule=rule_text(gain) if gain else "",
        best=best_table(results),
        front=front_table(results),
        drawings=_drawings(results),
        caption=CAPTION,
        questions=_questions(results),
        units=_units_table(manifest, reports),
        config=manifest.config.rstrip(),
    )


def best_table(results: SweepResults) -> Text:
    """The best setting of each facet; without rows if it cannot be told."""
    gain = gain_key(results)
    found = best_settings(results, gain) if gain else []
    head = [*_facet_head(results), "best setting", *_heads(gain), "among"]
    rows = [
        [*_facet_cells(results, best.facet), best.setting.label]
        + [_cell(results, best.setting, key) for key in (gain, COST) if key]
        + [f"{best.among} of {best.of} settings"]
        for best in found
    ]
    return Text(head, rows)


def front_table(results: SweepResults) -> Text:
    """The settings of each facet that no other one beats in both gain and cost."""
    gain = gain_key(results)
    found: Sequence[Best] = best_settings(results, gain) if gain else []
    rows = [
        [*_facet_cells(results, best.facet), setting.label]
        + [_cell(results, setting, key) for key in (gain, COST) if key]
        for best in found
        for setting in best.front
    ]
    return Text([*_facet_head(results), "setting", *_heads(gain)], rows)


def best_lines(results: SweepResults) -> list[str]:
    """The best settings as lines for a terminal; none if they cannot be told."""
    gain = gain_key(results)
    found = best_settings(results, gain) if gain else []
    if gain is None or not found:
        return []
    lines = [rule_text(gain)]
    for best in found:
        values = ", ".join(
            f"{describe(key).label} {_cell(results, best.setting, key)}" for key in (gain, COST)
        )
        where = f"{best.facet}: " if best.facet else ""
        lines.append(f"  {where}{best.setting.label} ({values})")
    return lines


def summary_json(results: SweepResults) -> dict[str, object]:
    """The statistics of a sweep as JSON values."""
    gain = gain_key(results)
    found = best_settings(results, gain) if gain else []
    return {
        "name": results.manifest.name,
        "axes": {axis: list(values) for axis, values in results.manifest.axes.items()},
        "finished": results.finished,
        "saes": len(results.manifest.points),
        "missing": [
            {"unit": m.unit.name, "evals": list(m.evals), "saes": m.saes, "reason": m.reason}
            for m in results.missing
        ],
        "rule": rule_text(gain) if gain else None,
        "best": [{"facet": b.facet, "setting": b.setting.label} for b in found],
        "settings": [
            {
                "facet": setting.facet,
                "setting": setting.label,
                "base": setting.base,
                "values": dict(setting.values),
                "seeds": list(setting.seeds),
                "metrics": {
                    key: {"mean": s.mean, "std": s.std, "n": s.n}
                    for key, s in setting.metrics.items()
                },
            }
            for setting in results.settings
        ],
    }


def _drawings(results: SweepResults) -> list[Drawing]:
    drawings: list[Drawing] = []
    for axis in results.numeric_axes():
        for key in glance_keys(results):
            figure = facet_figure(results, axis, key)
            if figure is not None:
                name = f"facets-{len(drawings)}"
                heading = f"{describe(key).full_label} along {axis_name(axis)}"
                drawings.append(Drawing.of(figure, name, heading[:1].upper() + heading[1:], ""))
    return drawings


def _questions(results: SweepResults) -> list[Question]:
    questions: list[Question] = []
    for name in in_order(key.split("/")[0] for key in results.keys):
        keys = shown_keys(results, name)
        if not keys:
            continue
        columns = [f"{describe(key).label} {describe(key).arrow}".rstrip() for key in keys]
        rows = [
            [*_facet_cells(results, setting.facet), setting.label]
            + [_cell(results, setting, key) for key in keys]
            for setting in results.settings
            if any(key in setting.metrics for key in keys)
        ]
        table = Text([*_facet_head(results), "setting", *columns], rows)
        questions.append(Question(evaluation(name), table))
    return questions


def _cell(results: SweepResults, setting: Setting, key: str) -> str:
    """``mean ± std`` of a setting, with decimals for the whole column."""
    spread = setting.metrics.get(key)
    if spread is None or spread.mean is None:
        return DASH
    column = [s.metrics[key] for s in results.settings if key in s.metrics]
    means = [s.mean for s in column if s.mean is not None]
    decimals = spread_decimals(means, [s.std for s in column if s.std is not None])
    lacking = (
        f" ({spread.n} of {len(setting.seeds)} seeds)" if spread.n < len(setting.seeds) else ""
    )
    return plus_minus(spread.mean, spread.std, decimals) + lacking


def _heads(gain: str | None) -> list[str]:
    keys = [key for key in (gain, COST) if key]
    return [f"{describe(key).full_label} {describe(key).arrow}".rstrip() for key in keys]


def _facet_head(results: SweepResults) -> list[str]:
    return ["model, hook, architecture"] if results.facets != [""] else []


def _facet_cells(results: SweepResults, facet: str) -> list[str]:
    return [facet] if results.facets != [""] else []


def _missing_row(one: Missing) -> str:
    evals = ", ".join(evaluation(name).title for name in one.evals)
    reason = f": {' '.join(one.reason.split())}" if one.reason else ""
    number = f"{one.saes} of {len(one.unit.points)} SAEs"
    return f"{one.unit.name} ({one.unit.label}), {number} without {evals}{reason}"


def _units_table(manifest: Manifest, reports: set[str]) -> list[tuple[str, str, str, str]]:
    return [
        (
            unit.name,
            _report_of(unit) if unit.name in reports else "",
            unit.label,
            ", ".join(point.variant for point in unit.points),
        )
        for unit in manifest.units
    ]


def _report_of(unit: Unit) -> str:
    return f"{UNITS}/{unit.name}/{REPORT}"


def _plain(value: object) -> str:
    return str(value)
