"""Groups and domains: hand-made cases and recovery of planted ones."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from sae_lens.synthetic import ActivationGenerator, create_correlation_matrix_from_correlations
from torch import Tensor

from saelens_adaptive_ortho.maths.coactivation import (
    CoactivationState,
    domain_rates,
    empty_state,
    random_signs,
    sketch_directions,
    update,
)
from saelens_adaptive_ortho.maths.grouping import (
    FORGET,
    INACTIVE,
    RETAIN,
    SHARED,
    GroupSummary,
    coactivation_groups,
    domain_groups,
    domain_sharing,
    group_sizes,
    summarise_groups,
)

# ----------------------------------------------------------------- domains


@pytest.mark.parametrize(
    ("forget", "retain", "expected"),
    [
        (0.09, 0.01, FORGET),  # exactly nine times as often
        (0.089, 0.01, SHARED),
        (0.01, 0.09, RETAIN),
        (0.01, 0.089, SHARED),
        (0.05, 0.0, FORGET),
        (0.0, 0.05, RETAIN),
        (0.05, 0.05, SHARED),
        (0.0, 0.0, INACTIVE),
        (9e-7, 0.0, INACTIVE),
        (2e-6, 0.0, FORGET),
    ],
)
def test_domain_needs_nine_times_the_firing_rate(
    forget: float, retain: float, expected: int
) -> None:
    rates = torch.tensor([[forget], [retain]], dtype=torch.float64)
    assert domain_groups(rates).item() == expected


def test_lower_ratio_gives_more_domain_latents() -> None:
    rates = torch.tensor([[0.2, 0.2, 0.1], [0.1, 0.15, 0.2]])
    assert domain_groups(rates, ratio=2.0).tolist() == [FORGET, SHARED, RETAIN]
    assert domain_groups(rates, ratio=3.0).tolist() == [SHARED] * 3


@pytest.mark.parametrize("ratio", [1.0, 0.5, float("nan")])
def test_ratio_of_one_or_less_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio must be above 1"):
        domain_groups(torch.zeros(2, 3), ratio)


def test_rates_must_be_finite() -> None:
    with pytest.raises(ValueError, match="rates must be finite"):
        domain_groups(torch.tensor([[0.1, float("nan")], [0.2, 0.0]]))


def test_rates_need_two_corpora() -> None:
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)):
        domain_groups(torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("one", "other", "factor"),
    [
        (FORGET, FORGET, 1.0),
        (RETAIN, RETAIN, 1.0),
        (SHARED, SHARED, 1.0),
        (FORGET, RETAIN, 0.0),
        (FORGET, SHARED, 0.5),
        (RETAIN, SHARED, 0.5),
        (INACTIVE, FORGET, 1.0),
        (INACTIVE, RETAIN, 1.0),
        (INACTIVE, SHARED, 1.0),
        (INACTIVE, INACTIVE, 1.0),
    ],
)
def test_domain_sharing_factors(one: int, other: int, factor: float) -> None:
    sharing = domain_sharing(torch.tensor([one, other]), torch.tensor([[1], [0]]))
    assert sharing.tolist() == [[factor], [factor]]


# --------------------------------------------------------- groups, by hand


def angles(*degrees: float) -> Tensor:
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_groups_are_labelled_by_smallest_member() -> None:
    # A chain 0 - 3 - 4 of 20-degree links (cos = .94), a pair 1 - 5, and a single latent 2.
    X = angles(0, 120, 230, 20, 40, 125)
    assert coactivation_groups(X, threshold=0.9).tolist() == [0, 1, 2, 0, 0, 1]


def test_threshold_cuts_weak_links() -> None:
    X = angles(0, 10, 40)
    assert coactivation_groups(X, threshold=0.8).tolist() == [0, 0, 0]
    assert coactivation_groups(X, threshold=0.9).tolist() == [0, 0, 2]
    assert coactivation_groups(X, threshold=0.99).tolist() == [0, 1, 2]


def test_link_must_be_mutual() -> None:
    # With one neighbour each, 0 and 1 choose each other; 2 chooses 1, but 1 does not choose 2.
    X = angles(0, 5, 11)
    assert coactivation_groups(X, threshold=0.5, m=1).tolist() == [0, 0, 2]
    assert coactivation_groups(X, threshold=0.5, m=2).tolist() == [0, 0, 0]


def test_groups_may_interleave() -> None:
    X = angles(0, 90, 1, 91, 2, 92)
    assert coactivation_groups(X, threshold=0.99).tolist() == [0, 1, 0, 1, 0, 1]


def test_long_chain_is_one_group() -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    X = angles(*range(0, 120, 2))[order]
    assert coactivation_groups(X, threshold=0.99, m=2).tolist() == [0] * 60


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_silent_latents_are_not_grouped(threshold: float) -> None:
    X = torch.cat([torch.zeros(4, 2), angles(0, 1).float()])
    assert coactivation_groups(X, threshold).tolist() == [0, 1, 2, 3, 4, 4]


def test_group_sizes_are_sorted_largest_first() -> None:
    assert group_sizes(torch.tensor([0, 1, 1, 3, 1, 3])).tolist() == [3, 2, 1]


def test_summary_counts_groups_and_changed_labels() -> None:
    summary = summarise_groups(
        group_ids=torch.tensor([0, 1, 1, 3, 1, 3, 6]),
        domain_ids=torch.tensor([FORGET, FORGET, RETAIN, SHARED, INACTIVE, SHARED, SHARED]),
        previous=torch.tensor([0, 1, 2, 3, 4, 5, 6]),
    )
    assert summary == GroupSummary(
        n_groups=2, largest=3, grouped=5, churn=pytest.approx(3 / 7), forget=2, retain=1, shared=3
    )


# ------------------------------------------------------------- planted truth

GROUPS = [[0, 7, 14], [1, 2, 3, 4], [5, 20], [6, 8, 10, 12, 16]]
N_FEATURES = 24
FORGET_FEATURES, RETAIN_FEATURES, DEAD_FEATURES = [0, 1, 5], [2, 9, 11], [23]


def planted_partition() -> list[int]:
    labels = list(range(N_FEATURES))
    for group in GROUPS:
        for member in group:
            labels[member] = min(group)
    return labels


def firing_patterns(n: int, seed: int) -> Tensor:
    """Features of a group fire together: a Gaussian copula with correlation .95 within groups."""
    links = {(i, j): 0.95 for group in GROUPS for i in group for j in group if i < j}
    generator = ActivationGenerator(
        N_FEATURES,
        firing_probabilities=torch.linspace(0.1, 0.3, N_FEATURES),
        correlation_matrix=create_correlation_matrix_from_correlations(N_FEATURES, links),
    )
    torch.manual_seed(seed)
    return (generator.sample(n) > 0).float()


def statistics(order: Tensor | None = None, sketch_size: int = 512) -> CoactivationState:
    order = torch.arange(N_FEATURES) if order is None else order
    neighbours = ((torch.arange(N_FEATURES).unsqueeze(1) + 1) % N_FEATURES).long()
    state = empty_state(N_FEATURES, 1, sketch_size)
    for step in range(10):
        active = firing_patterns(500, seed=step)[:, order]
        signs = random_signs(500, sketch_size, seed=0, step=step)
        state = update(state, active, neighbours, signs, decay=0.99)
    return state


def as_partition(labels: Tensor, names: Tensor) -> set[frozenset[int]]:
    return {frozenset(names[labels == label].tolist()) for label in labels.unique()}


def test_planted_groups_are_found_exactly() -> None:
    groups = coactivation_groups(sketch_directions(statistics()), threshold=0.45)
    assert groups.tolist() == planted_partition()


def test_grouping_is_deterministic() -> None:
    one, two = (
        coactivation_groups(sketch_directions(statistics()), threshold=0.45, block_size=size)
        for size in (2048, 5)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("seed", [0, 1])
def test_relabelling_only_relabels_the_partition(seed: int) -> None:
    order = torch.randperm(N_FEATURES, generator=torch.Generator().manual_seed(seed))
    groups = coactivation_groups(sketch_directions(statistics(order)), threshold=0.45)
    expected = as_partition(torch.tensor(planted_partition()), torch.arange(N_FEATURES))
    assert as_partition(groups, order) == expected
    assert (groups <= torch.arange(N_FEATURES)).all()


def test_planted_domains_are_found() -> None:
    neighbours = torch.tensor([[j for j in (i - 1, i + 1)] for i in range(N_FEATURES)]) % N_FEATURES
    state, forget_rows = empty_state(N_FEATURES, 2, 8, n_domains=2), 150
    for step in range(8):
        active = firing_patterns(500, seed=step)
        active[forget_rows:, FORGET_FEATURES] = 0.0
        active[:forget_rows, RETAIN_FEATURES] = 0.0
        active[:, DEAD_FEATURES] = 0.0
        signs = random_signs(500, 8, seed=0, step=step)
        state = update(state, active, neighbours, signs, 0.99, forget_rows)
    expected = [SHARED] * N_FEATURES
    for ids, features in (
        (FORGET, FORGET_FEATURES),
        (RETAIN, RETAIN_FEATURES),
        (INACTIVE, DEAD_FEATURES),
    ):
        for feature in features:
            expected[feature] = ids
    ids = domain_groups(domain_rates(state))
    assert ids.tolist() == expected
    sharing = domain_sharing(ids, neighbours)
    assert sharing[1, 1] == 0  # forget latent 1 and retain latent 2 may not share
