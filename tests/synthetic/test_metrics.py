"""Metrics on planted dictionaries, compared with SAELens; selectivity in known cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.synthetic import eval_sae_on_synthetic_data
from torch import Tensor

from saelens_adaptive_ortho.synthetic.metrics import feature_metrics
from saelens_adaptive_ortho.synthetic.pool import Pool, draw_pool
from saelens_adaptive_ortho.synthetic.selectivity import domain_metrics, fit_probes, probe_skill
from saelens_adaptive_ortho.synthetic.worlds import ClusterWorld, DomainsWorld

DOMAINS = DomainsWorld(
    forget=5, retain=5, shared=5, hidden_dim=24, pairs=3, max_prob=0.4, leak=0.01
)


def planted(directions: Tensor, threshold: float = 0.2) -> JumpReLUSAE:
    """An SAE whose decoder is ``directions`` and whose encoder inverts it exactly."""
    d_sae, d_in = directions.shape
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae))
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(torch.linalg.pinv(directions))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
        sae.threshold.fill_(threshold)
    return sae


def test_true_dictionary_scores_one() -> None:
    pool = draw_pool(ClusterWorld(clusters=4, cluster_size=3, hidden_dim=20), 10, 3000)
    scores = feature_metrics(planted(pool.directions, threshold=0.01), pool)
    for name in ("mcc", "f1", "precision", "recall", "uniqueness", "explained_variance"):
        assert scores[name] == pytest.approx(1, abs=1e-5), name
    assert scores["dead_latents"] == 0
    assert scores["l0"] == pytest.approx(scores["true_l0"])


def test_wrong_dictionaries_score_less() -> None:
    pool = draw_pool(ClusterWorld(clusters=4, cluster_size=3, hidden_dim=20), 10, 3000)
    sae = planted(pool.directions)
    with torch.no_grad():
        sae.W_dec[1] = sae.W_dec[0]
        sae.threshold[2] = 1e6
    scores = feature_metrics(sae, pool)
    assert scores["mcc"] < 0.99
    assert scores["uniqueness"] == pytest.approx(11 / 12)
    assert scores["dead_latents"] == 1
    assert scores["mean_max_cosine"] > 0.2


@pytest.mark.parametrize("n_latents", [6, 15])
def test_metrics_equal_saelens(build_sae: Any, n_latents: int) -> None:
    pool = draw_pool(DOMAINS, 10, 400)
    sae = build_sae("batchtopk", d_in=24, d_sae=n_latents, k=2)
    batches = list(pool.held_out_batches(100))

    class Replay:
        """Replaces the generator and the dictionary, and returns the pool's samples in order."""

        feature_vectors = pool.directions

        def __init__(self) -> None:
            self.turn = iter(batches)

        def sample(self, n: int) -> Tensor:
            self.x, features = next(self.turn)
            assert len(features) == n
            return features

        def __call__(self, _features: Tensor) -> Tensor:
            return self.x

    replay: Any = Replay()
    theirs = eval_sae_on_synthetic_data(sae, replay, replay, num_samples=400, batch_size=100)
    ours = feature_metrics(sae, pool, batch_size=100)
    assert ours["mcc"] == theirs.mcc
    assert ours["f1"] == theirs.classification.f1_score
    assert ours["precision"] == theirs.classification.precision
    assert ours["recall"] == theirs.classification.recall
    assert ours["uniqueness"] == theirs.uniqueness
    assert ours["explained_variance"] == theirs.explained_variance
    assert (ours["l0"], ours["true_l0"]) == (theirs.sae_l0, theirs.true_l0)
    assert ours["dead_latents"] == theirs.dead_latents


# ------------------------------------------------------------------ selectivity


def merged(pool: Pool) -> JumpReLUSAE:
    """The true dictionary, but both latents of a forget/retain pair have the same direction."""
    sae = planted(pool.directions)
    at = DOMAINS.paired()
    both = pool.directions[at] + pool.directions[5 + at]
    both = both / both.norm(dim=1, keepdim=True)
    with torch.no_grad():
        for rows in (at, 5 + at):
            sae.W_dec[rows] = both
            sae.W_enc[:, rows] = both.T
        sae.threshold[at] = sae.threshold[5 + at] = 0.4
    return sae


def test_true_dictionary_forgets_only_forget_features() -> None:
    pool = draw_pool(DOMAINS, 10, 8000)
    metrics, details = domain_metrics(planted(pool.directions), pool)
    area = metrics["selectivity_area"]
    assert area is not None
    assert area > 0.99
    ablated = next(i for i in details["interventions"] if (i["ratio"], i["strength"]) == (9.0, 0.0))
    assert ablated["latents"] == 5
    assert ablated["skill_lost_forget"] == pytest.approx(1, abs=1e-6)
    assert ablated["accuracy_forget"] == pytest.approx(0.5, abs=1e-6)
    assert abs(ablated["skill_lost_retain"]) < 0.01
    assert abs(ablated["skill_lost_shared"]) < 0.01
    assert ablated["explained_variance_retain"] > 0.98
    assert ablated["explained_variance_forget"] < 0.8
    found, true = details["geometry"]["found"], details["geometry"]["true"]
    assert found["sizes"] == true["sizes"]
    assert found["condition_numbers"] == pytest.approx(true["condition_numbers"], rel=1e-5)
    assert found["principal_angles_deg"] == pytest.approx(true["principal_angles_deg"], abs=0.01)


def test_merged_pairs_are_harder_to_forget() -> None:
    pool = draw_pool(DOMAINS, 10, 8000)
    perfect, _ = domain_metrics(planted(pool.directions), pool)
    metrics, details = domain_metrics(merged(pool), pool)
    assert metrics["selectivity_area"] is not None
    assert metrics["selectivity_area"] < perfect["selectivity_area"] - 0.2  # type: ignore[operator]
    assert details["geometry"]["found"]["sizes"]["forget"] == 2


def test_no_selective_latent_forgets_nothing() -> None:
    pool = draw_pool(DOMAINS, 10, 2000)
    sae = planted(pool.directions[10:])  # shared features only
    metrics, details = domain_metrics(sae, pool)
    assert metrics["selectivity_area"] == pytest.approx(0, abs=0.02)
    assert metrics["forget_latents"] == 0
    assert metrics["condition_number_forget"] is None
    assert all(i["explained_variance_forget"] == 1 for i in details["interventions"][-6:])


def test_probes_are_fisher_discriminants() -> None:
    generator = torch.Generator().manual_seed(0)
    fires = torch.rand(3000, 3, generator=generator) < torch.tensor([0.5, 0.2, 0.1])
    directions = torch.randn(3, 4, generator=generator)
    x = fires.float() @ directions + 0.3 * torch.randn(3000, 4, generator=generator)
    probes = fit_probes(x, fires)
    for j in range(3):
        on, off = x[fires[:, j]].double(), x[~fires[:, j]].double()
        m1, m0 = on.mean(0), off.mean(0)
        within = (on - m1).T @ (on - m1) + (off - m0).T @ (off - m0)
        direction = torch.linalg.solve(within, m1 - m0)
        w = probes.weights[:, j]
        cosine = (w @ direction) / (w.norm() * direction.norm())
        assert float(cosine) == pytest.approx(1, abs=1e-6)
        assert float(probes.thresholds[j]) == pytest.approx(float(w @ (m1 + m0)) / 2, abs=1e-6)


def test_skill_is_one_if_perfect_and_zero_at_chance() -> None:
    fires = torch.tensor([[True, True], [False, False], [True, False], [False, True]])
    x = torch.stack([fires[:, 0].float(), torch.zeros(4)], dim=1)
    probes = fit_probes(x, fires)
    skill = probe_skill(probes, x, fires)
    assert skill.tolist() == pytest.approx([1.0, 0.0])
