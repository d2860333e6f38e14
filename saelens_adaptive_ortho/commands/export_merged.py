"""``adaptive-ortho export-merged``: a checkpoint that forgets without an SAE, where it is exact."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import atomic_directory, check_new_folder

NOTHING = "Nothing was written."


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The selection, and the folder for the model.

    Args:
        selection: file with a bounded selection at blocks.0.hook_resid_pre; no ordinary checkpoint
            can hold another one exactly.
        dir: new folder for the model.
        model: language model, as a hub name or a directory; by default that of the selection.
        dtype: dtype of the weights; in another one than float32 they are rounded.
    """

    selection: Path = field(metadata={"positional": "SELECTION"})
    dir: Path = field(metadata={"positional": "DIR"})
    model: str | None = None
    dtype: str = "float32"


def run(options: ExportOptions) -> int:
    """Check the selection, map the embedding and write the checkpoint."""
    from saelens_adaptive_ortho.judging.unlearning.merging import check_mergeable, merge
    from saelens_adaptive_ortho.judging.unlearning.saved import UnlearningSelection
    from saelens_adaptive_ortho.text import models

    selection = UnlearningSelection.load(options.selection)
    check_mergeable(selection)
    check_new_folder("DIR", options.dir)
    try:
        dtype = models.str_to_dtype(options.dtype)
    except ValueError as error:
        raise reject("--dtype", options.dtype, f"must be one of {models.DTYPES}.") from error
    model, tokenizer = models.load_plain_model(options.model or selection.model_name)
    merge(model, selection)
    with atomic_directory(options.dir, NOTHING) as folder:
        model.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    say(f"{options.dir}: a model of transformers that forgets; it needs no SAE.")
    return 0


COMMAND = Command(
    name="export-merged",
    help="Write a bounded projection into the weights of a checkpoint, where that is exact.",
    options=ExportOptions,
    run=run,
    resume="Nothing was written. Run the same command again.",
)
