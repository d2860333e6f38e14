"""``adaptive-ortho doctor``: what this machine and this installation can do."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from saelens_adaptive_ortho.commands.options import Command, NoOptions

PACKAGES = (
    "saelens-adaptive-ortho",
    "sae-lens",
    "torch",
    "transformer-lens",
    "transformers",
    "datasets",
)
SMALL_DISK = 5e9


class Finding(NamedTuple):
    """One line of the examination. ``remedy`` says what to do if the state is not ``ok``."""

    state: Literal["ok", "note", "fault"]
    text: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at versions, devices, the evaluations' packages, the hub, and the disk."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions,
        _device,
        _torchvision,
        _sae_bench,
        _hub,
        _disk,
    )
    for check in checks:
        yield from check()


def _versions() -> Iterator[Finding]:
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield Finding("ok", f"Python {sys.version.split()[0]}, {found}")


def _device() -> Iterator[Finding]:
    import torch

    cores = os.cpu_count() or 1
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            text = f"cuda:{i}: {card.name}, {card.total_memory / 1e9:.0f} GB"
            yield Finding("ok", f"{text}; torch is built for CUDA {torch.version.cuda}")
    elif torch.version.cuda and shutil.which("nvidia-smi"):
        yield Finding(
            "fault",
            f"torch is built for CUDA {torch.version.cuda}, but cannot use the card",
            "Compare this version with the one that `nvidia-smi` shows. Update the driver, or "
            "install a torch for an older CUDA.",
        )
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "fault",
            f"torch {torch.__version__} has no CUDA, but this machine has an NVIDIA card",
            "Install a torch with CUDA (https://pytorch.org/get-started).",
        )
    elif torch.backends.mps.is_available():
        yield Finding("ok", "mps: an Apple GPU; no CUDA")
    else:
        yield Finding("note", f"no GPU; {cores} cores. Small models train in minutes to hours.")


def _torchvision() -> Iterator[Finding]:
    """A torchvision of another build breaks ``import transformers``, although nothing needs it."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        yield Finding(
            "fault",
            f"torchvision {_version('torchvision')} does not fit this torch ({_first(error)})",
            "Nothing here needs it: pip uninstall torchvision.",
        )


def _sae_bench() -> Iterator[Finding]:
    if sys.version_info >= (3, 13):
        yield Finding(
            "note",
            "SAEBench has no build for this Python, so only `unlearning` and `subspace` run",
            "Use Python 3.11 or 3.12 for the others.",
        )
    elif importlib.util.find_spec("sae_bench") is None:
        yield Finding(
            "note",
            "SAEBench is not installed, so only `unlearning` and `subspace` run",
            'pip install "saelens-adaptive-ortho[bench]"',
        )
    else:
        try:
            importlib.import_module("sae_bench.evals.core.main")
        except Exception as error:
            yield Finding(
                "fault",
                f"sae-bench {_version('sae-bench')} cannot be imported ({_first(error)})",
                "Install it again into a fresh environment.",
            )
        else:
            yield Finding("ok", f"sae-bench {_version('sae-bench')}")


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    from saelens_adaptive_ortho.text import hub

    local = "Local model directories and files need no hub."
    if constants.HF_HUB_OFFLINE:
        yield Finding("note", "HF_HUB_OFFLINE is set: only cached models and data sets", local)
        return
    if reason := hub.problem():
        yield Finding("note", f"the Hugging Face hub does not answer ({reason})", local)
    else:
        yield Finding("ok", "the Hugging Face hub answers")
    if get_token() is None:
        yield Finding(
            "note",
            "no hub token: gated models (Gemma, Llama) are refused",
            "hf auth login, after accepting the model's terms on its page.",
        )


def _disk() -> Iterator[Finding]:
    from saelens_adaptive_ortho.text.activation_cache import FOLDER_VARIABLE, cache_root

    for what, folder, remedy in (
        ("this folder", Path.cwd(), "Choose another output_path."),
        ("cached activations", cache_root(), f"Set {FOLDER_VARIABLE} to a folder elsewhere."),
    ):
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        state = "note" if free < SMALL_DISK else "ok"
        yield Finding(
            state, f"{free / 1e9:,.0f} GB free for {what} ({folder})", remedy * (state != "ok")
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version"


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def run(_: NoOptions) -> int:
    """Print the findings. The status is 1 if there is a fault."""
    faults = 0
    for state, text, remedy in examine():
        print(f"{state:<6}{text}.".replace("..", "."))
        if remedy and state != "ok":
            print(f"{'':<6}  {remedy}")
        faults += state == "fault"
    return int(faults > 0)


COMMAND = Command(
    name="doctor",
    help="Show what this machine and installation can do, and what is wrong.",
    options=NoOptions,
    run=run,
)
