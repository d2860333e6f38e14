"""Labels and directions of metrics."""

from __future__ import annotations

import pytest

from saelens_adaptive_ortho import evaluations
from saelens_adaptive_ortho.evaluations import BUILT_IN, Evaluation, Metric, headline_keys
from saelens_adaptive_ortho.report import metrics
from saelens_adaptive_ortho.report.metrics import describe


def test_corpus_group_and_unit() -> None:
    assert describe("core/forget/ce_loss_score").label == "CE loss score, forget"
    assert describe("core/forget/ce_loss_score").direction == "higher"
    assert describe("subspace/condition_number/forget+retain").direction == "lower"
    assert describe("subspace/principal_angle/min_deg").unit == "°"
    assert describe("later/some_new_score").label == "some new score"
    assert describe("later/some_new_score").direction is None


@pytest.mark.parametrize(
    ("key", "label", "direction"),
    [
        (
            "unlearning/loss/forget_damage_at_0.10",
            "unlearning: forget damage at retain damage ≤ 0.10 nats",
            "higher",
        ),
        (
            "unlearning/loss/forget_damage_at_0.10_halfwidth",
            "unlearning: bootstrap half-width at retain damage ≤ 0.10 nats",
            None,
        ),
        (
            "unlearning/mcq/forget_accuracy_at_0.95",
            "unlearning: forget accuracy at retain accuracy ≥ 0.95",
            "lower",
        ),
        ("unlearning/mcq/chance", "unlearning: accuracy by chance", None),
        ("sparse_probing/sae_top_20_accuracy", "sparse probing: accuracy, k = 20", "higher"),
        ("sparse_probing/pca_top_5_accuracy", None, None),
        ("sparse_probing/llm_accuracy", None, None),
        ("sae_probes/sae_top_1_auc", "SAE Probes: AUC, k = 1", "higher"),
        ("absorption/n_split_features", "absorption: latents per letter", "lower"),
        ("absorption/n_letters", None, None),
        ("tpp/threshold_10", "TPP: score, 10 latents ablated", "higher"),
        ("tpp/threshold_10_unintended", "TPP: unintended effect, 10 latents ablated", None),
        ("scr/threshold_500", "SCR: score, 500 latents ablated", "higher"),
        ("ravel/isolation", "RAVEL: isolation", "higher"),
        ("core/pooled/l0", "L0, pooled", None),
    ],
)
def test_labels_and_directions(key: str, label: str | None, direction: str | None) -> None:
    info = describe(key)
    assert label is None or info.full_label == label
    assert info.direction == direction
    assert "{n}" not in info.full_label


def test_any_corpus_of_core_is_named() -> None:
    """A corpus may even have the name of a metric or of a number."""
    for corpus in ("near", "forget_test", "explained_variance", "wiki_2"):
        info = describe(f"core/{corpus}/explained_variance")
        assert info.label == f"explained variance, {corpus}"
        assert info.direction == "higher"
        other = describe(f"core/{corpus}/relative_reconstruction_bias")
        assert other.label == f"relative reconstruction bias, {corpus}"


def test_corpus_in_the_name_of_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Evaluation(
        "loss",
        "Loss",
        metrics={
            "forget_damage_at_{n}": Metric("damage at {n}", "nats", "higher"),
            "{corpus}_damage_at_{n}": Metric("damage to {corpus} at {n}", "nats", "lower"),
            "{corpus}_damage_at_{n}_halfwidth": Metric("half-width of {corpus} at {n}"),
        },
        headline=("forget_damage_at_0.10", "{corpus}_damage_at_0.10"),
    )
    monkeypatch.setattr(metrics, "evaluation", lambda _: loss)
    assert describe("loss/forget_damage_at_0.10").label == "damage at 0.10"
    near = describe("loss/near_damage_at_0.10")
    assert (near.label, near.direction) == ("damage to near at 0.10", "lower")
    assert near.with_number("0.05 / 0.10") == "damage to near at 0.05 / 0.10"
    assert describe("loss/wiki_2_damage_at_0.10").label == "damage to wiki_2 at 0.10"
    halfwidth = describe("loss/near_damage_at_0.10_halfwidth")
    assert (halfwidth.label, halfwidth.direction) == ("half-width of near at 0.10", None)
    monkeypatch.setattr(evaluations, "every", lambda: {"loss": loss})
    keys = ["loss/near_damage_at_0.10", "loss/near_damage_at_0.20", "loss/forget_damage_at_0.10"]
    assert headline_keys(keys) == [keys[2], keys[0]]


def test_headline_has_every_corpus_of_core() -> None:
    corpora = ("forget", "retain", "near", "forget_test", "pooled")
    keys = [f"core/{c}/{name}" for c in corpora for name in ("l0", "explained_variance")]
    order = ("pooled", "forget", "retain", "near", "forget_test")
    assert headline_keys(keys) == [
        *(f"core/{corpus}/explained_variance" for corpus in order),
        "core/pooled/l0",
    ]


def test_primary_metrics_have_a_direction() -> None:
    for info in BUILT_IN:
        for key in info.keys(info.primary):
            assert describe(key).direction is not None, key
