"""Corpora and domain-stratified batches."""

from __future__ import annotations

import copy
import gzip
import hashlib
import itertools
import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from sae_lens.config import PretokenizeRunnerConfig
from sae_lens.pretokenize_runner import pretokenize_dataset
from torch import Tensor

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.text import corpora, mixture
from saelens_adaptive_ortho.text.corpora import (
    CorpusConfig,
    Tokenisation,
    TokenisedCorpus,
    read_documents,
    tokenise_corpus,
)
from saelens_adaptive_ortho.training.runner import Prepared, prepare
from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig
from saelens_adaptive_ortho.training.store import (
    DomainRows,
    NonFiniteActivationsError,
    StratifiedActivationsStore,
    rows_per_batch,
)

# SAELens warns about its own tensor copies.
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct:UserWarning")

MakeConfig = Callable[..., AdaptiveOrthoRunnerConfig]
CONTEXT, BATCH, HOOK = 32, 128, "blocks.1.hook_resid_post"
BOS, FIRST_WORD = 0, 3  # ids of the tiny tokenizer
FORGET_IDS = slice(FIRST_WORD, FIRST_WORD + 90)
HOW = Tokenisation(CONTEXT, holdout_fraction=0.1, holdout_contexts=16)
TEXTS = ["virus1 the2 virus3", "the4", "virus5 virus6\nthe7"]


def build_store(
    prepared: Prepared, cfg: AdaptiveOrthoRunnerConfig, seed: int = 0
) -> StratifiedActivationsStore:
    return StratifiedActivationsStore.build(prepared.model, cfg, prepared.corpora, seed)


def corpus_activations(model: Any, contexts: Tensor) -> Tensor:
    """Activations of every position, one context at a time."""
    rows = [
        model.run_with_cache(c[None].long(), names_filter=[HOOK], prepend_bos=False)[1][HOOK][0]
        for c in contexts
    ]
    return torch.cat(rows).detach()


# ------------------------------------------------------------------- batches


def test_batch_is_a_pure_function_of_position(prepared: Prepared, make_config: MakeConfig) -> None:
    cfg = make_config()
    store = build_store(prepared, cfg)
    assert store.epochs(60)["forget"] > 2
    assert store.batches_per_chunk > 1
    in_order = [next(store) for _ in range(60)]
    other = build_store(prepared, cfg)
    for position in random.Random(0).sample(range(60), 25):
        other.seek(position)
        assert torch.equal(next(other), in_order[position])
        assert other.position == position + 1
    assert len({batch.sum().item() for batch in in_order}) == 60


def test_another_seed_gives_other_batches(prepared: Prepared, make_config: MakeConfig) -> None:
    cfg = make_config()
    assert not torch.equal(next(build_store(prepared, cfg, 0)), next(build_store(prepared, cfg, 1)))


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_leading_rows_come_from_forget_corpus(
    prepared: Prepared, make_config: MakeConfig, fraction: float
) -> None:
    cfg = make_config(ortho_forget_fraction=fraction)
    n_forget = int(BATCH * fraction)
    assert cfg.sae.ortho_forget_rows == n_forget
    store = build_store(prepared, cfg)
    forget, retain = (corpus_activations(prepared.model, c.train) for c in prepared.corpora)
    for position in (0, 7, 33):
        store.seek(position)
        batch = next(store)
        for rows, own, other in (
            (batch[:n_forget], forget, retain),
            (batch[n_forget:], retain, forget),
        ):
            assert distances(rows, own).min(1).values.max() < 1e-3
            # Some contexts of both corpora begin with the same words.
            assert (distances(rows, other).min(1).values > 1e-2).float().mean() > 0.8


def distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def identifying_store(
    prepared: Prepared,
    cfg: AdaptiveOrthoRunnerConfig,
    n_contexts: int,
    shares: dict[str, float] | None = None,
) -> StratifiedActivationsStore:
    """A store in which every token has a unique id, and every activation is this id.

    The ids of each corpus begin at the next multiple of 10,000.

    Args:
        shares: the corpora and their shares; by default forget and retain.
    """
    n = n_contexts * CONTEXT
    ids = torch.arange(n, dtype=torch.int32).view(n_contexts, CONTEXT)
    corpora = [
        TokenisedCorpus(domain, ids + 10_000 * i, ids[:4], domain, share)
        for i, (domain, share) in enumerate((shares or {"forget": 1.0, "retain": 1.0}).items())
    ]
    store = StratifiedActivationsStore.build(prepared.model, cfg, corpora, seed=3)

    def get_activations(tokens: Tensor) -> Tensor:
        return tokens[:, slice(*store.seqpos_slice), None].float().expand(-1, -1, store.d_in)

    store.get_activations = get_activations  # type: ignore[method-assign]
    return store


def served(store: StratifiedActivationsStore, n_batches: int, n_forget: int) -> list[Counter[int]]:
    """How often each token occurs in the batches, for each domain."""
    batches = token_ids(store, n_batches)
    return [
        Counter(batches[:, :n_forget].flatten().tolist()),
        Counter((batches[:, n_forget:] - 10_000).flatten().tolist()),
    ]


def token_ids(store: StratifiedActivationsStore, n_batches: int) -> Tensor:
    """The ids of the tokens in the next batches, as int32 [n_batches, batch]."""
    return torch.stack([next(store)[:, 0] for _ in range(n_batches)]).int()


def test_epoch_serves_every_row_once(prepared: Prepared, make_config: MakeConfig) -> None:
    store = identifying_store(prepared, make_config(), n_contexts=24)
    per_epoch = 24 * CONTEXT // (BATCH // 2)
    assert per_epoch % store.batches_per_chunk == 0  # an epoch ends where a chunk ends
    for epoch in range(1, 3):
        for counts in served(store, per_epoch, BATCH // 2):
            assert counts == Counter(dict.fromkeys(range(24 * CONTEXT), 1)), epoch


def test_slice_and_excluded_tokens_are_respected(
    prepared: Prepared, make_config: MakeConfig
) -> None:
    excluded = [5, 40, 41, 200]
    cfg = make_config(seqpos_slice=[4, 20], exclude_special_tokens=excluded)
    store = identifying_store(prepared, cfg, n_contexts=24)
    usable = {i for i in range(24 * CONTEXT) if 4 <= i % CONTEXT < 20} - set(excluded)
    assert {5, 200} & {i for i in range(24 * CONTEXT) if 4 <= i % CONTEXT < 20}
    n_batches = -(-len(usable) // (BATCH // 2)) * 2
    (forget, _) = served(store, n_batches, BATCH // 2)
    assert set(forget) == usable
    assert max(forget.values()) - min(forget.values()) <= 2


# The batches of version 0.1.0 before there were named retain corpora.
TWO_CORPORA_STREAMS = {
    0.5: "431d556f35cfd5150716639d40347ad470d44cf033bfc919173e7045a4e512a5",
    0.3: "e1adda31fed457ccc0a1c0dabadb3b2ca0f3c7093f1d8a585e1c7faf1812ac5d",
}


@pytest.mark.parametrize("fraction", TWO_CORPORA_STREAMS)
def test_batches_of_two_corpora_are_the_same_as_ever(
    prepared: Prepared, make_config: MakeConfig, fraction: float
) -> None:
    cfg = make_config(ortho_forget_fraction=fraction)
    ids = token_ids(identifying_store(prepared, cfg, n_contexts=24), 40)
    assert hashlib.sha256(ids.numpy().tobytes()).hexdigest() == TWO_CORPORA_STREAMS[fraction]


# ------------------------------------------------------------------ named retain corpora


Named = Callable[..., dict[str, Any]]


@pytest.fixture
def named(tiny: Any) -> Named:
    """Return a function that makes the corpora of a config: forget, retain and named ones."""

    def make(**corpora: Any) -> dict[str, Any]:
        two = {"forget": str(tiny.forget), "retain": str(tiny.retain)}
        others = {
            name: {"path": str(tiny.retain), "share": value} if name != "forget_test" else value
            for name, value in corpora.items()
        }
        return {"ortho_corpora": {**two, **others}}

    return make


@pytest.mark.parametrize(
    ("fraction", "near", "far", "rows"),
    [
        (0.5, 0.2, 0.0, [64, 51, 13]),  # 0.2 of 64 rows is 12.8
        (0.5, 0.25, 0.5, [64, 16, 16, 32]),
        (0.25, 0.1, 0.6, [32, 28, 10, 58]),  # 9.6 and 57.6 of 96 rows
        (0.5, 0.0, 0.0, [64, 64]),
    ],
)
def test_rows_of_each_corpus_are_exact_in_every_batch(
    prepared: Prepared,
    make_config: MakeConfig,
    named: Named,
    fraction: float,
    near: float,
    far: float,
    rows: list[int],
) -> None:
    corpora = named(near=near, far=far, forget_test="t.txt")
    cfg = make_config(ortho_forget_fraction=fraction, **corpora)
    assert rows_per_batch(cfg) == rows
    assert cfg.sae.ortho_forget_rows == rows[0]
    shares = mixture.shares(cfg.corpora())
    store = identifying_store(prepared, cfg, 24, shares)
    trained = [i for i, share in enumerate(shares.values()) if share > 0]
    expected = torch.tensor(trained).repeat_interleave(torch.tensor(rows))
    ids = token_ids(store, 30)
    assert torch.equal(ids // 10_000, expected.int().expand(30, -1))
    assert store.epochs(30) == {
        name: n * 30 / (24 * CONTEXT)
        for name, n in zip(mixture.trained(cfg.corpora()), rows, strict=True)
    }
    # A batch depends on its position alone.
    again = identifying_store(prepared, cfg, 24, shares)
    for position in (17, 3, 29):
        again.seek(position)
        assert torch.equal(token_ids(again, 1)[0], ids[position])


def test_named_corpora_leave_the_forget_stream_alone(
    prepared: Prepared, make_config: MakeConfig, named: Named
) -> None:
    two = token_ids(identifying_store(prepared, make_config(), 24), 20)
    unseen = named(near=0, forget_test="t.txt")
    shares = {"forget": 1.0, "retain": 1.0, "near": 0.0, "forget_test": 0.0}
    store = identifying_store(prepared, make_config(**unseen), 24, shares)
    assert torch.equal(token_ids(store, 20), two)
    shares = {"forget": 1.0, "retain": 0.8, "near": 0.2}
    store = identifying_store(prepared, make_config(**named(near=0.2)), 24, shares)
    assert torch.equal(token_ids(store, 20)[:, :64], two[:, :64])


@pytest.mark.parametrize("shares", [(0.003,), (0.5, 0.499), (0.99,), (0.005, 0.9)])
def test_share_without_a_row_names_a_sufficient_batch(
    make_config: MakeConfig, named: Named, shares: tuple[float, ...]
) -> None:
    corpora = named(**{f"n{i}": share for i, share in enumerate(shares)})
    with pytest.raises(ConfigError, match=r"leaves no row of .*raise train_batch") as error:
        make_config(**corpora, train_batch_size_tokens=40)
    assert re.match(r"ortho_corpora\.(n\d\.share|retain)=", str(error.value))
    (needed,) = re.findall(r"train_batch_size_tokens to (\d+)", str(error.value))
    cfg = make_config(**corpora, train_batch_size_tokens=int(needed), training_tokens=10_000)
    assert min(rows_per_batch(cfg)) >= 1
    assert sum(rows_per_batch(cfg)) == int(needed)


def test_prepared_corpora_have_names_shares_and_lengths(
    model: Any, make_config: MakeConfig, named: Named, tiny: Any
) -> None:
    cfg = make_config(**named(near=0.25, far=0, forget_test=str(tiny.forget)))
    found = prepare(cfg, model=model).corpora
    assert [(c.domain, c.share) for c in found] == [
        ("forget", 1.0),
        ("retain", 0.75),
        ("near", 0.25),
        ("far", 0.0),
        ("forget_test", 0.0),
    ]
    tokens = cfg.training_tokens / 2 / CONTEXT
    assert [len(c.train) for c in found[:2]] == [int(tokens) + 1, int(tokens * 0.75) + 1]
    # Training needs few contexts of the others, but evaluations need more: here the whole files.
    assert min(len(c.train) for c in found[2:]) > 2 * len(found[0].train)


def test_fingerprint_of_two_corpora_is_the_same_as_ever(
    prepared: Prepared, make_config: MakeConfig, named: Named
) -> None:
    cfg = make_config()
    settings = {k: v for k, v in cfg.settings().items() if k != "ortho_corpora"}
    parts = [settings, [c.fingerprint for c in prepared.corpora]]
    expected = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    assert cfg.fingerprint(prepared.corpora) == expected
    unseen = TokenisedCorpus("near", torch.empty(0), torch.empty(0), "near", share=0.0)
    other = make_config(**named(near=0, forget_test="t.txt"))
    assert other.fingerprint([*prepared.corpora, unseen]) == expected
    assert other.settings() == cfg.settings()


def test_fingerprint_depends_on_shares_and_trained_text(
    prepared: Prepared, make_config: MakeConfig, named: Named
) -> None:
    def fingerprint(share: float, text: str) -> str:
        forget, retain = prepared.corpora
        near = TokenisedCorpus("near", torch.empty(0), torch.empty(0), text, share)
        cfg = make_config(**named(near=share))
        return cfg.fingerprint([forget, replace(retain, share=1 - share), near])

    found = [fingerprint(0.2, "a"), fingerprint(0.3, "a"), fingerprint(0.2, "b")]
    assert len(set(found)) == 3
    assert fingerprint(0.2, "a") == found[0]


def test_share_does_not_change_the_tokenised_text(model: Any, tiny: Any) -> None:
    path = str(tiny.retain)
    texts = [
        tokenise_corpus(CorpusConfig(path=path, share=share), "n", model.tokenizer, HOW, 5)
        for share in (None, 0.0, 0.4)
    ]
    assert len({t.fingerprint for t in texts}) == 1
    fields = {"path": path, "name": None, "split": "train", "text_field": "text"}
    fields |= {"max_documents": None, "revision": None}
    digest = hashlib.sha256()
    for part in (fields, HOW._asdict(), 5):
        digest.update(json.dumps(part, sort_keys=True).encode())
    digest.update(json.dumps(model.tokenizer.get_vocab(), sort_keys=True).encode())
    digest.update(tiny.retain.read_bytes())
    assert texts[0].fingerprint == digest.hexdigest()


def test_locate_visits_each_usable_row_once_per_epoch() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(13 * 7).view(13, 7)
    usable = torch.rand(13, 7, generator=generator) > 0.4
    usable[3] = False  # a context without usable tokens
    rows = DomainRows(tokens, usable, seed=5)
    expected = sorted(tokens[usable].tolist())
    draw = random.Random(0)
    start, visited = 0, []
    while start < 4 * rows.rows_per_epoch:
        n = draw.randint(1, 2 * rows.rows_per_epoch)
        portion: list[int] = []
        for piece in rows.locate(start, n):
            found = torch.cat([tokens[c][usable[c]] for c in piece.contexts])[piece.skip :]
            portion += found[: min(n - len(portion), _left(rows, start + len(portion)))].tolist()
        assert len(portion) == n
        visited += portion
        start += n
    epochs = [
        visited[e * rows.rows_per_epoch : (e + 1) * rows.rows_per_epoch]
        for e in range(len(visited) // rows.rows_per_epoch)
    ]
    assert len(epochs) >= 4
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1]


def _left(rows: DomainRows, start: int) -> int:
    return rows.rows_per_epoch - start % rows.rows_per_epoch


def test_excluded_special_tokens_are_not_trained_on(
    prepared: Prepared, make_config: MakeConfig
) -> None:
    store = build_store(prepared, make_config(exclude_special_tokens=True))
    bos = corpus_activations(prepared.model, torch.tensor([[BOS, FIRST_WORD]]))[:1]
    for _ in range(30):
        assert distances(next(store), bos).min() > 1e-2
    with_special = build_store(prepared, make_config())
    assert distances(next(with_special), bos).min() < 1e-3


def test_excluding_all_tokens_is_refused(prepared: Prepared, make_config: MakeConfig) -> None:
    every_word = list(range(300))
    with pytest.raises(ConfigError, match="exclude_special_tokens=.*leaves no token.*forget"):
        build_store(prepared, make_config(exclude_special_tokens=every_word))


def test_too_small_forget_fraction_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"ortho_forget_fraction=0\.001.*row of each corpus"):
        make_config(ortho_forget_fraction=0.001)


def test_single_corpus_has_no_domains(model: Any, make_config: MakeConfig, tiny: Any) -> None:
    cfg = make_config(ortho_corpora={}, dataset_path=str(tiny.retain))
    only = prepare(cfg, model=model)
    assert [c.domain for c in only.corpora] == ["corpus"]
    assert cfg.sae.ortho_forget_rows == 0
    batch = next(build_store(only, cfg))
    assert batch.shape == (BATCH, model.cfg.d_model)
    retain = corpus_activations(model, only.corpora[0].train)
    assert distances(batch, retain).min(1).values.max() < 1e-3


def test_token_interface_serves_held_out_contexts(
    prepared: Prepared, make_config: MakeConfig
) -> None:
    store = build_store(prepared, make_config())
    tokens = store.get_batch_tokens(4).cpu()
    forget, retain = (c.held_out.long() for c in prepared.corpora)
    assert torch.equal(tokens, torch.stack([forget[0], retain[0], forget[1], retain[1]]))


# ------------------------------------------------------------------ non-finite


def poisoned(prepared: Prepared, words: slice) -> Prepared:
    """The same corpora with a model that gives NaN for ``words``."""
    model = copy.deepcopy(prepared.model)
    with torch.no_grad():
        model.embed.W_E[words] = float("nan")  # type: ignore[union-attr, operator]
    return prepared._replace(model=model)


def test_non_finite_activations_name_corpus_and_remedy(
    prepared: Prepared, make_config: MakeConfig
) -> None:
    store = build_store(poisoned(prepared, FORGET_IDS), make_config())
    with pytest.raises(NonFiniteActivationsError, match="forget corpus.*dtype") as caught:
        next(store)
    assert HOOK in str(caught.value)
    assert "batches 0 to" in str(caught.value)


def test_non_finite_activations_name_batches_and_context(
    prepared: Prepared, make_config: MakeConfig
) -> None:
    store = identifying_store(prepared, make_config(), n_contexts=48)
    (bad,) = store._domains[1].locate(700, 1)[0].contexts.tolist()
    clean = store.get_activations

    def get_activations(tokens: Tensor) -> Tensor:
        acts = clean(tokens).clone()
        acts[tokens == 10_000 + bad * CONTEXT] = float("inf")
        return acts

    store.get_activations = get_activations  # type: ignore[method-assign]
    first = 700 // (BATCH // 2) // store.batches_per_chunk * store.batches_per_chunk
    last = first + store.batches_per_chunk - 1
    assert first > 0
    with pytest.raises(
        NonFiniteActivationsError,
        match=rf"retain corpus .* contexts \[{bad}\] \(batches {first} to {last}\)",
    ):
        list(itertools.islice(store, last + 1))


# ---------------------------------------------------------------------- tokens


def ngrams(rows: list[list[int]], n: int = 5) -> set[tuple[int, ...]]:
    return {tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)}


def test_held_out_text_is_not_trained_on(model: Any, tiny: Any) -> None:
    corpus = tokenise_corpus(
        CorpusConfig(path=str(tiny.forget)), "forget", model.tokenizer, HOW, 10_000
    )
    texts = [json.loads(line)["text"] for line in tiny.forget.read_text().splitlines()]
    ids = model.tokenizer(texts)["input_ids"]
    held_out = [i for n, i in enumerate(ids) if n % 10 == 9]
    trained = [i for n, i in enumerate(ids) if n % 10 != 9]
    train = ngrams(corpus.train.tolist())
    assert not ngrams(held_out) & train
    assert not ngrams(trained) & ngrams(corpus.held_out.tolist())
    assert len(ngrams(trained) & train) > 0.7 * len(ngrams(trained))
    assert ngrams(held_out) & ngrams(corpus.held_out.tolist())


def test_contexts_are_packed_as_by_hand(model: Any, tiny: Any, tmp_path: Path) -> None:
    kept = ["virus0 virus1 virus2", "virus3 virus4", "virus5 virus6 virus7 virus8"]
    texts = [t for text in kept for t in (text, "the0 the1 the2")]
    corpus = CorpusConfig(path=str(tiny.write_jsonl(tmp_path / "c.jsonl", texts)))
    how = Tokenisation(4, holdout_fraction=0.5, holdout_contexts=3)
    packed = tokenise_corpus(corpus, "forget", model.tokenizer, how, 100)
    v = range(FIRST_WORD, FIRST_WORD + 9)
    assert packed.train.tolist() == [
        [BOS, v[0], v[1], v[2]],
        [BOS, v[3], v[4], BOS],
        [BOS, v[5], v[6], v[7]],
    ]
    apart = tokenise_corpus(
        corpus, "forget", model.tokenizer, how._replace(disable_concat_sequences=True), 100
    )
    assert apart.train.tolist() == [[BOS, v[0], v[1], v[2]], [BOS, v[5], v[6], v[7]]]


def test_packing_equals_sae_lens_pretokenisation(model: Any, tiny: Any) -> None:
    texts = tiny.documents(tiny.forget_words, 1)
    trained = [text for n, text in enumerate(texts) if n % 10 != 9]
    host = pretokenize_dataset(
        Dataset.from_dict({"text": trained}),
        model.tokenizer,
        PretokenizeRunnerConfig(
            context_size=CONTEXT,
            shuffle=False,
            num_proc=1,
            begin_batch_token="bos",
            begin_sequence_token=None,
            sequence_separator_token="bos",
        ),
    )
    corpus = CorpusConfig(path=str(tiny.forget))
    ours = tokenise_corpus(corpus, "forget", model.tokenizer, HOW, 10_000)
    theirs = host["input_ids"][:].int()
    assert len(theirs) > 100
    assert torch.equal(ours.train, theirs)


def test_reading_stops_when_contexts_are_full(
    model: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counter()
    original = corpora.read_documents

    def counting(*args: Any) -> Any:
        for text in original(*args):
            read["documents"] += 1
            yield text

    monkeypatch.setattr(corpora, "read_documents", counting)
    few = tokenise_corpus(CorpusConfig(path=str(tiny.forget)), "f", model.tokenizer, HOW, 3)
    assert len(few.train) == 3
    assert read["documents"] < len(tiny.documents(tiny.forget_words, 1))


@pytest.fixture
def cached(model: Any, tiny: Any, tmp_path: Path) -> Callable[[], TokenisedCorpus]:
    path = tiny.write_jsonl(tmp_path / "corpus.jsonl", tiny.documents(tiny.forget_words, 3, 60))

    def tokenise(how: Tokenisation = HOW) -> TokenisedCorpus:
        return tokenise_corpus(
            CorpusConfig(path=str(path)), "forget", model.tokenizer, how, 20, tmp_path / "cache"
        )

    return tokenise


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the corpus was read again")

    monkeypatch.setattr(corpora, "read_documents", fail)


def test_tokenised_corpus_is_read_from_cache(
    cached: Callable[..., TokenisedCorpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached()
    forbid_reading(monkeypatch)
    second = cached()
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.held_out, second.held_out)
    assert first.fingerprint == second.fingerprint


def test_changed_file_or_settings_miss_the_cache(
    cached: Callable[..., TokenisedCorpus], tiny: Any, tmp_path: Path
) -> None:
    first = cached()
    tiny.write_jsonl(tmp_path / "corpus.jsonl", tiny.documents(tiny.forget_words, 4, 60))
    second = cached()
    assert not torch.equal(first.train, second.train)
    assert first.fingerprint != second.fingerprint
    third = cached(HOW._replace(context_size=16))
    assert third.train.shape[1] == 16


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_corrupt_cache_file_is_rewritten(
    cached: Callable[..., TokenisedCorpus], tmp_path: Path, damage: str
) -> None:
    first = cached()
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    broken = {"truncated": whole[: len(whole) // 2], "garbage": b"\xff" * 64, "empty": b""}
    file.write_bytes(broken[damage])
    with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
        again = cached()
    assert torch.equal(first.train, again.train)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(first.train, cached().train)  # the new file is whole


# ----------------------------------------------------------------------- files


def write_corpus(tiny: Any, folder: Path, kind: str) -> Path:
    lines = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS)
    path = folder / f"corpus.{kind}"
    if kind == "txt":
        path.write_text("\n\n".join(TEXTS))
    elif kind == "txt.gz":
        path.write_bytes(gzip.compress("\n\n".join(TEXTS).encode()))
    elif kind == "jsonl":
        path.write_text(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": TEXTS}), path)
    else:
        path = folder / "several"
        (path / "inner").mkdir(parents=True)
        (path / "notes.md").write_text("not a corpus")
        tiny.write_jsonl(path / "a.jsonl", TEXTS[:1])
        tiny.write_jsonl(path / "inner" / "b.jsonl", TEXTS[1:])
    return path


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "jsonl.gz", "parquet", "directory"])
def test_all_file_kinds_give_the_same_documents(tiny: Any, tmp_path: Path, kind: str) -> None:
    corpus = CorpusConfig(path=str(write_corpus(tiny, tmp_path, kind)))
    assert list(read_documents(corpus, "dataset_path")) == TEXTS


def test_blank_documents_are_skipped_but_counted(tiny: Any, tmp_path: Path) -> None:
    path = tiny.write_jsonl(tmp_path / "c.jsonl", ["the1", "  \n", "the2", "the3"], field="body")
    corpus = CorpusConfig(path=str(path), text_field="body", max_documents=3)
    assert list(read_documents(corpus, "dataset_path")) == ["the1", "the2"]


@pytest.mark.parametrize(
    ("n", "remedy"),
    [
        (1, r"It is one document, and one in 10 is held out .* empty line ends a document .*\)\.$"),
        (4, r"has 4 documents, and one in 10 .*, or raise ortho_holdout_fraction\."),
        (11, r"\. Add text, lower context_size, or raise"),
    ],
)
def test_too_few_documents_are_counted(
    tiny: Any, model: Any, tmp_path: Path, n: int, remedy: str
) -> None:
    path = tmp_path / "few.txt"
    path.write_text("\n\n".join(["the1 the2"] * n))
    how = Tokenisation(context_size=32, holdout_fraction=0.1)
    with pytest.raises(ConfigError, match=rf"few.txt': too little text: .*{remedy}"):
        tokenise_corpus(CorpusConfig(path=str(path)), "retain", model.tokenizer, how, 9)


def test_directory_with_mixed_kinds_is_refused(tiny: Any, tmp_path: Path) -> None:
    write_corpus(tiny, tmp_path, "txt")
    write_corpus(tiny, tmp_path, "jsonl")
    with pytest.raises(ConfigError, match="mixes kinds"):
        list(read_documents(CorpusConfig(path=str(tmp_path)), "dataset_path"))


def test_shared_words_occur_in_both_corpora(tiny: Any) -> None:
    for path in (tiny.forget, tiny.retain):
        assert tiny.shared_words[0] in path.read_text().split()
