"""The switches as pure functions, and the values that their fields refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.host.config import ortho_field_names
from saelens_adaptive_ortho.maths import switches

P = "adaptive_ortho_"
NAN = math.nan


def test_unit_rows_keep_direction_and_dtype() -> None:
    W = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(switches.unit_rows(W), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert switches.unit_rows(W.bfloat16()).dtype == torch.bfloat16


def test_tangent_gradient_is_orthogonal_to_its_row() -> None:
    W = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    g = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert switches.tangent_gradient(g, W).tolist() == [[0.0, 2.0], [3.0, 0.0]]


@pytest.mark.parametrize(("n", "d"), [(4, 4), (3, 7), (10, 4)])
def test_orthogonal_rows_are_orthonormal_in_blocks(n: int, d: int) -> None:
    rows = switches.orthogonal_rows(n, d, torch.Generator().manual_seed(0))
    assert rows.shape == (n, d)
    for block in rows.split(d):
        torch.testing.assert_close(block @ block.T, torch.eye(len(block)), atol=1e-5, rtol=0)


def test_data_rows_are_samples_then_differences() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    rows = switches.data_rows(x, 30, seed=0)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(30))
    samples = switches.unit_rows(x - x.mean(0))
    assert {tuple(r) for r in rows[:3].tolist()} == {tuple(r) for r in samples.tolist()}
    differences = switches.unit_rows((x.unsqueeze(0) - x.unsqueeze(1)).reshape(9, 3))
    for row in rows[3:]:
        assert float((differences - row).norm(dim=1).min()) < 1e-6
    assert torch.equal(rows, switches.data_rows(x, 30, seed=0))
    assert not torch.equal(rows, switches.data_rows(x, 30, seed=1))


def test_equal_samples_give_no_direction() -> None:
    assert float(switches.data_rows(torch.ones(4, 3), 6, 0).abs().max()) == 0


def test_dropout_is_pure_and_keeps_the_mean() -> None:
    acts, state = torch.ones(100, 200), torch.get_rng_state()
    dropped = switches.drop_latents(acts, 0.3, 1, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(dropped, switches.drop_latents(acts, 0.3, 1, 2))
    assert not torch.equal(dropped, switches.drop_latents(acts, 0.3, 1, 3))
    assert not torch.equal(dropped, switches.drop_latents(acts, 0.3, 2, 2))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert switches.drop_latents(acts, 0.0, 1, 2) is acts


def test_unlocking_schedule_of_prior_run_9() -> None:
    def at(step: int) -> int:
        return switches.unlocked_latents(step, 2304, 0.25, 0.1, 1000)

    assert [at(s) for s in (0, 999, 1000, 7000, 7999)] == [576, 576, 807, 2189, 2189]
    assert [at(s) for s in (8000, 10**6)] == [2304, 2304]
    assert switches.unlocking_ends(0.25, 0.1, 1000) == 8000


@pytest.mark.parametrize("start", [0.1, 0.25, 0.3, 0.999])
@pytest.mark.parametrize("growth", [0.1, 0.25, 0.7, 1.0])
def test_unlocking_ends_is_the_first_full_step(start: float, growth: float) -> None:
    end = switches.unlocking_ends(start, growth, 5)
    counts = [switches.unlocked_latents(s, 1000, start, growth, 5) for s in (end - 1, end)]
    assert counts[0] < counts[1] == 1000


def test_lr_multipliers_by_hand() -> None:
    rates = torch.tensor([1e-4, 1e-2, 1.0, 0.0])
    by_hand = [10.0, 1.0, 0.1, 10.0]  # geometric mean 1e-2, power 1/2
    assert switches.lr_multipliers(rates, 0.5, 0.1, 10.0).tolist() == pytest.approx(by_hand)
    clipped = switches.lr_multipliers(rates, 1.0, 0.1, 10.0).tolist()
    assert clipped == pytest.approx([10.0, 1.0, 0.1, 10.0])
    assert switches.lr_multipliers(torch.zeros(3), 0.5, 0.1, 10.0).tolist() == [1.0] * 3


def test_mean_square_starts_at_first_batch() -> None:
    pre = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    first = switches.update_mean_square(torch.zeros(2), pre, 0.9)
    assert first.tolist() == [5.0, 4.0]
    second = switches.update_mean_square(first, 2 * pre, 0.9)
    assert second.tolist() == pytest.approx([0.9 * 5 + 0.1 * 20, 0.9 * 4 + 0.1 * 16])


# ------------------------------------------------------------------ fields

BAD: list[tuple[str, Any, str]] = [
    *[("ortho_unit_norm", bad, "true or false") for bad in (1, None, "yes")],
    *[("ortho_latent_norm", bad, "true or false") for bad in (0, "no")],
    *[("ortho_accumulation", bad, "at least 1") for bad in (0, 1.5, True)],
    *[("ortho_skip_rank", bad, "at least 0") for bad in (-1, 0.5, False)],
    *[("ortho_unlock_every", bad, "at least 1") for bad in (0, 2.0)],
    *[("ortho_lr_power", bad, r"in \[0, 1\]") for bad in (-0.1, 1.1, NAN, True)],
    *[("ortho_lr_min", bad, r"in \(0, 1\]") for bad in (0, 1.1, "x")],
    *[("ortho_lr_max", bad, r"in \[1, inf\)") for bad in (0.9, math.inf)],
    *[("ortho_dropout", bad, r"in \[0, 1\)") for bad in (1, -0.1, NAN, None)],
    *[("ortho_unlock_start", bad, r"in \(0, 1\]") for bad in (0, 1.1)],
    *[("ortho_unlock_growth", bad, r"in \(0, 1\]") for bad in (0, 2)],
    *[("ortho_clip_norm", bad, r"in \(0, inf\)") for bad in (0, -1, math.inf, True)],
    *[("ortho_decoder_init", bad, "one of stock, orthogonal, data") for bad in ("random", None)],
    ("ortho_skip_rank", 16, "below d_in = 16: .* identity"),
]


@pytest.mark.parametrize(("field", "value", "rule"), BAD)
def test_bad_value_is_refused_with_field_and_rule(
    build_cfg: Callable[..., Any], field: str, value: Any, rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule) as error:
        build_cfg(f"{P}batchtopk", **{field: value})
    assert str(error.value).startswith(f"{field}={value!r}: ")


@pytest.mark.parametrize(
    ("base", "fields", "rule"),
    [
        ("topk", {"ortho_skip_rank": 2}, "no architecture with a skip .* a topk SAE"),
        ("gated", {"ortho_skip_rank": 2}, "no architecture with a skip .* a gated SAE"),
        ("gated", {"ortho_unlock_start": 0.5}, "gate's own reconstruction"),
        (
            "standard",
            {"ortho_skip_rank": 2, "normalize_activations": "layer_norm"},
            "do not undo it after decoding",
        ),
    ],
)
def test_impossible_switch_is_refused_early(
    build_cfg: Callable[..., Any], base: str, fields: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        build_cfg(f"{P}{base}", **fields)


def test_switches_are_fields_of_every_config() -> None:
    assert {"ortho_unit_norm", "ortho_skip_rank", "ortho_mode"} <= set(ortho_field_names())
