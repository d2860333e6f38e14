"""The repositories that an experiment needs."""

from __future__ import annotations

import pyarrow as pa
import pytest

from saelens_adaptive_ortho.demo import FORGET_CORPUS, RETAIN_CORPUS
from tests.text.hub.repositories import (
    GATED,
    OLD_CFG,
    PYTHIA,
    WIKITEXTS,
    Repositories,
    news,
    questions,
)


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Repositories:
    repos = Repositories(tmp_path_factory.mktemp("hub"))
    repos.model(PYTHIA)
    repos.model("somebody/model")
    repos.sae("ctigges/pythia-70m-deduped__res-sm_processed", "3-res-sm", OLD_CFG)
    repos.jsonl(GATED, FORGET_CORPUS, 1500, "bio_remove_dataset.jsonl")
    repos.text("cais/wmdp-corpora", FORGET_CORPUS, 300, "bio-retain-corpus", "cyber-retain-corpus")
    repos.text("Salesforce/wikitext", RETAIN_CORPUS, 1500, *WIKITEXTS)
    repos.text("NeelNanda/pile-10k", RETAIN_CORPUS, 1500)
    repos.text("Skylion007/openwebtext", RETAIN_CORPUS, 1500, "plain_text")
    repos.parquet("fancyzhx/ag_news", {"default": {"train": news(800), "test": news(400)}})
    tokens = pa.table({"tokens": [[0, *(i % 700 for i in range(j, j + 127))] for j in range(40)]})
    repos.parquet("NeelNanda/pile-small-tokenized-2b", {"data": {"train": tokens}})
    repos.parquet("cais/wmdp", {"wmdp-bio": {"test": questions("biology")}})
    repos.parquet("cais/mmlu", {"high_school_us_history": {"test": questions("history")}})
    return repos
