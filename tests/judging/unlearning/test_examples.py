"""The prompts of the examples are passages of held-out text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saelens_adaptive_ortho.judging.unlearning import examples as making
from saelens_adaptive_ortho.text.corpora import TokenisedCorpus


class Words:
    """A tokenizer with a word for each number; 0 is BOS."""

    bos_token_id, eos_token_id, pad_token_id = 0, 0, 0

    def decode(self, ids: list[int]) -> str:
        return "".join(f" w{i}." if i % 10 == 0 else f" w{i}" for i in ids)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str | None]]]:
    monkeypatch.setattr(making, "uncounted_tokens", lambda *_: {0})

    class Model:
        tokenizer = Words()

    def find(*contexts: list[int], tokens: int = 40) -> list[tuple[str, str | None]]:
        held_out = torch.tensor(contexts)
        corpus = TokenisedCorpus("forget", held_out, held_out, "x")
        found = making.held_out_prompts(corpus, Model(), Any, tokens)
        return [(p.prompt, p.continuation) for p in found]

    return find


def test_prompt_is_the_beginning_of_the_longest_stretch(prompts: Any) -> None:
    """Special tokens separate documents, and a prompt begins with a sentence if it can."""
    ((prompt, truth),) = prompts([0, 1, 2, 0, *range(11, 19), *range(21, 29), 0])
    assert prompt == "".join(f" w{i}" for i in range(11, 19))
    assert truth == "".join(f" w{i}" for i in range(21, 29))
    ((prompt, _),) = prompts([0, 3, 4, 10, *range(31, 39), *range(41, 45)])
    assert prompt.startswith(" w31")
    # A sentence that begins after the first third is not waited for.
    ((prompt, _),) = prompts([0, *range(1, 10), 10, 11, 12, 13, 14])
    assert prompt.startswith(" w1 ")


def test_prompt_has_32_tokens_at_most(prompts: Any) -> None:
    ((prompt, truth),) = prompts([i + 1 - (i % 10 == 9) for i in range(11, 141)], tokens=7)
    assert len(prompt.split()) == 32
    assert len(truth.split()) == 7


def test_short_passages_are_left_out(prompts: Any) -> None:
    assert prompts([0, 1, 2, 3, 0, 1, 2, 3]) == []
    long = list(range(1, 9))
    assert len(prompts(long, [0] * 8, long, long, [0] * 8, long)) == 2
