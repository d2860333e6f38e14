"""One forward pass of a language model for the activations at several hooks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

from jaxtyping import Int
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor
from transformer_lens import HookedRootModule


class SharedReads:
    """A language model that reads each text once for all of its hooks.

    :meth:`run_with_cache` asks for one hook. It runs the model up to the last hook, and keeps the
    activations at the other hooks until they are asked for. An activation does not depend on which
    other hooks are read, so the results are bit-equal to those of separate runs. All else is the
    model's own. Several threads may read.

    Args:
        model: the language model.
        hook_names: the hooks.
        keep: number of contexts whose activations are kept for each hook. The oldest are forgotten
            first, and computed again if they are asked for.
    """

    def __init__(self, model: HookedRootModule, hook_names: Sequence[str], keep: int) -> None:
        self._model = model
        self._hook_names = list(hook_names)
        self._keep = keep
        self._kept: dict[str, OrderedDict[bytes, Tensor]] = {h: OrderedDict() for h in hook_names}
        self._lock = Lock()
        layers = [extract_stop_at_layer_from_tlens_hook_name(hook) for hook in hook_names]
        known = [layer for layer in layers if layer is not None]
        self._stop_at_layer = max(known) if len(known) == len(layers) else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run_with_cache(
        self,
        tokens: Int[Tensor, "n context"],
        names_filter: list[str],
        stop_at_layer: int | None = None,  # noqa: ARG002 - that of the last hook instead
        **kwargs: Any,
    ) -> tuple[None, dict[str, Tensor]]:
        """The activations at one hook, in a dict, as the second of two values.

        Args:
            tokens: the contexts.
            names_filter: the name of one of the hooks.
            stop_at_layer: ignored.
            kwargs: further arguments of the model, the same for all hooks.
        """
        (hook,) = names_filter
        key = tokens.cpu().numpy().tobytes()
        with self._lock:
            found = self._kept[hook].pop(key, None)
            if found is None:
                found = self._read(hook, key, tokens, kwargs)
        return None, {hook: found}

    def _read(self, hook: str, key: bytes, tokens: Tensor, kwargs: dict[str, Any]) -> Tensor:
        cache = self._model.run_with_cache(
            tokens, names_filter=self._hook_names, stop_at_layer=self._stop_at_layer, **kwargs
        )[1]
        for other in self._hook_names:
            if other == hook:
                continue
            kept = self._kept[other]
            kept[key] = cache[other]
            kept.move_to_end(key)
            while len(kept) > 1 and sum(len(acts) for acts in kept.values()) > self._keep:
                kept.popitem(last=False)
        return cache[hook]
