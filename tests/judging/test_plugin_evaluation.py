"""An evaluation of another package: the walk-through of CONTRIBUTING.md, installed and run."""

from __future__ import annotations

import json
import re
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.commands.judge import EvalOptions
from saelens_adaptive_ortho.commands.suite import run_suite
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.evaluations import BUILT_IN, GROUP, every, runnable
from saelens_adaptive_ortho.judging.contract import EvalContext, Outcome
from saelens_adaptive_ortho.judging.running import run_evaluation
from saelens_adaptive_ortho.judging.subjects import named_subjects, workbench_for
from saelens_adaptive_ortho.report.figures.dots import headline_figure
from saelens_adaptive_ortho.report.figures.files import run_figures
from saelens_adaptive_ortho.report.metrics import describe
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.report.verdicts import judge
from saelens_adaptive_ortho.results import load_result, load_results, result_path
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared
from tests.packages import Install

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
OWN = "saelens_adaptive_ortho"
SEEDS = (0, 1, 2)


def walk_through() -> tuple[str, str]:
    """The two modules of the walk-through, with the names of another package."""
    section = CONTRIBUTING.read_text().split("## Adding an evaluation")[1].split("\n## ")[0]
    blocks = re.findall(r"^   ```python\n(.*?)^   ```", section, re.DOTALL | re.MULTILINE)
    described, measured = (
        textwrap.dedent(block)
        .replace(f"{OWN}.judging.coherence", "coherence_run")
        .replace(f"{OWN}.evaluations.coherence", "coherence")
        for block in blocks
    )
    return described, measured


@pytest.fixture
def coherence(install: Install) -> Callable[..., None]:
    """Install the walk-through; the returned function installs it again with a changed code."""

    def put(*changes: tuple[str, str]) -> None:
        described, measured = walk_through()
        for old, new in changes:
            assert old in described
            described = described.replace(old, new)
        install("coherence", described, {GROUP: {"coherence": "coherence:COHERENCE"}})
        install("coherence_run", measured, {})

    put()
    return put


@pytest.fixture(scope="module")
def saes(
    make_config: Callable[..., Any], prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """For each seed, a random SAE and an SAE whose decoder is two orthogonal bases."""
    root = tmp_path_factory.mktemp("saes")
    folders = []
    for seed in SEEDS:
        cfg = make_config({"ortho_mode": "off"}, seed=seed)
        runner = AdaptiveOrthoRunner(cfg, {"baseline": {}, "adaptive": {}}, prepared)
        W_dec = runner.saes["adaptive"].W_dec
        for half in W_dec.detach().split(W_dec.shape[1]):
            torch.nn.init.orthogonal_(half)
        for name in runner.saes:
            folders.append(root / f"seed{seed}" / name)
            runner.export(name, folders[-1])
    return [str(folder) for folder in folders]


@pytest.fixture
def options(saes: list[str], tmp_path: Path) -> EvalOptions:
    return EvalOptions(saes=saes[:1], out=tmp_path / "out", evals="coherence")


@pytest.mark.usefixtures("coherence")
def test_listed_after_the_built_in_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(every()) == [*(e.name for e in BUILT_IN), "coherence"]
    assert "coherence" in runnable()
    assert main(["evaluations", "coherence"]) == 0
    out = capsys.readouterr().out
    assert "Coherence of the decoder" in out
    assert "--set coherence.power=2.0\n      of the cosines that are averaged" in out
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert re.search(r"coherence +Coherence of the decoder", capsys.readouterr().out)


@pytest.mark.usefixtures("coherence")
def test_runs_on_an_sae_with_its_settings(options: EvalOptions) -> None:
    (subject,) = named_subjects(options.saes)
    bench = workbench_for([subject], options)
    context = EvalContext(bench, subject.load, "sae", 0, options.out / "raw")
    D = torch.nn.functional.normalize(subject.load().W_dec.detach(), dim=1)
    pairs = [abs(float(D[i] @ D[j])) for i in range(64) for j in range(64) if i != j]
    for power in (2.0, 4.0):
        found = run_evaluation("coherence", context, {"power": power}).metrics
        expected = sum(c**power for c in pairs) / len(pairs)
        assert found == {"mean_cosine": pytest.approx(expected, rel=1e-4), "n_latents": 64.0}


@pytest.mark.usefixtures("coherence")
def test_eval_command_runs_and_reports_it(saes: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["eval", *saes, "--evals", "coherence", "--out", str(out)]) == 0
    results = load_results(out)
    assert {(r.variant, r.seed) for r in results} == {
        (v, s) for v in ("baseline", "adaptive") for s in SEEDS
    }
    assert all(r.ok for r in results)
    page = (out / "report.html").read_text()
    section = page[page.index('<section id="eval-coherence">') :].split("</section>")[0]
    for text in ("Coherence of the decoder", "averaged over all pairs", "A dot per SAE.", "<svg"):
        assert text in section
    assert "mean power of the cosine" in section
    assert "latents of the SAE" in section
    (verdict,) = judge(summarise(results)).evaluations["coherence"]
    assert verdict.verdict == "better"
    assert verdict.text in re.sub(r"<.*?>", "", section).replace("&#x27;", "'")
    document = json.loads((out / "results" / "summary.json").read_text())
    assert document["evaluations"]["coherence"]["primary"] == ["coherence/mean_cosine"]


@pytest.mark.usefixtures("coherence")
def test_metrics_have_labels_directions_and_a_figure(options: EvalOptions) -> None:
    mean, latents = describe("coherence/mean_cosine"), describe("coherence/n_latents")
    assert (mean.label, mean.unit, mean.direction) == ("mean power of the cosine", "", "lower")
    assert (latents.label, latents.unit, latents.direction) == (
        "latents of the SAE",
        "latents",
        None,
    )
    results = run_suite(options, say=lambda _: None)
    summary = summarise(results)
    assert summary.headline == ["coherence/mean_cosine"]
    assert headline_figure(summary) is not None
    assert set(run_figures(summary, results)) == {"headline", "coherence"}


@pytest.mark.usefixtures("coherence")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("powr=3", "coherence.powr=3: unknown key. Did you mean --set coherence.power?"),
        ("power=-1", "coherence.power=-1: must be a number in (0, inf)"),
    ],
)
def test_bad_setting_is_refused(
    saes: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    message: str,
) -> None:
    arguments = ["eval", saes[0], "--out", str(tmp_path), "--evals", "coherence"]
    assert main([*arguments, "--set", f"coherence.{setting}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_report")
def test_new_version_or_settings_rerun_it(
    coherence: Callable[..., None], saes: list[str], tmp_path: Path
) -> None:
    def evaluated(*settings: str) -> int:
        lines: list[str] = []
        run_suite(
            EvalOptions(saes=saes[:1], out=tmp_path, evals="coherence", set=list(settings)),
            say=lines.append,
        )
        return sum("evaluating" in line for line in lines)

    def fingerprint() -> str:
        return load_result(result_path(tmp_path, "baseline", 0, "coherence")).fingerprint

    assert evaluated() == 1
    first = fingerprint()
    assert evaluated() == 0
    assert evaluated("coherence.power=2.0") == 0  # its default
    assert evaluated("coherence.power=3") == 1
    assert fingerprint() != first
    assert evaluated() == 1
    assert fingerprint() == first
    coherence(("    title=", "    version=2,\n    title="))
    assert evaluated() == 1
    assert fingerprint() != first
    assert evaluated() == 0


def test_broken_plugin_is_left_out(
    coherence: Callable[..., None], install: Install, options: EvalOptions
) -> None:
    install("broken", "import a_package_that_is_not_there", {GROUP: {"broken": "broken:IT"}})
    install("other", "IT = 'no evaluation'", {GROUP: {"other": "other:IT"}})
    with pytest.warns(UserWarning, match="Left out") as caught:
        found = every()
    messages = [str(w.message) for w in caught]
    assert len(messages) == 2
    assert re.search("broken.*a_package_that_is_not_there", messages[0])
    assert re.search("other.*gives a str, not a Evaluation", messages[1])
    assert list(found) == [*(e.name for e in BUILT_IN), "coherence"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every()  # said once
    assert all(r.ok for r in run_suite(options, say=lambda _: None))


def test_name_of_a_built_in_one_is_refused(
    coherence: Callable[..., None], install: Install
) -> None:
    coherence(('name="coherence"', 'name="core"'))
    both = "gives the Evaluation 'core'; both names must be equal"
    with pytest.warns(UserWarning, match=f"Left out.*coherence:COHERENCE.*{both}"):
        found = every()
    assert found == {e.name: e for e in BUILT_IN}
    install("taker", "from coherence import COHERENCE", {GROUP: {"core": "taker:COHERENCE"}})
    with pytest.warns(UserWarning, match="Left out.*core = taker:COHERENCE of taker has the name"):
        found = every()
    assert found == {e.name: e for e in BUILT_IN}


@pytest.mark.usefixtures("no_report")
def test_missing_package_is_named(coherence: Callable[..., None], options: EvalOptions) -> None:
    coherence(("    title=", '    needs=("package_x",),\n    title='))
    with pytest.raises(ConfigError, match="needs the package 'package_x': pip install package_x"):
        run_suite(options)


@pytest.mark.usefixtures("coherence")
@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("Outcome({'mean_cosine': float('nan')}, {})", "metric 'mean_cosine' is nan"),
        ("Outcome({'mean_cosine': 'x'}, {})", "could not convert string to float"),
        ("Outcome({}, {'x': object()})", "details.x has type object"),
        ("{'mean_cosine': 1.0}", "run returned a dict, not an Outcome"),
        ("exit(5)", "SystemExit(5)"),
    ],
)
def test_unusable_outcome_fails_alone(
    saes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: str, reason: str
) -> None:
    def run(*_: object) -> object:
        return eval(returned, {"Outcome": Outcome})

    monkeypatch.setattr("coherence_run.run", run)
    options = ["--evals", "coherence,subspace", "--set", "subspace.n_contexts=8"]
    assert main(["eval", saes[0], *options, "--out", str(tmp_path)]) == 1
    found = {r.eval: r for r in load_results(tmp_path)}
    assert found["subspace"].ok
    assert not found["coherence"].ok
    assert reason in (found["coherence"].reason or "")
    assert (tmp_path / "report.html").is_file()
