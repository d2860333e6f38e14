"""What each metric is called, its unit, and which way is better.

A metric's key is ``{eval}/{name}``, for example ``core/pooled/explained_variance`` or
``subspace/principal_angle/mean_deg``. `describe` looks a key up in `METRICS` after taking out
the corpus (``pooled``, ``forget``, ``retain``) of a core metric, and falls back on ever shorter
prefixes, so that ``subspace/condition_number`` covers every group. An unknown key is shown
under its own name and has no direction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Direction = Literal["higher", "lower"]

DOMAINS = ("pooled", "forget", "retain")

#: Prefix -> (label, unit, better direction or None). No direction is given where "better" would
#: be a matter of taste: L0 is set by the sparsity target, the orthogonality loss is what one
#: variant optimises and another does not, and group counts describe rather than judge.
METRICS: dict[str, tuple[str, str, Direction | None]] = {
    "core/explained_variance": ("explained variance", "", "higher"),
    "core/explained_variance_legacy": ("explained variance (legacy)", "", "higher"),
    "core/ce_loss_score": ("CE loss score", "", "higher"),
    "core/ce_loss_with_sae": ("CE loss with SAE", "nats", "lower"),
    "core/ce_loss_without_sae": ("CE loss without SAE", "nats", None),
    "core/ce_loss_with_ablation": ("CE loss with ablation", "nats", None),
    "core/kl_div_score": ("KL divergence score", "", "higher"),
    "core/kl_div_with_sae": ("KL divergence with SAE", "nats", "lower"),
    "core/kl_div_with_ablation": ("KL divergence with ablation", "nats", None),
    "core/mse": ("reconstruction MSE", "", "lower"),
    "core/cossim": ("reconstruction cosine", "", "higher"),
    "core/l0": ("L0", "latents", None),
    "core/l1": ("L1", "", None),
    "core/frac_alive": ("fraction alive", "", "higher"),
    "core/average_max_decoder_cosine_sim": ("mean max decoder cosine", "", "lower"),
    "core/average_max_encoder_cosine_sim": ("mean max encoder cosine", "", "lower"),
    "subspace/mean_max_cosine": ("mean max cosine", "", "lower"),
    "subspace/n_forget": ("forget latents", "latents", None),
    "subspace/n_retain": ("retain latents", "latents", None),
    "subspace/n_shared": ("shared latents", "latents", None),
    "subspace/condition_number": ("condition number", "", "lower"),
    "subspace/effective_rank": ("effective rank", "", None),
    "subspace/principal_angle/min_deg": ("smallest principal angle", "°", "higher"),
    "subspace/principal_angle/mean_deg": ("mean principal angle", "°", "higher"),
    "subspace/principal_angle/max_deg": ("largest principal angle", "°", "higher"),
    "training/tokens": ("training tokens", "tokens", None),
    "training/steps": ("training steps", "steps", None),
    "training/train_seconds": ("training time", "s", "lower"),
    "training/dead_latents": ("dead latents", "latents", "lower"),
    "training/final_mse_loss": ("final training MSE", "", "lower"),
    "training/final_ortho_loss": ("final orthogonality loss", "", None),
    "training/n_groups": ("groups", "groups", None),
    "training/forget_latents": ("forget latents (training)", "latents", None),
    "training/retain_latents": ("retain latents (training)", "latents", None),
    "training/shared_latents": ("shared latents (training)", "latents", None),
}

_HEADLINE_CORE = ("explained_variance", "ce_loss_score", "l0", "frac_alive")
_HEADLINE_REST = (
    "subspace/principal_angle/mean_deg",
    "subspace/principal_angle/min_deg",
    "subspace/mean_max_cosine",
    "subspace/condition_number/forget",
    "subspace/condition_number/retain",
    "subspace/condition_number/shared",
    "subspace/condition_number/forget+retain",
    "training/train_seconds",
)


@dataclass(frozen=True)
class MetricInfo:
    """How to present the metric ``key``.

    ``qualifier`` names the corpus or group the value belongs to ("" where there is none);
    ``direction`` is None where neither way is better.
    """

    key: str
    name: str
    qualifier: str
    unit: str
    direction: Direction | None

    @property
    def label(self) -> str:
        """Name with its qualifier: ``explained variance, pooled``."""
        return f"{self.name}, {self.qualifier}" if self.qualifier else self.name

    @property
    def arrow(self) -> str:
        """``↑`` where higher is better, ``↓`` where lower is, else an empty string."""
        return {"higher": "↑", "lower": "↓"}.get(self.direction or "", "")


def describe(key: str) -> MetricInfo:
    """Return label, unit and direction of ``key`` (``{eval}/{name}``)."""
    parts = key.split("/")
    domain = ""
    if len(parts) > 2 and parts[1] in DOMAINS:
        domain = parts.pop(1)
    for length in range(len(parts), 1, -1):
        known = METRICS.get("/".join(parts[:length]))
        if known is not None:
            qualifier = ", ".join(part for part in (domain, *parts[length:]) if part)
            return MetricInfo(key, known[0], qualifier.replace("+", " + "), known[1], known[2])
    name = " ".join(parts[1:] or parts).replace("_", " ")
    return MetricInfo(key, name, domain, "", None)


def headline_keys(keys: Iterable[str]) -> list[str]:
    """Return the headline metrics among ``keys``, reconstruction first, then geometry, time."""
    present = set(keys)
    wanted = [f"core/{domain}/{name}" for name in _HEADLINE_CORE for domain in DOMAINS]
    return [key for key in (*wanted, *_HEADLINE_REST) if key in present]
