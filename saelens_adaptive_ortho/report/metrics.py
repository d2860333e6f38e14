"""What each metric is called, its unit, and which way is better.

A metric's key is ``{eval}/{name}``, for example ``core/pooled/explained_variance`` or
``subspace/principal_angle/mean_deg``. `describe` looks a key up in `METRICS` after taking out
the corpus (``pooled``, ``forget``, ``retain``) of a core metric, and falls back on ever shorter
prefixes, so that ``subspace/condition_number`` covers every group. A number after an underscore
is looked up as ``{n}`` and put into the label. An unknown key is shown under its own name and has
no direction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from saelens_adaptive_ortho.report.evaluations import DOMAINS, evaluation

Direction = Literal["higher", "lower"]

_NUMBER = re.compile(r"(?<=_)\d+(?:\.\d+)?(?=[_/]|$)")


def _probing(eval: str) -> dict[str, tuple[str, str, Direction | None]]:
    rows: dict[str, tuple[str, str, Direction | None]] = {}
    for name, label in (("accuracy", "accuracy"), ("auc", "AUC"), ("f1", "F1")):
        rows[f"{eval}/sae_top_{{n}}_{name}"] = (f"{label}, k = {{n}}", "", "higher")
        rows[f"{eval}/sae_{name}"] = (f"{label}, all latents", "", "higher")
        # Baselines without an SAE are the same for every variant.
        rows[f"{eval}/llm_{name}"] = (f"{label} of the residual stream", "", None)
        rows[f"{eval}/llm_top_{{n}}_{name}"] = (f"{label} of {{n}} raw dimensions", "", None)
        rows[f"{eval}/pca_top_{{n}}_{name}"] = (f"{label} of {{n}} principal components", "", None)
    return rows


#: Prefix -> (label, unit, better direction or None). No direction is given where "better" would
#: be a matter of taste: L0 is set by the sparsity target, the orthogonality loss is what one
#: variant optimises and another does not, and group counts describe rather than judge.
METRICS: dict[str, tuple[str, str, Direction | None]] = {
    "core/explained_variance": ("explained variance", "", "higher"),
    "core/explained_variance_legacy": ("explained variance (legacy)", "", "higher"),
    "core/explained_variance_sae_bench": ("explained variance (SAEBench's formula)", "", "higher"),
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
    "subspace/border_max_cosine": ("max cosine from forget to retain", "", "lower"),
    "subspace/n_coactivation_groups": ("co-activation groups", "groups", None),
    "subspace/n_forget": ("forget latents", "latents", None),
    "subspace/n_retain": ("retain latents", "latents", None),
    "subspace/n_shared": ("shared latents", "latents", None),
    "subspace/condition_number": ("condition number", "", "lower"),
    "subspace/effective_rank": ("effective rank", "", None),
    "subspace/principal_angle/min_deg": ("smallest principal angle", "°", "higher"),
    "subspace/principal_angle/mean_deg": ("mean principal angle", "°", "higher"),
    "subspace/principal_angle/max_deg": ("largest principal angle", "°", "higher"),
    "unlearning/loss/forget_damage_at_{n}": (
        "forget damage at retain damage ≤ {n} nats",
        "nats",
        "higher",
    ),
    "unlearning/loss/forget_damage_at_{n}_halfwidth": (
        "bootstrap half-width at retain damage ≤ {n} nats",
        "nats",
        None,
    ),
    "unlearning/loss/area": (
        "forget damage, mean over retain damage ≤ 0.20 nats",
        "nats",
        "higher",
    ),
    "unlearning/mcq/forget_accuracy_at_{n}": (
        "forget accuracy at retain accuracy ≥ {n}",
        "",
        "lower",
    ),
    "unlearning/mcq/forget_accuracy_at_{n}_halfwidth": (
        "bootstrap half-width at retain accuracy ≥ {n}",
        "",
        None,
    ),
    "unlearning/mcq/area": ("forget accuracy, mean over retain accuracy ≥ 0.90", "", "lower"),
    "unlearning/mcq/original_forget_accuracy": ("forget accuracy, model untouched", "", None),
    "unlearning/mcq/original_retain_accuracy": ("retain accuracy, model untouched", "", None),
    "unlearning/mcq/chance": ("accuracy by chance", "", None),
    "unlearning/mcq/n_forget_questions": ("forget questions", "questions", None),
    "unlearning/mcq/n_retain_questions": ("retain questions", "questions", None),
    "unlearning/score": ("published score", "", "higher"),
    **_probing("sparse_probing"),
    **_probing("sae_probes"),
    "absorption/full_absorption": ("full absorption rate", "", "lower"),
    "absorption/absorption_fraction": ("absorption fraction", "", "lower"),
    "absorption/n_split_features": ("latents per letter", "latents", "lower"),
    "absorption/n_letters": ("letters", "letters", None),
    "tpp/threshold_{n}": ("score, {n} latents ablated", "", "higher"),
    "tpp/threshold_{n}_intended": ("intended effect, {n} latents ablated", "", None),
    "tpp/threshold_{n}_unintended": ("unintended effect, {n} latents ablated", "", None),
    "scr/threshold_{n}": ("score, {n} latents ablated", "", "higher"),
    "scr/threshold_{n}_dir1": ("score of one direction, {n} latents ablated", "", None),
    "scr/threshold_{n}_dir2": ("score of the other direction, {n} latents ablated", "", None),
    "ravel/cause": ("cause", "", "higher"),
    "ravel/isolation": ("isolation", "", "higher"),
    "ravel/disentanglement": ("disentanglement", "", "higher"),
    "training/tokens": ("training tokens", "tokens", None),
    "training/steps": ("training steps", "steps", None),
    "training/train_seconds": ("training time", "s", "lower"),
    "training/dead_latents": ("dead latents", "latents", "lower"),
    "training/final_mse_loss": ("final training MSE", "", "lower"),
    "training/final_ortho_loss": ("final orthogonality loss", "", None),
    "training/captured_mean": ("neighbours captured, mean", "", "higher"),
    "training/captured_lowest": ("neighbours captured, lowest", "", "higher"),
    "training/n_groups": ("groups", "groups", None),
    "training/forget_latents": ("forget latents (training)", "latents", None),
    "training/retain_latents": ("retain latents (training)", "latents", None),
    "training/shared_latents": ("shared latents (training)", "latents", None),
}


@dataclass(frozen=True)
class MetricInfo:
    """How to present the metric ``key``.

    ``qualifier`` names the corpus or group the value belongs to ("" where there is none);
    ``direction`` is None where neither way is better. ``template`` is the name with ``{n}`` for
    ``number``, where it has one.
    """

    key: str
    name: str
    qualifier: str
    unit: str
    direction: Direction | None
    template: str = ""
    number: str = ""

    @property
    def label(self) -> str:
        """Name with its qualifier: ``explained variance, pooled``."""
        return f"{self.name}, {self.qualifier}" if self.qualifier else self.name

    @property
    def full_label(self) -> str:
        """The label with the evaluation before it where it needs one: ``TPP: score, ...``."""
        short = evaluation(self.key.split("/")[0]).short
        return f"{short}: {self.label}" if short else self.label

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
        prefix = "/".join(parts[:length])
        numbers = _NUMBER.findall(prefix)
        known = METRICS.get(prefix) or METRICS.get(_NUMBER.sub("{n}", prefix))
        if known is not None:
            label, unit, direction = known
            n = numbers[0] if "{n}" in label else ""
            qualifier = ", ".join(part for part in (domain, *parts[length:]) if part)
            qualifier = qualifier.replace("+", " + ")
            return MetricInfo(
                key, label.replace("{n}", n), qualifier, unit, direction, label if n else "", n
            )
    name = " ".join(parts[1:] or parts).replace("_", " ")
    return MetricInfo(key, name, domain, "", None)
