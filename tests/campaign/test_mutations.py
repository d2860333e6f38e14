"""Ten thousand mutated inputs: each is accepted, or refused with one clear line. Nothing hangs.

Nothing is trained, and no model is loaded: settings, files and command lines go to the functions
that read them. Case N of a kind is the same in every run.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saelens_adaptive_ortho.commands.cli import COMMANDS, main, parser
from saelens_adaptive_ortho.commands.unlearning import _prompts_in
from saelens_adaptive_ortho.errors import Explained
from saelens_adaptive_ortho.evaluations import runnable
from saelens_adaptive_ortho.experiments.experiment import (
    EXPERIMENT_KEYS,
    build_experiment,
    eval_settings,
    load_experiments,
)
from saelens_adaptive_ortho.host.architectures import ARCHITECTURES
from saelens_adaptive_ortho.judging.contract import EvaluationError
from saelens_adaptive_ortho.judging.saebench.tasks import labelled_rows
from saelens_adaptive_ortho.judging.unlearning.questions import load_questions
from saelens_adaptive_ortho.judging.unlearning.saved import UnlearningSelection
from saelens_adaptive_ortho.results import Result, load_result, load_results, write_result
from saelens_adaptive_ortho.settings import dump_yaml, init_fields
from saelens_adaptive_ortho.text.corpora import CorpusConfig, read_documents, read_tokens
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig
from tests.campaign.figures import FULL, record
from tests.campaign.mutations import WEIRD, changed_bytes, changed_text, changed_tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SCALE = 5 if FULL else 1
# For one case. A busy machine makes a case wait, but not work, for longer.
WORK = 10.0  # seconds of the processor
WAIT = 300.0  # seconds of the clock
MEMORY = 1 << 30  # bytes that a case may take
SEED = 2026

Case = Callable[[Random], Callable[[], Any]]


class Hang(BaseException):
    """A case took too long."""


@contextmanager
def limited() -> Iterator[None]:
    """Inside the block, time and memory have limits."""

    def late(*_: Any) -> None:
        raise Hang

    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    handlers = {number: signal.signal(number, late) for number in timers}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, WORK)
    of_the_test = signal.setitimer(signal.ITIMER_REAL, WAIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, *of_the_test)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(work: Callable[[], Any]) -> str:
    """``accepted`` or ``refused``, or what is wrong: a traceback, a hang, or a poor message."""
    quiet = io.StringIO()
    try:
        with limited(), contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
            work()
    except (Explained, EvaluationError) as error:
        text = str(error)
        # Every message names what is wrong: a field, a file, or a value.
        return "refused" if len(text) > 10 and "Traceback" not in text else f"says {text!r}"
    except SystemExit as error:
        return "refused" if error.code in (0, 2) else f"exit status {error.code}"
    except BaseException:
        return "\n".join(traceback.format_exc().splitlines()[-16:])
    return "accepted"


def campaign(kind: str, n: int, case: Case) -> None:
    """Run ``n`` cases, and fail with the first case of each kind of fault."""
    started = time.perf_counter()
    counts: Counter[str] = Counter()
    faults: dict[str, str] = {}
    for number in range(n * SCALE):
        found = outcome(case(Random(f"{SEED} {kind} {number}")))
        if found not in ("accepted", "refused"):
            # The same line of code with the same error is the same fault.
            lines = found.strip().splitlines()
            place = [line for line in lines if line.startswith("  File") and "/tests/" not in line]
            faults.setdefault(f"{place[-1:]} {lines[-1][:60]}", f"case {number}: {found}")
            found = "faults"
        counts[found] += 1
    seconds = round(time.perf_counter() - started, 1)
    # A driver whose every case ends at the first check would test nothing.
    assert counts["accepted"] + counts["refused"] + counts["faults"] == n * SCALE
    record(
        f"mutations: {kind}",
        cases=n * SCALE,
        accepted=counts["accepted"],
        refused=counts["refused"],
        tracebacks_or_hangs=counts["faults"],
        seconds=seconds,
    )
    assert not faults, "\n\n".join(faults.values())
    assert counts["accepted"]
    assert counts["refused"]


# ----------------------------------------------------------------------------------- settings


@pytest.fixture
def tree(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """Valid settings that hold many of the fields."""
    return settings(
        output_path=str(tmp_path / "run"),
        variants={"baseline": {"ortho_mode": "off"}, "adaptive": {"ortho_alpha": 0.5}},
        seeds=[0, 1],
        evals={"core": {"n_contexts": 8}, "subspace": {"n_contexts": 8}, "unlearning": {}},
        lr_warm_up_steps=2,
        n_checkpoints=2,
        adam_beta1=0.9,
        seqpos_slice=[0, 16],
        logger={"log_to_wandb": False},
    )


KEYS = [
    *init_fields(AdaptiveOrthoRunnerConfig),
    *EXPERIMENT_KEYS,
    *init_fields(next(iter(ARCHITECTURES.values()))[1]),
    "extends",
    "hook_names",
]


def changed(draw: Random, tree: dict[str, Any]) -> dict[str, Any]:
    found = changed_tree(draw, tree, KEYS)
    if draw.random() < 0.2 and isinstance(found.get("sae"), dict):
        found["sae"] = {**found["sae"], "architecture": draw.choice(list(ARCHITECTURES))}
    return found


def test_settings(tree: dict[str, Any]) -> None:
    def case(draw: Random) -> Callable[[], Any]:
        found = changed(draw, tree)
        return lambda: build_experiment(found)

    campaign("trees of settings", 3000, case)


def test_yaml_files(tree: dict[str, Any], tmp_path: Path) -> None:
    text = dump_yaml(tree)
    (tmp_path / "base.yaml").write_text(text)
    short = "extends: base.yaml\nlr: 1e-3\nsae: {k: 3, d_sae: 32}\nseeds: [0, 1]\n"

    def case(draw: Random) -> Callable[[], Any]:
        path = tmp_path / "case.yaml"
        data = changed_bytes(draw, draw.choice([text, short, short]))
        path.write_bytes(data)
        return lambda: load_experiments(path, [])

    campaign("YAML files", 1500, case)


def test_overrides(tree: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    path.write_text(dump_yaml(tree))
    known = [f"{prefix}{key}" for key in KEYS for prefix in ("", "sae.", "logger.")]
    known += ["ortho_corpora.forget", "ortho_corpora.near.share", "evals.core.n_contexts"]

    def case(draw: Random) -> Callable[[], Any]:
        texts = []
        for _ in range(draw.choice([1, 1, 2])):
            value = draw.choice(WEIRD)
            try:
                shown = draw.choice([str(value), json.dumps(value)])
            except ValueError:  # more digits than Python writes
                shown = "1" * 400
            text = f"{draw.choice(known)}={shown}"
            texts.append(changed_text(draw, text) if draw.random() < 0.3 else text)
        return lambda: load_experiments(path, texts)

    campaign("--set", 1000, case)


def test_settings_of_evaluations() -> None:
    names = list(runnable())
    fields = [
        f"{name}.{field}"
        for name in names
        for field in init_fields(runnable()[name].settings or Result)
    ]

    def case(draw: Random) -> Callable[[], Any]:
        chosen = draw.choice([draw.sample(names, 2), names, [draw.choice(["", "x", "core "])]])
        value = draw.choice(WEIRD)
        text = "1" * 400 if value == 10**400 else draw.choice([str(value), repr(value)])
        return lambda: eval_settings(chosen, [f"{draw.choice(fields)}={text}"])

    campaign("--evals and their --set", 700, case)


# ---------------------------------------------------------------------------------- command lines


def test_command_lines(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "base.yaml"
    config.write_text(dump_yaml(tree))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    names = [command.name for command in COMMANDS if command.name != "sae-lens"]
    flags = {
        name: [
            f"--{field.replace('_', '-')}"
            for field in getattr(command.options, "__dataclass_fields__", {})
        ]
        for name, command in zip(names, COMMANDS, strict=False)
    }
    values = [
        str(v)
        for v in WEIRD
        if isinstance(v, str | float) or (v and abs(v) < 2**70 if isinstance(v, int) else False)
    ]
    values += [str(config), "1", "demo", "core", "a=b", "sae.k=2"]
    # These do little work, whatever they are told.
    quick = [
        lambda draw: ["check", str(config), "--offline", "--set", draw.choice(values)],
        lambda draw: ["evaluations", draw.choice(values)],
        lambda draw: ["penalties"],
        lambda draw: ["report", draw.choice(values)],
        lambda draw: ["tables", draw.choice(values)],
        lambda draw: ["config", draw.choice(["copy", "list", "show"]), draw.choice(values)],
        lambda draw: ["unlearn", draw.choice(values), "--selection", draw.choice(values)],
        lambda draw: ["analyse", draw.choice(values), "--out", draw.choice(["x", "/dev/null/x"])],
        lambda draw: ["eval", draw.choice(values), "--evals", draw.choice(values)],
    ]

    def case(draw: Random) -> Callable[[], Any]:
        if draw.random() < 0.4:
            words = draw.choice(quick)(draw)
            return lambda: _exit(main(words))
        name = draw.choice([*names, "x", ""])
        words = [name]
        for _ in range(draw.randrange(5)):
            words += [draw.choice([*flags.get(name, []), "--x"])] * draw.randrange(2)
            words += [draw.choice(values)] * draw.randrange(2)
        return lambda: parser().parse_args(words)

    campaign("command lines", 1000, case)


def _exit(status: int) -> None:
    raise SystemExit(status)


# ------------------------------------------------------------------------------------------ files


LINES = "".join(
    json.dumps({"text": f"Some text {i}, ünd more", "n": i, "ids": [0, i], "label": "ab"[i % 2]})
    + "\n"
    for i in range(12)
)
PARAGRAPHS = "A first paragraph.\n\nA second\none.\r\n\r\nDrei äöü.\n"
ENDINGS = "jsonl json txt parquet jsonl.gz json.gz txt.gz".split()


def written(draw: Random, folder: Path, text: str, endings: list[str] = ENDINGS) -> Path:
    """A file of the text, changed."""
    path = folder / f"case.{draw.choice(endings)}"
    data = changed_bytes(draw, text)
    if ".parquet" in path.name and draw.random() < 0.9:
        table = io.BytesIO()
        rows = [json.loads(line) for line in LINES.splitlines()]
        weird = draw.choice(["text", None, 3, [1], b"\xff"])
        rows = [{**row, "text": row["text"] if weird == "text" else weird} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), table)
        whole = bytearray(table.getvalue())
        for _ in range(draw.randrange(4)):
            whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        data = bytes(whole)
    if path.suffix == ".gz" and draw.random() < 0.8:
        data = gzip.compress(data)
        data = data if draw.random() < 0.7 else data[: draw.randint(0, len(data))]
    path.write_bytes(data)
    return path


def test_corpora(tmp_path: Path) -> None:
    array = json.dumps([json.loads(line) for line in LINES.splitlines()], indent=1)

    def case(draw: Random) -> Callable[[], Any]:
        path = written(draw, tmp_path, draw.choice([LINES, LINES, array, PARAGRAPHS]))
        field = draw.choice(["text", "text", "n", "ids", "", "é"])
        limit = draw.choice([None, 1, 3])
        if draw.random() < 0.2:
            corpus = CorpusConfig(path=str(path), tokens_field=field, max_documents=limit)
            return lambda: list(read_tokens(corpus, "forget"))
        corpus = CorpusConfig(path=str(path), text_field=field, max_documents=limit)
        return lambda: list(read_documents(corpus, "forget"))

    campaign("corpora", 1500, case)


def test_labelled_texts(tmp_path: Path) -> None:
    def case(draw: Random) -> Callable[[], Any]:
        path = written(draw, tmp_path, LINES, ["jsonl", "json", "parquet", "jsonl.gz"])
        return lambda: list(labelled_rows(path, ("label",)))

    campaign("labelled texts", 500, case)


def test_prompts(tmp_path: Path) -> None:
    lines = '{"prompt": "Once", "continuation": " upon"}\n{"prompt": "é"}\n'

    def case(draw: Random) -> Callable[[], Any]:
        path = written(draw, tmp_path, draw.choice([lines, PARAGRAPHS]), ["jsonl", "txt", "x"])
        return lambda: _prompts_in(path)

    campaign("prompts", 300, case)


def test_questions(tmp_path: Path) -> None:
    asked = {"domain": "forget", "subject": "x", "question": "Why?", "choices": list("abcd")}
    rows = [{**asked, "answer": i % 4} for i in range(6)]

    def case(draw: Random) -> Callable[[], Any]:
        changed_rows = (
            changed_tree(draw, rows, ["domain", "answer"]) if draw.random() < 0.6 else rows
        )
        text = "".join(_json(row) + "\n" for row in changed_rows)
        path = tmp_path / "questions.jsonl"
        path.write_bytes(changed_bytes(draw, text) if draw.random() < 0.4 else _bytes(text))
        return lambda: load_questions(str(path))

    campaign("questions", 700, case)


def test_selections(tmp_path: Path) -> None:
    common = {"model_name": "m", "hook_name": "h", "sae_digest": "0" * 64, "d_in": 4}
    clamp = UnlearningSelection(
        kind="clamp", latents=[3, 1], values=[-1.0, -2.0], strength=2.0, gate=0.1, **common
    )
    bounded = UnlearningSelection(
        kind="bounded",
        latents=[2],
        strength=0.5,
        basis=[[1.0, 0, 0, 0]],
        centre=[0.0] * 4,
        **common,
    )
    corpora = [{"name": "forget", "path": "x", "fingerprint": "y"}]
    chosen_on = {"corpora": corpora, "context_size": 8, "budget": 0.1, "ranking": "r"}
    chosen_on |= {"n_select_contexts": 4, "n_choose_contexts": 4}
    trees = [asdict(clamp), asdict(bounded), {**asdict(clamp), "chosen_on": chosen_on}]

    def case(draw: Random) -> Callable[[], Any]:
        tree = changed_tree(draw, draw.choice(trees), ["gate", "basis"])
        path = tmp_path / "selection.json"
        text = _json(tree)
        path.write_bytes(changed_bytes(draw, text) if draw.random() < 0.3 else _bytes(text))

        def load() -> None:
            selection = UnlearningSelection.load(path)
            selection.check_width(4, 64)
            selection.check_vocabulary(100)
            selection.intervention()

        return load

    campaign("selections", 700, case)


def test_results(tmp_path: Path) -> None:
    result = Result("core", "adaptive", 0, metrics={"l0": 3.0}, details={"rows": [1, 2.5, None]})
    path = tmp_path / "results" / "adaptive__seed0__core.json"
    write_result(path, result)
    tree = json.loads(path.read_text())

    def case(draw: Random) -> Callable[[], Any]:
        text = _json(changed_tree(draw, tree, list(tree)))
        path.write_bytes(changed_bytes(draw, text) if draw.random() < 0.3 else _bytes(text))
        return draw.choice([lambda: load_result(path), lambda: load_results(tmp_path)])

    campaign("results", 700, case)


def _json(tree: Any) -> str:
    try:
        return json.dumps(tree, ensure_ascii=False)
    except ValueError:  # more digits than Python writes
        return '{"n": ' + "1" * 5000 + "}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
