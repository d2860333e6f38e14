"""``adaptive-ortho push``: the SAEs of a run on the Hugging Face hub, with a model card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from saelens_adaptive_ortho.commands.options import Command, say


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """The run, the repository, and what goes there.

    Args:
        run_dir: a run folder of `adaptive-ortho compare`.
        repo: the repository of the hub, user/name; it is made if it does not exist.
        variants: only these variants, comma-separated; by default all that are trained.
        seeds: only these seeds, comma-separated; by default all that are trained.
        with_results: also upload the results of all evaluations, as results.jsonl.
        base_model: hub name of the language model, if the run names it in another way.
        license: licence of the language model as the hub writes it, e.g. apache-2.0; by default it
            is read from the model's card.
        private: make a repository that only its owner can see.
        replace_card: replace a model card that this command did not write.
        dry_run: write what would be uploaded into this new folder, and upload nothing.
    """

    run_dir: Path = field(metadata={"positional": "RUN_DIR"})
    repo: str = field(metadata={"positional": "USER/REPO"})
    variants: str | None = None
    seeds: str | None = None
    with_results: bool = False
    base_model: str | None = field(default=None, metadata={"metavar": "USER/MODEL"})
    license: str | None = None
    private: bool = False
    replace_card: bool = False
    dry_run: Path | None = field(default=None, metadata={"metavar": "DIR"})


def run(options: PushOptions) -> int:
    """Upload the SAEs, or write what would be uploaded."""
    from saelens_adaptive_ortho.commands.pushing import push

    push(options, say=say)
    return 0


COMMAND = Command(
    name="push",
    help="Upload the SAEs of a run to the Hugging Face hub, with a model card from its results.",
    options=PushOptions,
    run=run,
    resume="Of an upload that is not complete, the hub shows nothing. Run the same command again.",
)
