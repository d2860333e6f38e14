"""Co-activation statistics against double-loop counting and hand-worked examples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saelens_adaptive_ortho.maths import coactivation, device
from saelens_adaptive_ortho.maths.affinity import (
    lift_affinity,
    overlap_affinity,
    unsuppressed_affinity,
)
from saelens_adaptive_ortho.maths.coactivation import (
    CoactivationState,
    domain_rates,
    empty_state,
    energies,
    firing_rates,
    random_signs,
    retarget,
    sketch_directions,
    update,
)

N, D, M, R = 10, 6, 3, 4


def random_batch(seed: int, n: int = N, d: int = D) -> Tensor:
    """Activations of which four in ten are between 1 and 2; the others are 0."""
    draw = torch.rand(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.where(draw < 0.4, 1 + draw / 0.4, 0.0)


def ring_neighbours(d: int = D, m: int = M) -> Tensor:
    """The list of latent i is i+1, i+2, ... i+m, cyclically."""
    return (torch.arange(d).unsqueeze(1) + torch.arange(1, m + 1)) % d


def hand_state(joint: float, fired: tuple[float, float], samples: float) -> CoactivationState:
    """Two latents that are each other's only neighbour."""
    return empty_state(2, 1, 1)._replace(
        samples=torch.tensor([samples]),
        fired=torch.tensor([fired]),
        joint=torch.full((2, 1), joint),
        joint_samples=torch.full((2, 1), samples),
    )


PAIR = torch.tensor([[1], [0]])


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("block", [7, 2**18])
@pytest.mark.parametrize(("n_domains", "forget_rows"), [(1, 0), (2, 3), (2, 9)])
def test_update_equals_double_loop(
    monkeypatch: pytest.MonkeyPatch, n_domains: int, forget_rows: int, block: int, gpu: bool
) -> None:
    monkeypatch.setattr(device, "on_gpu", lambda _: gpu)
    monkeypatch.setattr(coactivation, "FIRINGS_PER_BLOCK", block)
    monkeypatch.setattr(coactivation, "GPU_FIRINGS_PER_BLOCK", block)
    decay, neighbours = 0.5, ring_neighbours()
    state = empty_state(D, M, R, n_domains)
    batches = [random_batch(seed) for seed in (1, 2, 3)]
    for step, batch in enumerate(batches):
        signs = random_signs(N, R, 0, step)
        state = update(state, batch, neighbours, signs, decay, forget_rows)

    samples, fired = torch.zeros(n_domains), torch.zeros(n_domains, D)
    joint, sketch, sketch_total = torch.zeros(D, M), torch.zeros(D, R), torch.zeros(R)
    total, squares = torch.zeros(D), torch.zeros(D)
    own, other = torch.zeros(D, M), torch.zeros(D, M)
    for step, batch in enumerate(batches):
        weight, signs = decay ** (len(batches) - 1 - step), random_signs(N, R, 0, step)
        for row in range(N):
            domain = int(n_domains == 2 and row >= forget_rows)
            samples[domain] += weight
            sketch_total += weight * signs[row]
            for i in range(D):
                if not batch[row, i]:
                    continue
                fired[domain, i] += weight
                sketch[i] += weight * signs[row]
                total[i] += weight * batch[row, i]
                squares[i] += weight * batch[row, i] ** 2
                for slot in range(M):
                    a_j = batch[row, neighbours[i, slot]]
                    if a_j > 0:
                        joint[i, slot] += weight
                        own[i, slot] += weight * batch[row, i]
                        other[i, slot] += weight * a_j

    rows = samples.sum().expand(D, M)
    expected = CoactivationState(
        samples, fired, joint, rows, sketch, sketch_total, total, squares, own, other
    )
    for name, slow in expected._asdict().items():
        torch.testing.assert_close(
            getattr(state, name), slow, msg=lambda m, name=name: f"{name} {m}"
        )
    assert joint.max() > 2


def test_one_domain_ignores_forget_rows() -> None:
    batch, signs = random_batch(1), random_signs(N, R, 0, 0)
    with_rows = update(empty_state(D, M, R), batch, ring_neighbours(), signs, 1.0, forget_rows=4)
    without = update(empty_state(D, M, R), batch, ring_neighbours(), signs, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(with_rows, without, strict=True))


@pytest.mark.parametrize(("n_domains", "forget_rows"), [(1, 0), (2, 3), (2, 4)])
@pytest.mark.parametrize(
    ("firings", "per_latent", "stride"),
    [(10, 0, 3), (0, 1, 4), (10, 1, 3), (10, 2, 2)],  # the batch has 21 firings, 6 latents
)
def test_too_many_firings_count_every_nth_row(
    monkeypatch: pytest.MonkeyPatch,
    n_domains: int,
    forget_rows: int,
    firings: int,
    per_latent: int,
    stride: int,
) -> None:
    batch, signs = random_batch(1), random_signs(N, R, 0, 0)
    assert (int((batch > 0).sum()), D) == (21, 6)
    monkeypatch.setattr(coactivation, "MOST_FIRINGS", firings)
    monkeypatch.setattr(coactivation, "MOST_PER_LATENT", per_latent)
    state = empty_state(D, M, R, n_domains)
    found = update(state, batch, ring_neighbours(), signs, 1.0, forget_rows)
    monkeypatch.undo()
    forget = len(range(0, forget_rows, stride))
    kept = update(state, batch[::stride], ring_neighbours(), signs[::stride], 1.0, forget)
    assert kept.samples.sum() == -(-N // stride)
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))


def test_norms_scale_activations_to_unit_rows() -> None:
    batch, signs, norms = random_batch(1), random_signs(N, R, 0, 0), torch.arange(1.0, D + 1)
    state = empty_state(D, M, R)
    found = update(state, batch, ring_neighbours(), signs, 1.0, norms=norms)
    scaled = update(state, batch * norms, ring_neighbours(), signs, 1.0)
    for a, b in zip(found, scaled, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_path_equals_cpu_path(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    batch = (random_batch(1) - 0.1 * (random_batch(2) > 0)).to(dtype)  # some are negative
    assert bool((batch < 0).any())
    norms = torch.linspace(0.5, 2.0, D)
    arguments = (ring_neighbours(), random_signs(N, R, 0, 0), 0.9, 3, norms)
    found = []
    for gpu in (False, True):
        monkeypatch.setattr(device, "on_gpu", lambda _, gpu=gpu: gpu)
        found.append(update(empty_state(D, M, R, 2), batch, *arguments))
    for name, expected in found[0]._asdict().items():
        torch.testing.assert_close(getattr(found[1], name), expected)
        assert getattr(found[1], name).dtype == torch.float32
    assert found[1].joint.max() > 2


def test_decay_scales_old_counts() -> None:
    state = update(empty_state(D, M, R), torch.ones(N, D), ring_neighbours(), torch.ones(N, R), 1)
    silent = update(state, torch.zeros(N, D), ring_neighbours(), torch.zeros(N, R), 0.5)
    assert torch.equal(silent.samples, torch.tensor([N * 1.5]))
    assert torch.equal(silent.fired, state.fired / 2)
    assert torch.equal(silent.joint, torch.full((D, M), N / 2))
    assert torch.equal(silent.joint_samples, torch.full((D, M), N * 1.5))
    assert torch.equal(silent.sketch, state.sketch / 2)
    assert torch.equal(silent.sketch_total, state.sketch_total / 2)


def test_update_and_retarget_leave_inputs_unchanged() -> None:
    state = update(
        empty_state(D, M, R, 2), random_batch(1), ring_neighbours(), random_signs(N, R, 0, 0), 1, 3
    )
    batch, neighbours, signs = random_batch(2), ring_neighbours(), random_signs(N, R, 0, 1)
    inputs = [*state, batch, neighbours, signs]
    before = [tensor.clone() for tensor in inputs]
    update(state, batch, neighbours, signs, 0.9, 3)
    retarget(state, neighbours, neighbours.flip(1))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_counts_are_exact_above_bf16_precision() -> None:
    state = empty_state(D, M, R)
    for step in range(3):
        batch = torch.ones(333, D)
        state = update(state, batch, ring_neighbours(), random_signs(333, R, 0, step), 1.0)
    assert state.samples.item() == 999
    assert torch.equal(state.joint, torch.full((D, M), 999.0))


def test_random_signs_depend_on_seed_and_step() -> None:
    before = torch.get_rng_state()
    signs = random_signs(50, 8, 3, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(signs, random_signs(50, 8, 3, 7))
    assert not torch.equal(signs, random_signs(50, 8, 3, 8))
    assert not torch.equal(signs, random_signs(50, 8, 4, 7))
    assert signs.abs().eq(1).all()
    assert abs(signs.mean().item()) < 0.2


def test_retarget_keeps_old_pairs_and_zeroes_new_ones() -> None:
    state = empty_state(2, 2, R)._replace(
        joint=torch.tensor([[5.0, 6.0], [7.0, 8.0]]),
        joint_samples=torch.tensor([[50.0, 60.0], [70.0, 80.0]]),
    )
    moved = retarget(state, torch.tensor([[1, 2], [0, 2]]), torch.tensor([[2, 3], [0, 3]]))
    assert torch.equal(moved.joint, torch.tensor([[6.0, 0.0], [7.0, 0.0]]))
    assert torch.equal(moved.joint_samples, torch.tensor([[60.0, 0.0], [70.0, 0.0]]))
    assert moved.fired is state.fired


def test_firing_rates_per_domain_and_overall() -> None:
    state = empty_state(2, 1, 1, n_domains=2)._replace(
        samples=torch.tensor([10.0, 30.0]), fired=torch.tensor([[5.0, 0.0], [3.0, 6.0]])
    )
    torch.testing.assert_close(domain_rates(state), torch.tensor([[0.5, 0.0], [0.1, 0.2]]))
    torch.testing.assert_close(firing_rates(state), torch.tensor([0.2, 0.15]))


def test_empty_state_gives_zero_rates_and_affinities() -> None:
    state = empty_state(2, 1, 3, n_domains=2)
    for value in (
        firing_rates(state),
        domain_rates(state),
        lift_affinity(state, PAIR),
        overlap_affinity(state, PAIR),
        unsuppressed_affinity(state, PAIR),
        energies(state),
        sketch_directions(state),
    ):
        assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.parametrize(
    ("joint", "fired", "expected"),
    [
        (0.0, (100.0, 200.0), 0.0),  # mutually exclusive
        (20.0, (100.0, 200.0), 20 / 21),  # exactly chance: 1000 * .1 * .2 = 20, plus 1
        (5.0, (100.0, 200.0), 5 / 21),  # a quarter of chance
        (90.0, (100.0, 200.0), 1.0),  # far above chance, clipped
        (0.0, (0.0, 0.0), 0.0),  # no evidence
    ],
)
def test_lift_compares_joint_firing_with_chance(
    joint: float, fired: tuple[float, float], expected: float
) -> None:
    affinity = lift_affinity(hand_state(joint, fired, samples=1000.0), PAIR)
    torch.testing.assert_close(affinity, torch.full((2, 1), expected))


@pytest.mark.parametrize(
    ("joint", "fired", "expected"),
    [
        (0.0, (99.0, 200.0), 0.0),
        (50.0, (99.0, 200.0), 0.5),  # 50 of the rarer latent's 99 + 1 firings
        (99.0, (99.0, 200.0), 0.99),
    ],
)
def test_overlap_is_share_of_rarer_latents_firings(
    joint: float, fired: tuple[float, float], expected: float
) -> None:
    affinity = overlap_affinity(hand_state(joint, fired, samples=1000.0), PAIR)
    torch.testing.assert_close(affinity, torch.full((2, 1), expected))


@pytest.mark.parametrize(
    ("together", "alone", "expected"),
    [
        ((1.0, 1.0), (1.0, 1.0), 1.0),  # equally strong together and alone
        ((2.0, 2.0), (1.0, 1.0), 1.0),  # each is stronger with the other
        ((0.5, 2.0), (1.0, 1.0), 0.0),  # one has taken over the other's direction
        ((2.0, 0.5), (1.0, 1.0), 0.0),  # the other way round
        (
            (0.95, 2.0),
            (1.0, 1.0),
            1 - 0.05 * 60 / 63 / 0.1,
        ),  # a little weaker, shrunk by 3 pseudo-firings
    ],
)
def test_unsuppressed_affinity_by_hand(
    together: tuple[float, float], alone: tuple[float, float], expected: float
) -> None:
    joint, fired, samples = 60.0, (160.0, 260.0), 400.0  # lift: 60 / (104 + 1)
    own = torch.tensor([[joint * a] for a in together])
    state = hand_state(joint, fired, samples)._replace(
        total=torch.tensor(
            [joint * a + (f - joint) * b for a, b, f in zip(together, alone, fired, strict=True)]
        ),
        joint_own=own,
        joint_other=own.flip(0),
    )
    found = unsuppressed_affinity(state, PAIR)
    torch.testing.assert_close(found, torch.full((2, 1), expected * 60 / 105))


def test_latent_never_alone_is_compared_with_itself() -> None:
    own, weaker = torch.full((2, 1), 100.0), torch.tensor([[100.0], [50.0]])
    state = hand_state(50.0, (50.0, 100.0), 400.0)._replace(
        total=torch.tensor([100.0, 200.0]), joint_own=own, joint_other=own
    )
    assert torch.equal(unsuppressed_affinity(state, PAIR), torch.ones(2, 1))
    # Latent 0 never fires alone. Latent 1 is half as strong when both fire.
    state = state._replace(
        total=torch.tensor([100.0, 150.0]), joint_own=weaker, joint_other=weaker.flip(0)
    )
    assert torch.equal(unsuppressed_affinity(state, PAIR), torch.zeros(2, 1))


def test_energy_is_mean_square_over_all_rows() -> None:
    batch = random_batch(3)
    state = update(empty_state(D, M, R), batch, ring_neighbours(), torch.ones(N, R), 1.0)
    torch.testing.assert_close(energies(state), batch.square().mean(0))


def test_late_pair_is_compared_over_its_own_rows() -> None:
    state = hand_state(10.0, (500.0, 500.0), 1000.0)._replace(
        joint_samples=torch.full((2, 1), 76.0)
    )
    # expected joint firings over 76 rows: 76 / 4 = 19
    torch.testing.assert_close(lift_affinity(state, PAIR), torch.full((2, 1), 0.5))


def test_sketch_estimates_phi_correlation() -> None:
    r, steps = 1024, 4
    common = random_batch(1, 400 * steps, 1) > 0
    noise = random_batch(2, 400 * steps, 6) > 0
    active = torch.cat(
        [common, common | noise[:, :1], common & noise[:, 1:2], ~common, noise], dim=1
    )
    state = empty_state(10, M, r)
    for step, batch in enumerate(active.float().split(400)):
        state = update(state, batch, ring_neighbours(10), random_signs(400, r, 0, step), 1.0)
    X = sketch_directions(state)
    phi = torch.corrcoef(active.T.float())
    assert phi[0, 3] < -0.99  # the estimate is signed
    assert phi[0, 1] > 0.5
    assert (X @ X.T - phi).abs().max() < 4 / r**0.5


def test_constant_latents_have_zero_sketch_direction() -> None:
    active = random_batch(5)
    active[:, 0], active[:, 1] = 1.0, 0.0
    state = empty_state(D, M, R, n_domains=2)
    for step in range(20):
        state = update(state, active, ring_neighbours(), random_signs(N, R, 0, step), 0.99, 4)
    X = sketch_directions(state)
    assert torch.equal(X[:2], torch.zeros(2, R))
    torch.testing.assert_close(X[2:].norm(dim=-1), torch.ones(D - 2))


def test_lift_is_computed_within_domains() -> None:
    """Two latents of one corpus must fire together more often than their rates there suggest."""

    # Forget is 100 of 400 rows. Both latents fire in 40 of those 100 and nowhere else:
    # independent firing within forget gives 0.4 * 0.4 * 100 = 16 joint firings.
    def affinity(joint: float) -> float:
        state = empty_state(2, 1, 1, n_domains=2)._replace(
            samples=torch.tensor([100.0, 300.0]),
            fired=torch.tensor([[40.0, 40.0], [0.0, 0.0]]),
            joint=torch.full((2, 1), joint),
            joint_samples=torch.full((2, 1), 400.0),
        )
        return float(lift_affinity(state, PAIR)[0, 0])

    assert affinity(8.0) == pytest.approx(8 / 17)
    assert affinity(17.0) == pytest.approx(1.0)
