"""Context managers that let SAEBench run on any model and undo every change afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from datasets import Dataset
from jaxtyping import Int
from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE
from torch import Tensor
from transformer_lens import HookedRootModule, HookedTransformer


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside the block, ``owner.name`` is ``value``."""
    original = vars(owner)[name]  # getattr would bind a classmethod
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def model_served(model: HookedRootModule) -> AbstractContextManager[None]:
    """Make ``HookedTransformer.from_pretrained_no_processing`` return ``model`` for any name.

    SAEBench loads its model by hub name. It refuses a local directory, and it would load the model
    again for every SAE.
    """
    serve = classmethod(lambda _cls, *_args, **_kwargs: model)
    return replaced(HookedTransformer, "from_pretrained_no_processing", serve)


class _FixedRowsStore:
    """Replaces ``ActivationsStore`` in code that calls only ``from_sae``."""

    def __init__(self, rows: Dataset) -> None:
        self._rows = rows

    def from_sae(
        self, model: HookedRootModule, sae: SAE[Any], context_size: int, **_: object
    ) -> ActivationsStore:
        return ActivationsStore.from_sae(
            model, sae, self._rows, context_size=context_size, streaming=False
        )


def tokens_served(module: Any, contexts: Int[Tensor, "n context"]) -> AbstractContextManager[None]:
    """Make ``module.ActivationsStore.from_sae`` read these contexts instead of any data set.

    SAEBench takes a data set by name only, streams it from the hub, and packs its text into new
    contexts. With this replacement it evaluates these contexts unchanged, without the hub.
    """
    rows = Dataset.from_dict({"tokens": contexts.tolist()})
    return replaced(module, "ActivationsStore", _FixedRowsStore(rows))


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


@contextmanager
def errors_collected(logger: Any) -> Iterator[list[str]]:
    """Yield a list that collects the errors which SAEBench logs instead of raising."""
    messages: list[str] = []
    handler = _Collector(messages)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
