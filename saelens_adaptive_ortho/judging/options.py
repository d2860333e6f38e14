"""The options that every command for finished SAEs shares: the SAEs, the model and the text.

This module does not load torch, so the command line shows its help at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from saelens_adaptive_ortho.settings import check_fields


@dataclass(frozen=True, kw_only=True)
class JudgingOptions:
    """The SAEs, and the model and text to judge them on.

    If an option is not given, the value comes from the files of the SAEs. Each field is the option
    of the same name: ``context_size`` is ``--context-size``.

    Args:
        saes: a directory that SAELens or another library saved (see the list below), or
            release:sae_id of SAELens's registry; NAME= before it sets the name of the SAE in
            tables; SAEs named NAME=NUMBER (topk=20=path1 topk=40=path2) are one method at several
            sparsities.
        out: folder for all output files.
        model: language model, as a hub name or a directory; by default the model of the SAEs.
        hook: hook point at which the SAEs read, in TransformerLens's names, e.g.
            blocks.5.hook_resid_post; by default the one that the files of each SAE tell.
        forget: text of the forget corpus: a file, a directory, or a hub data set as id or
            id:configuration; by default the corpora are those of the SAEs' training.
        retain: text of the retain corpus, in the same form as --forget. NAME=CORPUS adds a named
            retain corpus, which is reported by itself. With only one of the two corpora, metrics
            that compare corpora are left out.
        retain_share: share of a named retain corpus in the retain text by which evaluations choose
            latents, e.g. near=0.2; without it, nothing is chosen by the corpus.
        forget_test: second forget text, in the same form as --forget, on which evaluations only
            read the damage.
        context_size: tokens in a context; by default the context size of the SAEs.
        device: device of the model and the SAEs.
        dtype: dtype of the model and the SAEs.
    """

    saes: list[str] = field(default_factory=list, metadata={"positional": "SAE"})
    out: Path = field(metadata={"metavar": "FOLDER"})
    model: str | None = None
    hook: str | None = None
    forget: str | None = field(default=None, metadata={"metavar": "CORPUS"})
    retain: list[str] = field(default_factory=list, metadata={"metavar": "[NAME=]CORPUS"})
    retain_share: list[str] = field(default_factory=list, metadata={"metavar": "NAME=SHARE"})
    forget_test: str | None = field(default=None, metadata={"metavar": "CORPUS"})
    context_size: Annotated[int, Field(ge=2)] | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fields(self, prefix="--")
