"""Names and shares of several corpora."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.text import mixture
from saelens_adaptive_ortho.text.corpora import CorpusConfig, TokenisedCorpus
from saelens_adaptive_ortho.text.mixture import RESERVED, arrange, shares

TWO: dict[str, Any] = {"forget": "f.txt", "retain": {"path": "r.txt"}}
NEAR = {"path": "n.txt", "share": 0.2}
UNSEEN = {"path": "u.txt", "share": 0}


def where(name: str) -> str:
    return f"corpora.{name}"


def test_order_is_forget_retain_named_then_forget_test() -> None:
    given = {"forget_test": "t.txt", "zoo": UNSEEN, "near": NEAR, "retain": "r", "forget": "f"}
    found = arrange(given, where)
    assert list(found) == ["forget", "retain", "zoo", "near", "forget_test"]
    assert [c.path for c in found.values()] == ["f", "r", "u.txt", "n.txt", "t.txt"]
    assert shares(found) == {
        "forget": 1.0,
        "retain": 0.8,
        "zoo": 0.0,
        "near": 0.2,
        "forget_test": 0.0,
    }
    assert list(mixture.trained(found)) == ["forget", "retain", "near"]
    assert arrange(found, where) == found


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_single_corpus_has_no_side(side: str) -> None:
    found = arrange({side: "a.txt"}, where)
    assert list(found) == ["corpus"]
    assert shares(found) == {"corpus": 1.0}


@pytest.mark.parametrize("n", [3, 7, 10])
def test_shares_of_the_retain_side_add_up_to_one(n: int) -> None:
    named = {f"n{i}": {"path": "n.txt", "share": 1 / (n + 1)} for i in range(n)}
    found = shares(arrange({**TWO, **named}, where))
    assert sum(found.values()) - found["forget"] == pytest.approx(1, abs=1e-8)
    assert found["retain"] == pytest.approx(1 / (n + 1), abs=1e-8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"forget": "f", "retian": "r"},
            r"corpora\.retian='r': unknown key. Did you mean",
        ),
        ({"forget": "f", "retian": NEAR}, r"Did you mean corpora\.retain\?"),
        ({**TWO, "retian": "r"}, r"Did you mean corpora\.retain\?"),
        ({**TWO, "retian": {"path": "r"}}, r"Did you mean corpora\.retain\?"),
        ({**TWO, "forget-test": UNSEEN}, r"Did you mean corpora\.forget_test\?"),
        ({**TWO, "Forget": NEAR}, "'Forget' has a meaning of its own"),
        *(
            ({**TWO, n: NEAR}, f"'{n}' has a meaning")
            for n in sorted(set(RESERVED) - set(mixture.ROLES))
        ),
        ({**TWO, "a b": NEAR}, "has letters, digits, - and _ only"),
        ({**TWO, "-a": NEAR}, "has letters, digits, - and _ only"),
        ({**TWO, "a/b": NEAR}, "has letters, digits, - and _ only"),
        ({**TWO, "n" * 65: NEAR}, "has 65 characters; 64 are allowed"),
        ({**TWO, "pooled": CorpusConfig(path="p")}, r"corpora\.pooled='p': 'pooled' has"),
        ({"forget": "f", "retain": {"path": "f"}}, r"corpora\.retain='f': has the same text as"),
        ({**TWO, "": NEAR}, "has letters, digits, - and _ only"),
        ({**TWO, "near": "n.txt"}, r"corpora\.near\.share=None: give the share .* 0 to evaluate"),
        ({**TWO, "near": {"path": "n"}}, r"corpora\.near\.share=None: give the share"),
        ({**TWO, "near": {**NEAR, "share": 1}}, r"corpora\.near\.share=1: must be a number in \[0"),
        ({**TWO, "near": {**NEAR, "share": -0.1}}, r"corpora\.near\.share=-0\.1: must be a number"),
        ({**TWO, "near": {**NEAR, "share": "0.2"}}, r"corpora\.near\.share='0\.2': must be a numb"),
        ({**TWO, "near": {"share": 0.2}}, r"corpora\.near\.path=None"),
        ({**TWO, "forget": NEAR}, r"corpora\.forget\.share=0\.2: .*ortho_forget_fraction"),
        ({**TWO, "retain": NEAR}, r"corpora\.retain\.share=0\.2: .*gets the rest"),
        ({**TWO, "forget_test": UNSEEN}, r"corpora\.forget_test\.share=0: .*never trained on"),
        ({"retain": NEAR}, r"corpora\.retain\.share=0\.2"),
        ({"retain": "r", "near": NEAR}, r"corpora\.near=.*: needs both .* give corpora\.forget\."),
        ({"forget": "f", "near": UNSEEN}, r"corpora\.near=.*give corpora\.retain\."),
        ({"forget": "f", "forget_test": "t"}, r"corpora\.forget_test='t': needs both .*\.retain\."),
        ({"near": NEAR}, r"give corpora\.forget"),
        (
            {**TWO, "near": {**NEAR, "share": 0.5}, "far": {**NEAR, "share": 0.5}},
            r"corpora\.far\.share=0\.5: leaves nothing for corpora\.retain: .*near, far must",
        ),
        ({**TWO, "near": 3}, r"corpora\.near=3: must be a path or a mapping"),
        ({**TWO, "near": {**NEAR, "shard": 1}}, r"corpora\.near\.shard=1: unknown key.*share"),
    ],
)
def test_bad_corpora_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arrange(given, where)


def tokenised(name: str, first: int, n: int = 4) -> TokenisedCorpus:
    train = torch.arange(first, first + 8 * n, dtype=torch.int32).view(n, 8)
    return TokenisedCorpus(name, train, train, name)


def test_long_name_and_another_part_of_one_source_are_allowed() -> None:
    given = {"forget": {"path": "f"}, "retain": {"path": "f", "split": "test"}, "n" * 64: NEAR}
    assert len(arrange(given, where)) == 3


def test_same_text_is_refused_on_both_sides_and_warned_of_elsewhere(
    recwarn: pytest.WarningsRecorder,
) -> None:
    corpora = arrange({**TWO, "near": NEAR, "forget_test": "t.txt"}, where)
    apart = [tokenised("forget", 0), tokenised("retain", 100), tokenised("near", 200)]
    mixture.check_distinct(apart, corpora, where)
    assert not recwarn
    with pytest.raises(ConfigError, match=r"corpora\.retain='r\.txt': has the same text as"):
        mixture.check_distinct([apart[0], tokenised("retain", 0, n=6)], corpora, where)
    with pytest.warns(UserWarning, match=r"corpora\.retain and corpora\.near have the same text"):
        mixture.check_distinct([*apart[:2], tokenised("near", 100, n=2)], corpora, where)
    with pytest.warns(UserWarning, match=r"corpora\.forget and corpora\.forget_test .*t\.txt"):
        mixture.check_distinct([*apart, tokenised("forget_test", 0)], corpora, where)


def test_name_close_to_a_given_role_is_allowed_with_a_share() -> None:
    assert list(arrange({**TWO, "retain2": NEAR}, where)) == ["forget", "retain", "retain2"]
