"""``adaptive-ortho unlearn``: what a model writes before and after it forgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.judging.formats import titles
from saelens_adaptive_ortho.settings import Seed, check_fields

COLDEST = 0.01  # logits divided by less than this may be infinite


@dataclass(frozen=True, kw_only=True)
class UnlearnOptions:
    """The SAE, what is edited, and the prompts.

    Args:
        sae: a run folder, a directory that SAELens or another library saved (see the list below),
            or release:sae_id of SAELens's registry.
        variant: the SAE of a run folder: its variant.
        seed: the SAE of a run folder: its seed.
        prompt: text that the model continues.
        continuation: how the prompt truly goes on, with the space in front; its loss is shown. One
            for each prompt, in the same order.
        prompt_file: prompts from a file: a .jsonl file with the fields prompt and, if known,
            continuation, or a text file with one prompt in each line; read like a corpus.
        selection: selection that an earlier call saved; nothing is chosen then.
        budget: largest rise of the loss on any retain corpus, in nats per token, for choosing;
            0.05 by default.
        kind: what is chosen: clamp (latents are set below zero), or bounded (directions are
            removed at every token).
        set: set a field of the unlearning evaluation for choosing, e.g. --set
            unlearning.gate=token for a clamp without a gate; `adaptive-ortho evaluations
            unlearning` lists them.
        example: write examples of text before and after for the report of the run folder, from
            held-out text, instead of continuing prompts.
        save: new file that the selection is written to; a file that exists is not replaced.
        max_new_tokens: largest number of tokens that the model writes.
        temperature: temperature of sampling; 0 takes the most likely token.
        sampling_seed: seed of sampling, the same before and after.
        model: language model, as a hub name or a directory; by default the model of the SAE.
        hook: hook point at which the SAE reads, in TransformerLens's names, e.g.
            blocks.5.hook_resid_post; by default the one that its files tell.
        forget: text of the forget corpus for choosing: a file, a directory, or a hub data set; by
            default the corpora are those of the SAE's training.
        retain: text of the retain corpus for choosing, in the same form; NAME=CORPUS adds a named
            retain corpus.
        retain_share: share of a named retain corpus in the retain text, e.g. near=0.2; without it,
            nothing is chosen by the corpus.
        context_size: tokens in a context for choosing; by default the context size of the SAE.
        device: device of the model and the SAE.
        dtype: dtype of the model and the SAE.
    """

    sae: str = field(metadata={"positional": "RUN_OR_SAE"})
    variant: str = "adaptive"
    seed: Seed = 0
    prompt: list[str] = field(default_factory=list, metadata={"metavar": "TEXT"})
    continuation: list[str] = field(default_factory=list, metadata={"metavar": "TEXT"})
    prompt_file: Path | None = field(default=None, metadata={"metavar": "FILE"})
    selection: Path | None = field(default=None, metadata={"metavar": "FILE"})
    budget: PositiveFloat | None = field(default=None, metadata={"metavar": "NATS"})
    kind: str = "clamp"
    set: list[str] = field(default_factory=list, metadata={"metavar": "EVAL.FIELD=VALUE"})
    example: bool = False
    save: Path | None = field(default=None, metadata={"metavar": "FILE"})
    max_new_tokens: PositiveInt = 40
    temperature: NonNegativeFloat = 0.0
    sampling_seed: Seed = 0
    model: str | None = None
    hook: str | None = None
    forget: str | None = field(default=None, metadata={"metavar": "CORPUS"})
    retain: list[str] = field(default_factory=list, metadata={"metavar": "[NAME=]CORPUS"})
    retain_share: list[str] = field(default_factory=list, metadata={"metavar": "NAME=SHARE"})
    context_size: Annotated[int, Field(ge=2)] | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fields(self, prefix="--")
        if 0 < self.temperature < COLDEST:
            rule = f"must be 0 (the most likely token) or at least {COLDEST}."
            raise reject("--temperature", self.temperature, rule)


def run(options: UnlearnOptions) -> int:
    """Choose or read a selection, and show what the model writes before and after."""
    if options.example:
        from saelens_adaptive_ortho.commands.examples import write_examples

        write_examples(options, say=say)
        return 0
    from rich.console import Console

    from saelens_adaptive_ortho.commands.unlearning import before_and_after, shown

    console = Console()
    for answer in before_and_after(options, say=say):
        console.print(shown(answer))
    return 0


COMMAND = Command(
    name="unlearn",
    help="What a model writes before and after it forgets the forget corpus of an SAE.",
    options=UnlearnOptions,
    run=run,
    resume="The same command starts again; a selection is written when it is complete.",
    more=lambda: f"directories of SAEs, by their files:\n{titles()}",
)
