"""``adaptive-ortho analyse``: the geometry of finished SAEs, and their pairs of similar latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.judging.formats import titles
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.settings import Share


@dataclass(frozen=True, kw_only=True)
class AnalyseOptions(JudgingOptions):
    """The options of the analysis.

    Args:
        contexts: number of training contexts read per corpus.
        domain_ratio: a latent belongs to one corpus if its firing rate there is at least this many
            times the rate on the other corpus.
        energy: share of the squared singular values that a group's subspace keeps for principal
            angles.
        min_cosine: lowest cosine of a similar pair.
        max_lift: highest co-firing, relative to chance, of a similar pair that is an absorption
            candidate.
        candidates: number of candidates shown per SAE, the most similar ones.
        texts: number of top-activating texts shown per latent of a candidate.
        batch_size_prompts: contexts per forward pass.
    """

    contexts: Annotated[int, Field(ge=2)] = 256
    domain_ratio: Annotated[float, Field(gt=1)] = 9.0
    energy: Share = 0.9
    min_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.3
    max_lift: Share = 0.25
    candidates: NonNegativeInt = 20
    texts: NonNegativeInt = 3
    batch_size_prompts: PositiveInt = 32


def run(options: AnalyseOptions) -> int:
    """Analyse, write the page and show its table."""
    from rich.console import Console

    from saelens_adaptive_ortho.commands.analysis import analyse
    from saelens_adaptive_ortho.report.tables import analysis_table

    Console().print(analysis_table(analyse(options, say=say)))
    return 0


COMMAND = Command(
    name="analyse",
    help="Geometry of finished SAEs: conditioning, angles and cosines of groups, similar pairs.",
    options=AnalyseOptions,
    run=run,
    resume="The same command begins again.",
    more=lambda: f"directories of SAEs, by their files:\n{titles()}",
)
