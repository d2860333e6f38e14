"""``adaptive-ortho synth`` end to end, on tiny worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saelens_adaptive_ortho.commands.cli import main
from saelens_adaptive_ortho.files import read_cached
from saelens_adaptive_ortho.synthetic import run as runs
from saelens_adaptive_ortho.synthetic.pool import Batches
from tests.damages import damages

SMALL = (
    "d_sae=12 ortho_neighbours=4 train.steps=10 train.batch_size=32 "
    "pool.train_samples=300 pool.held_out=200"
).split()
CLUSTER = "world.clusters=4 world.cluster_size=3 world.hidden_dim=16".split()
DOMAINS = "world.forget=4 world.retain=4 world.shared=4 world.hidden_dim=16 world.pairs=2".split()
PROMISED = (
    "mcc f1 precision recall uniqueness explained_variance l0 dead_latents mean_max_cosine "
    "training_seconds"
).split()


def synth(folder: Path, *arguments: str, settings: list[str]) -> int:
    options = [part for setting in settings for part in ("--set", setting)]
    return main(["synth", "--cache", str(folder / "pools"), *arguments, *options])


def run(folder: Path, name: str, *arguments: str, settings: list[str]) -> dict[str, Any]:
    out = folder / f"{name}.json"
    assert synth(folder, "--json", str(out), *arguments, settings=settings) == 0
    return read_cached(out)


@pytest.mark.parametrize(
    "base", ["standard", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk"]
)
def test_writes_the_documented_metrics(tmp_path: Path, base: str) -> None:
    settings = [*SMALL, *CLUSTER, *(["k=2"] if "topk" in base else [])]
    result = run(tmp_path, "a", "--world", "cluster", "--base", base, settings=settings)
    assert all(isinstance(result[name], float) for name in PROMISED)
    assert result["settings"]["base"] == base
    assert result["settings"]["mode"] == "adaptive"


@pytest.mark.parametrize("mode", ["off", "fixed", "gram", "adaptive"])
def test_every_mode_trains_in_the_domains_world(tmp_path: Path, mode: str) -> None:
    result = run(
        tmp_path, mode, "--world", "domains", "--mode", mode, settings=[*SMALL, *DOMAINS, "k=2"]
    )
    assert result["settings"]["sae"]["ortho_mode"] == mode
    assert result["settings"]["sae"]["ortho_forget_rows"] == 16
    assert 0 <= result["selectivity_area"] <= 1
    assert 0 <= result["coverage"] <= 1
    assert -1 <= result["selectivity_given_coverage"] <= 1
    assert len(result["domains"]["interventions"]) == 48
    assert set(result["domains"]["geometry"]) == {"found", "true"}


def test_options_and_seeds_are_used(tmp_path: Path) -> None:
    settings = [*SMALL, *CLUSTER, "k=2", "ortho_affinity=overlap"]
    options = "--world cluster --alpha .3 --coefficient .2 --seed 4 --world-seed 7".split()
    result = run(tmp_path, "a", *options, settings=settings)
    sae = result["settings"]["sae"]
    assert (sae["ortho_alpha"], sae["ortho_coefficient"]) == (0.3, 0.2)
    assert sae["ortho_affinity"] == "overlap"
    assert (result["settings"]["seed"], result["settings"]["world"]["seed"]) == (4, 7)
    again = run(tmp_path, "b", *options, settings=settings)
    assert {**again, "training_seconds": 0} == {**result, "training_seconds": 0}
    assert len(list((tmp_path / "pools").iterdir())) == 1


def test_killed_run_continues_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, *CLUSTER, "k=2"]
    options = ["--world", "cluster", "--checkpoint-every", "3"]
    whole = run(tmp_path, "whole", *options, settings=settings)
    following = Batches.__next__

    def killed(self: Batches) -> Any:
        if self.position == 8:
            raise KeyboardInterrupt
        return following(self)

    out = tmp_path / "killed.json"
    monkeypatch.setattr(Batches, "__next__", killed)
    assert synth(tmp_path, "--json", str(out), *options, settings=settings) == 130
    assert "The same command continues" in capsys.readouterr().err
    assert not out.exists()
    assert (tmp_path / "killed.json.checkpoint").is_dir()
    monkeypatch.setattr(Batches, "__next__", following)
    resumed = run(tmp_path, "killed", *options, settings=settings)
    assert {**resumed, "training_seconds": 0} == {**whole, "training_seconds": 0}
    assert not (tmp_path / "killed.json.checkpoint").exists()


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["--world", "clusters"], [], "world='clusters': must be one of"),
        (["--world", "cluster", "--base", "topk2"], [], "base='topk2': must be one of"),
        (["--world", "cluster", "--mode", "on"], [], "mode='on': must be one of"),
        (["--world", "cluster", "--alpha", "2"], [], "ortho_alpha=2.0"),
        (["--world", "cluster", "--scale", "8"], [], "world.scale=8: unknown key"),
        (["--world", "cluster"], ["world.cosine=2"], "world.cosine=2"),
        (["--world", "domains"], ["world.partner_rate=2"], "world.partner_rate=2"),
        (["--world", "domains"], ["world.leak=-1"], "world.leak=-1"),
        (["--world", "domains"], ["world.pairs=49"], "world.pairs=49"),
        (["--world", "cluster", "--seed", "-1"], [], "seed=-1"),
        (["--world", "cluster", "--seed", str(2**63)], [], f"seed={2**63}"),
        (["--world", "cluster", "--world-seed", str(2**63)], [], f"seed={2**63}"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    settings: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(runs, "load_pool", lambda *_a, **_k: pytest.fail("drew a pool"))
    assert synth(tmp_path, "--json", str(tmp_path / "a.json"), *arguments, settings=settings) == 2
    assert message in capsys.readouterr().err


def test_folder_in_the_place_of_the_result_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "load_pool", lambda *_a, **_k: pytest.fail("drew a pool"))
    assert synth(tmp_path, "--json", str(tmp_path), "--world", "cluster", settings=[]) == 2
    assert f"--json='{tmp_path}': is a folder" in capsys.readouterr().err


def test_result_has_a_sum_and_no_litter_stays(tmp_path: Path) -> None:
    left = tmp_path / f".a.json.{'0' * 32}.tmp"
    other = tmp_path / f".b.json.{'0' * 32}.tmp"  # another process may be writing it
    for file in (left, other):
        file.write_text("half")
    run(tmp_path, "a", "--world", "cluster", settings=[*SMALL, *CLUSTER, "k=2"])
    assert not left.exists()
    assert other.exists()
    for damage in damages(tmp_path / "a.json").values():
        kept = (tmp_path / "a.json").read_bytes()
        damage()
        with pytest.warns(UserWarning, match=r"a\.json is damaged"):
            assert read_cached(tmp_path / "a.json") is None
        (tmp_path / "a.json").write_bytes(kept)
