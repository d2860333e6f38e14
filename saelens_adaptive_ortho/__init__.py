"""Sparse autoencoders with adaptively orthogonal decoder directions, for SAELens.

Importing the package registers the architectures ``adaptive_ortho_standard``, ``_topk``,
``_batchtopk``, ``_jumprelu``, ``_gated`` and ``_matryoshka_batchtopk`` with SAELens.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saelens_adaptive_ortho.judging.unlearning.choosing import choose_selection
    from saelens_adaptive_ortho.judging.unlearning.saved import UnlearningSelection
    from saelens_adaptive_ortho.judging.unlearning.use import unlearn

__version__ = version("saelens-adaptive-ortho")

# The program reads its options first; `adaptive_ortho_command` says why.
_PROGRAM = "adaptive_ortho_command" in sys.modules

try:
    if not _PROGRAM:
        from saelens_adaptive_ortho.errors import ConfigError
        from saelens_adaptive_ortho.host.architectures import (
            ARCHITECTURES,
            AdaptiveOrthoBatchTopKConfig,
            AdaptiveOrthoGatedConfig,
            AdaptiveOrthoJumpReLUConfig,
            AdaptiveOrthoMatryoshkaBatchTopKConfig,
            AdaptiveOrthoStandardConfig,
            AdaptiveOrthoTopKConfig,
            register,
        )
        from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner
        from saelens_adaptive_ortho.training.runner_config import AdaptiveOrthoRunnerConfig
except ModuleNotFoundError as error:
    # The report does not need torch, and the pure modules do not need SAELens. They must work if
    # torch or SAELens is missing. Any other missing module means a broken installation.
    if error.name not in {"torch", "sae_lens"}:
        raise
    __all__ = ["__version__"]
else:
    __all__ = [
        "ARCHITECTURES",
        "AdaptiveOrthoBatchTopKConfig",
        "AdaptiveOrthoGatedConfig",
        "AdaptiveOrthoJumpReLUConfig",
        "AdaptiveOrthoMatryoshkaBatchTopKConfig",
        "AdaptiveOrthoRunner",
        "AdaptiveOrthoRunnerConfig",
        "AdaptiveOrthoStandardConfig",
        "AdaptiveOrthoTopKConfig",
        "ConfigError",
        "UnlearningSelection",
        "__version__",
        "choose_selection",
        "register",
        "unlearn",
    ]

# What judges or changes finished models is imported when it is first used: training needs none of
# it. In the program, this holds for the other names, too.
_LATER = {
    "ARCHITECTURES": "host.architectures",
    "AdaptiveOrthoBatchTopKConfig": "host.architectures",
    "AdaptiveOrthoGatedConfig": "host.architectures",
    "AdaptiveOrthoJumpReLUConfig": "host.architectures",
    "AdaptiveOrthoMatryoshkaBatchTopKConfig": "host.architectures",
    "AdaptiveOrthoRunner": "training.runner",
    "AdaptiveOrthoRunnerConfig": "training.runner_config",
    "AdaptiveOrthoStandardConfig": "host.architectures",
    "AdaptiveOrthoTopKConfig": "host.architectures",
    "ConfigError": "errors",
    "UnlearningSelection": "judging.unlearning.saved",
    "choose_selection": "judging.unlearning.choosing",
    "register": "host.architectures",
    "unlearn": "judging.unlearning.use",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = value
    return value
