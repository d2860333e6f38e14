"""A selection: one intervention that was chosen, as a JSON file that others can read and apply.

The file says what is edited (latents, clamp values, gate, or directions), in which model and SAE,
and what it was chosen on. :func:`~saelens_adaptive_ortho.judging.unlearning.use.unlearn` applies
it; :mod:`~saelens_adaptive_ortho.judging.unlearning.choosing` makes it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import read_text, write_failures_named, write_text_atomic
from saelens_adaptive_ortho.judging.unlearning.clamps import Clamp, Projection
from saelens_adaptive_ortho.maths.erasure import Erasure
from saelens_adaptive_ortho.settings import Share, check_fields, parse

CLAMP, BOUNDED = "clamp", "bounded"
Kind = Literal["clamp", "bounded"]
Id = Annotated[int, Field(ge=0, lt=2**63)]
ORTHONORMAL = 1e-4  # largest error of a product of two directions


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus that a selection was chosen on.

    Args:
        name: ``forget``, ``retain``, or the name of a named retain corpus.
        path: source of its text.
        fingerprint: digest of everything that determines its contexts.
        share: its share of the retain side; 1 for forget.
        damage: rise of the loss in nats per token under the selection, on training text.
    """

    name: str
    path: str
    fingerprint: str
    share: Share
    damage: float


@dataclass(frozen=True, kw_only=True)
class ChosenOn:
    """What a selection was chosen on: training text alone.

    Args:
        corpora: forget, then the corpora of the retain side.
        context_size: tokens in a context.
        budget: largest damage in nats per token that every corpus of the retain side may have.
        ranking: rule that ranked the latents (``Settings.selection`` of the evaluation).
        n_select_contexts: contexts of each corpus that ranked the latents.
        n_choose_contexts: contexts of each corpus on which the damage was measured.
    """

    corpora: list[Corpus]
    context_size: PositiveInt
    budget: PositiveFloat
    ranking: str
    n_select_contexts: PositiveInt
    n_choose_contexts: PositiveInt

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class UnlearningSelection:
    """An intervention, and where it comes from.

    - ``clamp``: each latent is set to its value where it is active. With a gate this happens only
      in sequences where the share of tokens on which any of the latents fires is above the gate.
    - ``bounded``: ``x - strength * (x - centre) B^T B`` at every token that counts.

    Args:
        kind: ``clamp`` or ``bounded``.
        latents: the latents, the most forget-specific first. For ``bounded``, those whose decoder
            rows span the directions.
        values: clamp value of each latent; empty for ``bounded``.
        gate: the gate of a clamp; null to act in every sequence.
        strength: of a clamp, how many times its mean activation each latent is set below zero; of
            a bounded projection, the share that is removed.
        basis: orthonormal directions B that ``bounded`` removes; empty for ``clamp``.
        centre: point that ``bounded`` moves to in these directions; empty for ``clamp``.
        ignored_tokens: ids of BOS, EOS, padding and other tokens that never count and are never
            edited.
        model_name: language model that the selection was chosen for.
        hook_name: hook of the SAE in TransformerLens's names.
        sae: where the SAE was.
        sae_digest: SHA-256 of the SAE's weights (:func:`weights_digest`).
        d_in: width of the activations.
        versions: versions of the packages that chose.
        chosen_on: the text and the budget; null for a selection that was written by hand.
    """

    kind: Kind
    latents: Annotated[list[Id], Field(min_length=1)]
    values: list[float] = field(default_factory=list)
    gate: Share | None = None
    strength: NonNegativeFloat
    basis: list[list[float]] = field(default_factory=list)
    centre: list[float] = field(default_factory=list)
    ignored_tokens: list[Id] = field(default_factory=list)
    model_name: str
    hook_name: str
    sae: str = ""
    sae_digest: str
    d_in: PositiveInt
    versions: dict[str, str] = field(default_factory=dict)
    chosen_on: ChosenOn | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if len(set(self.latents)) != len(self.latents):
            raise reject("latents", self.latents, "a latent is named twice.")
        if self.kind == CLAMP:
            if len(self.values) != len(self.latents):
                rule = f"a clamp needs one value for each of its {len(self.latents)} latents."
                raise reject("values", self.values, rule)
            _check_range("values", self.values)
            return
        if self.gate is not None:
            raise reject("gate", self.gate, "only a clamp has a gate.")
        if not self.basis or any(len(row) != self.d_in for row in self.basis):
            raise reject("basis", "...", f"needs directions of {self.d_in} numbers each.")
        if len(self.centre) != self.d_in:
            raise reject("centre", "...", f"needs {self.d_in} numbers.")
        _check_range("centre", self.centre)
        if self.strength > 1:
            rule = "is the share that is removed, so it must be a number in [0, 1]."
            raise reject("strength", self.strength, rule)
        _check_orthonormal(self.basis)

    def intervention(self) -> Clamp | Projection:
        """The edit, as the evaluation applies it."""
        if self.kind == CLAMP:
            return Clamp(torch.tensor(self.latents), torch.tensor(self.values), self.gate)
        basis = torch.tensor(self.basis, dtype=torch.float64)
        centre = torch.tensor(self.centre, dtype=torch.float64)
        return Projection(Erasure.onto(basis), centre, self.strength)

    def check_sae(self, sae: SAE[Any]) -> None:
        """Refuse another SAE than the one of the selection.

        Raises:
            ConfigError: the SAE has other weights.
        """
        found = weights_digest(sae)
        if found != self.sae_digest:
            raise reject(
                "selection",
                self.sae or self.hook_name,
                f"was chosen for an SAE with the weights {self.sae_digest[:12]}, and this one has "
                f"{found[:12]}. Load the same SAE in float32 or bfloat16, without folding its "
                "norms, or choose a new selection.",
            )

    def check_width(self, d_in: int, d_sae: int) -> None:
        """Refuse an SAE of another width, or without some of the latents.

        Raises:
            ConfigError: the message names ``d_in`` or ``latents``.
        """
        if self.d_in != d_in:
            rule = f"the SAE reads activations of width {d_in}; the selection is for another SAE."
            raise reject("selection.d_in", self.d_in, rule)
        if max(self.latents) >= d_sae:
            rule = f"the SAE has {d_sae} latents, 0 to {d_sae - 1}; the selection is for another."
            raise reject("selection.latents", max(self.latents), rule)

    def check_vocabulary(self, size: int) -> None:
        """Refuse a model that does not have all tokens of the selection.

        Raises:
            ConfigError: an id of ``ignored_tokens`` is not below ``size``.
        """
        if max(self.ignored_tokens, default=0) >= size:
            rule = f"the model has {size} tokens, 0 to {size - 1}; the selection is for another."
            raise reject("selection.ignored_tokens", max(self.ignored_tokens), rule)

    def save(self, path: str | Path) -> Path:
        """Write the selection as JSON, a field in each line.

        Raises:
            StorageError: the file could not be written.
        """
        path = Path(path).expanduser()
        lines = [f' "{k}": {json.dumps(v, allow_nan=False)}' for k, v in asdict(self).items()]
        with write_failures_named(path, "Nothing else was being written."):
            return write_text_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> UnlearningSelection:
        """Read a selection.

        Raises:
            ConfigError: the file does not exist, is no JSON, or a field is missing, unknown or
                wrong.
        """
        path = Path(path).expanduser()
        try:
            tree = json.loads(read_text("selection", path))
        except ConfigError:
            raise
        except (ValueError, RecursionError) as error:
            raise reject("selection", str(path), f"is no JSON ({error}).") from error
        if not isinstance(tree, dict):
            raise reject("selection", str(path), "must be a mapping of fields.")
        chosen_on = tree.pop("chosen_on", None)
        if chosen_on is not None:
            if not isinstance(chosen_on, dict) or not isinstance(chosen_on.get("corpora"), list):
                raise reject("selection.chosen_on", chosen_on, "must be a mapping with corpora.")
            corpora = [
                parse(Corpus, corpus, f"selection.chosen_on.corpora.{number}.")
                for number, corpus in enumerate(chosen_on.pop("corpora"))
            ]
            chosen_on = parse(ChosenOn, chosen_on, "selection.chosen_on.", corpora=corpora)
        return parse(cls, tree, "selection.", chosen_on=chosen_on)


def _check_range(field: str, values: list[float]) -> None:
    """Refuse numbers that are infinite in float32, in which models and SAEs compute."""
    largest = max(map(abs, values), default=0.0)
    if largest > torch.finfo(torch.float32).max:
        raise reject(field, largest, "is too large for float32. Choose the selection again.")


def _check_orthonormal(basis: list[list[float]]) -> None:
    directions = torch.tensor(basis, dtype=torch.float64)
    error = directions @ directions.T - torch.eye(len(basis), dtype=torch.float64)
    largest = float(error.abs().max())
    if not largest <= ORTHONORMAL:
        rule = (
            f"its directions are not orthonormal: a product differs by {largest:.2g} from 1 or 0. "
            "Orthonormalise them, for instance by torch.linalg.qr."
        )
        raise reject("basis", "...", rule)


def weights_digest(sae: SAE[Any]) -> str:
    """SHA-256 over the names, shapes and values of an SAE's weights, as bfloat16.

    A copy in bfloat16 has the digest of the SAE in float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        rounded = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(rounded.shape)}".encode())
        digest.update(rounded.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
