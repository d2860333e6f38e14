"""What the model wrote before and after, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from saelens_adaptive_ortho.report.formatting import markdown, signed


def _rise(answer: Mapping[str, Any]) -> float:
    return answer["after"]["loss"] - answer["before"]["loss"]


def _cell(text: str) -> str:
    """The text on one line, without characters that end a cell or begin a format."""
    text = " ".join(text.split())
    for mark in ("\\", "*", "_", "`", "<", "[", "$"):
        text = text.replace(mark, f"\\{mark}")
    return text


def losses_table(documents: Sequence[Mapping[str, Any]]) -> str:
    """Rise of the loss of the true endings, by subject: mean, and in brackets the standard error.

    Also the number of prompts after which the model writes the same text as before.
    """
    runs = [run for document in documents for run in document["runs"]]
    subjects = list(dict.fromkeys(a["subject"] for run in runs for a in run["answers"]))
    head = ["prompts on", "n", *(f"{run['variant']}: rise, nats per token" for run in runs)]
    head += [f"{run['variant']}: same text" for run in runs]
    rows = []
    for subject in subjects:
        of = [[a for a in run["answers"] if a["subject"] == subject] for run in runs]
        cells = []
        for answers in of:
            rises = [_rise(a) for a in answers]
            error = stdev(rises) / len(rises) ** 0.5
            cells.append(f"{signed(mean(rises), 2)} ({error:.2f})")
        same = [str(sum(a["before"]["text"] == a["after"]["text"] for a in x)) for x in of]
        rows.append([subject, str(len(of[0])), *cells, *same])
    return markdown(head, rows, text_columns=1)


def texts_table(documents: Sequence[Mapping[str, Any]]) -> str:
    """Every prompt, what the model writes before, and what it writes after."""
    runs = [run for document in documents for run in document["runs"]]
    parts = []
    first = runs[0]["answers"]
    for subject in dict.fromkeys(a["subject"] for a in first):
        head = ["prompt", "before", *(f"after, {run['variant']}" for run in runs)]
        rows = [
            [
                _cell(answer["prompt"]),
                _cell(answer["before"]["text"]),
                *(_cell(run["answers"][i]["after"]["text"]) for run in runs),
            ]
            for i, answer in enumerate(first)
            if answer["subject"] == subject
        ]
        parts.append(f"**{subject}**\n\n{markdown(head, rows, text_columns=len(head))}")
    return "\n\n".join(parts)
