"""What ``saelens_adaptive_ortho`` itself offers; importing this registers the architectures."""

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
    "register",
]
