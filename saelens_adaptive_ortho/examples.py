"""Examples of text before and after unlearning, as a run keeps them for its report.

They are in one file, ``examples.json``, beside the result files.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import read_cached, without_home, write_sealed
from saelens_adaptive_ortho.settings import Seed, Share, check_fields, parse

FILE = "examples.json"


@dataclass(frozen=True, kw_only=True)
class Example:
    """How a model continues a prompt before and after unlearning.

    Args:
        corpus: name of the corpus whose held-out text the prompt is from.
        prompt: the prompt.
        truth: how the held-out text goes on.
        before: what the model writes.
        after: what it writes while the selection acts.
        loss_before: loss on ``truth`` before, in nats per token.
        loss_after: loss on ``truth`` while the selection acts, in nats per token.
    """

    corpus: str
    prompt: str
    truth: str
    before: str
    after: str
    loss_before: float
    loss_after: float


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The examples of one SAE, and the selection that made them.

    Args:
        variant: variant of the SAE.
        seed: seed of the SAE.
        sae_digest: digest of the SAE; another SAE needs new examples.
        reason: why there is no example; empty if there are some.
        latents: number of latents that are clamped.
        strength: how many times its mean activation each latent is set below zero.
        gate: the clamp acts where the latents fire on more than this share of the tokens; null to
            act wherever they fire.
        budget: largest rise of the loss on any retain corpus that was allowed, in nats per token.
        damage: rise of the loss by corpus, on the training text that the selection was chosen on.
        tokens: largest number of tokens that the model writes.
        examples: the examples, by corpus.
    """

    variant: str
    seed: Seed
    sae_digest: str
    reason: str = ""
    latents: NonNegativeInt = 0
    strength: NonNegativeFloat = 0.0
    gate: Share | None = None
    budget: NonNegativeFloat = 0.0
    damage: dict[str, float] = field(default_factory=dict[str, float])
    tokens: NonNegativeInt = 0
    examples: list[Example] = field(default_factory=list[Example])

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.reason and not self.examples:
            raise reject("examples", self.examples, "must not be empty without a reason.")

    @property
    def corpora(self) -> list[str]:
        """The names of the corpora with examples, in order."""
        return list(dict.fromkeys(example.corpus for example in self.examples))


def write(folder: Path, found: Examples) -> Path:
    """Write the file into a folder of results, and return its path.

    Raises:
        StorageError: the file could not be written.
        ValueError: a loss is NaN or infinite.
    """
    write_sealed(folder / FILE, without_home(asdict(found)))
    return folder / FILE


def read(folder: Path) -> Examples | None:
    """The examples in a folder of results; None if there are none, or if the file is damaged."""
    tree: Any = read_cached(folder / FILE)
    if tree is None:
        return None
    try:
        return _parse(tree)
    except ConfigError as error:
        warnings.warn(f"{folder / FILE} is not used: {error}", stacklevel=2)
        return None


def _parse(tree: Any) -> Examples:
    if not isinstance(tree, Mapping) or not isinstance(tree.get("examples"), list):
        raise reject("examples", "...", "must be a list.")
    fields = dict[str, Any](tree)
    found = [
        parse(Example, example, f"examples.{number}.")
        for number, example in enumerate(fields.pop("examples"))
    ]
    return parse(Examples, fields, examples=found)
