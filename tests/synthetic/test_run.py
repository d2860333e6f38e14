"""Settings and determinism of a run, resumed sweeps, and the figures of the study."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.synthetic import figures, sweep, tables
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.host.config import separation_coefficient
from saelens_adaptive_ortho.maths.affinity import AFFINITIES
from saelens_adaptive_ortho.signals import Interrupted
from saelens_adaptive_ortho.synthetic import pool as pools
from saelens_adaptive_ortho.synthetic import run as runs
from saelens_adaptive_ortho.synthetic.pool import Batches, load_pool
from saelens_adaptive_ortho.synthetic.run import BASES, build_run, execute, parse_settings

TINY: dict[str, Any] = {
    "d_sae": 12,
    "k": 2,
    "ortho_neighbours": 4,
    "ortho_refresh_every": 5,
    "world": {"clusters": 4, "cluster_size": 3, "hidden_dim": 16},
    "train": {"steps": 12, "batch_size": 32},
    "pool": {"train_samples": 300, "held_out": 200},
}
TINY_DOMAINS = {
    **TINY,
    "world": {"forget": 4, "retain": 4, "shared": 4, "hidden_dim": 16, "pairs": 2},
}


def untimed(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k != "training_seconds"}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("world", ["hierarchy", "cluster", "domains", "synthsaebench16k"])
def test_defaults_are_valid_for_every_base_and_world(world: str, base: str) -> None:
    run = build_run(world, base)
    assert run.sae.ortho_mode == "adaptive"
    assert run.sae.ortho_forget_rows == (512 if world == "domains" else 0)
    assert json.loads(json.dumps(run.settings())) == run.settings()


def test_penalty_defaults_are_the_same_in_every_world() -> None:
    from saelens_adaptive_ortho import AdaptiveOrthoBatchTopKConfig

    stock = AdaptiveOrthoBatchTopKConfig(d_in=8, d_sae=64, k=2)
    for world in ("hierarchy", "cluster", "domains", "synthsaebench16k"):
        sae = build_run(world).sae
        for name in ("ortho_coefficient", "ortho_alpha", "ortho_affinity", "ortho_warm_up_steps"):
            assert getattr(sae, name) == getattr(stock, name)


def test_settings_reach_their_objects() -> None:
    settings = parse_settings(
        ["ortho_affinity=overlap", "sae.k=3", "world.cosine=.6", "train.steps=7", "pool.held_out=9"]
    )
    run = build_run("cluster", "batchtopk", settings=settings)
    assert (run.sae.ortho_affinity, run.sae.k, run.world.cosine) == ("overlap", 3, 0.6)  # type: ignore[attr-defined]
    assert (run.train.steps, run.pool.held_out) == (7, 9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ortho_alpha=2", r"ortho_alpha=2"),
        ("ortho_afinity=lift", r"ortho_afinity='lift': unknown key. Did you mean ortho_affinity"),
        ("ortho_affinity=lyft", r"ortho_affinity='lyft'"),
        ("world.cosin=.4", r"world.cosin=0.4: unknown key. Did you mean world.cosine"),
        ("world.clusters=many", r"world.clusters='many': must be a whole number of at least 1\."),
        ("train.lr=-1", r"train.lr=-1"),
        ("train.steps=0", r"train\.steps=0: must be a whole number of at least 1\."),
        ("train.batch_size=1", r"train\.batch_size=1: must be a whole number of at least 2\."),
        ("train.forget_share=1", r"train\.forget_share=1: must be a number in \(0, 1\)\."),
        ("train.lr_decay_steps=1e9", r"train\.lr_decay_steps=1000000000.0: must be a whole"),
        ("train.lr_decay_steps=4000", r"train\.lr_decay_steps=4000: warm-up and decay do not fit"),
        ("world.cosine=1.5", r"world\.cosine=1\.5: must be a number in \[0, 1\]\."),
        ("world.cluster_size=0", r"world\.cluster_size=0: must be a whole number of at least 1\."),
        ("train=3", r"train=3: must be a mapping"),
        ("pool.held_out=0", r"pool\.held_out=0: must be a whole number of at least 4\."),
        ("ortho_mode=off", r"ortho_mode='off': use --mode"),
        ("d_in=4", r"d_in=4"),
        ("d_sae=0", r"d_sae=0"),
        ("k", r"--set='k'"),
    ],
)
def test_bad_setting_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run("cluster", settings=parse_settings([override]))


@pytest.mark.parametrize(("field", "value"), [("world", "x"), ("base", "gated2"), ("mode", "on")])
def test_unknown_names_are_refused(field: str, value: str) -> None:
    names = {"world": "cluster", "base": "topk", "mode": "off", field: value}
    with pytest.raises(ConfigError, match=f"{field}='{value}': must be one of"):
        build_run(**names)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [TINY, TINY_DOMAINS], ids=["cluster", "domains"])
def test_same_seed_same_result_other_seed_differs(tmp_path: Path, settings: dict[str, Any]) -> None:
    world = "domains" if settings is TINY_DOMAINS else "cluster"
    first, again, other = (
        execute(build_run(world, seed=seed, settings=settings), tmp_path) for seed in (0, 0, 1)
    )
    assert untimed(first) == untimed(again)
    assert first["mcc"] != other["mcc"]
    assert first["training_seconds"] > 0
    assert ("selectivity_area" in first) == (world == "domains")
    assert ("selectivity_given_coverage" in first) == (world == "domains")
    if world == "domains":
        references = first["domains"]["references"]
        assert set(references) == {"ideal", "merged", "random"}
        assert all(
            set(values) == set(tables.SEPARATION_METRICS) | {"merged_pairs"}
            for values in references.values()
        )


def test_mode_off_equals_stock_training_exactly(tmp_path: Path, build_sae: Any) -> None:
    from sae_lens import LoggingConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    run = build_run("cluster", mode="off", settings=TINY)
    pool = load_pool(run.world, tmp_path, run.pool)
    ours, _ = runs.train_sae(run, pool)
    stock = build_sae("batchtopk", seed=0, d_in=16, d_sae=12, k=2)
    cfg = SAETrainerConfig(
        total_training_samples=12 * 32,
        train_batch_size_samples=32,
        lr=3e-3,
        lr_end=3e-3,
        dead_feature_window=200,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(cfg, stock, Batches(pool, 32, 0)).fit()
    assert torch.equal(ours.W_dec, stock.W_dec)
    assert torch.equal(ours.W_enc, stock.W_enc)


@pytest.mark.parametrize("base", ["batchtopk", "standard"])
def test_interrupted_run_gives_equal_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    settings = {k: v for k, v in TINY.items() if k != "k" or "topk" in base}
    run = build_run("cluster", base, settings=settings)
    pool = load_pool(run.world, tmp_path, run.pool)
    whole, _ = runs.train_sae(run, pool)
    following = Batches.__next__

    def killed(self: Batches) -> torch.Tensor:
        if self.position == 8:
            raise KeyboardInterrupt
        return following(self)

    folder = tmp_path / "checkpoint"
    monkeypatch.setattr(Batches, "__next__", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.train_sae(run, pool, folder, checkpoint_every=4)
    seen: list[int] = []

    def counted(self: Batches) -> torch.Tensor:
        seen.append(self.position)
        return following(self)

    monkeypatch.setattr(Batches, "__next__", counted)
    resumed, _ = runs.train_sae(run, pool, folder, checkpoint_every=4)
    assert seen[0] == 5
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("with_folder", [True, False])
def test_signal_saves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_folder: bool
) -> None:
    run = build_run("cluster", settings=TINY)
    pool = load_pool(run.world, tmp_path, run.pool)
    whole, _ = runs.train_sae(run, pool)
    following = Batches.__next__

    def terminated(self: Batches) -> torch.Tensor:
        if self.position == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return following(self)

    folder = tmp_path / "checkpoint" if with_folder else None
    saved = f"; saved {folder}" if folder else "$"
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__next__", terminated)
        with pytest.raises(Interrupted, match=f"SIGTERM: stopped at step 6 of 12{saved}"):
            runs.train_sae(run, pool, folder)
    if folder is None:
        return
    seen: list[int] = []

    def counted(self: Batches) -> torch.Tensor:
        seen.append(self.position)
        return following(self)

    monkeypatch.setattr(Batches, "__next__", counted)
    resumed, _ = runs.train_sae(run, pool, folder)
    assert seen[0] == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_signal_before_the_first_step_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_run("cluster", settings=TINY)
    pool = load_pool(run.world, tmp_path, run.pool)
    following = Batches.__next__

    def terminated(self: Batches) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGUSR1)
        return following(self)

    monkeypatch.setattr(Batches, "__next__", terminated)
    with pytest.raises(Interrupted, match="SIGUSR1: stopped at step 0 of 12$"):
        runs.train_sae(run, pool, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_pool_is_drawn_once_by_two_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = build_run("cluster", settings=TINY)
    draw, drawn, read = pools.draw_pool, [], []
    both = threading.Barrier(2)

    def slow(*args: Any) -> Any:
        drawn.append(args)
        time.sleep(0.2)
        return draw(*args)

    def load() -> None:
        both.wait()
        read.append(load_pool(run.world, tmp_path, run.pool).directions)

    monkeypatch.setattr(pools, "draw_pool", slow)
    readers = [threading.Thread(target=load) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(drawn) == 1
    assert torch.equal(*read)
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]


# ----------------------------------------------------------------------- sweep


def jobs(**changes: Any) -> list[sweep.Job]:
    settings = {**TINY, **changes}
    every = sweep.final_jobs(["cluster"], ["batchtopk"], lambda *_: 0.1, [0, 1], [0], settings)
    return [job for job in every if job.method != "fixed_one"]


def test_killed_sweep_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, ran = tmp_path / "out.jsonl", []
    original = sweep.execute

    def failing(run: Any, *args: Any) -> dict[str, Any]:
        ran.append(run)
        if len(ran) == 4:
            raise KeyboardInterrupt
        return original(run, *args)

    monkeypatch.setattr(sweep, "execute", failing)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_jobs(jobs(), out, tmp_path)
    assert len(sweep.load_results(out)) == 3
    found = sweep.run_jobs(jobs(), out, tmp_path)
    assert len(ran) == 4 + 3
    assert found == sweep.load_results(out)
    assert {r["name"] for r in found} == {j.name for j in jobs()}
    assert len(out.read_text().splitlines()) == len(found) == 6
    assert not out.with_suffix("").exists()
    sweep.run_jobs(jobs(), out, tmp_path)
    assert len(ran) == 7
    sweep.run_jobs(jobs(ortho_alpha=0.9), out, tmp_path)
    assert len(ran) == 13  # other settings are other runs


def test_failed_run_does_not_stop_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, said = sweep.execute, []

    def failing(run: Any, *args: Any) -> dict[str, Any]:
        if run.mode == "fixed":
            raise runs.NonFiniteLossError("diverged")
        return original(run, *args)

    monkeypatch.setattr(sweep, "execute", failing)
    with pytest.raises(sweep.SweepError, match="2 of 6 runs failed .*diverged"):
        sweep.run_jobs(jobs(), tmp_path / "out.jsonl", tmp_path, say=said.append)
    assert len(sweep.load_results(tmp_path / "out.jsonl")) == 4


def test_stages_hold_the_expected_runs() -> None:
    coarse = sweep.coarse_jobs(["cluster"], ["batchtopk"], settings=TINY)
    assert {j.run.mode for j in coarse} == {"off", "fixed", "gram", "adaptive"}
    assert {j.run.sae.ortho_alpha for j in coarse} == {*sweep.ALPHAS}
    assert {j.run.sae.ortho_affinity for j in coarse} == set(AFFINITIES.own)
    for mode, grid in sweep.LAMBDAS.items():
        found = {j.run.settings()["sae"]["ortho_coefficient"] for j in coarse if j.run.mode == mode}
        assert found >= {*grid}
    assert len({j.run.digest() for j in coarse}) == len(coarse), "a default was run twice"
    both = sweep.coarse_jobs(["cluster"], ["batchtopk", "topk"], settings=TINY)
    assert not any(j.axis.startswith("alpha") for j in both if j.run.base == "topk")
    final = sweep.final_jobs(
        sweep.DEFAULT_WORLDS, sweep.DEFAULT_BASES, lambda *_: 0.1, sweep.SEEDS, sweep.WORLD_SEEDS
    )
    assert len({j.name for j in final}) == len(final) == (3 + 4 + 4) * 2 * 3 * 5
    width = sweep.width_jobs(["cluster"], ["batchtopk"], lambda *_: 0.1, [0])
    assert {j.run.sae.d_sae for j in width} == {128, 256, 512}
    transfer = sweep.transfer_jobs(sweep.DEFAULT_WORLDS, ["batchtopk"], lambda *_: 0.1, [0])
    assert len({j.name for j in transfer}) == len(transfer) == 14 * 3
    assert {j.run.world.seed for j in transfer} == {sweep.TRANSFER_WORLD_SEED}
    wider = {"world": {"hidden_dim": 64}}
    given = sweep.transfer_jobs(["cluster"], ["batchtopk"], lambda *_: 0.1, [0], wider)
    assert {j.run.world.hidden_dim for j in given} == {64}  # type: ignore[attr-defined]


def test_separation_stage_has_every_variant_in_every_world() -> None:
    variants = ("baseline", "fixed", "directions", "groups", "adaptive")
    assert tuple(sweep.VARIANTS) == variants
    small = {"train": {"batch_size": 64, "forget_share": 0.25}, "world": {"hidden_dim": 64}}
    found = sweep.separation_jobs(["batchtopk"], variants, [0, 1], small)
    assert len({j.name for j in found}) == len(found) == 4 * 2 * len(variants)
    assert {j.run.sae.ortho_forget_rows for j in found} == {16}
    assert {j.run.world.hidden_dim for j in found} == {64}  # type: ignore[attr-defined]
    assert {j.run.world.pairs for j in found} == {48}  # type: ignore[attr-defined]
    halves = {
        j.method: (j.run.mode == "adaptive", separation_coefficient(j.run.sae) > 0) for j in found
    }
    assert halves == {
        "baseline": (False, False),
        "fixed": (False, False),
        "directions": (True, False),
        "groups": (False, True),
        "adaptive": (True, True),
    }


def test_best_coefficient_of_the_coarse_stage() -> None:
    """It belongs to the best result among those that are affordable."""

    def result(
        coefficient: float, f1: float, mode: str = "fixed", variance: float = 0.9
    ) -> dict[str, Any]:
        settings = {
            "world": {"name": "cluster"},
            "base": "batchtopk",
            "mode": mode,
            "sae": {"ortho_coefficient": coefficient},
        }
        return {"f1": f1, "mcc": 0.5, "explained_variance": variance, "settings": settings}

    found = [result(0.1, 0.3), result(0.3, 0.6), result(1.0, 0.4), result(9.0, 0.9, "adaptive")]
    baseline = result(0.0, 0.1, "off", variance=0.904)
    assert sweep.best_coefficient([*found, baseline], "cluster", "batchtopk") == 0.3
    costly = result(3.0, 0.8, variance=0.898)
    assert sweep.best_coefficient([*found, baseline, costly], "cluster", "batchtopk") == 0.3
    assert sweep.best_coefficient([baseline, costly], "cluster", "batchtopk") == 3.0
    for incomplete in (found, [baseline]):
        with pytest.raises(ConfigError, match="run the coarse stage first"):
            sweep.best_coefficient(incomplete, "cluster", "batchtopk")


def test_bad_sweep_input_is_refused(tmp_path: Path, capsys: Any) -> None:
    for argv in (
        ["coarse", "--worlds", "clusters"],
        ["coarse", "--bases", "topkk"],
        ["coarse", "--workers", "0"],
        ["final", "--seeds", "a"],
        ["separation", "--variants", "none"],
        ["final"],
    ):
        assert sweep.main([*argv, "--out", str(tmp_path), "--cache", str(tmp_path)]) == 2
    assert "run the coarse stage first" in capsys.readouterr().err
    for line in ("{}\n", "{\n", '{"name": "x", "settings": []}\n'):
        (tmp_path / "broken.jsonl").write_text(line)
        with pytest.raises(ConfigError, match="is not a result"):
            sweep.load_results(tmp_path / "broken.jsonl")


def test_finished_run_missing_in_the_file_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    two = jobs()[:2]
    expected = sweep.run_jobs(two, out, tmp_path)
    work = tmp_path / "out"
    # The kill comes before the line is written, within it, or before the run's file is deleted.
    lines = out.read_text().splitlines(keepends=True)
    for content in ("", lines[0][:40], lines[0], lines[0] + lines[1][:40], "".join(lines)):
        out.write_text(content)
        work.mkdir()
        for result in expected:
            (work / f"{result['name']}.json").write_text(json.dumps(result))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "execute", lambda *_: pytest.fail("ran again"))
            assert sweep.run_jobs(two, out, tmp_path) == expected
        assert not work.exists()


def test_damaged_result_of_a_killed_sweep_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, (job,) = tmp_path / "out.jsonl", jobs()[:1]
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_collect", lambda *_: 1 / 0)  # the kill
        with pytest.raises(ZeroDivisionError):
            sweep.run_jobs([job], out, tmp_path)
    (tmp_path / "out" / ".x.json.lock.json").write_text("{}")  # who held a lock
    file = tmp_path / "out" / f"{job.name}.json"
    file.write_text(file.read_text().replace('"f1": 0.', '"f1": 1.'))
    with pytest.warns(UserWarning, match=f"{file.name} is damaged .*SHA-256"):
        (found,) = sweep.run_jobs([job], out, tmp_path)
    assert found == sweep.load_results(out)[0]
    assert found["f1"] < 1
    assert "sha256" not in found


def test_file_keeps_what_tables_and_figures_use(tmp_path: Path) -> None:
    job = sweep.final_jobs(["domains"], ["batchtopk"], lambda *_: 0.1, [0], [0])[-1]
    frontier = {"budgets": [0.0], "gain": [0.5]}
    references = {"ideal": {"coverage": 1.0}}
    domains = {"frontier": frontier, "references": references, "interventions": [{}] * 100}
    result = {"f1": 0.1, "true_l0": 3.0, "domains": domains, "settings": job.run.settings()}
    kept = sweep.compact(job, result)
    assert (kept["f1"], kept["domains"]) == (
        0.1,
        {"frontier": frontier, "references": references},
    )
    assert kept["name"] == job.name
    assert "true_l0" not in kept
    assert kept["settings"]["world"] == result["settings"]["world"]
    assert set(kept["settings"]["sae"]) == {"d_sae", "k", "ortho_coefficient", "ortho_alpha"}


# --------------------------------------------------------------------- figures


def fake(method: str, world: str, seed: int, axis: str = "", **values: Any) -> dict[str, Any]:
    sae = {"d_sae": 64, "ortho_alpha": 0.5, "ortho_coefficient": 0.1, **values.pop("sae", {})}
    settings = {
        "world": {"name": world, "seed": 0},
        "base": "batchtopk",
        "mode": method,
        "seed": seed,
        "sae": sae,
    }
    scores = {"f1": 0.5 + 0.01 * seed, "mcc": 0.6, "explained_variance": 0.8}
    scores["dead_latents"] = 0
    result = {"method": method, "axis": axis, "settings": settings, **scores, **values}
    if world == "domains":
        frontier = {"budgets": [0.0, 0.1, 0.2], "gain": [0.0, 0.3, 0.4 + 0.01 * seed]}
        result |= {"selectivity_area": 0.3, "domains": {"frontier": frontier}}
    return result


def test_differences_are_paired_by_seed() -> None:
    base = [fake("baseline", "cluster", s, f1=v) for s, v in ((0, 0.1), (1, 0.5), (2, 0.3))]
    better = [fake("adaptive", "cluster", s, f1=v) for s, v in ((2, 0.4), (0, 0.2), (1, 0.6))]
    found = tables.difference(better, base, "f1")
    assert found.mean == pytest.approx(0.1)
    assert found.std == pytest.approx(0, abs=1e-9)
    assert tables.difference(better, [], "f1").mean is None


def test_table_has_a_row_per_world_and_metric() -> None:
    every = [
        fake(m, w, s)
        for m in ("baseline", "fixed", "adaptive")
        for w in ("hierarchy", "cluster", "domains")
        for s in range(3)
    ]
    text = tables.final_table(every)
    assert len(text.splitlines()) == 2 + 4 + 4 + 5
    assert "0.510 ± 0.010" in text


def test_bars_are_judged_by_measured_differences() -> None:
    def runs_of(gain: float) -> list[dict[str, Any]]:
        return [
            fake(m, w, s, f1=0.5 + extra + 0.01 * s, selectivity_area=0.3 + extra + 0.001 * s**2)
            for m, extra in (("baseline", 0.0), ("fixed", 0.0), ("adaptive", gain))
            for w in ("hierarchy", "cluster", "domains")
            for s in range(3)
        ]

    def met(gain: float, start: str) -> str:
        (line,) = [x for x in tables.bars_table(runs_of(gain)).splitlines() if x.startswith(start)]
        return line.split("|")[-2].strip()

    f1 = "| hierarchy | batchtopk | F1, adaptive − baseline"
    assert [met(gain, f1) for gain in (-0.1, 0.019, 0.021)] == ["no", "no", "yes"]
    f1 = "| cluster | batchtopk | F1, adaptive − baseline"
    assert [met(gain, f1) for gain in (-0.006, -0.004)] == ["no", "yes"]
    selectivity = "| domains | batchtopk | selectivity, adaptive − fixed, own λ"
    assert [met(gain, selectivity) for gain in (-0.1, 0.0)] == ["no", "no"]
    dead = [
        fake(m, "cluster", s, dead_latents=d)
        for m, d in (("baseline", 1), ("adaptive", 3))
        for s in (0, 1)
    ]
    (line,) = [x for x in tables.bars_table(dead).splitlines() if "dead latents" in x]
    assert "at most +0.020" in line
    assert line.endswith("| no |")


def test_ablation_gives_differences_from_baseline() -> None:
    runs_ = [
        fake("baseline", "cluster", 0, f1=0.5),
        fake("adaptive", "cluster", 0, f1=0.6),
        fake("adaptive", "cluster", 0, "affinity=lift", f1=0.45),
        fake("fixed", "cluster", 0, "lambda=0.1", f1=0.5),
    ]
    lines = tables.ablation_table(runs_).splitlines()
    assert [line.split("|")[1:3] for line in lines[2:]] == [
        [" baseline ", " 0.500 "],
        [" adaptive (default) ", " +0.100 "],
        [" adaptive, affinity lift ", " −0.050 "],
        [" fixed, lambda 0.1 ", " 0.000 "],
    ]


def test_transfer_counts_worlds_with_the_same_order() -> None:
    def runs_of(axis: str, adaptive: float) -> list[dict[str, Any]]:
        return [
            fake(m, "hierarchy", 0, axis, f1=f1)
            for m, f1 in (("baseline", 0.5), ("fixed", 0.6), ("adaptive", adaptive))
        ]

    text = tables.transfer_table([*runs_of("k=4", 0.596), *runs_of("k=9", 0.59)])
    assert "| k=4 | 0.500 / 0.600 / 0.596 |" in text
    assert "The order holds in 1 of 2 cases." in text


def test_separation_table_has_rows_of_methods_and_references() -> None:
    axis = "cosine=0.7,leak=0.1"
    ideal = {"coverage": 1.0, "selectivity_given_coverage": 0.99, "cost_at_half": None}
    runs_ = [
        fake(m, "domains", s, axis, coverage=c + s / 10, selectivity_given_coverage=c / 2)
        for m, c in (("baseline", 0.2), ("groups", 0.6))
        for s in (0, 1)
    ]
    for run in runs_:
        run["domains"]["references"] = {"ideal": ideal}
    lines = tables.separation_table(runs_).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:3] for row in cells] == [
        ["cosine 0.7, leak 0.1", "batchtopk", "baseline"],
        ["cosine 0.7, leak 0.1", "batchtopk", "groups"],
        ["cosine 0.7, leak 0.1", "–", "ideal"],
    ]
    assert [row[3] for row in cells] == ["0.250", "0.650", "1.000"]
    assert [row[8:] for row in cells] == [
        ["0.100", "–", "0.800", "2"],
        ["0.300", "–", "0.800", "2"],
        ["0.990", "–", "–", "–"],
    ]


def test_every_question_has_a_figure(tmp_path: Path) -> None:
    worlds = ("hierarchy", "cluster", "domains")
    coarse = [fake("baseline", w, 0) for w in worlds]
    coarse += [
        fake("adaptive", w, 0, f"alpha={a}", sae={"ortho_alpha": a})
        for w in worlds
        for a in (0.0, 1.0)
    ]
    coarse += [
        fake(m, w, 0, f"lambda={x}", sae={"ortho_coefficient": x})
        for m in ("fixed", "adaptive")
        for w in worlds
        for x in (0.1, 1.0)
    ]
    final = [fake(m, w, s) for m in ("baseline", "fixed") for w in worlds for s in range(3)]
    width = [fake("fixed", w, 0, sae={"d_sae": d}) for w in worlds for d in (32, 64)]
    drawn = figures.figures(coarse, final, width)
    assert set(drawn) == {"alpha", "lambda", "cost", "tradeoff", "selectivity", "d_sae"}
    panel = drawn["alpha"].axes[0]
    assert panel.get_title(loc="left") == "hierarchy: F1"
    assert [list(map(float, line.get_xdata())) for line in panel.get_lines()][-1] == [0.0, 1.0]  # type: ignore[arg-type]
    assert figures.figures([], [], []) == {}
    drawn["tradeoff"].savefig(tmp_path / "plot.png")
