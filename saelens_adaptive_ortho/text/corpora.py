"""Corpora: reading their documents and tokenising them into contexts.

Documents come from local files or the hub. Whole documents are held out from training. Tokenised
corpora are cached under a key of everything that determines them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from datasets import load_dataset
from jaxtyping import Int
from pydantic import Field, PositiveInt
from sae_lens.pretokenize_runner import get_special_token_from_cfg
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saelens_adaptive_ortho.demo import CORPORA as DEMO_CORPORA
from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import user_path, write_failures_named
from saelens_adaptive_ortho.progress import progress
from saelens_adaptive_ortho.settings import parse
from saelens_adaptive_ortho.text import hub, reader
from saelens_adaptive_ortho.text.models import tensors_digest
from saelens_adaptive_ortho.text.reader import KINDS, ReadError, Row, kind_of

DOMAINS = ("forget", "retain")
GATED_STAND_INS = {
    "cais/wmdp-bio-forget-corpus": (
        "an open corpus that may stand in: path=cais/wmdp-corpora, name=bio-retain-corpus, "
        "text_field=text (general biology), or any local file"
    )
}


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """The source of the text of one corpus.

    Args:
        path: a local .jsonl, .json, .txt or .parquet file (also .gz), a directory of them, a hub
            data set id, or a corpus of the demo: ``demo:`` and ``forget``, ``retain``,
            ``forget_first``, ``forget_second``, ``near`` or ``retain_rest``.
        name: configuration of a hub data set.
        split: split of a hub data set.
        text_field: column that holds the text.
        tokens_field: column that holds token ids of the run's model, instead of text. Each row is
            one context: its first ``context_size`` tokens are used as they are.
        max_documents: largest number of documents to read.
        revision: branch, tag or commit of a hub data set.
        share: share of the retain rows of every training batch that come from this corpus. Only
            named retain corpora have it (:mod:`~saelens_adaptive_ortho.text.mixture`).
    """

    path: Annotated[str, Field(min_length=1)]
    name: str | None = None
    split: str = "train"
    text_field: str = "text"
    max_documents: PositiveInt | None = None
    revision: str | None = None
    share: Annotated[float, Field(ge=0, lt=1)] | None = None
    tokens_field: str | None = None

    def settings(self) -> dict[str, Any]:
        """The fields as plain values; those that came later only if they are set."""
        return {k: v for k, v in asdict(self).items() if k != "tokens_field" or v is not None}

    @classmethod
    def from_dict(cls, where: str, value: object) -> CorpusConfig:
        """Build from a path or a YAML mapping. Errors name ``where``.

        Raises:
            ConfigError: the value is not a mapping, a key is unknown, the path is missing, or a
                value has the wrong type.
        """
        if isinstance(value, CorpusConfig):
            return value
        if isinstance(value, str):
            return cls.from_dict(where, {"path": value})
        if not isinstance(value, dict):
            raise reject(where, value, "must be a path or a mapping with at least `path`.")
        return parse(cls, value, f"{where}.")

    @classmethod
    def parse(cls, where: str, text: str) -> CorpusConfig:
        """Build from a command line value: a path, or ``id:name`` with a hub configuration.

        Raises:
            ConfigError: the value is empty.
        """
        path, _, name = text.partition(":")
        if not name or path == "demo" or os.path.exists(user_path(text)):
            return cls.from_dict(where, text)
        return cls.from_dict(where, {"path": path, "name": name})


def local_files(path: str) -> list[Path] | None:
    """The files of a corpus path, or None for a hub id.

    Raises:
        ConfigError: the path looks local but does not exist, the demo has no such corpus, or the
            directory has no text file.
    """
    if path in DEMO_CORPORA:
        return [DEMO_CORPORA[path]]
    if path.startswith("demo:"):
        raise reject("path", path, f"no such demo corpus; known: {', '.join(DEMO_CORPORA)}.")
    try:
        p = user_path(path)
        if p.is_file():
            if kind_of(p) is None:
                raise reject("path", path, f"unknown kind of file; known: {sorted(KINDS)} (+ .gz).")
            return [p]
        if p.is_dir():
            found = reader.files_in(p)
            if not found:
                raise reject("path", path, f"the directory holds no {sorted(KINDS)} file.")
            return found
        if p.exists():
            raise reject("path", path, "is no regular file. Give a file or a directory.")
    except OSError as error:
        raise reject("path", path, f"cannot be read ({error.strerror}).") from error
    looks_local = p.is_absolute() or path.startswith((".", "~")) or kind_of(p) is not None
    if looks_local:
        raise reject("path", path, "no such file or directory.")
    return None


def read_documents(corpus: CorpusConfig, where: str) -> Iterator[str]:
    """Stream the texts of a corpus. Blank and null texts are left out.

    Raises:
        ConfigError: the corpus is missing, unreadable or gated, or its text field is missing. The
            message names ``where``, the file and the line.
    """
    for row in _rows(corpus, where, corpus.text_field):
        text = _field(row, "text_field", corpus.text_field, where)
        if text is None:
            continue
        if not isinstance(text, str):
            raise reject(
                f"{where}.text_field",
                corpus.text_field,
                f"{row.place} has {type(text).__name__} there, not text; it has the fields "
                f"{sorted(row.names)}.",
            )
        if text.strip():
            yield text


def single_corpus(dataset_path: object, is_dataset_tokenized: bool) -> CorpusConfig:
    """The one corpus of a training, from SAELens's settings.

    Raises:
        ConfigError: the path or one of its fields cannot work.
    """
    corpus = CorpusConfig.from_dict("dataset_path", dataset_path)
    if is_dataset_tokenized and corpus.tokens_field is None:
        return replace(corpus, tokens_field="tokens")  # its name in SAELens's data sets
    return corpus


def read_tokens(corpus: CorpusConfig, where: str) -> Iterator[Int[Tensor, " n"]]:
    """Stream the token ids of a corpus that has a ``tokens_field``, row by row, without nulls.

    Raises:
        ConfigError: as :func:`read_documents`; or a row holds something else than whole numbers.
    """
    assert corpus.tokens_field is not None
    for row in _rows(corpus, where, corpus.tokens_field):
        ids = _field(row, "tokens_field", corpus.tokens_field, where)
        if ids is None:
            continue
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise reject(
                f"{where}.tokens_field",
                corpus.tokens_field,
                f"{row.place} holds no list of token ids there. Without this field, `text_field` "
                "is tokenised.",
            )
        try:
            yield torch.tensor(ids, dtype=torch.int64)
        except (OverflowError, ValueError, RuntimeError) as error:
            largest = max(ids, key=abs)
            raise reject(
                f"{where}.tokens_field",
                corpus.tokens_field,
                f"{row.place} holds {largest}, which is no token id.",
            ) from error


def read_to_the_end(corpus: CorpusConfig, where: str) -> None:
    """Read all rows of a local corpus, up to ``max_documents``. A hub data set is not read.

    Training reads only as many rows as it needs, so it does not find an error in a later row.

    Raises:
        ConfigError: as :func:`read_documents` and :func:`read_tokens`.
    """
    try:
        if local_files(corpus.path) is None:
            return
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None
    read = read_documents if corpus.tokens_field is None else read_tokens
    for _ in progress(read(corpus, where), f"Reading {where}", unit=" rows"):
        pass


def check_contexts(corpus: CorpusConfig, tokenizer: Any, how: Tokenisation, where: str) -> None:
    """Check that every row of a local corpus of token ids can be a context.

    Raises:
        ConfigError: a row is too short, has ids that the tokenizer has not, or begins otherwise
            than ``prepend_bos`` says. The message names the row and the remedy.
    """
    if local_files(corpus.path) is None:
        return
    rows = enumerate(read_tokens(corpus, where))
    for number, ids in progress(rows, f"Checking {where}", unit=" rows"):
        _need_fit(ids, number, corpus, tokenizer, how, where)


def _field(row: Row, setting: str, name: str, where: str) -> Any:
    if name not in row.values:
        raise reject(
            f"{where}.{setting}",
            name,
            f"no such field in {row.place}; it has {sorted(row.names)}.",
        )
    return row.values[name]


def _rows(corpus: CorpusConfig, where: str, field: str) -> Iterator[Row]:
    """The rows of a corpus, up to ``max_documents``."""
    try:
        files = local_files(corpus.path)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None
    if files is None:
        rows = _hub_rows(corpus, where)
    elif len({kind_of(file) for file in files}) > 1:
        rule = "the directory mixes kinds of files. Keep one kind."
        raise reject(f"{where}.path", corpus.path, rule)
    else:
        rows = itertools.chain.from_iterable(reader.read_rows(f, [field]) for f in files)
    try:
        yield from itertools.islice(rows, corpus.max_documents)
    except ReadError as error:
        raise reject(f"{where}.path", corpus.path, str(error)) from error


def _hub_rows(corpus: CorpusConfig, where: str) -> Iterator[Row]:
    try:
        with hub.offline_if_unreachable():
            dataset = load_dataset(
                corpus.path,
                corpus.name,
                split=corpus.split,
                revision=corpus.revision,
                streaming=True,
            )
        for number, row in enumerate(dataset, 1):
            yield Row(f"document {number} of {corpus.path}", dict(row), list(row))
    except Exception as error:
        rule = _explain_read_failure(error, corpus)
        raise reject(f"{where}.path", corpus.path, rule) from error


def _explain_read_failure(error: Exception, corpus: CorpusConfig) -> str:
    kind, text = hub.diagnose(error)
    if kind == "refused":
        stand_in = GATED_STAND_INS.get(corpus.path, "or point `path` at a local file")
        return (
            f"access is refused ({text}). Request access on the data set's hub page and log in "
            f"with `hf auth login`; {stand_in}."
        )
    if kind in ("missing", "other"):
        return (
            f"the data set cannot be read ({text}). Check its id, `name` and `split`, or give a "
            "local file."
        )
    return hub.explain_failure(error, "the data set", "a local file")


# --------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class TokenisedCorpus:
    """Contexts of one corpus. Whole documents are held out, so the two parts share no document.

    Attributes:
        domain: name of the corpus: ``forget``, ``retain``, the name of a named retain corpus,
            ``forget_test``, or ``corpus`` if there is only one.
        train: contexts to train on, and to choose latents and settings by.
        held_out: contexts to measure on.
        fingerprint: digest of everything that determines the contexts.
        share: share of the corpus in the training rows of its side. It is 1 for forget and for a
            single corpus, and 0 for a corpus that is only evaluated. The shares of retain and the
            named retain corpora add up to 1.
    """

    domain: str
    train: Int[Tensor, "n_train context"]
    held_out: Int[Tensor, "n_held_out context"]
    fingerprint: str
    share: float = 1.0


class Tokenisation(NamedTuple):
    """How text becomes contexts. SAELens has fields of the same names."""

    context_size: int
    prepend_bos: bool = True
    sequence_separator_token: int | str | None = "bos"
    disable_concat_sequences: bool = False
    holdout_fraction: float = 0.05
    holdout_contexts: int = 1024

    @property
    def stride(self) -> int:
        """One document in this many is held out from training."""
        return max(2, round(1 / self.holdout_fraction))

    def holds_out(self, number: int) -> bool:
        """Whether the document or row of this number is held out from training."""
        return number % self.stride == self.stride - 1


def tokenise_corpus(
    corpus: CorpusConfig,
    domain: str,
    tokenizer: Any,
    how: Tokenisation,
    train_contexts: int,
    cache_dir: Path | None = None,
    where: str | None = None,
) -> TokenisedCorpus:
    """Read one corpus, tokenise it and pack it into contexts.

    Every ``round(1 / holdout_fraction)``-th document is held out, regardless of the corpus size.
    Reading stops once ``train_contexts`` contexts are full. A smaller corpus is read completely and
    later repeated in epochs. The result is cached in ``cache_dir`` under a key of everything that
    determines it.

    Raises:
        ConfigError: the corpus is missing, unreadable, or too small for one context of each part.
        StorageError: the cache could not be written.
    """
    where = where or f"ortho_corpora.{domain}"
    try:
        key = _cache_key(corpus, tokenizer, how, train_contexts)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None
    except OSError as error:
        rule = f"{error.filename} cannot be read ({error.strerror})."
        raise reject(f"{where}.path", corpus.path, rule) from error
    cached = cache_dir / f"{domain}-{key[:16]}.safetensors" if cache_dir else None
    if cached is not None and (found := _read_cache(cached, domain, key)) is not None:
        return found
    if corpus.tokens_field is None:
        documents = _tokenise(corpus, domain, tokenizer, how, train_contexts, where)
        train = _pack(documents.train, tokenizer, how, train_contexts)
        held_out = _pack(documents.held_out, tokenizer, how, how.holdout_contexts)
    else:
        documents = _as_contexts(corpus, domain, tokenizer, how, train_contexts, where)
        train, held_out = documents
    if not train or not held_out:
        raise reject(
            f"{where}.path",
            corpus.path,
            f"too little text: {len(train)} training and {len(held_out)} held-out contexts of "
            f"{how.context_size} tokens (both need at least one). "
            f"{_remedy(sum(map(len, documents)), how)}",
        )
    result = TokenisedCorpus(domain, torch.stack(train), torch.stack(held_out), key)
    if cached is not None:
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_suffix(".tmp")
        parts = {"train": result.train, "held_out": result.held_out}
        with write_failures_named(cached, "Nothing else was being written."):
            save_file(parts, temporary, _sums(key, parts))
            temporary.replace(cached)
    return result


def _remedy(n_documents: int, how: Tokenisation) -> str:
    """What helps a corpus with too little text."""
    stride = how.stride
    if not n_documents:
        return "It holds no text. Give another file, or another `text_field`."
    if n_documents >= stride:
        return "Add text, lower context_size, or raise ortho_holdout_fraction."
    rule = f"one in {stride} is held out as a whole"
    split = "split the text into more documents (an empty line ends a document of a .txt file)"
    if n_documents < 2:
        return f"It is one document, and {rule}: {split}."
    return (
        f"It has {n_documents} documents, and {rule}: {split}, add text, lower context_size, or "
        "raise ortho_holdout_fraction."
    )


class _Documents(NamedTuple):
    train: list[Tensor]
    held_out: list[Tensor]


def _tokenise(
    corpus: CorpusConfig,
    domain: str,
    tokenizer: Any,
    how: Tokenisation,
    train_contexts: int,
    where: str,
) -> _Documents:
    """Token ids of each document, read until both parts have enough for their contexts."""
    wanted = {False: train_contexts, True: how.holdout_contexts}
    parts: dict[bool, list[Tensor]] = {False: [], True: []}
    full = {False: 0.0, True: 0.0}  # number of contexts that the tokens so far fill
    documents = enumerate(read_documents(corpus, where))
    with progress(desc=f"Tokenising {domain}", unit=" documents") as bar:
        while full[False] < wanted[False] or not parts[True]:
            block = list(itertools.islice(documents, 256))
            if not block:
                break
            texts = [text for _, text in block]
            ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            for (number, _), tokens in zip(block, ids, strict=True):
                held = how.holds_out(number)
                if not tokens or (held and full[True] >= wanted[True]):
                    continue
                parts[held].append(torch.tensor(tokens, dtype=torch.int32))
                share = len(tokens) / how.context_size
                # Without concatenation, a document gives one context if it is long enough.
                full[held] += float(share >= 1) if how.disable_concat_sequences else share
            bar.update(len(block))
    return _Documents(parts[False], parts[True])


def _as_contexts(
    corpus: CorpusConfig,
    domain: str,
    tokenizer: Any,
    how: Tokenisation,
    train_contexts: int,
    where: str,
) -> _Documents:
    """The rows of a tokenised corpus as contexts, until both parts have enough of them."""
    parts = _Documents([], [])
    rows = enumerate(read_tokens(corpus, where))
    for number, ids in progress(rows, f"Reading {domain}", unit=" rows"):
        if len(parts.train) >= train_contexts and parts.held_out:
            break
        _need_fit(ids, number, corpus, tokenizer, how, where)
        held = how.holds_out(number)
        part, wanted = (parts.held_out, how.holdout_contexts) if held else (parts.train, None)
        if wanted is None or len(part) < wanted:
            part.append(ids[: how.context_size].to(torch.int32))
    return _Documents(parts.train[:train_contexts], parts.held_out)


def _need_fit(
    ids: Int[Tensor, " n"],
    number: int,
    corpus: CorpusConfig,
    tokenizer: Any,
    how: Tokenisation,
    where: str,
) -> None:
    problem = _unfit(ids, tokenizer, how)
    if problem:
        problem = f"row {number + 1} {problem}"
        raise reject(f"{where}.tokens_field", corpus.tokens_field, problem)


def _unfit(ids: Int[Tensor, " n"], tokenizer: Any, how: Tokenisation) -> str:
    """Why a row of token ids cannot be a context; empty if it can."""
    if len(ids) < how.context_size:
        return (
            f"has {len(ids)} tokens, fewer than context_size={how.context_size}. Lower "
            "context_size, or leave such rows out."
        )
    if int(ids.min()) < 0 or int(ids.max()) >= len(tokenizer):
        return (
            f"holds the ids {int(ids.min())} to {int(ids.max())}, but the model's tokenizer has "
            f"{len(tokenizer)}. Was it tokenised for another model?"
        )
    starts = int(ids[0]) == tokenizer.bos_token_id
    if starts != how.prepend_bos:
        found = "begins with BOS" if starts else "does not begin with BOS"
        remedy = f"Set prepend_bos: {str(starts).lower()}, or tokenise the text again."
        return f"{found}, but prepend_bos is {str(how.prepend_bos).lower()}. {remedy}"
    return ""


def _pack(
    documents: list[Tensor], tokenizer: Any, how: Tokenisation, limit: int
) -> list[Int[Tensor, " context"]]:
    separator = get_special_token_from_cfg(how.sequence_separator_token, tokenizer)  # type: ignore[arg-type]
    contexts = concat_and_batch_sequences(
        tokens_iterator=iter(documents),
        context_size=how.context_size,
        begin_batch_token_id=tokenizer.bos_token_id if how.prepend_bos else None,
        sequence_separator_token_id=separator,
        disable_concat_sequences=how.disable_concat_sequences,
    )
    return [c.to(torch.int32) for c in itertools.islice(contexts, limit)]


def _cache_key(corpus: CorpusConfig, tokenizer: Any, how: Tokenisation, train_contexts: int) -> str:
    """Digest of everything that determines a tokenised corpus, including local file contents."""
    digest = hashlib.sha256()
    source = {k: v for k, v in corpus.settings().items() if k != "share"}  # chooses no text
    for part in (source, how._asdict(), train_contexts):
        digest.update(json.dumps(part, sort_keys=True).encode())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    for file in local_files(corpus.path) or []:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _sums(key: str, parts: dict[str, Tensor]) -> dict[str, str]:
    """The metadata of a cached corpus. One entry, because safetensors orders several at random."""
    return {"fingerprint and sha256": f"{key} {tensors_digest(parts)}"}


def _read_cache(path: Path, domain: str, key: str) -> TokenisedCorpus | None:
    """A tokenised corpus; None if its file is missing or damaged. Old files have no checksum."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            sums = file.metadata()
            parts = {name: file.get_tensor(name) for name in ("train", "held_out")}
    except (OSError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if sums in ({"fingerprint": key}, _sums(key, parts)):
            return TokenisedCorpus(domain, parts["train"], parts["held_out"], key)
        reason = "its checksum is wrong"
    warnings.warn(f"{path} is damaged ({reason}). The text is tokenised again.", stacklevel=2)
    return None
