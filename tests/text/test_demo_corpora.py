"""Corpora of the demo, by name."""

from __future__ import annotations

import gzip
import json

import pytest

from saelens_adaptive_ortho.demo import CORPORA
from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.text.corpora import CorpusConfig, local_files, read_documents


def test_compressed_demo_corpus_is_read() -> None:
    corpus = CorpusConfig(path="demo:near", max_documents=20)
    lines = gzip.decompress(CORPORA["demo:near"].read_bytes()).splitlines()
    assert list(read_documents(corpus, "near")) == [json.loads(x)["text"] for x in lines[:20]]


def test_every_demo_corpus_exists() -> None:
    assert all(local_files(name) == [path] and path.is_file() for name, path in CORPORA.items())


def test_unknown_demo_corpus_is_no_hub_data_set() -> None:
    corpus = CorpusConfig.parse("--forget", "demo:nope")
    with pytest.raises(ConfigError, match="ortho_corpora.near.path='demo:nope'") as error:
        list(read_documents(corpus, "ortho_corpora.near"))
    assert "no such demo corpus; known: demo:forget, " in str(error.value)
    assert all(name in str(error.value) for name in CORPORA)
