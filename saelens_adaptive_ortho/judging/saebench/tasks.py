"""Labelled texts that SAEBench reads as a data set, and artifacts that all SAEs share.

The labels come from one of these sources:

- ``demo:probing``: the embedded file, passages labelled by topic;
- ``corpus``: short passages of the forget and the retain corpus, labelled by corpus;
- a file with the fields ``text`` and ``label``: JSON Lines, JSON or Parquet;
- a published data set, which SAEBench loads by name.
"""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from saelens_adaptive_ortho.demo import PROBING_TEXTS
from saelens_adaptive_ortho.evaluations.contract import AUTO, SEED
from saelens_adaptive_ortho.files import (
    atomic_directory,
    made_once,
    recover_directory,
    user_path,
)
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError
from saelens_adaptive_ortho.judging.isolation import replaced
from saelens_adaptive_ortho.rng import state_kept
from saelens_adaptive_ortho.text import hub
from saelens_adaptive_ortho.text.corpora import DOMAINS, read_documents
from saelens_adaptive_ortho.text.models import DEMO_MODEL, local_model_dir
from saelens_adaptive_ortho.text.reader import ReadError, kind_of, read_rows

CORPUS, DEMO, PUBLISHED = "corpus", "demo:probing", "published"
PASSAGES_PER_DOCUMENT = 4
# About a dozen words. With whole contexts the task would be too easy: a single principal component
# would distinguish two real corpora.
PASSAGE_TOKENS = 16
DOCUMENT_CHARACTERS = 20_000  # the rest of a longer document is ignored
MANIFEST = "files.json"
SAMPLE = (
    "A sample of 12 words: Ünder (the) bridge, they're quick\n and brown."  # tells tokenizers apart
)
MIN_TOKENS = 8  # shorter pieces (headings, ends of documents) are left out
PUBLISHED_SIZES = (2000, 500)  # training and test texts of each class, as in SAEBench
SERVED_NAMES = {DEMO: "demo_topics", CORPUS: "forget_or_retain"}

Texts = dict[str, list[str]]


class Task(NamedTuple):
    """A classification task.

    Args:
        source: source of texts and labels.
        datasets: SAEBench's names of the data sets.
        train_size: training texts of each class.
        test_size: test texts of each class.
        texts: training and test texts of a data set that is not published; else None.
    """

    source: str
    datasets: list[str]
    train_size: int
    test_size: int
    texts: tuple[Texts, Texts] | None = None

    def served(self) -> AbstractContextManager[None]:
        """Inside the block, SAEBench finds the data sets.

        If a published data set cannot be loaded, an :class:`EvaluationError` gives the reason.
        """
        if self.texts is None:
            return load_failures_explained()
        return classes_served(*self.texts, self.datasets[0])


def labelled_task(
    context: EvalContext, settings: Any, published: list[str], own_sizes: tuple[int, int]
) -> Task:
    """The task of an evaluation.

    Args:
        settings: settings with source, train_size, test_size and seed.
        published: SAEBench's names of the evaluation's data sets.
        own_sizes: default training and test texts of each class, for texts that are not published.

    Raises:
        EvaluationError: for the reasons of :func:`class_texts`.
    """
    source = resolve_source(context, settings.source)
    datasets = published_datasets(source, published)
    train, test = sizes(settings, datasets is not None, own_sizes)
    if datasets is not None:
        return Task(source, datasets, train, test)
    texts = class_texts(context, source, train, test, settings.seed)
    return Task(source, [SERVED_NAMES.get(source, Path(source).stem)], train, test, texts)


def file_texts(settings: Any, own_sizes: tuple[int, int]) -> Texts | None:
    """The training texts of the file that ``settings.source`` names; None if it names no file.

    This needs no model, so that it finds a bad file before training.

    Raises:
        EvaluationError: the file cannot be read, or has too few classes or texts.
    """
    if not is_file(settings.source):
        return None
    groups = _labelled_file(user_path(settings.source), "label")
    return _drawn(settings.source, groups, *sizes(settings, False, own_sizes), settings.seed)[0]


def is_file(source: str) -> bool:
    """Whether a source is a file of labelled texts, by the end of its name."""
    return kind_of(Path(source)) in ("json", "parquet")


def published_datasets(source: str, published: list[str]) -> list[str] | None:
    """The published data sets that ``source`` names; None if it names other texts."""
    if source == PUBLISHED:
        return published
    return [source] if source in published else None


def sizes(settings: Any, is_published: bool, own: tuple[int, int]) -> tuple[int, int]:
    """Training and test texts of each class, from the settings or by default."""
    train, test = PUBLISHED_SIZES if is_published else own
    return settings.train_size or train, settings.test_size or test


def context_length(context: EvalContext, limit: int, texts: tuple[Texts, Texts] | None) -> int:
    """Number of tokens to which SAEBench cuts or pads every text.

    It is not larger than the longest text, because SAEBench encodes padding, too, and ablates
    latents that fire on it. For published data sets (``texts`` is None) SAEBench's padding stays.
    """
    model: Any = context.model
    length = min(limit, model.cfg.n_ctx)
    if texts is None:
        return length
    every = [text for part in texts for of_class in part.values() for text in of_class]
    return min(length, max(map(len, model.tokenizer(every, verbose=False)["input_ids"])))


def resolve_source(context: EvalContext, source: str) -> str:
    """The source that ``auto`` stands for; any other source stays as it is.

    ``auto`` is the embedded labelled file for the demo model, the published data sets for a model
    of the hub, and the forget and retain corpus for a local model.

    Raises:
        EvaluationError: the model is local and there is no forget and retain corpus.
    """
    if source != AUTO:
        return source
    name = context.bench.model_name
    if name == DEMO_MODEL:
        return DEMO
    if local_model_dir(name) is None:
        return PUBLISHED
    if {"forget", "retain"} <= set(context.bench.texts):
        return CORPUS
    raise EvaluationError(
        "no labelled texts for a local model without corpora: give ortho_corpora (--forget and "
        f"--retain), or set source to a .jsonl file with text and label, or to {PUBLISHED!r}"
    )


def class_texts(
    context: EvalContext, source: str, train_size: int, test_size: int, seed: int
) -> tuple[Texts, Texts]:
    """Training and test texts by class, a function of ``seed``.

    All classes have the same number of texts, and no text occurs twice. Passages of one document
    are never in both parts.

    Args:
        source: ``auto``, ``demo:probing``, ``corpus``, a file, or the name of one of SAEBench's
            data sets.
        train_size: training texts of each class.
        test_size: test texts of each class.

    Raises:
        EvaluationError: the source is unknown or unreadable, there are fewer than two classes, or
            a class has too few texts.
    """
    source = resolve_source(context, source)
    if source == DEMO:
        groups = _labelled_file(PROBING_TEXTS, "topic")
    elif source == CORPUS:
        groups = _corpus_passages(context, train_size + test_size)
    elif is_file(source):
        groups = _labelled_file(user_path(source), "label")
    else:
        return _of_sae_bench(source, train_size, test_size, seed)
    return _drawn(source, groups, train_size, test_size, seed)


def _drawn(
    source: str, groups: dict[str, list[list[str]]], train_size: int, test_size: int, seed: int
) -> tuple[Texts, Texts]:
    """Texts of each class, drawn from all of its texts."""
    if len(groups) < 2:
        raise EvaluationError(f"{source}: needs two classes or more, has {sorted(groups)}")
    train: Texts = {}
    test: Texts = {}
    for label in sorted(groups):
        draw = random.Random(f"{seed}-{label}")
        train[label], test[label] = _split(groups[label], train_size, test_size, draw)
        found = len(train[label]) + len(test[label])
        if found < train_size + test_size:
            raise EvaluationError(
                f"{source}: class {label!r} has {found} texts, fewer than the "
                f"{train_size} + {test_size} asked for; lower train_size and test_size, or give "
                "more text"
            )
    return train, test


def _split(
    groups: list[list[str]], train_size: int, test_size: int, draw: random.Random
) -> tuple[list[str], list[str]]:
    """Assign whole groups in random order: to the test part until it is full, then to training."""
    train: list[str] = []
    test: list[str] = []
    for group in draw.sample(groups, len(groups)):
        part = test if len(test) < test_size else train
        part.extend(group)
    return train[:train_size], test[:test_size]


def _labelled_file(path: Path, field: str) -> dict[str, list[list[str]]]:
    """Texts by class, without repetitions; each text is a group of its own."""
    labels: dict[str, str] = {}
    for place, text, label in labelled_rows(path, (field,)):
        if labels.setdefault(text, label) != label:
            raise EvaluationError(f"{place}: a text with two labels; keep one of them")
    groups: dict[str, list[list[str]]] = {}
    for text, label in labels.items():
        groups.setdefault(label, []).append([text])
    return groups


def labelled_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Place, text and labels of each row of a file. Rows without text are left out.

    Raises:
        EvaluationError: the file cannot be read, a row has no such field, or a label is neither a
            text nor a number.
    """
    try:
        for row in read_rows(path, ["text", *columns], kind_of(path)):
            missing = [name for name in ("text", *columns) if name not in row.values]
            if missing:
                raise EvaluationError(
                    f"{row.place} has no field {' and no field '.join(missing)}; it has "
                    f"{sorted(row.names)}, and needs text, {', '.join(columns)}"
                )
            text, *labels = (row.values[name] for name in ("text", *columns))
            if text is None or (isinstance(text, str) and not text.strip()):
                continue
            if not isinstance(text, str):
                raise EvaluationError(f"{row.place}: text is {type(text).__name__}, not a text")
            for name, label in zip(columns, labels, strict=True):
                if not isinstance(label, str | int | float):
                    rule = "not a text or a number; label the row, or remove it"
                    raise EvaluationError(f"{row.place}: {name} is {label!r:.80}, {rule}")
            yield row.place, text, *map(str, labels)
    except ReadError as error:
        raise EvaluationError(str(error).removesuffix(".")) from error


def _corpus_passages(context: EvalContext, wanted: int) -> dict[str, list[list[str]]]:
    """Passages of the first documents of forget and of retain, grouped by document."""
    context.need_corpora(2)
    groups: dict[str, list[list[str]]] = {}
    for domain in DOMAINS:
        corpus = context.bench.texts[domain]
        seen: set[str] = set()
        groups[domain] = []
        for text in read_documents(corpus, domain):
            passages = [p for p in _passages(text, context.model.tokenizer) if p not in seen]
            seen.update(passages)
            if passages:
                groups[domain].append(passages)
            # The test part takes whole documents, so a few more passages are needed.
            if len(seen) >= wanted + PASSAGES_PER_DOCUMENT:
                break
    return groups


def _passages(text: str, tokenizer: Any) -> list[str]:
    """Up to ``PASSAGES_PER_DOCUMENT`` passages, spread over a document and cut between tokens."""
    spans = tokenizer(
        text[:DOCUMENT_CHARACTERS],
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=False,
        verbose=False,
    )["offset_mapping"]
    pieces = [spans[i : i + PASSAGE_TOKENS] for i in range(0, len(spans), PASSAGE_TOKENS)]
    whole = [text[p[0][0] : p[-1][1]] for p in pieces if len(p) >= MIN_TOKENS]
    step = max(1, len(whole) // PASSAGES_PER_DOCUMENT)
    return list(dict.fromkeys(whole[step // 2 :: step][:PASSAGES_PER_DOCUMENT]))


def _of_sae_bench(name: str, train_size: int, test_size: int, seed: int) -> tuple[Texts, Texts]:
    """Texts of a data set that SAEBench loads from the hub."""
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    known = dataset_info.chosen_classes_per_dataset
    if name not in known:
        raise EvaluationError(
            f"unknown source {name!r}: give {DEMO!r}, {CORPUS!r}, a .jsonl file with text and "
            f"label, or one of {', '.join(known)}"
        )
    with load_failures_explained():
        # SAEBench's sizes count the texts of both classes of a binary task.
        train, test = dataset_utils.get_multi_label_train_test_data(
            name, 2 * train_size, 2 * test_size, seed
        )
    return (
        dataset_utils.filter_dataset(train, known[name]),
        dataset_utils.filter_dataset(test, known[name]),
    )


@contextmanager
def load_failures_explained() -> Iterator[None]:
    """Inside the block, a published data set that cannot be loaded is an EvaluationError."""
    from sae_bench.sae_bench_utils import dataset_utils

    load = dataset_utils.get_multi_label_train_test_data

    def explained(name: str, *args: Any, **kwargs: Any) -> tuple[Texts, Texts]:
        try:
            return load(name, *args, **kwargs)
        except Exception as error:
            reason = hub.explain_failure(error, f"the data set {name}", "source=corpus or a file")
            raise EvaluationError(reason) from error

    with replaced(dataset_utils, "get_multi_label_train_test_data", explained):
        yield


@contextmanager
def classes_served(train: Texts, test: Texts, dataset_name: str) -> Iterator[None]:
    """Inside the block, SAEBench knows a data set ``dataset_name`` with these classes and texts.

    This works for sparse probing and TPP. The sizes and the seed that SAEBench passes are ignored.
    """
    from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    load = dataset_utils.get_multi_label_train_test_data

    def serve(name: str, *args: Any, **kwargs: Any) -> tuple[Texts, Texts]:
        # SAEBench gets copies, because it deletes classes that one part lacks.
        return (dict(train), dict(test)) if name == dataset_name else load(name, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(replaced(dataset_utils, "get_multi_label_train_test_data", serve))
        stack.enter_context(
            entry_set(dataset_info.chosen_classes_per_dataset, dataset_name, list(train))
        )
        # SAEBench reads this entry for every data set, and uses it only for SCR.
        stack.enter_context(entry_set(scr_and_tpp.COLUMN2_VALS_LOOKUP, dataset_name, ("", "")))
        yield


@contextmanager
def entry_set(mapping: MutableMapping[str, Any], key: str, value: Any) -> Iterator[None]:
    """Inside the block, ``mapping[key]`` is ``value``."""
    missing = object()
    original = mapping.get(key, missing)
    mapping[key] = value
    try:
        yield
    finally:
        if original is missing:
            del mapping[key]
        else:
            mapping[key] = original


def shared_artifacts(
    context: EvalContext, name: str, hook_name: str, *parts: Any
) -> AbstractContextManager[Path]:
    """A folder for artifacts that depend on the model and the texts, but not on the SAE.

    The first SAE fills the folder, and later SAEs use it, also those of other processes: they wait
    while it is filled. The folder is kept only if the block succeeds. It is used again only if no
    file in it has changed; else a warning names it.

    Args:
        name: name of the evaluation.
        hook_name: hook of the activations.
        parts: everything else that determines the artifacts, as JSON can hold it.
    """
    tokenizer: Any = context.model.tokenizer
    identity = [
        context.bench.model_digest,
        hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest(),
        tokenizer(SAMPLE)["input_ids"],
        hook_name,
        context.bench.device,
        context.bench.dtype,
        version("sae-bench"),
        parts,
    ]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return _kept_folder(context.bench.cache / name / key[:16])


def artifacts_of_model(
    context: EvalContext, name: str, hook_name: str, make: Callable[[Path], None], *parts: Any
) -> Path:
    """The folder of artifacts that an evaluation computes from the language model alone.

    The first SAE makes it. Making it uses a fixed seed and restores the caller's random state. So
    an SAE gets the same numbers whether it comes first or later.

    Args:
        name: name of the evaluation.
        hook_name: hook of the activations.
        make: function that writes the artifacts into a given folder.
        parts: everything else that determines the artifacts, as JSON can hold it.
    """
    with shared_artifacts(context, name, hook_name, *parts) as folder:
        new = not any(folder.iterdir())
        if new:
            with state_kept(SEED), torch.enable_grad():
                make(folder)
    if new:  # the first block yielded a temporary folder, which now has its final name
        with shared_artifacts(context, name, hook_name, *parts) as folder:
            pass
    return folder


@contextmanager
def _kept_folder(folder: Path) -> Iterator[Path]:
    """``folder`` if it is intact, else an empty one that replaces it when the block succeeds."""
    with made_once(folder, lambda: _intact(folder)) as found:
        if found is not None:
            yield found
            return
        if folder.is_dir():
            warnings.warn(f"{folder} is damaged. Its files are made again.", stacklevel=3)
        with atomic_directory(folder, "Results finished before are intact.") as temporary:
            yield temporary
            (temporary / MANIFEST).write_text(_manifest(temporary), encoding="utf-8", newline="")


def _intact(folder: Path) -> Path | None:
    """``folder`` if its files are as they were written; None if not, or if there is none."""
    recover_directory(folder)
    manifest = folder / MANIFEST
    intact = manifest.is_file() and manifest.read_bytes() == _manifest(folder).encode()
    return folder if intact else None


def _manifest(folder: Path) -> str:
    """SHA-256 of every file except the manifest, by relative path."""
    digests = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST):
        digest = hashlib.sha256()
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
        digests[file.relative_to(folder).as_posix()] = digest.hexdigest()
    return json.dumps(digests, indent=1)
