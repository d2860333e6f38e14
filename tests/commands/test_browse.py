"""``adaptive-ortho browse``: a page from a run folder or from SAEs, its cost, and its errors."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.commands import browsing, cli
from saelens_adaptive_ortho.commands.browse import BrowseOptions
from saelens_adaptive_ortho.commands.browsing import browse
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.judging import subjects
from saelens_adaptive_ortho.report.page.run import write_report
from saelens_adaptive_ortho.results import Result, result_path, write_result
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, Prepared
from tests.tiny import HOOK, Tiny


@pytest.fixture(scope="module")
def run(
    make_config: Callable[..., Any], prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run folder with two variants of one seed."""
    root = tmp_path_factory.mktemp("run")
    variants = {"baseline": {"ortho_mode": "off"}, "adaptive": {"ortho_mode": "adaptive"}}
    runner = AdaptiveOrthoRunner(make_config(), variants, prepared)
    runner.trainer.fit()
    for name in runner.saes:
        runner.export(name, root / "seed0" / name)
    return root


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    """The page that the command writes into the run folder."""
    assert cli.main(["browse", str(run), "--contexts", "12", "--passages", "2"]) == 0
    return run / "browse"


def read(page: Path, name: str) -> Any:
    text = (page / "latents" / f"{name}.js").read_text(encoding="utf-8")
    found = re.fullmatch(rf'browse\("{name}",(.*)\)\n', text)
    assert found is not None
    return json.loads(found[1])


def test_numbers_of_the_page_are_those_of_the_sae(
    page: Path, run: Path, prepared: Prepared, model: Any
) -> None:
    sae = SAE.load_from_disk(run / "seed0" / "adaptive")
    index, latents = read(page, "0/index"), read(page, "0/000")
    table, rows = read(page, "0/text000")
    assert index["name"] == "adaptive, seed 0"
    assert [name for name, *_ in index["corpora"]] == ["forget", "retain"]
    assert len(latents) == sae.cfg.d_sae == len(index["max"])
    first = 0
    special = {model.tokenizer.bos_token_id, model.tokenizer.pad_token_id}
    fires = 0
    for corpus, tokenised in enumerate(prepared.corpora):
        tokens = tokenised.train[:12]
        _, cache = model.run_with_cache(tokens.long(), prepend_bos=False)
        acts = sae.encode(cache[HOOK].flatten(0, 1)).view(*tokens.shape, -1)
        acts[torch.isin(tokens.long(), torch.tensor(sorted(special)))] = 0
        assert index["fired"][corpus] == (acts > 0).sum((0, 1)).tolist()
        for i, latent in enumerate(latents):
            mine = [p for p in latent[0] if p[0] == corpus]
            peaks = acts[..., i].amax(1)
            assert len(mine) == min(2, int((peaks > 0).sum()))
            for (_, context, position, *firings), value in zip(
                mine, peaks.sort(descending=True).values.tolist(), strict=False
            ):
                there = dict(zip(firings[::2], firings[1::2], strict=True))
                assert there[16] == pytest.approx(value, rel=1e-2)
                word = model.tokenizer.decode([int(tokens[context - first, position])])
                assert table[rows[context][position]].strip() == word
                fires += 1
        first += len(tokens)
    assert fires > 20


def test_facts_name_sae_model_and_texts(page: Path, tiny: Tiny) -> None:
    facts = dict(read(page, "0/index")["facts"])
    assert HOOK in facts["model"]
    assert facts["corpus forget"] == str(tiny.forget)
    assert facts["read"] == "12 contexts of forget, 12 contexts of retain"
    about = json.loads((page / "latents" / "about.json").read_text())
    assert about["saes"][0].endswith("seed0/adaptive")
    assert about["versions"]["sae-lens"]


def test_page_of_two_saes_with_an_export(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page"
    saes = [str(run / "seed0" / "baseline"), f"ours={run / 'seed0' / 'adaptive'}"]
    quick = ["--contexts", "4", "--export", "neuronpedia", "--out", str(out)]
    assert cli.main(["browse", *saes, *quick]) == 0
    text = (out / "index.html").read_text(encoding="utf-8")
    assert '["baseline, seed 0", "ours, seed 0"]' in text
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == [
        "index.html",
        "latents",
        "neuronpedia",
    ]
    for number, name in enumerate(("baseline", "ours")):
        assert read(out, f"{number}/index")["name"] == f"{name}, seed 0"
        file = out / "neuronpedia" / f"{number}-{name}" / "batch-0.json"
        batch = json.loads(file.read_text(encoding="utf-8"))
        assert len(batch["features"]) == len(read(out, f"{number}/index")["max"])
    said = capsys.readouterr().out
    (disk,) = re.findall(r"128 latents on 8 contexts: about ([\d.]+) MB of files", said)
    actual = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6
    assert actual / 4 < float(disk) < actual * 4
    assert f"Page: {out / 'index.html'}" in said


def test_same_command_replaces_its_page(page: Path, run: Path) -> None:
    before = read(page, "0/index")
    (page / "latents" / "0" / "000.js").unlink()
    browse(BrowseOptions(saes=[str(run)], contexts=12, passages=2))
    assert read(page, "0/index") == before
    assert (page / "latents" / "0" / "000.js").is_file()


def test_failure_keeps_the_earlier_page(
    page: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read(page, "0/000")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(browsing, "rows", fail)
    with pytest.raises(KeyboardInterrupt):
        browse(BrowseOptions(saes=[str(run)], contexts=4))
    assert read(page, "0/000") == before
    assert [p.name for p in page.iterdir() if p.name.startswith(".latents")] == []


def test_report_links_to_the_page(page: Path, run: Path, tmp_path: Path) -> None:
    result = Result("core", "baseline", 0, metrics={"pooled/mse": 0.1})
    for root in (run, tmp_path):
        write_result(result_path(root, "baseline", 0, "core"), result)
    link = '<a href="browse/index.html">'
    assert link in write_report(run).read_text(encoding="utf-8")
    assert link not in write_report(tmp_path).read_text(encoding="utf-8")


def test_command_joins_page_and_report(run: Path, tmp_path: Path) -> None:
    """With a report, the page links to it, and the report is written again with its link."""
    folder = tmp_path / "run"
    shutil.copytree(run / "seed0", folder / "seed0")
    result = Result("core", "baseline", 0, metrics={"pooled/mse": 0.1})
    write_result(result_path(folder, "baseline", 0, "core"), result)
    report, quick = folder / "report.html", ["--contexts", "4", "--passages", "1"]
    assert cli.main(["browse", str(folder), *quick]) == 0
    assert not report.exists()
    assert "../report.html" not in (folder / "browse" / "index.html").read_text(encoding="utf-8")
    write_report(folder)
    assert cli.main(["browse", str(folder), *quick]) == 0
    assert "../report.html" in (folder / "browse" / "index.html").read_text(encoding="utf-8")
    report.write_text("an old report")
    assert cli.main(["browse", str(folder), *quick]) == 0
    assert '<a href="browse/index.html">Latents</a>' in report.read_text(encoding="utf-8")


# ------------------------------------------------------------------------ mistakes


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subjects.models, "load_language_model", lambda *_a, **_k: pytest.fail("loaded a model")
    )


@pytest.mark.usefixtures("no_model")
def test_bad_options_are_refused_before_the_model(run: Path, tmp_path: Path) -> None:
    sae = str(run / "seed0" / "adaptive")
    good = BrowseOptions(saes=[sae], out=tmp_path / "out")
    for bad, message in (
        ({"saes": []}, "RUN_OR_SAE=None: name an SAE"),
        ({"out": None}, "--out=None: name a folder for the page"),
        ({"saes": [str(run)], "variant": "fixed"}, "--variant='fixed'.*It has seed0/adaptive"),
        ({"saes": [str(run), sae]}, "has the same name and seed"),
        ({"saes": [str(tmp_path / "absent")]}, "no such directory"),
        ({"export": "neuron"}, "--export='neuron': must be one of neuronpedia"),
        ({"device": "tpu9"}, "--device"),
        ({"forget": str(tmp_path / "absent.jsonl")}, "--forget"),
    ):
        with pytest.raises(ConfigError, match=message):
            browse(replace(good, **bad))
    for bad, message in (
        ({"contexts": 1}, "--contexts=1: must be a whole number of at least 2"),
        ({"passages": 0}, "--passages=0"),
        ({"width": 0}, "--width=0"),
        ({"domain_ratio": 1.0}, "--domain-ratio=1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(good, **bad)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["index.html", "latents", "neuronpedia"])
def test_files_of_others_are_not_replaced(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    sae = str(run / "seed0" / "adaptive")
    with pytest.raises(ConfigError, match=f"holds another {name}"):
        browse(BrowseOptions(saes=[sae], out=tmp_path, export="neuronpedia"))
    assert (tmp_path / name / "mine.txt").read_text() == "mine"


def test_sae_without_text_is_refused(run: Path, tmp_path: Path) -> None:
    sae = SAE.load_from_disk(run / "seed0" / "adaptive")
    sae.save_model(tmp_path / "bare")
    with pytest.raises(ConfigError, match="--forget and --retain=None: the page shows text"):
        browse(BrowseOptions(saes=[str(tmp_path / "bare")], out=tmp_path / "out"))


def test_too_little_space_is_refused(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(ConfigError, match="of free disk space"):
        browse(BrowseOptions(saes=[str(run)], out=tmp_path, contexts=4))
    assert not (tmp_path / "latents").exists()
