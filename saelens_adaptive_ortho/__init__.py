"""Sparse autoencoders with adaptively orthogonal decoder directions, for SAELens.

Importing the package registers the architectures ``adaptive_ortho_standard``, ``_topk``,
``_batchtopk``, ``_jumprelu``, ``_gated`` and ``_matryoshka_batchtopk`` with SAELens. In the process
of the command line it does not: a command loads what it needs when it runs, so that its help, which
needs no torch, is there at once.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _is_command_line() -> bool:
    """Whether this process is ``adaptive-ortho`` or ``python -m`` with its module."""
    script = sys.argv[0] if sys.argv else ""
    as_module = script == "-m" and f"{__name__}.commands.cli" in sys.orig_argv
    return as_module or Path(script).stem == "adaptive-ortho"


if _is_command_line():

    def __getattr__(name: str) -> Any:
        # What another package imports from here, if an evaluation of its own is in use.
        if name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is not None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from saelens_adaptive_ortho import api

        return getattr(api, name)

else:
    try:
        from saelens_adaptive_ortho.api import *  # noqa: F403
    except ModuleNotFoundError as error:
        # The report needs no torch and the pure modules no SAELens: without either, the package
        # still serves those. Any other missing module is a broken installation and must be seen.
        if error.name not in {"torch", "sae_lens"}:
            raise
