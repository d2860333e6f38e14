"""Merged latents and selectivity given coverage, on dictionaries whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saelens_adaptive_ortho.maths.grouping import FORGET, RETAIN, SHARED
from saelens_adaptive_ortho.synthetic.pool import Pool, draw_pool
from saelens_adaptive_ortho.synthetic.selectivity import Sample, halves
from saelens_adaptive_ortho.synthetic.separation import (
    Dictionary,
    count_latents,
    detection,
    measure,
    reference_dictionaries,
    separation_metrics,
)
from saelens_adaptive_ortho.synthetic.worlds import DomainsWorld
from tests.synthetic.test_metrics import planted

Samples = tuple[list[Sample], list[Sample]]
WORLD = DomainsWorld(
    forget=24, retain=24, shared=16, hidden_dim=64, pairs=24, cosine=0.8, leak=0.2, max_prob=0.2
)
PAIRS = WORLD.pair_indices()


@pytest.fixture(scope="module")
def pool() -> Pool:
    return draw_pool(WORLD, 10, 6000)


@pytest.fixture(scope="module")
def samples(pool: Pool) -> Samples:
    return halves(pool)


def of_true_features(samples: Samples, pool: Pool, features: Tensor) -> Dictionary:
    """The true dictionary without the latents of the other features."""
    first, second = ([s.features[:, features] for s in half] for half in samples)
    return Dictionary(first, second, pool.directions[features])


def test_references_score_as_they_should(samples: Samples, pool: Pool) -> None:
    found = {
        name: measure(dictionary, samples, pool, PAIRS)
        for name, dictionary in reference_dictionaries(samples, pool, PAIRS).items()
    }
    selectivity = {n: v["selectivity_given_coverage"] for n, v in found.items()}
    assert selectivity["ideal"] == pytest.approx(1, abs=0.02)
    assert selectivity["merged"] == pytest.approx(0, abs=0.12)
    assert abs(selectivity["random"] or 0) < 0.3
    assert found["ideal"]["cost_at_half"] == pytest.approx(0, abs=0.01)
    assert found["merged"]["cost_at_half"] == pytest.approx(0.5, abs=0.1)
    counts = ("coverage", "merged_latents", "merged_pairs", "split_pairs", "missed_retain")
    assert [found["ideal"][c] for c in counts] == [1, 0, 0, 24, 0]
    assert [found["merged"][c] for c in counts] == [0, 24, 24, 0, 0]
    assert found["random"]["coverage"] == 0


def test_equal_coverage_has_unequal_selectivity(samples: Samples, pool: Pool) -> None:
    """A third of the forget features have no latent, or share one with their partner."""
    third = PAIRS[::3]
    others = torch.arange(64)[~torch.isin(torch.arange(64), third[:, 0])]
    incomplete = measure(of_true_features(samples, pool, others), samples, pool, PAIRS)
    merged = measure(reference_dictionaries(samples, pool, third)["merged"], samples, pool, PAIRS)
    assert incomplete["coverage"] == merged["coverage"] == pytest.approx(2 / 3)
    assert incomplete["missed_forget"] == merged["merged_latents"] == 8
    assert incomplete["selectivity_given_coverage"] == pytest.approx(1, abs=0.02)
    # Firing rates cannot tell merged latents from shared ones: F(b) = 2/3 + b/3.
    assert merged["selectivity_given_coverage"] == pytest.approx(2 / 3, abs=0.1)


def test_exported_sae_is_measured_like_the_dictionary(samples: Samples, pool: Pool) -> None:
    metrics, references = separation_metrics(planted(pool.directions), pool, PAIRS)
    ideal = references["ideal"]
    assert set(references) == {"ideal", "merged", "random"}
    assert metrics["coverage"] == ideal["coverage"] == 1
    assert metrics["selectivity_given_coverage"] == pytest.approx(
        ideal["selectivity_given_coverage"], abs=0.02
    )


def test_nothing_that_fires_forgets_nothing(samples: Samples, pool: Pool) -> None:
    silent = of_true_features(samples, pool, torch.arange(2))
    silent = silent._replace(
        first=[torch.zeros_like(a) for a in silent.first],
        second=[torch.zeros_like(a) for a in silent.second],
    )
    found = measure(silent, samples, pool, PAIRS)
    assert found["selectivity_given_coverage"] == -1
    assert found["cost_at_half"] is None
    assert (found["coverage"], found["missed_forget"]) == (0, 24)


def test_detection_equals_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    fires = torch.rand(200, 4, generator=generator) < 0.3
    features = torch.rand(200, 3, generator=generator) < 0.4
    features[:, 2] = False
    found = detection(fires, features)
    for i in range(4):
        for j in range(2):
            on, off = fires[features[:, j], i], fires[~features[:, j], i]
            expected = float(on.double().mean() - off.double().mean())
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-6)
    assert found[:, 2].tolist() == [0, 0, 0, 0]
    assert detection(features, features)[0, 0] == 1


def test_counts_of_a_written_matrix() -> None:
    groups = torch.tensor([FORGET] * 4 + [RETAIN] * 4 + [SHARED])
    pairs = torch.tensor([[0, 4], [1, 5], [2, 6]])
    skill = torch.zeros(7, 9)
    for latent, feature in [
        *((0, 0), (1, 4)),  # pair 0: a latent for each
        *((2, 1), (2, 5)),  # pair 1: one latent for both
        *((3, 2), (3, 8)),  # serves a shared feature too, so feature 2 has no own latent
        *((4, 3), (4, 7)),  # merged, but not a similar pair
        (5, 8),
    ]:
        skill[latent, feature] = 0.9
    skill[6, 6] = 0.49
    assert count_latents(skill, groups, pairs) == {
        "coverage": 0.25,
        "merged_latents": 2,
        "merged_pairs": 1,
        "split_pairs": 1,
        "missed_forget": 0,
        "missed_retain": 1,
    }


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_merged_latent_fires_with_the_documented_ratio(rate: float) -> None:
    world = DomainsWorld(
        forget=4,
        retain=4,
        shared=2,
        hidden_dim=16,
        pairs=4,
        leak=0.1,
        partner_rate=rate,
        max_prob=0.1,
        exponent=0.0,
    )
    pool = draw_pool(world, 10, 80_000)
    samples = halves(pool)
    acts = reference_dictionaries(samples, pool, world.pair_indices())["merged"].first
    forget, retain = ((a[:, :4] > 0).double().mean() for a in acts)
    expected = (1 + 0.1 * rate) / (0.1 + rate)
    assert float(forget / retain) == pytest.approx(expected, rel=0.05)
