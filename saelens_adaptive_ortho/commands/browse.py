"""``adaptive-ortho browse``: a page that shows what each latent does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.settings import Seed, check_fields


@dataclass(frozen=True, kw_only=True)
class BrowseOptions:
    """The SAEs, the text, and what the page shows of each latent.

    Args:
        saes: a run folder, a directory that SAELens saved, or release:sae_id of its registry;
            NAME= before the last two sets the name of the SAE in the page.
        variant: the SAE of a run folder: its variant.
        seed: the SAE of a run folder: its seed.
        out: folder of the page; by default browse in the run folder, if there is one SAE.
        contexts: number of training contexts read per corpus.
        passages: number of top passages shown per latent and corpus.
        width: tokens of a passage on each side of its largest activation.
        neighbours: number of nearest latents shown per latent.
        tokens: number of tokens of the logit lens shown per latent and direction.
        domain_ratio: a latent belongs to one side if its firing rate there is at least this many
            times the rate on the other side.
        export: other format to write beside the page; neuronpedia writes the JSON of SAEDashboard,
            which Neuronpedia reads.
        model: language model, as a hub name or a directory; by default the model of the SAEs.
        forget: text of the forget corpus: a file, a directory, or a hub data set; by default the
            corpora are those of the SAEs' training.
        retain: text of the retain corpus, in the same form; NAME=CORPUS adds a named retain
            corpus.
        retain_share: share of a named retain corpus in the retain side, e.g. near=0.2; without it,
            the corpus is shown, and has no part in the groups.
        context_size: tokens in a context; by default the context size of the SAEs.
        batch_size_prompts: contexts per forward pass.
        device: device of the model and the SAEs.
        dtype: dtype of the model and the SAEs.
    """

    saes: list[str] = field(default_factory=list, metadata={"positional": "RUN_OR_SAE"})
    variant: str = "adaptive"
    seed: Seed = 0
    out: Path | None = field(default=None, metadata={"metavar": "FOLDER"})
    contexts: Annotated[int, Field(ge=2)] = 256
    passages: PositiveInt = 5
    width: PositiveInt = 16
    neighbours: PositiveInt = 8
    tokens: PositiveInt = 8
    domain_ratio: Annotated[float, Field(gt=1)] = 9.0
    export: str | None = field(default=None, metadata={"metavar": "FORMAT"})
    model: str | None = None
    forget: str | None = field(default=None, metadata={"metavar": "CORPUS"})
    retain: list[str] = field(default_factory=list, metadata={"metavar": "[NAME=]CORPUS"})
    retain_share: list[str] = field(default_factory=list, metadata={"metavar": "NAME=SHARE"})
    context_size: Annotated[int, Field(ge=2)] | None = None
    batch_size_prompts: PositiveInt = 32
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fields(self, prefix="--")


def run(options: BrowseOptions) -> int:
    """Measure, and write the page."""
    from saelens_adaptive_ortho.commands.browsing import browse

    browse(options, say=say)
    return 0


COMMAND = Command(
    name="browse",
    help="A page that shows what each latent does: passages, rates, nearest latents, logit lens.",
    options=BrowseOptions,
    run=run,
    resume="The same command begins again; a page that was complete is still there.",
)
