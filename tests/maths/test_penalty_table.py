"""Every penalty and affinity of the tables fulfils its contract."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from saelens_adaptive_ortho.host.config import OrthoConfig, ortho_field_names
from saelens_adaptive_ortho.maths import coactivation
from saelens_adaptive_ortho.maths.affinity import AFFINITIES, Affinity
from saelens_adaptive_ortho.maths.neighbours import top_similar
from saelens_adaptive_ortho.maths.penalties import (
    PENALTIES,
    PairStatistics,
    Penalty,
    PenaltyInputs,
)
from saelens_adaptive_ortho.maths.penalties.contract import LIST_FIELDS

N, D, M = 12, 6, 4
every_penalty = pytest.mark.parametrize("penalty", PENALTIES.own.values(), ids=PENALTIES.own)


class Recorder:
    """A config with default fields that records which fields are read."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return self.changes.get(name, getattr(OrthoConfig, name))


def drawn_state() -> tuple[torch.Tensor, coactivation.CoactivationState, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(N, D, generator=generator)
    acts = torch.rand(50, N, generator=generator)
    acts = acts * (acts > 0.5)
    neighbours, _ = top_similar(W_dec / W_dec.norm(dim=1, keepdim=True), M)
    state = coactivation.empty_state(N, M, 8, n_domains=1, device=W_dec.device)
    signs = coactivation.random_signs(50, 8, 0, 0)
    return W_dec, coactivation.update(state, acts, neighbours, signs, 1.0, 0, None), neighbours


def inputs(cfg: Any, lists: bool) -> PenaltyInputs:
    W_dec, state, neighbours = drawn_state()
    pairs = PairStatistics(
        state=state,
        neighbours=neighbours,
        variance=torch.tensor(2.0),
        measure=lambda: torch.full((N, M), 0.5),
    )
    return PenaltyInputs(
        W_dec=W_dec.requires_grad_(), cfg=cfg, step=3, lists=pairs if lists else None
    )


def loss_of(penalty: Penalty, given: PenaltyInputs) -> torch.Tensor:
    """The loss of one step in which the pairs are chosen, if the penalty chooses."""
    return penalty.loss(given if penalty.choose is None else chosen(penalty, given))


def chosen(penalty: Penalty, given: PenaltyInputs) -> PenaltyInputs:
    assert penalty.choose is not None
    return dataclasses.replace(given, kept=penalty.choose(given))


@every_penalty
def test_penalty_reads_exactly_its_declared_fields(penalty: Penalty) -> None:
    assert {*penalty.fields, *LIST_FIELDS} <= {*ortho_field_names()}
    assert not {*penalty.fields} & ({*LIST_FIELDS} - {"ortho_seed"})
    cfg = Recorder()
    loss = loss_of(penalty, inputs(cfg, penalty.needs_lists))
    penalty.coefficient(cfg)
    penalty.every(cfg)
    assert cfg.read == {*penalty.fields}
    assert loss.shape == ()
    loss.backward()


@every_penalty
def test_penalty_leaves_global_rng_alone(penalty: Penalty) -> None:
    before = torch.get_rng_state()
    given = inputs(Recorder(), penalty.needs_lists)
    first = loss_of(penalty, given)
    torch.rand(3)
    assert torch.equal(loss_of(penalty, given), first)
    torch.set_rng_state(before)
    loss_of(penalty, given)
    assert torch.equal(torch.get_rng_state(), before)


@every_penalty
def test_penalty_has_help_and_a_gradient(penalty: Penalty) -> None:
    assert penalty.help
    given = inputs(Recorder(), penalty.needs_lists)
    loss_of(penalty, given).backward()
    assert given.W_dec.grad is not None
    assert given.W_dec.grad.abs().max() > 0


@pytest.mark.parametrize("variance", [0.0, 1e-45, 1e-39, 1e-20])
def test_rounding_of_equal_activations_is_no_variance(variance: float) -> None:
    """After many equal batches, the running variance falls until it has no digits left."""
    given = inputs(Recorder(), lists=True)
    pairs = dataclasses.replace(given.pairs, variance=torch.tensor(variance))
    assert torch.equal(pairs.energies(), torch.zeros(N))
    adaptive = PENALTIES.own["adaptive"]
    assert loss_of(adaptive, dataclasses.replace(given, lists=pairs)) == 0


def test_default_coefficients() -> None:
    expected = {"gram": 0.05, "fixed": 0.05, "adaptive": 0.3}
    for name, coefficient in expected.items():
        assert PENALTIES.own[name].coefficient(Recorder()) == coefficient
    uniform = Recorder(ortho_weighting="uniform")
    assert PENALTIES.own["adaptive"].coefficient(uniform) == 0.05


@pytest.mark.parametrize(("name", "every"), [("gram", 1), ("fixed", 5), ("adaptive", 1)])
def test_only_fixed_reads_ortho_every(name: str, every: int) -> None:
    assert PENALTIES.own[name].every(Recorder(ortho_every=5)) == every


def test_pairs_need_needs_lists() -> None:
    with pytest.raises(RuntimeError, match="needs_lists=True"):
        _ = inputs(Recorder(), lists=False).pairs


def test_chosen_pairs_need_choose_and_lists() -> None:
    with pytest.raises(RuntimeError, match="must be declared with choose"):
        _ = inputs(Recorder(), lists=True).chosen
    with pytest.raises(TypeError, match="'toy' has choose, so it needs needs_lists=True"):
        Penalty(name="toy", help="", loss=lambda i: i.W_dec.sum(), choose=lambda i: i.chosen)


def test_kept_pairs_follow_the_decoder_until_they_are_chosen_again() -> None:
    adaptive = PENALTIES.own["adaptive"]
    given = chosen(adaptive, inputs(Recorder(), lists=True))
    pairs = given.chosen
    rotated = dataclasses.replace(given, W_dec=given.W_dec.detach().roll(1, dims=0))
    D = rotated.W_dec / rotated.W_dec.norm(dim=1, keepdim=True)
    cosines = (D * D[pairs.partner]).sum(1).relu()
    expected = (pairs.push.amax(0) * cosines.square()).sum()
    torch.testing.assert_close(adaptive.loss(rotated), expected)
    assert not torch.isclose(loss_of(adaptive, rotated), expected)


def test_penalty_settings_must_be_a_dataclass() -> None:
    with pytest.raises(TypeError, match="settings of the penalty 'toy' must be a dataclass"):
        Penalty(name="toy", help="", loss=lambda i: i.W_dec.sum(), settings=dict)


@pytest.mark.parametrize("affinity", AFFINITIES.own.values(), ids=AFFINITIES.own)
def test_affinity_has_help_shape_and_range(affinity: Affinity) -> None:
    _, state, neighbours = drawn_state()
    groups = torch.arange(N) // 3
    s = affinity.measure(state, neighbours, groups)
    assert affinity.help
    assert s.shape == (N, M)
    assert s.dtype == torch.float32
    assert bool(((s >= 0) & (s <= 1)).all())
    assert s.max() > 0
    if affinity.name == "group":
        same = groups.unsqueeze(1) == groups[neighbours]
        assert torch.equal(s, same.float())
