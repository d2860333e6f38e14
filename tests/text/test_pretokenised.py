"""Corpora of token ids: rows become contexts as they are, and rows of another model are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.text.corpora import CorpusConfig, Tokenisation, tokenise_corpus
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner, prepare

HOW = Tokenisation(context_size=6, holdout_fraction=0.25, holdout_contexts=3)
ROWS = [[0, *range(3 + i, 10 + i)] for i in range(12)]  # 0 is BOS; 8 tokens each


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., CorpusConfig]:
    """Write rows of token ids as parquet, and return the corpus."""

    def write(found: list[Any], column: str = "input_ids") -> CorpusConfig:
        pq.write_table(pa.table({column: found}), tmp_path / "tokens.parquet")
        return CorpusConfig(path=str(tmp_path / "tokens.parquet"), tokens_field="input_ids")

    return write


def test_rows_become_contexts_as_they_are(rows: Callable[..., CorpusConfig], model: Any) -> None:
    found = tokenise_corpus(rows(ROWS), "retain", model.tokenizer, HOW, train_contexts=100)
    cut = torch.tensor([row[:6] for row in ROWS])
    held = torch.arange(12) % 4 == 3
    assert torch.equal(found.held_out.long(), cut[held])
    assert torch.equal(found.train.long(), cut[~held])


def test_reading_stops_when_there_are_enough_contexts(
    rows: Callable[..., CorpusConfig], model: Any
) -> None:
    found = tokenise_corpus(rows(ROWS), "retain", model.tokenizer, HOW, train_contexts=5)
    assert len(found.train) == 5
    assert len(found.held_out) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0, 3, 4], "row 2 has 3 tokens, fewer than context_size=6"),
        ([0, 3, 4, 5, 6, 90_000], "row 2 holds the ids 0 to 90000, .* another model"),
        ([3, 4, 5, 6, 7, 8], "row 2 does not begin with BOS, but prepend_bos is true"),
    ],
)
def test_unfit_row_is_named(
    rows: Callable[..., CorpusConfig], model: Any, bad: list[int], message: str
) -> None:
    corpus = rows([ROWS[0], bad])
    with pytest.raises(ConfigError, match=rf"retain\.tokens_field='input_ids': {message}"):
        tokenise_corpus(corpus, "retain", model.tokenizer, HOW, train_contexts=9)


def test_text_is_no_row_of_ids(rows: Callable[..., CorpusConfig], model: Any) -> None:
    with pytest.raises(ConfigError, match=r"row 1 of .* holds no list of token ids"):
        tokenise_corpus(rows(["some text"]), "retain", model.tokenizer, HOW, train_contexts=9)
    with pytest.raises(ConfigError, match=r"tokens_field='input_ids': no such field .*'ids'"):
        tokenise_corpus(rows(ROWS, "ids"), "retain", model.tokenizer, HOW, train_contexts=9)


def test_training_on_ids_is_training_on_their_text(
    make_config: Callable[..., Any], tmp_path: Path
) -> None:
    of_text = prepare(make_config())
    paths = {}
    for corpus in of_text.corpora:
        # Every tenth row is held out, as every tenth document of the text was.
        train, held = iter(corpus.train.tolist()), iter(corpus.held_out.tolist())
        n = len(corpus.train) + len(corpus.held_out)
        lines = [json.dumps({"ids": next(held if i % 10 == 9 else train, None)}) for i in range(n)]
        kept = [line for line in lines if "null" not in line]
        path = tmp_path / f"{corpus.domain}.jsonl"
        path.write_text("\n".join(kept))
        paths[corpus.domain] = {"path": str(path), "tokens_field": "ids"}
    cfg = make_config(ortho_corpora=paths)
    found = prepare(cfg)
    n = min(len(found.corpora[0].train), len(of_text.corpora[0].train))
    assert n > 0
    assert torch.equal(found.corpora[0].train[:n], of_text.corpora[0].train[:n])
    AdaptiveOrthoRunner(cfg, prepared=found).run()


def test_host_field_means_a_column_of_tokens(make_config: Callable[..., Any]) -> None:
    cfg = make_config(ortho_corpora={}, dataset_path="somebody/tokens", is_dataset_tokenized=True)
    assert cfg.corpora()["corpus"].tokens_field == "tokens"
    with pytest.raises(ConfigError, match="is_dataset_tokenized=True: name the column"):
        make_config(is_dataset_tokenized=True)


def test_digests_of_text_corpora_do_not_change() -> None:
    assert "tokens_field" not in CorpusConfig(path="a.jsonl").settings()
    assert CorpusConfig(path="a.parquet", tokens_field="x").settings()["tokens_field"] == "x"
