"""Training: time, tokens and final losses, which the runner writes."""

from __future__ import annotations

from saelens_adaptive_ortho.evaluations.contract import FIGURES, Evaluation, Figure, Metric

TRAINING = Evaluation(
    name="training",
    title="Training",
    description=(
        "What training took and where it ended; wall time depends on whatever else the "
        "machine was doing."
    ),
    metrics={
        "tokens": Metric("training tokens", "tokens"),
        "steps": Metric("training steps", "steps"),
        "train_seconds": Metric("training time", "s", "lower"),
        "dead_latents": Metric("dead latents", "latents", "lower", resolution=1.0),
        "final_mse_loss": Metric("final training MSE", "", "lower"),
        "final_ortho_loss": Metric("final orthogonality loss"),
        "captured_mean": Metric("neighbours captured, mean", "", "higher"),
        "captured_lowest": Metric("neighbours captured, lowest", "", "higher"),
        "n_groups": Metric("groups", "groups"),
        "forget_latents": Metric("forget latents (training)", "latents"),
        "retain_latents": Metric("retain latents (training)", "latents"),
        "shared_latents": Metric("shared latents (training)", "latents"),
    },
    headline=("captured_mean", "train_seconds"),
    figures=(
        Figure(
            "training",
            "Training curves",
            (
                "Thick lines are means over seeds, faint lines single seeds; variants that end "
                "at the same reconstruction loss paid nothing for orthogonality (the axis of "
                "explained variance leaves out the first tenth)."
            ),
            f"{FIGURES}.curves:training_figure",
        ),
        Figure(
            "groups",
            "Groups over training",
            (
                "How the orthogonality groups change while training: churn that settles near "
                "zero means the groups have become stable."
            ),
            f"{FIGURES}.curves:groups_figure",
        ),
    ),
)
