"""The command line: quick help, one declaration per option, one-line errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.commands import cli, suite
from saelens_adaptive_ortho.commands.analyse import AnalyseOptions
from saelens_adaptive_ortho.commands.cli import COMMANDS, main
from saelens_adaptive_ortho.commands.judge import EvalOptions
from saelens_adaptive_ortho.commands.options import Command, add_options, build_parser, field_help
from saelens_adaptive_ortho.commands.options import run as run_command
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.evaluations import runnable
from saelens_adaptive_ortho.judging import subjects
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.locks import run_lock
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared

ROOT = Path(__file__).parents[2]


def every_command(
    commands: tuple[Command, ...] = COMMANDS, above: str = ""
) -> Iterator[tuple[str, Command]]:
    """The words on the command line, and the command."""
    for command in commands:
        typed = f"{above} {command.name}".strip()
        yield typed, command
        yield from every_command(command.commands, typed)


WITH_OPTIONS = {typed: c for typed, c in every_command() if c.options is not None}


@pytest.fixture(scope="module")
def sae(
    make_config: Callable[..., Any], prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An exported SAE without training."""
    folder = tmp_path_factory.mktemp("sae") / "plain"
    runner = AdaptiveOrthoRunner(make_config({"ortho_mode": "off"}), None, prepared)
    runner.export(next(iter(runner.saes)), folder)
    return folder


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run a command, check that it is refused before a model is loaded, return its one line."""
    monkeypatch.setattr(
        subjects.models, "load_language_model", lambda *_a, **_k: pytest.fail("loaded a model")
    )

    def run(*arguments: object) -> str:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stopped:
            status = stopped.code
        assert status == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("adaptive-ortho")
        return line.split("error: ", 1)[1]

    return run


# ------------------------------------------------------------------------ help


@pytest.mark.parametrize("name", ["", "eval", "analyse", "browse", "synth", "compare", "report"])
def test_help_works_without_torch_and_saelens(name: str) -> None:
    arguments = ["adaptive-ortho", *([name] if name else []), "--help"]
    script = (
        f"import sys\nsys.argv = {arguments!r}\n"
        "for absent in ('torch', 'sae_lens', 'transformer_lens'):\n"
        "    sys.modules[absent] = None\n"
        "from saelens_adaptive_ortho.commands.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: adaptive-ortho" in done.stdout


@pytest.mark.parametrize("typed", WITH_OPTIONS)
def test_help_and_defaults_come_from_the_dataclass(
    typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = WITH_OPTIONS[typed]
    assert command.options is not None
    texts = field_help(command.options)
    assert set(texts) == {f.name for f in fields(command.options)}
    with pytest.raises(SystemExit):
        main([*typed.split(), "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for f in fields(command.options):
        assert texts[f.name] in shown, f.name
        if "positional" in f.metadata:
            assert f.metadata["positional"] in shown
            continue
        assert f"--{f.name.replace('_', '-')}" in shown
        if f.default not in (MISSING, None, False):
            assert f"(default: {f.default})" in shown


@pytest.mark.parametrize(
    ("options", "others"),
    [
        (EvalOptions, {"evals": "core"}),
        (AnalyseOptions, {"contexts": 256, "candidates": 20, "min_cosine": 0.3, "texts": 3}),
    ],
)
def test_judging_options_are_declared_once(
    options: type[JudgingOptions], others: dict[str, object]
) -> None:
    assert issubclass(options, JudgingOptions)
    shared = {f.name for f in fields(JudgingOptions)}
    assert not shared & set(vars(options).get("__annotations__", {}))
    built: Any = options(saes=["x"], out=Path("out"))
    assert {name: getattr(built, name) for name in others} == others


def test_option_types(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Some.

        Args:
            names: what is named, 50% of it.
            folder_name: where.
            share: how much.
            flag, many: two of them.
        """

        names: list[str] = field(default_factory=list, metadata={"positional": "NAME"})
        folder_name: Path
        share: float | None = None
        flag: bool = False
        many: list[int] = field(default_factory=list)

    got: list[Options] = []
    command = Command("do", "Do it.", Options, lambda options: got.append(options) or 0)
    parser = build_parser("prog", "A program.", [Command("group", "Group.", commands=(command,))])
    for arguments in (
        "group do a b --folder-name x --share 0.5 --flag --many 1 --many 2",
        "group do a --folder-name x",
    ):
        args = parser.parse_args(arguments.split())
        assert run_command(args.command, args) == 0
    full, least = got
    assert full == Options(
        names=["a", "b"], folder_name=Path("x"), share=0.5, flag=True, many=[1, 2]
    )
    assert least == Options(names=["a"], folder_name=Path("x"))
    with pytest.raises(SystemExit):
        parser.parse_args(["group", "do", "--help"])
    assert "what is named, 50% of it" in capsys.readouterr().out


def test_field_without_help_is_an_error() -> None:
    @dataclass
    class Options:
        """No arguments are described."""

        number: int = 1

    with pytest.raises(KeyError, match="number"):
        add_options(build_parser("prog", "", [Command("x", "X.")]), Options)


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("command", "option", "value", "message"),
    [
        ("analyse", "--contexts", 1, "--contexts=1: must be a whole number of at least 2"),
        ("analyse", "--contexts", -3, "--contexts=-3: must be"),
        ("analyse", "--candidates", -1, "--candidates=-1: must be a whole number of at least 0"),
        ("analyse", "--texts", -1, "--texts=-1: must be"),
        ("analyse", "--batch-size-prompts", 0, "--batch-size-prompts=0: must be"),
        ("analyse", "--energy", 1.5, "--energy=1.5: must be a number in [0, 1]"),
        ("analyse", "--domain-ratio", 1, "--domain-ratio=1.0: must be a number in (1, inf)"),
        ("analyse", "--min-cosine", "nan", "--min-cosine=nan: must be a number in [-1, 1]"),
        ("analyse", "--max-lift", 2, "--max-lift=2.0: must be"),
        ("analyse", "--contexts", "many", "argument --contexts: invalid int value: 'many'"),
        ("analyse", "--contxts", 3, "unknown: --contxts 3. Did you mean --contexts?"),
        ("eval", "--context-size", 0, "--context-size=0: must be a whole number of at least 2"),
        ("eval", "--context", 8, "unknown: --context 8. Did you mean --context-size?"),
        ("eval", "--evals", "cor", "--evals='cor': must be one of core, subspace,"),
        ("eval", "--evals", "training", "--evals='training': must be one of core,"),
        ("eval", "--set", "core.n_contxts=3", "Did you mean --set core.n_contexts?"),
        ("eval", "--set", "core.n_contxts=3", "contexts? `adaptive-ortho evaluations core` lists"),
        ("eval", "--set", "core.foo=3", "Known: n_contexts, batch_size_prompts. `adaptive-ortho"),
        ("eval", "--out", "again", "argument --out: is given twice; give it once"),
        ("eval", "--retain", "pooled=demo:near", "--retain pooled='demo:near': 'pooled' has a"),
        ("eval", "--set", "core.n_contexts=0", "--set core.n_contexts=0: must be a whole number"),
        ("eval", "--set", "core.n_contexts", "must read key=value"),
        ("eval", "--set", "subspace.energy=1", "must begin with one of core and a dot"),
        ("eval", "--forget", "nowhere.jsonl", "--forget='nowhere.jsonl': no such file"),
        ("analyse", "--retain", "./nowhere", "--retain='./nowhere': no such file"),
        ("eval", "--dtype", "float31", "--dtype='float31': must be one of float32"),
        ("analyse", "--device", "gpu", "--device='gpu': torch cannot use it"),
    ],
)
def test_bad_option_is_one_line_that_names_it(
    sae: Path,
    refused: Callable[..., str],
    tmp_path: Path,
    command: str,
    option: str,
    value: object,
    message: str,
) -> None:
    assert message in refused(command, sae, "--out", tmp_path / "out", option, value)


def test_options_named_in_errors_exist(
    sae: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for command in ("eval", "analyse"):
        found = WITH_OPTIONS[command].options
        assert found is not None
        for f in fields(found):
            if f.type in ("str", "list[str]", "Path", "str | None", "Path | None"):
                continue
            flag = f"--{f.name.replace('_', '-')}"
            line = refused(command, sae, "--out", tmp_path / "out", flag, "-7")
            assert line.startswith(f"{flag}=-7")


def test_missing_files_are_refused(sae: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such directory" in refused("eval", tmp_path / "absent", "--out", tmp_path / "out")
    twice = refused("eval", sae, f"{sae}/.", "--out", tmp_path / "out")
    assert "has the same name and seed as" in twice
    assert "name it: NAME=..." in twice
    assert "the following arguments are required: --out" in refused("eval", sae)
    assert "invalid choice: 'evaluate'" in refused("evaluate", sae)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("eval", sae, "--out", tmp_path / "file" / "out")


def test_too_small_single_corpus_is_named_by_its_option(
    sae: Path, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tiny.write_jsonl(tmp_path / "small.jsonl", ["virus1 virus2"] * 3)
    for flag in ("--forget", "--retain"):
        assert main(["eval", str(sae), "--out", str(tmp_path / "out"), flag, str(small)]) == 2
        assert f"error: {flag}='{small}': too little text" in capsys.readouterr().err


def test_wrong_types_are_refused_in_python() -> None:
    with pytest.raises(ConfigError, match=r"--contexts='8': must be a whole number"):
        AnalyseOptions(saes=["x"], out=Path("out"), contexts="8")  # type: ignore[arg-type]


def test_interruption_says_how_to_continue(
    sae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run_suite", stop)
    assert main(["eval", str(sae), "--out", str(tmp_path)]) == 130
    assert "interrupted. The same command continues." in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "analyse"])
def test_folder_in_use_is_refused(
    sae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with run_lock("output_path", tmp_path, "adaptive-ortho compare"):
        assert main([command, str(sae), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"--out={str(tmp_path)!r}: is in use: `adaptive-ortho compare` runs there" in error
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ evaluations


def test_help_of_eval_lists_every_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["eval", "--help"])
    out = capsys.readouterr().out
    for evaluation in runnable().values():
        assert f"  {evaluation.name} " in out
        assert evaluation.title in out


def test_evaluations_list_shows_settings_and_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluations"]) == 0
    out = capsys.readouterr().out
    for evaluation in runnable().values():
        assert f"{evaluation.name}: {evaluation.title}" in out
    assert "n_contexts=256, domain_ratio=9.0, energy=0.9, batch_size_prompts=32" in out
    assert "needs: sae_bench" in out
    assert "training:" not in out


@pytest.mark.parametrize("name", list(runnable()))
def test_evaluations_command_explains_each_setting(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluations", name]) == 0
    out = " ".join(capsys.readouterr().out.split())
    settings = runnable()[name].settings
    assert settings is not None
    for field_name, text in field_help(settings).items():
        assert f"--set {name}.{field_name}=" in out
        assert text in out


def test_unknown_evaluation_suggests_the_nearest(refused: Callable[..., str]) -> None:
    line = refused("evaluations", "unlerning")
    known = ", ".join(runnable())
    assert line.startswith(f"NAME='unlerning': must be one of {known}.")
    assert "Did you mean 'unlearning'?" in line


def test_sae_lens_shows_a_bad_setting_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--architecture", "adaptive_ortho_batchtopk", "--ortho_alpha", "3", "--model_name", "x"]
    assert main(["sae-lens", *argv]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("adaptive-ortho: error: ortho_alpha=3.0")


def test_tables_of_a_page_without_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.md").write_text("words\n")
    assert main(["tables", str(tmp_path / "page.md")]) == 0
    assert "has no table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("none.md", "cannot be read (No such file or directory)"),
        (".", "is no regular file"),
        ("latin.md", "is not UTF-8 text"),
        ("/dev/zero", "is no regular file"),
        ("a\0b", "cannot be read"),
        ("x" * 300, "File name too long"),
    ],
)
def test_tables_of_an_unreadable_file(
    name: str, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.md").write_bytes(b"\xff\xfe")
    assert main(["tables", str(tmp_path / name)]) == 2
    assert rule in capsys.readouterr().err


def test_name_that_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "x" * 300]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("xxx': File name too long")


def test_sae_that_cannot_be_loaded_says_why(
    sae: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    folder = shutil.copytree(sae, tmp_path / "sae")
    cfg = json.loads((folder / "cfg.json").read_text())
    arguments = ("eval", folder, "--out", tmp_path / "out")
    (folder / "cfg.json").write_text(json.dumps({**cfg, "architecture": "relu2"}))
    assert "knows no architecture 'relu2'. It knows" in refused(*arguments)
    (folder / "cfg.json").write_text(json.dumps({**cfg, "d_in": 8}))
    message = refused(*arguments)
    assert "size mismatch for" in message
    assert "belong to different SAEs" in message
