"""Rankings, coverage and gates on firings made by hand."""

from __future__ import annotations

import torch

from saelens_adaptive_ortho.evaluations.unlearning import Settings
from saelens_adaptive_ortho.judging.unlearning.selection import (
    Patterns,
    Selection,
    Statistics,
    _rankings,
    alive_in_random_order,
    cover,
    paths_of,
)
from saelens_adaptive_ortho.maths.erasure import Moments

NO_LATENTS = torch.empty(0, dtype=torch.int64)
NONE = Moments(torch.zeros(2), torch.zeros(2, 2))


def statistics(forget: list[float], retain: list[float], **others: list[float]) -> Statistics:
    rates = [torch.tensor(r) for r in (forget, retain)]
    energies = [
        torch.tensor(others.get(k, r)) for k, r in (("forget2", forget), ("retain2", retain))
    ]
    return Statistics(*rates, *energies, torch.ones(len(forget)), NONE, NONE)


def patterns(forget: list[str], *retain: list[str], shares: tuple[float, ...] = (1.0,)) -> Patterns:
    """One row of ``x.x`` per token, and one context per two tokens."""
    fires = [torch.tensor([[c == "x" for c in row] for row in rows]) for rows in (forget, *retain)]
    contexts = [torch.arange(len(f)) // 2 for f in fires]
    return Patterns(torch.arange(fires[0].shape[1]) * 10, fires, contexts, [1.0, *shares])


def test_dsg_ranks_by_squared_activation_on_forget() -> None:
    found = statistics(
        [0.5, 0.5, 0.5, 0.1], [0.1] * 4, forget2=[1.0, 9.0, 4.0, 20.0], retain2=[0.2, 2.0, 0.4, 1.0]
    )
    ranked = _rankings(found, Settings(selection="dsg", specificities=[5.0, 4.0]))
    assert [r.tolist() for r in ranked.values()] == [[3, 2], [3, 1, 2, 0]]


def test_rate_has_the_published_rules_and_the_ratios() -> None:
    found = statistics([0.5, 0.2, 0.08], [0.2, 0.0005, 0.01])
    ranked = _rankings(found, Settings(specificities=[9.0, 2.0]))
    assert {name: r.tolist() for name, r in ranked.items()} == {
        "retain < 0.001": [1],
        "retain < 0.01": [1],
        "forget > 9 x retain": [1],
        "forget > 2 x retain": [0, 1, 2],
    }
    assert [r.tolist() for r in Selection(found, ranked, NO_LATENTS, None).by_ratio] == [
        [1],
        [0, 1, 2],
    ]


def test_coverage_prefers_new_tokens_to_frequent_latents() -> None:
    """Latent 1 fires most after latent 0, but on the same tokens; latent 2 covers new ones."""
    found = patterns(["xx.", "xx.", "xx.", "x..", "..x", "..."], ["...", "..."])
    assert cover(found, 3.0, 10).tolist() == [0, 20]
    assert cover(found, 3.0, 1).tolist() == [0]


def test_coverage_pays_for_retain_tokens_by_their_share() -> None:
    """Latent 0 covers all of forget, and half of the second retain corpus, whose share is 0.2."""
    rows = (["x.", "x.", "x.", "xx"], ["..", ".."], ["x.", ".."])
    assert cover(patterns(*rows, shares=(0.8, 0.2)), 5.0, 9).tolist() == [0]  # 1 - 5 * 0.1 > 0.25
    assert cover(patterns(*rows, shares=(0.8, 0.2)), 9.0, 9).tolist() == [10]  # 1 - 9 * 0.1 < 0.25


def test_retain_token_that_is_covered_costs_nothing_more() -> None:
    found = patterns(["x.", "x.", "x.", ".x"], ["xx", "..", "..", ".."])
    # Alone, latent 1 adds 0.25 - 1 * 0.25 = 0. After latent 0 its retain token is covered.
    assert cover(found, 1.0, 9).tolist() == [0, 10]


def test_gate_is_the_95th_percentile_of_the_retain_contexts() -> None:
    rows = [".x"] * 2 + ["x.", ".."] * 2 + [".."] * 34  # of 20 contexts, 2 have a share of a half
    found = patterns(["xx"], rows)
    assert found.gate(torch.tensor([0])) == 0.5
    assert found.gate(torch.tensor([0, 10])) == 0.5
    assert found.gate(torch.tensor([10])) == 0.0  # one context in twenty is not more than 5%
    assert found.gate(torch.tensor([0])) == quantile(found, 0)


def quantile(found: Patterns, column: int) -> float:
    shares = found.fires[1][:, column].double().view(-1, 2).mean(1)
    return float(torch.quantile(shares, 0.95, interpolation="higher"))


def test_gate_weighs_corpora_by_their_share() -> None:
    quiet, loud = [".."] * 38 + ["x."] * 2, ["xx", "xx"]
    assert patterns(["x."], quiet, loud, shares=(0.9, 0.1)).gate(torch.tensor([0])) == 1.0
    assert patterns(["x."], quiet, loud, shares=(0.98, 0.02)).gate(torch.tensor([0])) == 1.0
    assert patterns(["x."], quiet, loud, shares=(1.0, 0.0)).gate(torch.tensor([0])) == 0.0


def test_no_gate_unless_asked() -> None:
    found = statistics([0.5], [0.1])
    assert Selection(found, {}, NO_LATENTS, None).gate(torch.tensor([0])) is None
    shown = patterns(["x"], ["x", "x"])
    assert Selection(found, {}, NO_LATENTS, shown).gate(torch.tensor([0])) == 1.0


def test_random_order_holds_each_latent_that_fires_once() -> None:
    found = statistics([0.5, 0.0, 0.0, 0.3] * 10, [0.0, 0.0, 0.2, 0.1] * 10)
    first, second = (alive_in_random_order(found, seed) for seed in (0, 1))
    assert sorted(first.tolist()) == [i for i in range(40) if i % 4 != 1]
    assert sorted(first.tolist()) == sorted(second.tolist()) != first.tolist() != second.tolist()
    assert torch.equal(first, alive_in_random_order(found, 0))


def test_paths_are_distinct_prefixes() -> None:
    rankings = [torch.tensor([3, 1, 2]), torch.tensor([3]), torch.empty(0, dtype=torch.int64)]
    assert [p.tolist() for p in paths_of(rankings, [1, 2, 9])] == [[3], [3, 1], [3, 1, 2]]
