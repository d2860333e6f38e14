"""The prompts and the tables of the study of continuations."""

from __future__ import annotations

from collections import Counter
from typing import Any

from evals.separation.continuations.run import read_prompts
from evals.separation.continuations.tables import losses_table, texts_table


def answer(subject: str, before: tuple[str, float], after: tuple[str, float]) -> dict[str, Any]:
    written = [{"text": text, "loss": loss} for text, loss in (before, after)]
    return {"subject": subject, "prompt": "A | b", "before": written[0], "after": written[1]}


DOCUMENT = {
    "runs": [
        {
            "variant": "adaptive",
            "answers": [
                answer("history", ("same", 1.0), ("same", 1.0)),
                answer("history", ("a", 1.0), ("b\n*c*", 1.4)),
            ],
        }
    ]
}


def test_prompts_are_ten_for_each_subject_with_an_ending() -> None:
    rows = read_prompts()
    counts = Counter(row["subject"] for row in rows)
    assert counts == dict.fromkeys(("microbiology", "anatomy", "history"), 10)
    assert len({row["prompt"] for row in rows}) == 30
    assert all(row["continuation"].startswith(" ") for row in rows)


def test_losses_are_means_with_standard_errors() -> None:
    last = losses_table([DOCUMENT]).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")] == [
        "history",
        "2",
        "+0.20 (0.20)",
        "1",
    ]


def test_texts_stay_in_their_cells() -> None:
    assert r"| A \| b | a | b \*c\* |" in texts_table([DOCUMENT])
