"""Fields of the switches: training ideas that are independent of each other and of the penalty.

Every default is *off*, and off is bit-identical to the stock architecture.
"""

# No postponed annotations: SAELens's command line resolves those of a dataclass in the module of
# one of its bases only, where the names of the other's would be missing.

from dataclasses import dataclass, field
from typing import Any, Literal

from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.settings import bounds

OrthoDecoderInit = Literal["stock", "orthogonal", "data"]

# The stock architecture that can hold a skip connection, by the architecture that is trained.
# TopK and gated have none: no stock class has both their activation function and a skip.
SKIP_EXPORTS = {
    "standard": "skip_transcoder",
    "batchtopk": "jumprelu_skip_transcoder",
    "jumprelu": "jumprelu_skip_transcoder",
    "matryoshka_batchtopk": "jumprelu_skip_transcoder",
}
# Undone after decoding, which the stock classes with a skip connection do not do.
UNDONE_NORMALISATIONS = ("constant_norm_rescale", "layer_norm")


@dataclass(kw_only=True)
class SwitchConfig:
    """The switches; see :mod:`saelens_adaptive_ortho.maths.switches` for the formulas.

    Args:
        ortho_unit_norm: keep decoder rows at norm 1: the radial part of their gradient is removed
            and they are renormalised before every step.
        ortho_accumulation: batches whose mean gradient makes one optimiser step. The learning
            rate's schedule and all coefficients still advance with every batch.
        ortho_clip_norm: largest gradient norm; None leaves SAELens's own 1.0. Any value also logs
            the norm before clipping as ``grad_norm``.
        ortho_lr_power: p, per-latent learning rates ``lr * clip((g / P(i))^p, min, max)`` where
            ``P(i)`` is the running firing rate and g the geometric mean over latents that fire;
            0 gives every latent the same.
        ortho_lr_min: smallest multiplier, in (0, 1].
        ortho_lr_max: largest multiplier, at least 1; latents that never fire get it.
        ortho_skip_rank: rank of a linear skip connection from the SAE's (centred) input to its
            output, trained along; 0 for none. It must stay far below ``d_in``: at full rank it
            is the identity, and latents have nothing left to explain.
        ortho_dropout: share of ``feature_acts`` set to 0 before decoding, in training only;
            the rest is divided by ``1 - p``. Sparsity losses and thresholds see no dropout.
        ortho_unlock_start: share of latents in use at step 0; the rest is locked: silent, and
            without gradient. 1 unlocks all from the start.
        ortho_unlock_growth: share of all latents unlocked at each growth.
        ortho_unlock_every: steps between growths.
        ortho_latent_norm: divide each latent's pre-activation by its running root mean square.
        ortho_decoder_init: ``stock``, ``orthogonal`` (blocks of orthonormal rows) or ``data``
            (centred activations of the first batch); the encoder starts as its transpose.
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
        """Output width, which the stock classes with a skip connection ask for."""
        return self.d_in  # type: ignore[attr-defined]  # of the stock config beside us

    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        exported = super().get_inference_sae_cfg_dict()  # type: ignore[misc]
        if self.ortho_skip_rank:
            # Folded into b_enc by the export: those classes never subtract b_dec themselves.
            exported["apply_b_dec_to_input"] = False
        return exported


def needs_own_loop(cfg: Any) -> list[str]:
    """Names of the fields that are set and that only this project's training loop carries out."""
    loop = {"ortho_accumulation": 1, "ortho_clip_norm": None, "ortho_lr_power": 0}
    return [name for name, off in loop.items() if getattr(cfg, name) != off]


def validate_switches(cfg: Any) -> None:
    """Check what the switches of an SAE config ask of each other and of its architecture.

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
            "PyTorch cannot differentiate it on sparse tensors; set use_sparse_activations: false.",
        )
    if cfg.ortho_unlock_start < 1 and base == "gated":
        raise reject(
            "ortho_unlock_start",
            cfg.ortho_unlock_start,
            "a gated SAE trains every latent through its gate's own reconstruction, so none can "
            "be locked; use another architecture.",
        )


def _validate_skip(cfg: Any, base: str) -> None:
    if base not in SKIP_EXPORTS:
        raise reject(
            "ortho_skip_rank",
            cfg.ortho_skip_rank,
            f"SAELens has no architecture with a skip connection that a {base} SAE could be saved "
            f"as; use {', '.join(SKIP_EXPORTS)}.",
        )
    if cfg.ortho_skip_rank >= cfg.d_in:
        raise reject(
            "ortho_skip_rank",
            cfg.ortho_skip_rank,
            f"must be below d_in = {cfg.d_in}: a skip connection of full rank learns the identity, "
            "and the SAE explains everything without a single latent.",
        )
    if cfg.normalize_activations in UNDONE_NORMALISATIONS:
        raise reject(
            "normalize_activations",
            cfg.normalize_activations,
            "SAELens's architectures with a skip connection do not undo it after decoding, so the "
            "SAE could not be saved; use expected_average_only_in, or ortho_skip_rank: 0.",
        )
