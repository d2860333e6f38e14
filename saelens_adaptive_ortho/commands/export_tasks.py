"""``adaptive-ortho export-tasks``: questions as tasks of lm-evaluation-harness."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.files import atomic_directory, check_new_folder


@dataclass(frozen=True, kw_only=True)
class TasksOptions:
    """The questions, and the folder for the tasks.

    Args:
        questions: demo:questions, published (WMDP-bio and four MMLU subjects, from the hub), or a
            file with the fields domain, subject, question, choices and answer, as the unlearning
            evaluation reads it.
        dir: new folder for the tasks. They name it by its absolute path, so write them again after
            it was moved.
    """

    questions: str = field(metadata={"positional": "QUESTIONS"})
    dir: Path = field(metadata={"positional": "DIR"})


def run(options: TasksOptions) -> int:
    """Read the questions, write the tasks and say how they are run."""
    from saelens_adaptive_ortho.judging.unlearning.questions import load_questions
    from saelens_adaptive_ortho.judging.unlearning.tasks import write_tasks

    check_new_folder("DIR", options.dir)
    questions = load_questions(options.questions)
    with atomic_directory(options.dir, "Nothing was written.") as folder:
        found = write_tasks(questions, folder, options.dir)
    for name, n in found.items():
        say(f"{name}: {n} questions, each under four orders of its choices.")
    say("With lm-evaluation-harness (the extra `lm-eval`):")
    place, names = shlex.quote(str(options.dir)), ",".join(found)
    print(
        "lm_eval --model hf --model_args pretrained=MODEL,dtype=float32,add_bos_token=True \\\n"
        f"    --include_path {place} --tasks {names} --batch_size 8"
    )
    return 0


COMMAND = Command(
    name="export-tasks",
    help="Write multiple-choice questions as tasks of lm-evaluation-harness.",
    options=TasksOptions,
    run=run,
    resume="Nothing was written. Run the same command again.",
)
