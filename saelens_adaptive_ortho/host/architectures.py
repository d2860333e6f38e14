"""The registered architectures. Each is a stock SAELens architecture plus the mixin.

To add an architecture, subclass the stock config after :class:`OrthoConfig` and the stock training
class after :class:`AdaptiveOrthoMixin`. Name the stock inference config that it exports to, and
list the pair in ``ARCHITECTURES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Optional, final

from pydantic import Field, NonNegativeFloat, PositiveFloat
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SAEConfig,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
    register_sae_training_class,
)
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from torch import Tensor

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.host.batchtopk import SampledBatchTopK
from saelens_adaptive_ortho.host.config import OrthoConfig
from saelens_adaptive_ortho.host.penalty_mixin import AdaptiveOrthoMixin
from saelens_adaptive_ortho.host.sparse_mixin import SparseStepMixin
from saelens_adaptive_ortho.host.switch_mixin import inference_config
from saelens_adaptive_ortho.settings import Dtype, parse

PREFIX = "adaptive_ortho_"


@dataclass
class AdaptiveOrthoStandardConfig(OrthoConfig, StandardTrainingSAEConfig):
    """SAELens's standard (L1) training config plus the fields of OrthoConfig."""

    @classmethod
    def architecture(cls) -> str:
        return "adaptive_ortho_standard"

    def get_inference_config_class(self) -> type[SAEConfig]:
        return inference_config(self, StandardSAEConfig)


@dataclass
class AdaptiveOrthoTopKConfig(OrthoConfig, TopKTrainingSAEConfig):
    """SAELens's TopK training config plus the fields of OrthoConfig."""

    @classmethod
    def architecture(cls) -> str:
        return "adaptive_ortho_topk"

    def get_inference_config_class(self) -> type[SAEConfig]:
        return inference_config(self, TopKSAEConfig)


@dataclass
class AdaptiveOrthoBatchTopKConfig(OrthoConfig, BatchTopKTrainingSAEConfig):
    """SAELens's BatchTopK training config plus the fields of OrthoConfig."""

    @classmethod
    def architecture(cls) -> str:
        return "adaptive_ortho_batchtopk"

    def get_inference_config_class(self) -> type[SAEConfig]:
        return inference_config(self, JumpReLUSAEConfig)


@dataclass
class AdaptiveOrthoJumpReLUConfig(OrthoConfig, JumpReLUTrainingSAEConfig):
    """SAELens's JumpReLU training config plus the fields of OrthoConfig."""

    @classmethod
    def architecture(cls) -> str:
        return "adaptive_ortho_jumprelu"

    def get_inference_config_class(self) -> type[SAEConfig]:
        return inference_config(self, JumpReLUSAEConfig)


@dataclass
class AdaptiveOrthoGatedConfig(OrthoConfig, GatedTrainingSAEConfig):
    """SAELens's gated training config plus the fields of OrthoConfig."""

    @classmethod
    def architecture(cls) -> str:
        return "adaptive_ortho_gated"

    def get_inference_config_class(self) -> type[SAEConfig]:
        return inference_config(self, GatedSAEConfig)


@dataclass
class AdaptiveOrthoMatryoshkaBatchTopKConfig(OrthoConfig, MatryoshkaBatchTopKTrainingSAEConfig):
    """SAELens's Matryoshka BatchTopK training config plus the fields of OrthoConfig."""

    @classmethod
    def architecture(cls) -> str:
        return "adaptive_ortho_matryoshka_batchtopk"

    def get_inference_config_class(self) -> type[SAEConfig]:
        return inference_config(self, JumpReLUSAEConfig)


@final
class AdaptiveOrthoStandardSAE(AdaptiveOrthoMixin, SparseStepMixin, StandardTrainingSAE):
    """SAELens's standard (L1) training SAE with the penalty; exports as a stock SAE."""


@final
class AdaptiveOrthoTopKSAE(AdaptiveOrthoMixin, SparseStepMixin, TopKTrainingSAE):
    """SAELens's TopK training SAE with the penalty; exports as a stock SAE."""


@final
class AdaptiveOrthoBatchTopKSAE(AdaptiveOrthoMixin, SparseStepMixin, BatchTopKTrainingSAE):
    """SAELens's BatchTopK training SAE with the penalty; exports as a stock SAE."""

    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return SampledBatchTopK(self.cfg.k)


@final
class AdaptiveOrthoJumpReLUSAE(AdaptiveOrthoMixin, JumpReLUTrainingSAE):
    """SAELens's JumpReLU training SAE with the penalty; exports as a stock SAE."""


@final
class AdaptiveOrthoGatedSAE(AdaptiveOrthoMixin, GatedTrainingSAE):
    """SAELens's gated training SAE with the penalty; exports as a stock SAE."""


@final
class AdaptiveOrthoMatryoshkaBatchTopKSAE(
    AdaptiveOrthoMixin, SparseStepMixin, MatryoshkaBatchTopKTrainingSAE
):
    """SAELens's Matryoshka BatchTopK training SAE with the penalty; exports as a stock SAE."""

    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return SampledBatchTopK(self.cfg.k)


ARCHITECTURES: dict[str, tuple[type[TrainingSAE[Any]], type[TrainingSAEConfig]]] = {
    config.architecture(): (sae, config)
    for sae, config in [
        (AdaptiveOrthoStandardSAE, AdaptiveOrthoStandardConfig),
        (AdaptiveOrthoTopKSAE, AdaptiveOrthoTopKConfig),
        (AdaptiveOrthoBatchTopKSAE, AdaptiveOrthoBatchTopKConfig),
        (AdaptiveOrthoJumpReLUSAE, AdaptiveOrthoJumpReLUConfig),
        (AdaptiveOrthoGatedSAE, AdaptiveOrthoGatedConfig),
        (AdaptiveOrthoMatryoshkaBatchTopKSAE, AdaptiveOrthoMatryoshkaBatchTopKConfig),
    ]
}


def register() -> None:
    """Register the architectures with SAELens. A second call does nothing."""
    for name, (sae, config) in ARCHITECTURES.items():
        if name not in SAE_TRAINING_CLASS_REGISTRY:
            register_sae_training_class(name, sae, config)


register()


Width = Annotated[int, Field(gt=0, lt=2**31)]
SAE_FIELDS: dict[str, Any] = {
    "d_in": Width,
    "d_sae": Width,
    "dtype": Dtype,
    "aux_loss_coefficient": NonNegativeFloat,
    "decoder_init_norm": Optional[PositiveFloat],  # noqa: UP045  an Annotated takes no |
}
"""Bounds of SAELens's own fields of an SAE config."""


def construct_sae(architecture: str, sae: dict[str, Any], prefix: str) -> Any:
    """Build the config of an architecture from settings.

    Raises:
        ConfigError: a field is unknown or a value cannot work.
    """
    try:
        return parse(get_sae_training_class(architecture)[1], sae, prefix, SAE_FIELDS)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{prefix[:-1]}: SAELens refuses it: {error}") from error
