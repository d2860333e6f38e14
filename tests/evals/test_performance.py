"""The benchmarks measure what they claim; the tests assert no times."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from evals.performance import overhead, scaling
from evals.performance.steps import (
    BASES,
    BY_NAME,
    ORIGIN,
    VARIANTS,
    Size,
    Stepper,
    Variant,
    activations,
)
from saelens_adaptive_ortho.host.penalty_mixin import CHECK_EVERY

TINY = Size(d_in=8, d_sae=32, batch=16, k=4)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_kinds_cover_all_steps(base: str, variant: Variant) -> None:
    stepper = Stepper(base, variant, TINY)
    kinds = stepper.kinds(search_every=40)
    # A step that counts and checks is counted as one step of each kind, and one plain step less.
    assert sum(kind.share for kind in kinds.values()) == pytest.approx(1)
    cfg = stepper.sae.cfg
    if variant.fields == {"ortho_mode": "adaptive"}:
        count = cfg.ortho_statistics_every
        refresh, counted, checked = (kinds[n] for n in ("refreshed", "counted", "checked"))
        assert (refresh.share, refresh.search) == (1 / cfg.ortho_refresh_every, True)
        searched = kinds["searched"]
        assert refresh.share + searched.share == pytest.approx(1 / 40)
        assert (searched.number, searched.search) == (checked.number, True)
        assert refresh.number % math.lcm(count, CHECK_EVERY, cfg.ortho_refresh_every) == 0
        assert counted.share + refresh.share == pytest.approx(1 / count)
        assert counted.number % count == 0 != counted.number % CHECK_EVERY
        assert checked.share + searched.share == pytest.approx(1 / CHECK_EVERY)
        assert checked.number % CHECK_EVERY == 0 != checked.number % count
        assert kinds["chosen"].share == 1 / count
        assert (kinds["chosen"].number - 1) % count == 0 != kinds["chosen"].number % CHECK_EVERY
        for name in ("plain", "counted", "checked"):
            assert (kinds[name].number - 1) % count != 0
        assert kinds["plain"].number % count != 0 != kinds["plain"].number % CHECK_EVERY
    if variant.name == "fixed, every 5th":
        assert kinds["penalty"] == (ORIGIN, 0.2, False)


def test_adaptive_step_does_what_its_kind_says() -> None:
    stepper, batch = Stepper("batchtopk", BY_NAME["adaptive"], TINY), activations(TINY)
    lists, samples, measured, partners = [], [], [], []
    kinds = stepper.kinds()
    for name in ("refreshed", "counted", "checked", "plain", "chosen"):
        stepper.step(batch, kinds[name].number, kinds[name].search)
        lists.append(stepper.sae.ortho_neighbours)
        samples.append(float(stepper.sae.ortho_samples))
        measured.append(int(stepper.sae.ortho_captured[-1]))
        partners.append(stepper.sae.ortho_partner)
    assert all(later is lists[0] for later in lists[1:])
    assert 0 < samples[0] < samples[1] == samples[2] == samples[3] == samples[4]
    assert measured == [0, 0, 1, 1, 1]
    assert all(kept is partners[0] for kept in partners[:4])
    assert partners[4] is not partners[0]
    stepper.step(batch, kinds["refreshed"].number, search=True)
    assert stepper.sae.ortho_neighbours is not lists[0]


def test_lever_changes_the_step_it_names() -> None:
    steppers = {name: Stepper("batchtopk", v, TINY) for name, v in BY_NAME.items()}
    assert {n for n, s in steppers.items() if s.trainer.cfg.autocast} == {
        "stock, bf16 autocast",
        "adaptive, bf16 autocast",
    }
    sparse = {n for n, s in steppers.items() if getattr(s.sae, "ortho_sparse_products", False)}
    assert sparse == {n for n in steppers if n.endswith("sparse products")}
    assert hasattr(
        steppers["stock, compiled"].sae.training_forward_pass, "_torchdynamo_orig_callable"
    )


def test_time_per_step_weights_medians_by_share() -> None:
    stock = {"plain": (1.0, [1.0, 1.0, 9.0])}
    variant = {"plain": (0.75, [1.0, 1.0, 9.0]), "counted": (0.25, [3.0, 3.0, 11.0])}
    assert overhead.per_step(stock) == 1
    assert overhead.per_step(variant) == 1.5
    # Both times use the same rounds, so a round that is slow for both does not widen the interval.
    low, high = overhead.ratio_interval(variant, stock)
    assert low == pytest.approx(9.5 / 9, abs=0.01)
    assert high == pytest.approx(1.5)
    assert overhead.ratio_interval(stock, stock) == (1.0, 1.0)


def test_overhead_writes_a_row_per_base_and_variant(tmp_path: Path) -> None:
    path = tmp_path / "overhead.json"
    arguments = "--sizes 8x80 --batch 16 --rounds 2 --memory --variants off adaptive".split()
    assert overhead.main([*arguments, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    names = [(r["base"], r["variant"]) for r in rows]
    assert names == [(b, v) for b in BASES for v in ("stock", "off", "adaptive")]
    assert all(r["d_sae"] == 80 and r["ratio_low"] <= r["ratio_high"] for r in rows)
    for _, off, adaptive in (rows[:3], rows[3:]):
        assert "off_ratio" not in off
        assert adaptive["off_ratio"] == pytest.approx(adaptive["seconds"] / off["seconds"])
        assert adaptive["off_low"] <= adaptive["off_high"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_gpu_option_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        overhead.main(["--gpu"])
    assert "--gpu: PyTorch finds no CUDA device." in capsys.readouterr().err


def test_gpu_option_measures_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(base: str, size: Size, rounds: int, variants: list[str], *rest: object) -> list:
        asked.append((base, size[:3], rounds, rest))
        assert set(variants) <= {*BY_NAME}
        return []

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(overhead, "measure", measure)
    monkeypatch.setattr(overhead, "_uses_triton", lambda _: True)
    assert overhead.main(["--gpu"]) == 0
    sizes = [(2304, 65536, 4096), (576, 16384, 4096)]
    expected = [(base, size, 8, ("cuda", True, 50, 2)) for size in sizes for base in BASES]
    assert asked == expected


def test_kinds_line_names_each_kind() -> None:
    kinds = {"plain": {"seconds": 0.0405}, "counted": {"seconds": 0.05}}
    assert overhead.kinds_line({"kinds": kinds}) == "plain 40.5, counted 50.0"


def test_unpenalised_differs_only_in_penalty() -> None:
    assert {name: overhead.unpenalised(variant) for name, variant in BY_NAME.items()} == {
        "stock": None,
        "off": None,
        "off, sparse products": None,
        **dict.fromkeys(("fixed", "fixed, every 5th", "gram", "adaptive"), "off"),
        **dict.fromkeys(("groups", "adaptive, two corpora"), "off"),
        "groups, sparse products": "off, sparse products",
        "fixed, sparse products": "off, sparse products",
        "adaptive, sparse products": "off, sparse products",
        "stock, bf16 autocast": None,
        "stock, compiled": None,
        "adaptive, bf16 autocast": None,
    }


def test_exponent_of_power_law(tmp_path: Path) -> None:
    widths = [10, 20, 40]
    assert scaling.exponent(widths, [3 * w**1.5 for w in widths]) == pytest.approx(1.5)
    path = tmp_path / "scaling.json"
    arguments = "--widths 128 256 --d-in 8 --batch 16 --rounds 1".split()
    assert scaling.main([*arguments, "--json", str(path)]) == 0
    parts = json.loads(path.read_text())["parts"]
    assert set(parts) == {"penalty", "statistics", "refresh", "penalty + statistics"}
