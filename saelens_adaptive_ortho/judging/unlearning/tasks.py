"""Multiple-choice questions as tasks of lm-evaluation-harness (``lm_eval``).

A task is a YAML file that names a file of JSON lines. It asks the ``plain`` prompt of
:func:`.questions.prompt_text`, under the four cyclic orders of the choices: a model that always
says one letter scores exactly 1/4. The harness counts an answer as right if the right letter, with
a space in front, is more likely than the other three.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelens_adaptive_ortho.judging.unlearning.questions import (
    CYCLIC_ORDERS,
    HEADER,
    LETTERS,
    Question,
)
from saelens_adaptive_ortho.settings import dump_yaml

DOMAINS = ("forget", "retain")


def task_name(domain: str) -> str:
    """The name of the task with the questions of a domain."""
    return f"{domain}_questions"


def write_tasks(questions: Sequence[Question], folder: Path, place: Path) -> dict[str, int]:
    """Write a task for each domain that has questions.

    Args:
        questions: the questions.
        folder: an existing folder to write to.
        place: where the folder will be when the tasks run. The harness reads a relative path from
            its own working directory, so the tasks name an absolute one.

    Returns:
        The number of questions of each task, by its name.
    """
    found = {}
    for domain in DOMAINS:
        asked = [q for q in questions if q.domain == domain]
        if not asked:
            continue
        name = task_name(domain)
        rows = (json.dumps(row, ensure_ascii=False) + "\n" for q in asked for row in _rows(q))
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        task = dump_yaml(_task(name, place.resolve() / f"{name}.jsonl"))
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
        found[name] = len(asked)
    return found


def _rows(question: Question) -> list[dict[str, Any]]:
    """A row for each cyclic order of the choices."""
    return [
        {
            "subject": question.subject,
            "question": question.question,
            "choices": [question.choices[i] for i in order],
            "answer": order.index(question.answer),
        }
        for order in CYCLIC_ORDERS
    ]


def _task(name: str, file: Path) -> dict[str, Any]:
    """The settings of a task, in the harness's names."""
    choices = "".join(f"\n{letter}. {{{{choices[{i}]}}}}" for i, letter in enumerate(LETTERS))
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "multiple_choice",
        "doc_to_text": HEADER.format(subject="{{subject}}")
        + "{{question}}"
        + choices
        + "\nAnswer:",
        "doc_to_choice": list(LETTERS),
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
