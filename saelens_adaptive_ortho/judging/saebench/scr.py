"""SAEBench SCR: does ablating the latents of a confounder remove the bias of a probe?

A probe learns to distinguish A from B on texts where A always comes with C, and B with D. Ablating
the latents that distinguish C from D should make it a probe of A and B alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pandas as pd

from saelens_adaptive_ortho.demo.world import World, sentence
from saelens_adaptive_ortho.evaluations.contract import AUTO
from saelens_adaptive_ortho.evaluations.scr import Settings, read_metrics
from saelens_adaptive_ortho.files import user_path
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.isolation import replaced
from saelens_adaptive_ortho.judging.saebench.scr_and_tpp import (
    CAVEAT,
    OWN_SIZES,
    n_values,
    run_eval,
)
from saelens_adaptive_ortho.judging.saebench.session import prepared_sae, session
from saelens_adaptive_ortho.judging.saebench.tasks import (
    PUBLISHED,
    Texts,
    context_length,
    is_file,
    labelled_rows,
    published_datasets,
    sizes,
)
from saelens_adaptive_ortho.text import hub
from saelens_adaptive_ortho.text.models import DEMO_MODEL, local_model_dir

DEMO = "demo:crossed"
TEXTS = "texts"  # name of the data set when the texts are not published
DEMO_TOPICS, DEMO_VALUES, DEMO_SENTENCES = ("geography", "sport"), ("colour", "place"), 3

Pair = tuple[str, str]
Row = tuple[str, str, str]  # text, first attribute, second attribute


class Crossed(NamedTuple):
    """Texts of all combinations of two attributes.

    Attributes:
        columns: names of the two attributes.
        values: the two values of each attribute.
        train: training texts by combination.
        test: test texts by combination.
    """

    columns: Pair
    values: tuple[Pair, Pair]
    train: Texts
    test: Texts


def check(settings: Settings) -> None:
    """Read the texts, if they are in a file.

    Raises:
        EvaluationError: the file cannot be read, or an attribute does not have two values.
    """
    if is_file(settings.source):
        _crossed(settings.source, settings, *sizes(settings, False, OWN_SIZES))


def run(context: EvalContext, settings: Settings) -> Outcome:
    """``threshold_{n}``: the share of lost accuracy that ablating ``n`` latents restores.

    The evaluation ablates the latents of one attribute, and measures how accurately a biased probe
    then predicts the other attribute. It takes the attribute that the probe predicts worse. The
    score is 1 if the probe becomes as accurate as an unbiased probe, 0 if nothing improves, and
    below 0 if the accuracy falls. It is a mean over pairs of values, and None if the probe predicts
    both attributes equally well. The details hold both directions; ``dir1`` predicts the first
    attribute.

    Raises:
        EvaluationError: there are no texts with two crossed attributes, a combination has too few
            texts, or the SAE has too few latents.
    """
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
    from sae_bench.evals.scr_and_tpp.eval_output import ScrEvalOutput

    sae = prepared_sae(context)
    values = n_values(sae)
    published = ScrAndTppEvalConfig().dataset_names
    source = _resolve_source(context, settings.source, published)
    datasets = published_datasets(source, published)
    train_size, test_size = sizes(settings, datasets is not None, OWN_SIZES)
    crossed = _crossed(source, settings, train_size, test_size) if datasets is None else None
    texts = None if crossed is None else (crossed.train, crossed.test)
    config = ScrAndTppEvalConfig(
        random_seed=settings.seed,
        dataset_names=datasets or [TEXTS],
        perform_scr=True,
        train_set_size=2 * train_size,
        test_set_size=2 * test_size,
        context_length=context_length(context, settings.context_length, texts),
        sae_batch_size=settings.sae_batch_size,
        llm_batch_size=settings.llm_batch_size,
        llm_dtype=context.bench.dtype,
        model_name=context.bench.model_label,
    )
    if crossed:
        config.column1_vals_lookup = {TEXTS: [crossed.values[0]]}
    with session(context) as folder, _combinations_checked(), _served(crossed):
        result, accuracies, kept = run_eval(context, config, sae, folder, ScrEvalOutput, texts)
    scores = read_metrics(result["eval_result_metrics"])
    return Outcome(
        {name: scores[name] for name in (f"threshold_{n}" for n in values)},
        {
            "source": source,
            # SAEBench names the first attribute "professor / nurse" and the second "male / female",
            # whatever they are.
            "attributes": dict(zip(crossed.columns, crossed.values, strict=True))
            if crossed
            else None,
            "pairs": result["eval_result_details"],
            "probe_accuracy": accuracies,
            "caveat": CAVEAT,
            "sae_bench_file": kept,
        },
    )


def _resolve_source(context: EvalContext, source: str, published: list[str]) -> str:
    if source == AUTO:
        name = context.bench.model_name
        source = DEMO if name == DEMO_MODEL else PUBLISHED if local_model_dir(name) is None else ""
    if source in (DEMO, PUBLISHED, *published) or is_file(source):
        return source
    raise EvaluationError(
        "needs texts labelled by two crossed attributes, such as profession and gender: set "
        "evals.scr.source to a file with the field text and two more, named in "
        f"evals.scr.columns, or to one of {DEMO}, {PUBLISHED}, {', '.join(published)}"
    )


def _crossed(source: str, settings: Settings, train_size: int, test_size: int) -> Crossed:
    """Texts of every combination, in random order, split into a test and a training part.

    Raises:
        EvaluationError: the file cannot be read, or an attribute does not have two values.
    """
    if source == DEMO:
        columns = ("topic", "about")
        rows = _demo_rows(settings.seed, 2 * (train_size + test_size))
    else:
        if len(set(settings.columns)) != 2:
            raise EvaluationError("evals.scr.columns must name two fields of the file")
        columns = (settings.columns[0], settings.columns[1])
        rows = (row[1:] for row in labelled_rows(user_path(source), columns))
    unique = {text: labels for text, *labels in rows}
    values = []
    for i, column in enumerate(columns):
        found = sorted({labels[i] for labels in unique.values()})
        if len(found) != 2:
            raise EvaluationError(
                f"{source}: {column} must have two values, not {len(found)} "
                f"({', '.join(found)[:60]} ...); keep two of them in the file"
            )
        values.append((found[0], found[1]))
    train: Texts = {}
    test: Texts = {}
    for i, first in enumerate(values[0]):
        for j, second in enumerate(values[1]):
            name = _combination(first, second)
            texts = [text for text, labels in unique.items() if labels == [first, second]]
            random.Random(f"{settings.seed}-{name}").shuffle(texts)
            n_test = _needed(test_size // 2, i == j)
            test[name], train[name] = texts[:n_test], texts[n_test:]
    return Crossed(columns, (values[0], values[1]), train, test)


def _combination(first: str, second: str) -> str:
    return f"{first} and {second}"


def _needed(per_quadrant: int, diagonal: bool) -> int:
    """Number of texts of a combination that SAEBench needs.

    The biased probe is trained on the diagonal combinations, so these need more texts.
    """
    return 2 * per_quadrant + 1 if diagonal else per_quadrant


def _demo_rows(seed: int, count: int) -> Iterator[Row]:
    """Texts about two topics of the demo's world. Each text states only colours or only places."""
    draw = random.Random(f"crossed-{seed}")
    entities = World().entities
    for topic in DEMO_TOPICS:
        things = [e for e in entities if e.topic.name == topic]
        for pool in DEMO_VALUES:
            (attribute,) = (a for a in things[0].topic.attributes if a.pool == pool)
            for _ in range(count):
                facts = [
                    sentence(draw.choice(things), attribute, draw, pronoun=False)
                    for _ in range(DEMO_SENTENCES)
                ]
                yield " ".join(facts), topic, pool


@contextmanager
def _served(crossed: Crossed | None) -> Iterator[None]:
    """Inside the block, SAEBench knows a data set ``TEXTS`` with these texts.

    If ``crossed`` is None, it loads a published data set, and a failed load raises an
    :class:`EvaluationError` with the reason.
    """
    from sae_bench.evals.scr_and_tpp import dataset_creation, main
    from sae_bench.sae_bench_utils import dataset_info

    if crossed is None:
        with replaced(dataset_creation, "load_dataset", _explained(dataset_creation.load_dataset)):
            yield
        return
    firsts, seconds = crossed.values

    def serve(
        name: str, _scr: bool, train_size: int, test_size: int, seed: int, *_: Any
    ) -> list[Texts]:
        parts = [(crossed.train, train_size), (crossed.test, test_size)]
        return [
            dataset_creation.get_spurious_corr_data(
                _frame(part, crossed.values), firsts, seconds, name, size // 4, seed
            )
            for part, size in parts
        ]

    metadata = {
        "text_column_name": "text",
        "column1_name": "first",
        "column2_name": "second",
        "column1_mapping": {v: v for v in firsts},
        "column2_mapping": {v: v for v in seconds},
    }
    with (
        replaced(dataset_creation, "get_train_test_data", serve),
        replaced(dataset_info, "dataset_metadata", {TEXTS: metadata}),
        replaced(main, "COLUMN2_VALS_LOOKUP", {TEXTS: seconds}),
    ):
        yield


def _frame(texts: Texts, values: Iterable[Pair]) -> pd.DataFrame:
    firsts, seconds = values
    rows = [(t, a, b) for a in firsts for b in seconds for t in texts[_combination(a, b)]]
    return pd.DataFrame.from_records(rows, columns=["text", "first", "second"])


def _explained(load: Callable[..., Any]) -> Callable[..., Any]:
    def explained(name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            with hub.offline_if_unreachable():
                return load(name, *args, **kwargs)
        except Exception as error:
            reason = hub.explain_failure(
                error, f"the data set {name}", "a file as evals.scr.source"
            )
            raise EvaluationError(reason) from error

    return explained


@contextmanager
def _combinations_checked() -> Iterator[None]:
    """Inside the block, too few texts of a combination raise an :class:`EvaluationError`.

    SAEBench itself would stop at an assertion.
    """
    from sae_bench.evals.scr_and_tpp import dataset_creation
    from sae_bench.sae_bench_utils import dataset_info

    build = dataset_creation.get_spurious_corr_data

    def checked(
        df: pd.DataFrame, firsts: Pair, seconds: Pair, name: str, per_quadrant: int, seed: int
    ) -> Texts:
        info = dataset_info.dataset_metadata[name]
        short = []
        for i, first in enumerate(firsts):
            for j, second in enumerate(seconds):
                is_first = df[info["column1_name"]] == info["column1_mapping"][first]
                is_second = df[info["column2_name"]] == info["column2_mapping"][second]
                found, needed = int((is_first & is_second).sum()), _needed(per_quadrant, i == j)
                if found < needed:
                    short.append(f"{found} of {needed} with {_combination(first, str(second))}")
        if short:
            raise EvaluationError(
                f"too few texts in the training or the test part: {'; '.join(short)}. Lower "
                "evals.scr.train_size and test_size, or give more texts"
            )
        return build(df, firsts, seconds, name, per_quadrant, seed)

    with replaced(dataset_creation, "get_spurious_corr_data", checked):
        yield
