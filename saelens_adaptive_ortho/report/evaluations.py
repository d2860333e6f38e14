"""What each evaluation asks, and which of its metrics answer.

`EVALUATIONS` lists the known ones in the order of the report. An unknown one is shown too: under
its own name, with all its metrics, and without a verdict, for want of primary metrics.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class EvaluationInfo:
    """How to present an evaluation. Metric names are without the prefix ``{eval}/``.

    Args:
        name: as in the result files.
        title: heading of its section.
        description: what it measures, in a sentence.
        primary: the metrics its verdict judges, chosen before any result was seen.
        headline: the metrics that stand in the headline table.
        glance: the metrics that get a panel in the headline figure.
        short: put before a metric's label outside the section; empty where the label says enough.
        caveat: what to know before believing it, where the results themselves say nothing.
    """

    name: str
    title: str
    description: str = ""
    primary: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()
    glance: tuple[str, ...] = ()
    short: str = ""
    caveat: str = ""

    def keys(self, names: Iterable[str]) -> list[str]:
        """Return metric names with the prefix ``{eval}/``."""
        return [f"{self.name}/{name}" for name in names]


DOMAINS = ("pooled", "forget", "retain")

_CORE = ("pooled/explained_variance", "pooled/ce_loss_score")
_SUBSPACE = ("principal_angle/mean_deg", "mean_max_cosine")
_UNLEARNING = (
    *(f"loss/forget_damage_at_{limit}" for limit in ("0.05", "0.10", "0.20")),
    *(f"mcq/forget_accuracy_at_{limit}" for limit in ("0.99", "0.95", "0.90")),
)
_ACCURACY, _AUC = (
    tuple(f"sae_top_{k}_{measure}" for k in (1, 5, 20)) for measure in ("accuracy", "auc")
)
_ABLATION_CAVEAT = (
    "Read with care: “Are Sparse Autoencoder Benchmarks Reliable?” (arXiv 2605.18229) finds that "
    "TPP and SCR should not be used to rank SAEs."
)

EVALUATIONS: tuple[EvaluationInfo, ...] = (
    EvaluationInfo(
        "core",
        "Reconstruction",
        "SAEBench core on held-out passages: how much of the variance of the activations the SAE "
        "reconstructs, and how well the model predicts the next token with the reconstruction in "
        "their place.",
        primary=_CORE,
        headline=(
            *(f"{d}/{name}" for name in ("explained_variance", "ce_loss_score") for d in DOMAINS),
            "pooled/l0",
            "pooled/frac_alive",
        ),
        glance=(*_CORE, "pooled/l0", "pooled/frac_alive"),
    ),
    EvaluationInfo(
        "subspace",
        "Geometry of decoder directions",
        "Cosines between the decoder directions of all latents, and principal angles between the "
        "subspaces of those that fire mostly on the forget and mostly on the retain corpus.",
        primary=_SUBSPACE,
        headline=(
            "principal_angle/mean_deg",
            "principal_angle/min_deg",
            "mean_max_cosine",
            *(f"condition_number/{g}" for g in ("forget", "retain", "shared", "forget+retain")),
        ),
        glance=(
            "principal_angle/mean_deg",
            "principal_angle/min_deg",
            "mean_max_cosine",
            "condition_number/forget+retain",
        ),
        caveat="Geometry is not knowledge: directions can be far apart and still carry the same.",
    ),
    EvaluationInfo(
        "unlearning",
        "Unlearning",
        "Latents that fire on the forget corpus and hardly on the retain corpus are clamped below "
        "zero, at many strengths: how much of forget is lost for how little of retain, in "
        "next-token loss (damage: its increase) and in multiple-choice questions the model knows.",
        primary=_UNLEARNING,
        headline=(*_UNLEARNING, "score"),
        glance=("loss/forget_damage_at_0.10", "mcq/forget_accuracy_at_0.95"),
        short="unlearning",
        caveat="Read the frontier, not the published score, which is degenerate: single SAEs of "
        "one architecture span 0.0075 to 0.11.",
    ),
    EvaluationInfo(
        "sparse_probing",
        "Sparse probing",
        "SAEBench's linear probes on the k latents that tell a concept best: accuracy on test "
        "examples, averaged over data sets.",
        primary=_ACCURACY,
        headline=_ACCURACY,
        glance=("sae_top_5_accuracy",),
        short="sparse probing",
    ),
    EvaluationInfo(
        "sae_probes",
        "SAE Probes",
        "Logistic probes on the k latents that tell a concept best, on the data sets of SAE "
        "Probes: area under the ROC curve on test examples, averaged over data sets.",
        primary=_AUC,
        headline=_AUC,
        glance=("sae_top_5_auc",),
        short="SAE Probes",
        caveat="The most reliable metric that arXiv 2605.18229 tested, and even this one struggles "
        "to tell variants of one architecture apart.",
    ),
    EvaluationInfo(
        "absorption",
        "Feature absorption",
        "First-letter task: how often the latents of a letter stay silent on a word that begins "
        "with it, because a more specific latent has absorbed them.",
        primary=("full_absorption",),
        headline=("full_absorption",),
        glance=("full_absorption",),
        short="absorption",
        caveat="Meant for SAEs of at least 16k latents on models of at least 1B parameters; "
        "smaller ones say little.",
    ),
    EvaluationInfo(
        "tpp",
        "Targeted probe perturbation (TPP)",
        "Ablating the latents of one class should lower the accuracy of that class's probe "
        "(intended) and leave the probes of other classes alone (unintended); TPP is the "
        "difference.",
        primary=("threshold_10", "threshold_50"),
        headline=("threshold_10",),
        glance=("threshold_10",),
        short="TPP",
        caveat=_ABLATION_CAVEAT,
    ),
    EvaluationInfo(
        "scr",
        "Spurious correlation removal (SCR)",
        "Ablating the latents of a spurious feature should free a biased classifier from it; 1 "
        "means the bias is gone, 0 that nothing changed.",
        primary=("threshold_10", "threshold_50"),
        headline=("threshold_10",),
        glance=("threshold_10",),
        short="SCR",
        caveat=_ABLATION_CAVEAT,
    ),
    EvaluationInfo(
        "ravel",
        "RAVEL",
        "Exchanging latents between two entities should change one attribute (cause) and leave "
        "the others as they are (isolation); disentanglement is the mean of both.",
        primary=("disentanglement",),
        glance=("disentanglement",),
        short="RAVEL",
    ),
    EvaluationInfo(
        "training",
        "Training",
        "What training took and where it ended; wall time depends on whatever else the machine "
        "was doing.",
        headline=("captured_mean", "train_seconds"),
    ),
)

_BY_NAME = {info.name: info for info in EVALUATIONS}


def evaluation(name: str) -> EvaluationInfo:
    """Return the evaluation ``name``; an unknown one gets a title and nothing else."""
    words = name.replace("_", " ")
    return _BY_NAME.get(name) or EvaluationInfo(name, words[:1].upper() + words[1:])


def order_evaluations(names: Iterable[str]) -> list[str]:
    """Return the distinct ``names``: those of `EVALUATIONS` in its order, then others sorted."""
    present = set(names)
    return [n for n in _BY_NAME if n in present] + sorted(present - set(_BY_NAME))


def headline_keys(keys: Iterable[str]) -> list[str]:
    """Return the headline metrics among ``keys``, in the order of `EVALUATIONS`."""
    present = set(keys)
    wanted = [key for info in EVALUATIONS for key in info.keys(info.headline)]
    return [key for key in wanted if key in present]
