"""Context managers that let SAEBench run on any model, and leave no trace."""

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
    """``owner.name`` is ``value`` inside the block."""
    original = vars(owner)[name]  # not getattr: a classmethod must come back as one
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def model_served(model: HookedRootModule) -> AbstractContextManager[None]:
    """``HookedTransformer.from_pretrained_no_processing`` returns ``model``, whatever the name.

    SAEBench loads its model by hub name; a local directory is refused there, and loading again
    for every SAE is waste.
    """
    serve = classmethod(lambda _cls, *_args, **_kwargs: model)
    return replaced(HookedTransformer, "from_pretrained_no_processing", serve)


class _StoreOf:
    """Stands in for ``ActivationsStore`` where only ``from_sae`` is called."""

    def __init__(self, rows: Dataset) -> None:
        self._rows = rows

    def from_sae(
        self, model: HookedRootModule, sae: SAE[Any], context_size: int, **_: object
    ) -> ActivationsStore:
        return ActivationsStore.from_sae(
            model, sae, self._rows, context_size=context_size, streaming=False
        )


def tokens_served(module: Any, contexts: Int[Tensor, "n context"]) -> AbstractContextManager[None]:
    """``module.ActivationsStore.from_sae`` reads these contexts, whatever data set it is asked for.

    SAEBench takes a data set by name only, streams it, and repacks its text; these contexts are
    evaluated as they are, and no hub is asked.
    """
    rows = Dataset.from_dict({"tokens": contexts.tolist()})
    return replaced(module, "ActivationsStore", _StoreOf(rows))


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


@contextmanager
def errors_collected(logger: Any) -> Iterator[list[str]]:
    """Error messages that SAEBench logs instead of raising."""
    messages: list[str] = []
    handler = _Collector(messages)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
