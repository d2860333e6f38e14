"""Fields of the switches: training methods that are independent of each other and of the penalty.

By default every switch is off, and training is then bit-identical to the stock architecture.
"""

# This module does not postpone annotations. SAELens's command line resolves postponed annotations
# of a dataclass in the module of only one base, where names from the other base would be missing.

from dataclasses import dataclass, field
from typing import Any, Literal

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.settings import bounds

OrthoDecoderInit = Literal["stock", "orthogonal", "data"]

# For each trained architecture, the stock architecture with a skip connection that it exports to.
# TopK and gated are missing: no stock class has their activation function and a skip connection.
SKIP_EXPORTS = {
    "standard": "skip_transcoder",
    "batchtopk": "jumprelu_skip_transcoder",
    "jumprelu": "jumprelu_skip_transcoder",
    "matryoshka_batchtopk": "jumprelu_skip_transcoder",
}
# Normalisations that must be undone after decoding. The stock classes with a skip do not do this.
UNDONE_NORMALISATIONS = ("constant_norm_rescale", "layer_norm")


@dataclass(kw_only=True)
class SwitchConfig:
    """The switches; see :mod:`saelens_adaptive_ortho.maths.switches` for the formulas.

    Args:
        ortho_unit_norm: keep decoder rows at norm 1. The radial part of their gradient is removed,
            and the rows are renormalised before every step.
        ortho_accumulation: number of batches whose mean gradient makes one optimiser step. The
            learning rate schedule and all coefficients still advance with every batch.
        ortho_clip_norm: largest gradient norm; None keeps SAELens's 1.0. Any value also logs the
            norm before clipping as ``grad_norm``.
        ortho_lr_power: p of the per-latent learning rates ``lr * clip((g / P(i))^p, min, max)``,
            where ``P(i)`` is the running firing rate and g is its geometric mean over latents that
            fire. 0 gives all latents the same learning rate.
        ortho_lr_min: smallest multiplier, in (0, 1].
        ortho_lr_max: largest multiplier, at least 1; latents that never fire get it.
        ortho_skip_rank: rank of a trained linear skip connection from the SAE's (centred) input to
            its output; 0 for no skip connection. It must be far below ``d_in``: at full rank the
            skip connection learns the identity, and nothing is left for the latents to explain.
        ortho_dropout: p, share of ``feature_acts`` set to 0 before decoding, in training only. The
            rest is divided by ``1 - p``. Sparsity losses and thresholds see no dropout.
        ortho_unlock_start: share of latents in use at step 0. The other latents are locked: they
            are silent and get no gradient. 1 unlocks all latents from the start.
        ortho_unlock_growth: share of all latents that each growth unlocks.
        ortho_unlock_every: steps between growths.
        ortho_latent_norm: divide each latent's pre-activation by its running root mean square.
        ortho_decoder_init: ``stock``, ``orthogonal`` (blocks of orthonormal rows) or ``data``
            (centred activations of the first batch). The encoder starts as the decoder's transpose.
    """

    ortho_unit_norm: bool = False
    ortho_accumulation: int = field(default=1, metadata=bounds(ge=1))
    ortho_clip_norm: float | None = field(default=None, metadata=bounds(gt=0))
    ortho_lr_power: float = field(default=0.0, metadata=bounds(ge=0, le=1))
    ortho_lr_min: float = field(default=0.1, metadata=bounds(gt=0, le=1))
    ortho_lr_max: float = field(default=10.0, metadata=bounds(ge=1))
    ortho_skip_rank: int = field(default=0, metadata=bounds(ge=0))
    ortho_dropout: float = field(default=0.0, metadata=bounds(ge=0, lt=1))
    ortho_unlock_start: float = field(default=1.0, metadata=bounds(gt=0, le=1))
    ortho_unlock_growth: float = field(default=0.1, metadata=bounds(gt=0, le=1))
    ortho_unlock_every: int = field(default=1000, metadata=bounds(ge=1))
    ortho_latent_norm: bool = False
    ortho_decoder_init: OrthoDecoderInit = "stock"

    @property
    def d_out(self) -> int:
        """Output width, which the stock classes with a skip connection read."""
        return self.d_in  # type: ignore[attr-defined]  # a field of the stock config

    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        exported = super().get_inference_sae_cfg_dict()  # type: ignore[misc]
        if self.ortho_skip_rank:
            # The export folds it into b_enc, because these classes do not subtract b_dec.
            exported["apply_b_dec_to_input"] = False
        return exported


def needs_own_loop(cfg: Any) -> list[str]:
    """Names of the active switches that only this project's training loop supports."""
    defaults = {"ortho_accumulation": 1, "ortho_clip_norm": None, "ortho_lr_power": 0}
    return [name for name, off in defaults.items() if getattr(cfg, name) != off]


def validate_switches(cfg: Any) -> None:
    """Check that the switches of an SAE config fit each other and the architecture.

    Raises:
        ConfigError: naming the field, its value and the rule it breaks.
    """
    base = cfg.architecture().removeprefix("adaptive_ortho_")
    if cfg.ortho_skip_rank:
        _validate_skip(cfg, base)
    if cfg.ortho_dropout and getattr(cfg, "use_sparse_activations", False):
        raise reject(
            "ortho_dropout",
            cfg.ortho_dropout,
            "PyTorch cannot differentiate dropout on sparse tensors. Set "
            "use_sparse_activations: false.",
        )
    levels = getattr(cfg, "use_matryoshka_aux_loss", False)
    if levels and cfg.normalize_activations in UNDONE_NORMALISATIONS:
        raise reject(
            "use_matryoshka_aux_loss",
            levels,
            f"SAELens's loss compares activations before and after {cfg.normalize_activations}. "
            "Set use_matryoshka_aux_loss: false, or normalize_activations: "
            "expected_average_only_in.",
        )
    if cfg.ortho_unlock_start < 1 and base == "gated":
        raise reject(
            "ortho_unlock_start",
            cfg.ortho_unlock_start,
            "a gated SAE trains every latent through its gate's own reconstruction, so no latent "
            "can be locked. Use another architecture.",
        )


def _validate_skip(cfg: Any, base: str) -> None:
    if base not in SKIP_EXPORTS:
        raise reject(
            "ortho_skip_rank",
            cfg.ortho_skip_rank,
            f"SAELens has no architecture with a skip connection for the export of a {base} SAE. "
            f"Use {', '.join(SKIP_EXPORTS)}.",
        )
    if cfg.ortho_skip_rank >= cfg.d_in:
        raise reject(
            "ortho_skip_rank",
            cfg.ortho_skip_rank,
            f"must be below d_in = {cfg.d_in}: a skip connection of full rank learns the identity, "
            "and the SAE explains everything without any latent.",
        )
    if cfg.normalize_activations in UNDONE_NORMALISATIONS:
        raise reject(
            "normalize_activations",
            cfg.normalize_activations,
            "SAELens's architectures with a skip connection do not undo it after decoding, so the "
            "SAE cannot be exported. Use expected_average_only_in, or ortho_skip_rank: 0.",
        )
