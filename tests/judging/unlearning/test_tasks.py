"""Questions as tasks of lm-evaluation-harness, which runs on a merged and on a hooked model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pytest
import torch
import yaml

from saelens_adaptive_ortho.commands import cli
from saelens_adaptive_ortho.judging.unlearning.questions import (
    CYCLIC_ORDERS,
    LETTERS,
    Question,
    load_questions,
    prompt_text,
)
from saelens_adaptive_ortho.text.models import load_plain_model
from tests.judging.unlearning.test_merging import build_sae, build_selection

N_QUESTIONS = 10  # of each domain
NEEDS_HARNESS = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs the extra `lm-eval`"
)


def rows_of(folder: Path, task: str) -> list[dict[str, Any]]:
    lines = (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def few_questions(file: Path) -> list[Question]:
    """Write the first questions of each domain of the demo to a file."""
    asked = load_questions("demo:questions")
    few = [
        q for d in ("forget", "retain") for q in [q for q in asked if q.domain == d][:N_QUESTIONS]
    ]
    file.write_text("".join(json.dumps(vars(q)) + "\n" for q in few))
    return few


def test_tasks_ask_the_prompts_of_the_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = few_questions(tmp_path / "questions.jsonl")
    odd = Question("retain", "", "Is {{x}} “%s”?", ("a\nb", "{c}", " d", "e"), 3)
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write(json.dumps(vars(odd)) + "\n")
    tasks = tmp_path / "tasks"
    assert cli.main(["export-tasks", str(tmp_path / "questions.jsonl"), str(tasks)]) == 0
    out = capsys.readouterr().out
    assert "forget_questions: 10 questions" in out
    assert "--tasks forget_questions,retain_questions" in out
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    for domain in ("forget", "retain"):
        name = f"{domain}_questions"
        task = yaml.safe_load((tasks / f"{name}.yaml").read_text(encoding="utf-8"))
        assert task["task"] == name
        assert task["doc_to_choice"] == list(LETTERS)
        assert task["dataset_kwargs"]["data_files"]["test"] == str(tasks / f"{name}.jsonl")
        prompt = environment.from_string(task["doc_to_text"])
        found = [
            (prompt.render(row), row["choices"][row["answer"]]) for row in rows_of(tasks, name)
        ]
        assert found == [
            (prompt_text(q, order, "plain", None), q.choices[q.answer])
            for q in [*asked, odd]
            if q.domain == domain
            for order in CYCLIC_ORDERS
        ]


def test_a_domain_without_questions_has_no_task(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    few_questions(questions)
    questions.write_text("".join(questions.open().readlines()[:3]))
    assert cli.main(["export-tasks", str(questions), str(tmp_path / "tasks")]) == 0
    names = ["forget_questions.jsonl", "forget_questions.yaml"]
    assert sorted(p.name for p in (tmp_path / "tasks").iterdir()) == names


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few_questions(tmp_path / "questions.jsonl")
    for arguments, message in (
        (["demo:question", "new"], "no such demo questions"),
        ([str(tmp_path / "no.jsonl"), "new"], "no.jsonl"),
        (["demo:questions", str(tmp_path)], "is not empty. Name a new folder"),
    ):
        target = str(tmp_path / arguments[1])
        assert cli.main(["export-tasks", arguments[0], target]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------ lm-evaluation-harness


class Found(NamedTuple):
    """What the harness finds: the accuracy of each task, and the four log-likelihoods by prompt."""

    accuracy: dict[str, float]
    likelihoods: dict[str, list[float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model ``original``, a selection, the model ``merged``, SAE and tasks."""
    root = tmp_path_factory.mktemp("harness")
    asked = few_questions(root / "questions.jsonl")
    model, tokenizer = load_plain_model("demo:model")
    model.save_pretrained(root / "original")
    tokenizer.save_pretrained(root / "original")

    def tokens(domain: str) -> set[int]:
        texts = [f"{q.question} {' '.join(q.choices)}" for q in asked if q.domain == domain]
        return {token for text in texts for token in tokenizer(text)["input_ids"]}

    embedding = model.get_input_embeddings().weight.detach().double()
    centre = embedding[sorted(tokens("retain"))].mean(0)
    names = embedding[sorted(tokens("forget") - tokens("retain"))] - centre
    basis = torch.linalg.svd(names, full_matrices=False)[2][:16]
    changes = {"basis": basis.tolist(), "centre": centre.tolist(), "strength": 1.0}
    selection = build_selection(width=96, latents=[0], **changes)
    selection.save(root / "selection.json")
    build_sae(selection.hook_name, 96).save_model(root / "sae")
    command = ["export-merged", str(root / "selection.json"), str(root / "merged")]
    assert cli.main([*command, "--model", str(root / "original")]) == 0
    assert cli.main(["export-tasks", str(root / "questions.jsonl"), str(root / "tasks")]) == 0
    return root


def run(folder: Path, *arguments: str) -> None:
    """Run Python offline, with the caches of the folder."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def by_command(folder: Path, model: str) -> Found:
    """What the command ``lm_eval`` finds for the checkpoint of this name."""
    out = folder / f"out_{model}"
    run(
        folder,
        *("-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "8"),
        *("--model_args", f"pretrained={folder / model},dtype=float32,add_bos_token=True"),
        *("--include_path", str(folder / "tasks"), "--tasks", "forget_questions,retain_questions"),
        *("--output_path", str(out), "--log_samples"),
    )
    results = json.loads(next(out.rglob("results_*.json")).read_text())["results"]
    samples = [json.loads(x) for file in out.rglob("samples_*.jsonl") for x in file.open()]
    return found_in(results, samples)


HOOKED = """
import json, sys
from pathlib import Path

import saelens_adaptive_ortho as ortho
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from sae_lens import SAE
from transformers import AutoModelForCausalLM

folder = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(folder / "original")
sae = SAE.load_from_disk(folder / "sae")
# Only a tokenizer that the harness loads itself gets the BOS.
tokenizer = str(folder / "original")
harness = HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=True, device="cpu")
tasks = ["forget_questions", "retain_questions"]
manager = TaskManager(include_path=str(folder / "tasks"))
with ortho.unlearn(model, sae, folder / "selection.json"):
    found = simple_evaluate(harness, tasks=tasks, task_manager=manager)
samples = [
    {"arguments": {f"gen_args_{i}": {"arg_0": a[0]} for i, a in enumerate(s["arguments"])},
     "resps": s["resps"]}
    for task in tasks
    for s in found["samples"][task]
]
(folder / "hooked.json").write_text(json.dumps([found["results"], samples], default=str))
"""


def by_hooks(folder: Path) -> Found:
    """What the harness finds for the original model inside ``ortho.unlearn``."""
    run(folder, "-c", HOOKED, str(folder))
    return found_in(*json.loads((folder / "hooked.json").read_text()))


def found_in(results: dict[str, Any], samples: list[dict[str, Any]]) -> Found:
    likelihoods = {
        sample["arguments"]["gen_args_0"]["arg_0"]: [float(r[0][0]) for r in sample["resps"]]
        for sample in samples
    }
    return Found({name: task["acc,none"] for name, task in results.items()}, likelihoods)


def expected(folder: Path, model: str) -> Found:
    """The same by a pass over each prompt."""
    network, tokenizer = load_plain_model(str(folder / model))
    letters = [tokenizer(f" {letter}")["input_ids"][0] for letter in LETTERS]
    likelihoods: dict[str, list[float]] = {}
    right: dict[str, list[bool]] = {}
    for question in load_questions(str(folder / "questions.jsonl")):
        for order in CYCLIC_ORDERS:
            prompt = prompt_text(question, order, "plain", tokenizer)
            tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt)["input_ids"]]])
            with torch.no_grad():
                found = network(tokens).logits[0, -1].log_softmax(-1)[letters]
            likelihoods[prompt] = found.tolist()
            correct = int(found.argmax()) == order.index(question.answer)
            right.setdefault(f"{question.domain}_questions", []).append(correct)
    return Found({name: sum(r) / len(r) for name, r in right.items()}, likelihoods)


def assert_equal(found: Found, other: Found) -> None:
    assert found.accuracy == pytest.approx(other.accuracy)
    assert found.likelihoods.keys() == other.likelihoods.keys()
    assert len(found.likelihoods) == 2 * N_QUESTIONS * len(CYCLIC_ORDERS)
    values, others = (
        torch.tensor([one.likelihoods[prompt] for prompt in other.likelihoods])
        for one in (found, other)
    )
    torch.testing.assert_close(values, others, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@NEEDS_HARNESS
def test_harness_runs_on_a_merged_checkpoint(folder: Path) -> None:
    """The command measures what a pass over each prompt does, and the model forgets."""
    merged = by_command(folder, "merged")
    assert_equal(merged, expected(folder, "merged"))
    original = expected(folder, "original")
    assert original.accuracy == {"forget_questions": 1.0, "retain_questions": 1.0}
    assert merged.accuracy["forget_questions"] < merged.accuracy["retain_questions"] - 0.2


@pytest.mark.slow
@NEEDS_HARNESS
def test_harness_runs_on_a_hooked_model(folder: Path) -> None:
    """The hooked model has the log-likelihoods of the merged checkpoint."""
    assert_equal(by_hooks(folder), expected(folder, "merged"))
