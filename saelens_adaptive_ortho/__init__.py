"""Sparse autoencoders with adaptively orthogonal decoder directions, for SAELens.

Importing the package registers the architectures ``adaptive_ortho_standard``, ``_topk``,
``_batchtopk``, ``_jumprelu``, ``_gated`` and ``_matryoshka_batchtopk`` with SAELens.
"""

from importlib.metadata import version

__version__ = version("saelens-adaptive-ortho")

try:
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
        "__version__",
        "register",
    ]
