"""Make the tables of the benchmarks in ``evals/performance``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saelens_adaptive_ortho.report.formatting import DASH, markdown, number

Row = Mapping[str, Any]
OPERATIONS_SHOWN = 12


def overhead_table(documents: Sequence[Row]) -> str:
    """Return time and peak memory per training step: a row per size, batch, base and variant.

    ``to off`` compares with the same step without a penalty; both steps use sparse products, or
    neither does.
    """
    rows = sorted((row for document in documents for row in document["rows"]), key=place_of)
    text = []
    for row in rows:
        memory = row.get("peak_ratio")
        text.append(
            [
                f"{row['d_in']:,} x {row['d_sae']:,}",
                f"{row['batch']:,}",
                row["base"],
                row["variant"],
                f"{row['seconds'] * 1e3:,.0f}",
                _interval(row, "ratio", "ratio_low", "ratio_high"),
                _interval(row, "off_ratio", "off_low", "off_high"),
                DASH if memory is None else f"{memory:.3f}",
            ]
        )
    head = ["d_in x d_sae", "batch", "base", "variant"]
    head += ["ms per step", "to stock", "to off", "memory"]
    return markdown(head, text, text_columns=4)


def _interval(row: Row, *names: str) -> str:
    if names[0] not in row:
        return DASH
    value, low, high = (row[name] for name in names)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def gpu_table(documents: Sequence[Row]) -> str:
    """Return time per training step on a GPU, with and without Triton.

    ``in sequence`` is the ratio to stock of a hundred steps in which the host does not wait for the
    device. The last column is the milliseconds of each kind of step.
    """
    text = []
    for document in documents:
        how = f"{document['device']}, {'Triton' if document['triton'] else 'without Triton'}"
        for row in sorted(document["rows"], key=place_of):
            sequence, memory = row.get("sequence_ratio"), row.get("peak_ratio")
            kinds = row["kinds"] if len(row["kinds"]) > 1 else {}
            text.append(
                [
                    how,
                    f"{row['d_in']:,} x {row['d_sae']:,}",
                    row["base"],
                    row["variant"],
                    f"{row['seconds'] * 1e3:,.1f}",
                    _interval(row, "ratio", "ratio_low", "ratio_high"),
                    DASH if sequence is None else f"{sequence:.3f}",
                    DASH if memory is None else f"{memory:.3f}",
                    ", ".join(f"{kind} {k['seconds'] * 1e3:.0f}" for kind, k in kinds.items()),
                ]
            )
    head = ["card", "d_in x d_sae", "base", "variant", "ms per step", "to stock", "in sequence"]
    return markdown([*head, "memory", "kinds of steps"], text, text_columns=4)


def place_of(row: Row) -> tuple[Any, ...]:
    """Return what the rows of one panel share: sizes, batch and base."""
    return row["d_in"], row["d_sae"], row["batch"], row["base"]


def scaling_table(documents: Sequence[Row]) -> str:
    """Return the milliseconds of each part against d_sae, and the exponent fitted to them."""
    (document,) = documents
    head = ["part", *(f"d_sae = {width:,}" for width in document["widths"]), "exponent"]
    rows = [
        [name, *(f"{s * 1e3:,.1f}" for s in part["seconds"]), f"{part['exponent']:.2f}"]
        for name, part in document["parts"].items()
    ]
    return markdown(head, rows, text_columns=1)


def levers_table(documents: Sequence[Row]) -> str:
    """Return a table of whole trainings: time, tokens per second, ratios, and what plan says."""

    def ratio(found: Mapping[str, float]) -> str:
        return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"

    tables = []
    for document in documents:
        rows = []
        for row in document["rows"]:
            deviation = row["deviation"]
            predicted = row.get("predicted_tokens_per_second")
            rows.append(
                [
                    row["training"],
                    f"{row['seconds']:.1f}",
                    f"{document['tokens'] / row['seconds']:,.0f}",
                    DASH if predicted is None else f"{predicted:,.0f}",
                    ratio(row["to_saelens"]),
                    ratio(row["to_one"]),
                    DASH if deviation is None else f"{deviation:.0e}" if deviation else "0",
                ]
            )
        head = ["training", "seconds", "tokens/s", "plan says", "to SAELens", "to one training"]
        head.append("deviation")
        width = f"{document['d_in']:,} x {document['d_sae']:,}"
        caption = f"{width}, {document['tokens']:,} tokens in batches of {document['batch']:,}"
        if "model" in document:
            caption = f"{document['model']} on {document['device']}, {caption}"
        tables.append(f"**{caption}**\n\n{markdown(head, rows, text_columns=1)}")
    return "\n\n".join(tables)


def floor_table(documents: Sequence[Row]) -> str:
    """Return the self time per operation of each step, and its ratio to the floor."""
    (document,) = documents
    steps, floor = document["steps"], document["floor"]["seconds"]
    last = steps[-1]["operations"]
    first = steps[0]["operations"]
    weight = {name: max(first.get(name, 0), last.get(name, 0)) for name in {*first, *last}}
    shown = sorted(weight, key=lambda name: -weight[name])[:OPERATIONS_SHOWN]
    rows = [
        [f"`{name}`", *(f"{s['operations'].get(name, 0) * 1e3:,.0f}" for s in steps)]
        for name in shown
    ]
    others = [sum(v for k, v in s["operations"].items() if k not in shown) for s in steps]
    rows.append(["all others", *(f"{s * 1e3:,.0f}" for s in others)])
    rows.append(["**the step, unprofiled**", *(f"**{s['seconds'] * 1e3:,.0f}**" for s in steps)])
    rows.append(
        [
            f"times the floor ({floor * 1e3:,.0f} ms)",
            *(f"{s['seconds'] / floor:.1f}" for s in steps),
        ]
    )
    return markdown(["operation, ms", *(s["variant"] for s in steps)], rows, text_columns=1)


def markdown_costs(costs: dict[str, Any]) -> str:
    """Return the measurements of ``evals.performance.cost`` as a table and a sentence."""
    rows = [
        [f"`{name}`", f"{cost['seconds']:.0f}", f"{cost['peak_mib'] / 1024:.2f}"]
        for name, cost in costs["evaluations"].items()
    ]
    head = ["evaluation", "wall time (s)", "peak memory (GiB)"]
    found = costs["overhead"]
    sentence = (
        f"Our driver over SAEBench called directly (core, {found['repeats']} alternating pairs in "
        f"one process): {found['ratio']:.3f} of its time "
        f"(lowest pair {found['ratio_low']:.3f}, highest {found['ratio_high']:.3f})."
    )
    return f"{markdown(head, rows, text_columns=1)}\n\n{sentence}\n"


def checksums_table(runs: Sequence[Row]) -> str:
    """The share of the checksums in the time of a comparison."""
    head = [
        "config",
        "changes",
        "seconds",
        *(name.split("/")[-1] for name in runs[0]["parts"]),
        "share",
    ]
    rows = [
        [
            run["config"],
            ", ".join(run["changes"]) or DASH,
            number(run["seconds"], 0),
            *(number(seconds, 2) for seconds in run["parts"].values()),
            f"{100 * run['share']:.2f}%",
        ]
        for run in runs
    ]
    return markdown(head, rows, text_columns=2)


def sweeps_table(runs: Sequence[Row]) -> str:
    """The time of a sweep without a scheduler, with one worker and with two.

    ``outside units`` is the time in which no unit runs: processes start, and the report is written.
    With two workers it is not shown, because their units run at the same time.
    """
    rows = []
    for run in runs:
        for name, seconds in run["seconds"].items():
            took = run["unit_seconds"][name]
            outside = DASH if name == "local:2" else number(seconds - sum(took), 0)
            shown = f"{run['units']} of {min(took):.0f} to {max(took):.0f} s"
            rows.append([name, shown, number(seconds, 0), outside])
    table = markdown(["--on", "units", "seconds", "outside units"], rows, text_columns=2)
    words = [
        f"The scheduler adds {run['added']:.1%} of the work; two workers are "
        f"{run['speedup']:.2f} times as fast as one."
        for run in runs
    ]
    return "\n\n".join([table, *words])
