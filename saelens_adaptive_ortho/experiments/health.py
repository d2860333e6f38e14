"""Whether a training worked: what its SAE does on held-out text."""

from __future__ import annotations

from typing import Any

from sae_lens.saes.sae import SAE

from saelens_adaptive_ortho.judging.firing import Firings, accumulate, passes
from saelens_adaptive_ortho.judging.reconstruction import ExplainedVariance
from saelens_adaptive_ortho.report.notes import Health
from saelens_adaptive_ortho.training.runner import AdaptiveOrthoRunner

CONTEXTS = 32  # of each corpus


def health_of(runner: AdaptiveOrthoRunner, sae: SAE[Any], name: str) -> Health:
    """L0 and explained variance on some held-out contexts, beside what the training logged last.

    Args:
        runner: the runner, after the training.
        sae: the SAE that it exported.
        name: name of the SAE in the runner.
    """
    last = runner.trainer.state.history[name][-1]
    dead = last.get("sparsity/dead_features")
    contexts = [c.held_out[:CONTEXTS] for c in runner.corpora if c.share > 0]
    firings, variance = Firings(sae, len(contexts)), ExplainedVariance(sae)
    size = runner.cfg.store_batch_size_prompts
    batches = passes(sae, runner.model, contexts, size, "Looking at held-out text", True)
    accumulate(batches, firings, variance)
    n_tokens = int(firings.n_tokens.sum())
    return Health(
        explained=variance.result() if n_tokens else None,
        l0=int(firings.fired.sum()) / n_tokens if n_tokens else None,
        trained_l0=last.get("l0"),
        dead=None if dead is None else dead / sae.cfg.d_sae,
    )
