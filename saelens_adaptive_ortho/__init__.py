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
    # The report needs no torch and the pure modules no SAELens: without either, the package
    # still serves those. Any other missing module is a broken installation and must be seen.
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
