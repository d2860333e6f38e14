"""Safe reading of other libraries' files: nothing is unpickled, and every tensor is checked.

Each error names the file and the remedy.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from saelens_adaptive_ortho.errors import ConfigError, reject
from saelens_adaptive_ortho.files import read_text

T = TypeVar("T")
LONGEST = 1 << 20  # bytes of a config


class Converted(NamedTuple):
    """An SAE of another library, in the terms of SAELens.

    Attributes:
        config: fields of a config of SAELens: ``architecture``, ``apply_b_dec_to_input``, ``k``...
            ``d_in`` and ``d_sae`` come from the tensors.
        state: the tensors of the inference SAE, in float32.
        metadata: ``model_name``, ``hook_name``, ``context_size`` and ``prepend_bos``, as far as
            the folder tells them.
        about_hook: what the user should know if ``--hook`` is not given: why there is no
            ``hook_name``, or why it is a guess. Empty if the folder names the hook.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    metadata: dict[str, Any]
    about_hook: str = ""


def refusal(file: Path, rule: str) -> ConfigError:
    """The error about a file of an SAE."""
    return reject("SAE", str(file), rule)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigError: the file is missing, or it holds no JSON object.
    """
    if not file.exists():
        raise refusal(file, "is missing. Copy it from the folder in which the SAE was saved.")
    text = read_text("SAE", file, LONGEST)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(file, f"is no valid JSON ({error}). Copy it again.") from error
    if not isinstance(found, dict):
        raise refusal(file, "must hold a JSON object. Copy it again.")
    return found


def value(
    config: Mapping[str, Any], name: str, kind: type[T], file: Path, default: T | None = None
) -> T:
    """A value of a config, of this type.

    A default stands in for a value that is missing or null.

    Raises:
        ConfigError: the value is missing and has no default, or it has another type.
    """
    found = config.get(name)
    if found is None and default is not None:
        return default
    if kind is float and type(found) is int:
        found = float(found)
    if type(found) is not kind:
        said = f"says {name}={found!r}" if name in config else f"has no {name}"
        raise refusal(file, f"{said}; it needs {name} as {kind.__name__}.")
    return found


def top_k(config: Mapping[str, Any], name: str, d_sae: int, file: Path) -> int:
    """The number of latents that a top-k SAE chooses.

    Raises:
        ConfigError: it is missing, or it is not between 1 and the number of latents.
    """
    k = value(config, name, int, file)
    if not 0 < k <= d_sae:
        raise refusal(file, f"says {name}={k}; it must be between 1 and the {d_sae} latents.")
    return k


def context_size(config: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    """The metadata ``context_size``; empty if the config does not say it.

    Raises:
        ConfigError: it is no whole number above 0.
    """
    if config.get(name) is None:
        return {}
    size = value(config, name, int, file)
    if size < 1:
        raise refusal(file, f"says {name}={size}; it must be at least 1.")
    return {"context_size": size}


# ------------------------------------------------------------------ tensors


class Tensors:
    """The tensors of one file. Each is taken once, with a check of its shape.

    Args:
        file: the file, for errors.
        tensors: its tensors by name.
    """

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        self.file = file
        self._left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor in float32.

        Args:
            shape: its sizes; None where any size is right.

        Raises:
            ConfigError: there is no such tensor, its shape is another one, it holds no numbers, or
                a number is NaN or infinite.
        """
        if name not in self._left:
            names = ", ".join(sorted(self._left)) or "none"
            raise refusal(
                self.file,
                f"has no tensor {name}. Left are: {names}. Do the config and the weights belong to "
                "different SAEs?",
            )
        found = self._left.pop(name)
        if len(found.shape) != len(shape) or any(
            want not in (None, size) for want, size in zip(shape, found.shape, strict=True)
        ):
            wanted = ", ".join("n" if size is None else str(size) for size in shape)
            raise refusal(
                self.file,
                f"{name} has the shape {tuple(found.shape)}, not ({wanted}). Is the file damaged, "
                "or does it belong to another config?",
            )
        if found.is_complex() or found.dtype == torch.bool:
            raise refusal(self.file, f"{name} holds {found.dtype}, not numbers. Copy it again.")
        found = found.to(torch.float32).contiguous()
        if not bool(found.isfinite().all()):
            raise refusal(self.file, f"{name} holds NaN or infinity. The SAE cannot be judged.")
        return found

    def drop(self, *names: str) -> None:
        """Leave out tensors that do not change what the SAE computes."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuse tensors that nobody took: the SAE would compute something else with them.

        Raises:
            ConfigError: tensors are left.
        """
        if self._left:
            names = ", ".join(sorted(self._left))
            rule = f"holds the further tensors {names}. An SAE of this kind has none such."
            raise refusal(self.file, rule)


def read_safetensors(file: Path) -> Tensors:
    """The tensors of a safetensors file.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    return Tensors(file, _read(file, load_file))


def read_npz(file: Path) -> Tensors:
    """The arrays of an npz file. NumPy refuses pickled objects by default.

    Raises:
        ConfigError: the file is missing or damaged, or holds something else than numbers.
    """

    def load(file: Path) -> dict[str, Tensor]:
        with np.load(file) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    return Tensors(file, _read(file, load))


def read_pt(file: Path) -> Tensors:
    """The tensors of a file of torch.save, which holds a dictionary of tensors and nothing else.

    Raises:
        ConfigError: the file is missing or damaged, or holds something else than tensors.
    """
    found = _read(file, lambda path: torch.load(path, map_location="cpu", weights_only=True))
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise refusal(
            file,
            "is no dictionary of tensors. If it is a backup of an unfinished training, load it "
            "with its library and save the SAE's state_dict.",
        )
    return Tensors(file, found)


def _read(file: Path, load: Callable[[Path], T]) -> T:
    if not file.is_file():
        raise refusal(file, "is missing. Copy it from the folder in which the SAE was saved.")
    try:
        return load(file)
    except pickle.UnpicklingError as error:
        raise refusal(
            file,
            "cannot be read: it is damaged, or it holds more than tensors, and nothing is "
            "unpickled. Load it with its library and save the SAE's state_dict.",
        ) from error
    except Exception as error:  # each library has its own errors for a damaged file
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        rule = f"cannot be read ({text}). Is it truncated? Copy it again."
        raise refusal(file, rule) from error


# ------------------------------------------------------------------ algebra


def unit_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same SAE with decoder rows of norm 1: ``W_d / |W_d|``, ``W_e |W_d|``, ``b_e |W_d|``.

    With ReLU, activations are multiplied by the norm of their row, and the output stays the same.
    With top-k, the latents with the largest ``activation * norm`` are then chosen. A row of zeros
    stays zero, and so does its latent.

    Args:
        state: ``W_enc``, ``b_enc``, ``W_dec``, ``b_dec``.
    """
    norms = state["W_dec"].norm(dim=1)
    return {
        **state,
        "W_dec": state["W_dec"] / torch.where(norms > 0, norms, 1.0)[:, None],
        "W_enc": state["W_enc"] * norms,
        "b_enc": state["b_enc"] * norms,
    }
